"""dvc.yaml: every stage says what it depends on, by the code that it runs and the parameters that it reads."""

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
ABLATIONS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["ablations"]
STAGES = {name: stage.get("do", stage) for name, stage in PIPELINE["stages"].items()}
DESIGNED = {
    *("download", "filter", "split", "augment-index", "fetch-backbone", "extract-features"),
    *("train-baseline", "train-abn", "train-ablation", "evaluate", "package", "plot"),
}


def module_file(name: str) -> str | None:
    """The file of the module called `name`, relative to the root, if it is one of ours."""
    path = Path(*name.split("."))
    return next((str(f) for f in (path / "__init__.py", path.with_suffix(".py")) if (ROOT / f).is_file()), None)


@cache
def imported(file: str) -> frozenset[str]:
    """Our files that `file` imports, anywhere in it, with the packages that they are in."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports are not followed"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    parents = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    return frozenset(filter(None, map(module_file, parents)))


def closure(file: str) -> set[str]:
    """Our files that running `file` may load, itself included."""
    found, new = set(), {file}
    while new:
        found |= new
        new = set().union(*map(imported, new)) - found
    return found


def script(stage: dict) -> str:
    """The file that a stage's command runs, `python -m stages.NAME`."""
    words = stage["cmd"].split()
    return module_file(words[words.index("-m") + 1])


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


@cache
def parameters(file: str) -> frozenset[str]:
    """The parameters that a stage's script reads: `filter.top_k` for `p.filter.top_k`."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    read = set()
    for node in ast.walk(tree):
        keys = []
        outermost = id(node) not in inner
        while isinstance(node, ast.Attribute):
            keys.append(node.attr)
            node = node.value
        if outermost and keys and isinstance(node, ast.Name) and node.id == "p":
            read.add(".".join(keys[::-1]))
    return frozenset(read)


def covers(listed: str, read: str) -> bool:
    return read == listed or read.startswith(listed + ".")


HOW = ("compute.device", "compute.workers")  # how to compute, not what


def test_the_stages_are_those_of_the_design() -> None:
    assert set(STAGES) == DESIGNED


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_says_what_it_is_for(name: str) -> None:
    assert len(STAGES[name]["desc"]) > 20


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_modules_that_are_imported(name: str) -> None:
    code = {dep for dep in STAGES[name]["deps"] if dep.split("/")[0] in ("landmarks", "stages")}
    directories = {dep for dep in code if (ROOT / dep).is_dir()}
    loaded = closure(script(STAGES[name]))
    for directory in directories:
        inside = {file for file in loaded if file.startswith(f"{directory}/")}
        assert inside, f"{directory} is not imported"
        loaded -= inside
    assert code - directories == loaded


@pytest.mark.parametrize("name", STAGES)
def test_deps_that_are_data_are_outs_of_other_stages(name: str) -> None:
    made = {path for other in STAGES if other != name for path in paths(other)}
    for dep in STAGES[name]["deps"]:
        if dep.split("/")[0] not in ("landmarks", "stages"):
            assert any(
                covers(path.replace("/", "."), dep.replace("/", ".")) or path.startswith(f"{dep}/") for path in made
            )


@pytest.mark.parametrize("file", sorted({script(stage) for stage in STAGES.values()}))
def test_params_are_those_that_are_read(file: str) -> None:
    """Of the stages that share a script together: train-abn and train-ablation."""
    stages = [stage for stage in STAGES.values() if script(stage) == file]
    listed = {key.removesuffix(".${key}") for stage in stages for key in stage.get("params", [])}
    read = set().union(*(parameters(part) for part in closure(file) if part.startswith("stages/")))
    read = {key for key in read if key not in HOW}
    assert {key for key in read if not any(covers(block, key) for block in listed)} == set(), "read, but not listed"
    assert {block for block in listed if not any(covers(block, key) for key in read)} == set(), "listed, but not read"


def test_only_what_git_shows_is_kept_from_the_cache() -> None:
    uncached = {
        path for stage in STAGES.values() for path, options in outs(stage).items() if options.get("cache") is False
    }
    assert uncached == {"metrics/results.json", "metrics/results.md", "plots"}


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
