"""What our code may do with what comes from outside: no pickle, no code in files, no shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

FILES = [path for folder in ("landmarks", "stages", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
NEVER = {
    *("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib.load", "joblib.dump", "torch.save"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "pd.read_pickle", "eval", "exec", "torch.hub.load"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "shutil.unpack_archive"),
}
METHODS = {".get_state_dict", ".load_state_dict_from_url", ".extractall"}  # of whatever object


def names(tree: ast.AST) -> Iterator[str]:
    """What a module imports and calls, and the methods that it calls, with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield ast.unparse(node.func)
            yield f".{ast.unparse(node.func).rpartition('.')[2]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_unpickles_evaluates_or_starts_a_shell(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert (NEVER | METHODS) & set(names(tree)) == set()
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("shell", "False") == "False"
        assert given.get("allow_pickle", "False") == "False"
        if ast.unparse(call.func) == "torch.load":
            assert given["weights_only"] == "True"
