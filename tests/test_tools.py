"""tools/: how results are compared, and when the pipeline is killed."""

import shutil
import subprocess
from pathlib import Path

from landmarks import params
from tools import clone as cloning
from tools import torture, verify

import pytest
import yaml
from conftest import ROOT, user_error


def lock(md5: str, alpha: float = 1.0) -> str:
    """A dvc.lock with a stage that has a directory and a file as outs."""
    outs = [{"path": "models/trained/abn", "md5": f"{md5}.dir"}, {"path": "plain", "md5": "b" * 32}]
    stages = {"train": {"cmd": "x", "outs": outs}, "plot": {"cmd": "x", "params": {"params.yaml": {"alpha": alpha}}}}
    return yaml.safe_dump({"schema": "2.0", "stages": stages})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository with what a clone needs."""
    source = tmp_path / "source"
    (source / "metrics").mkdir(parents=True)
    shutil.copyfile(ROOT / "params.yaml", source / "params.yaml")
    (source / "metrics/results.json").write_text("{}\n", encoding="utf-8")
    (source / "dvc.lock").write_text(lock("c" * 32), encoding="utf-8")
    (source / ".gitignore").write_text("/.dvc/\n/.venv\n", encoding="utf-8")
    commit = ["-c", "user.name=t", "-c", "user.email=t", "commit", "--quiet", "--message", "x"]
    for command in (["init", "--quiet"], ["add", "--all"], commit):
        subprocess.run(["git", *command], cwd=source, check=True)
    return source


def test_a_clone_reads_numbers_as_the_pipeline_does(source: Path, tmp_path: Path) -> None:
    """PyYAML alone reads 1e-05 as a text, and writes it with quotes."""
    clone = cloning.Clone(source, tmp_path / "place")
    path = clone.root / "params.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(path.read_text(encoding="utf-8").replace("learning_rate: 0.001", "learning_rate: 1e-05"))
    clone.apply([("train.weight_decay", "2e-05"), ("data.version", "text")])
    values["train"] |= {"learning_rate": 1e-05, "weight_decay": 2e-05}
    values["data"]["version"] = "text"
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == values


def test_settings_of_a_clone(source: Path, tmp_path: Path) -> None:
    """Paths are those of the source, and mistakes are found before anything runs."""
    clone = cloning.Clone(source, tmp_path / "place")
    (source / "list.txt").touch()
    clone.apply([("data.only", "list.txt"), ("backbone.weights", "hed-bsds500")])
    p = params.load(clone.root / "params.yaml")
    assert (p.data.only, p.backbone.weights) == (str(source / "list.txt"), "hed-bsds500")
    with user_error(r"^-S train\.epohcs: "):
        clone.apply([("train.epohcs", "3")])


def test_each_difference_from_the_committed_results_is_listed(source: Path, tmp_path: Path) -> None:
    clone = cloning.Clone(source, tmp_path / "place", threads="1", folder=cloning.ELSEWHERE, workers="4")
    assert clone.environment["OMP_NUM_THREADS"] == "1" and clone.root.name == cloning.ELSEWHERE
    assert params.load(clone.root / "params.yaml").compute.workers == 4
    assert clone.differences() == []

    (clone.root / "dvc.lock").write_text(lock("d" * 32, alpha=0.5), encoding="utf-8")
    (clone.root / "metrics/results.json").write_text("{1}\n", encoding="utf-8")
    (clone.root / "plots").mkdir()
    (clone.root / "plots/new.png").touch()
    assert clone.differences() == [
        "plot: its command, dependencies or parameters differ from those in dvc.lock",
        "train: models/trained/abn differs",
        " M metrics/results.json",
        "?? plots/",
    ]


def test_the_matrix_covers_every_value_of_every_factor() -> None:
    for number, (factor, values) in enumerate(cloning.FACTORS.items()):
        assert {row[number] for row in verify.MATRIX} == set(values), factor


def test_kills_are_proportional_to_the_length_of_stages() -> None:
    seconds = {cloning.STARTING: 2.0, "long": 90.0, "short": 8.0}
    moments = torture.moments(seconds, 200, seed=0)
    assert moments == sorted(moments) and moments == torture.moments(seconds, 200, seed=0)
    assert all(0 <= second <= list(seconds.values())[number] for number, second in moments)
    assert 160 < sum(number == 1 for number, _ in moments) < 198 and len(moments) == 200
