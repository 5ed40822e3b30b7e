"""Finds the files of this project that a script imports, directly or indirectly: the code that affects a stage.

dvc.yaml lists these files, or folders of them, as dependencies (`python -m tools.dependencies --write`). The scratch
folder's key covers them, and a stage fails if one of them changes while it runs.
"""

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("benchmarks", "landmarks", "stages", "studies", "tools")


def module_file(name: str) -> Path | None:
    """The file of the module `name`; None if it is not part of this project."""
    path = ROOT.joinpath(*name.split("."))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in candidates if file.is_file()), None) if name.split(".")[0] in PACKAGES else None


@cache
def direct_imports(file: Path) -> frozenset[Path]:
    """The project's files that `file` imports, also inside functions, with the `__init__.py` of their packages."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.module is None or node.level:
                raise ValueError(f"{file}:{node.lineno}: relative imports are not followed")
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    parents = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    return frozenset(found for parent in parents if (found := module_file(parent)))


def all_imports(script: Path) -> list[Path]:
    """The project's files that running `script` may load, sorted, with `script` itself."""
    found: set[Path] = set()
    new = {script}
    while new:
        found |= new
        new = {file for parent in new for file in direct_imports(parent)} - found
    return sorted(found)


def running_code() -> list[Path]:
    """`all_imports` of the script that this process runs; empty if it is not part of this project."""
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
    if script.is_file() and script.is_relative_to(ROOT) and script.relative_to(ROOT).parts[0] in PACKAGES:
        return all_imports(script)
    return []
