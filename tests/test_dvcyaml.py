"""dvc.yaml: each stage lists the code that it imports, the parameters that it reads and the data of other stages."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from landmarks import artifacts
from landmarks.params import Train
from landmarks.stage.imports import PACKAGES, all_imports, direct_imports, module_file
from tools import dependencies

import pytest
import yaml
from conftest import ROOT, default_values, user_error

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
ABLATIONS = default_values()["ablations"]
STAGES = {name: stage.get("do", stage) for name, stage in PIPELINE["stages"].items()}
DESIGNED = {
    *("download", "filter", "split", "augment-index", "fetch-backbone", "extract-features"),
    *("inspect", "train-baseline", "train-abn", "train-ablation", "train-repeats", "evaluate", "similar"),
    *("package", "plot", "report"),
}


def script(stage: dict) -> Path:
    """The file that a stage's command runs, `python -m stages.NAME`."""
    words = stage["cmd"].split()
    file = module_file(words[words.index("-m") + 1])
    assert file
    return file


def outs(stage: dict) -> dict[str, dict]:
    """The outs of a stage with their options."""
    return {
        path: options
        for out in stage["outs"]
        for path, options in (out if isinstance(out, dict) else {out: {}}).items()
    }


def paths(name: str) -> list[str]:
    """The outs of a stage, those of every ablation for `train-ablation`."""
    keys = ABLATIONS if "foreach" in PIPELINE["stages"][name] else [""]
    return [path.replace("${key}", key) for path in outs(STAGES[name]) for key in keys]


# A training with `p.train`, and a dump of it, does not depend on the number of repeats.
BLOCKS = {
    "model": {"abn", "ablations"},
    "models": {"abn", "ablations"},
    "train": {f"train.{key}" for key in Train.model_fields if key != "repeats"},
}


@cache
def parameters(file: Path) -> frozenset[str]:
    """The parameters that a stage's script reads: `filter.top_k` for `p.filter.top_k`, `BLOCKS` for several."""
    tree = ast.parse(file.read_bytes())
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    read = set()
    for node in ast.walk(tree):
        keys = []
        outermost = id(node) not in inner
        while isinstance(node, ast.Attribute):
            keys.append(node.attr)
            node = node.value
        if outermost and keys and isinstance(node, ast.Name) and node.id == "p":
            key = ".".join(keys[::-1]).removesuffix(".items")
            read |= BLOCKS.get(key, {key})
    return frozenset(read)


def covers(listed: str, read: str) -> bool:
    return read == listed or read.startswith(listed + ".")


HOW = ("compute.device", "compute.workers", "compute.cluster")  # how to compute, not what


def test_the_stages_are_those_of_the_design() -> None:
    assert set(STAGES) == DESIGNED


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_says_what_it_is_for(name: str) -> None:
    assert len(STAGES[name]["desc"]) > 20


def test_deps_are_the_modules_that_are_imported() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert dependencies.corrected(text) == text, "run python -m tools.dependencies --write"
    assert "landmarks/html_report.html" in STAGES["report"]["deps"], "a template is no module, but stays"


def test_computed_deps_replace_others_and_nothing_else(tmp_path: Path) -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    wrong = text.replace("      - stages/split.py\n", "      - landmarks/nothing.py\n")
    assert wrong != text and dependencies.corrected(wrong) == text
    with user_error(r"dvc\.yaml: there is no module stages\.nothing"):
        dependencies.corrected(text.replace("stages.split", "stages.nothing"))


def test_imports_are_followed_into_functions_and_packages() -> None:
    loaded = {path.relative_to(ROOT).as_posix() for path in all_imports(ROOT / "stages/download.py")}
    assert {"landmarks/__init__.py", "landmarks/sources/gldv1.py", "landmarks/stage/signals.py"} < loaded
    assert not any(path.startswith(("landmarks/serving", "landmarks/networks")) for path in loaded)


def test_no_stage_imports_another_and_none_imports_serving() -> None:
    for stage in STAGES.values():
        loaded = {path.relative_to(ROOT).as_posix() for path in all_imports(script(stage)) if path != script(stage)}
        assert not [path for path in loaded if not path.startswith("landmarks/") or "/serving/" in path]


def test_stages_that_read_tables_load_no_slow_package() -> None:
    """They run in every ablation."""
    names = ("evaluate", "package", "plot", "report", "train_repeats")
    code = f"import sys, {', '.join(f'stages.{name}' for name in names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "dvclive", "sklearn", "scipy"}.isdisjoint(done.stdout.split())


LAYERS = {"landmarks": 0, "stages": 1, "tools": 1, "studies": 2, "benchmarks": 2}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def package_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


def test_no_module_imports_one_of_a_higher_layer() -> None:
    upward = [(file, other) for file in FILES for other in direct_imports(file) if file != other]
    assert [pair for pair in upward if LAYERS[package_of(pair[1])] > LAYERS[package_of(pair[0])]] == []


def test_there_is_no_import_cycle() -> None:
    """A module imports the `__init__.py` of its own package implicitly; this does not count."""
    graph = {file: {other for other in direct_imports(file) if other.parent not in file.parents} for file in FILES}
    for file in FILES:
        graph[file] |= {o for o in direct_imports(file) if o.parent in file.parents and o.name != "__init__.py"}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", STAGES)
def test_deps_that_are_data_are_outs_of_other_stages(name: str) -> None:
    made = {path for other in STAGES if other != name for path in paths(other)}
    for dep in STAGES[name]["deps"]:
        if dep != "requirements.txt" and dep.split("/")[0] not in ("landmarks", "stages"):
            assert any(
                covers(path.replace("/", "."), dep.replace("/", ".")) or path.startswith(f"{dep}/") for path in made
            )


@pytest.mark.parametrize("file", sorted({script(stage) for stage in STAGES.values()}), ids=lambda file: file.stem)
def test_params_are_those_that_are_read(file: Path) -> None:
    """The stages that share a script are taken together: train-baseline, train-abn and train-ablation."""
    stages = [stage for stage in STAGES.values() if script(stage) == file]
    listed = {key.removesuffix(".${key}") for stage in stages for key in stage.get("params", [])}
    read = parameters(file)
    read = {key for key in read if key not in HOW}
    assert {key for key in read if not any(covers(block, key) for block in listed)} == set(), "read, but not listed"
    assert {block for block in listed if not any(covers(block, key) for key in read)} == set(), "listed, but not read"


def test_no_ablation_is_named_in_dvcyaml() -> None:
    """Adding or removing one in params.yaml needs no change here."""
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert [name for name in ABLATIONS if name in text] == []


def test_artifacts_lists_the_outs_of_dvcyaml() -> None:
    listed = {path.as_posix() for path in artifacts.OUTS}
    assert {path.removesuffix("/${key}") for stage in STAGES.values() for path in outs(stage)} == listed | {
        f"{folder}/{name}" for folder in (artifacts.MODELS, artifacts.LOGS) for name in ("baseline", "abn")
    }


def test_only_outs_that_git_keeps_are_not_cached() -> None:
    uncached = {
        path for stage in STAGES.values() for path, options in outs(stage).items() if options.get("cache") is False
    }
    committed = {"results.json", "results.md", "classes.csv", "wrong.csv", "inspection"}
    assert uncached == {"plots", *(f"metrics/{name}" for name in committed)}


def test_plots_and_metrics_are_outs() -> None:
    shown = list(PIPELINE["metrics"])
    for plot in PIPELINE["plots"]:
        if isinstance(plot, str):
            shown.append(plot)
        else:
            for settings in plot.values():
                shown += [path for axis in ("x", "y") if isinstance(settings[axis], dict) for path in settings[axis]]
    made = [path for name in STAGES for path in paths(name)]
    assert len(shown) > len(PIPELINE["plots"])
    assert [path for path in shown if not any(path == out or path.startswith(f"{out}/") for out in made)] == []
