"""train-repeats: which trainings run, on random features of a few pictures."""

import subprocess
import sys
from pathlib import Path

from landmarks import artifacts, params
from landmarks.jobs import Job, probe
from stages import train_repeats

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, default_values

PICTURES, CLASSES = 24, 3


class Workspace:
    """The inputs of the stage, and its parameters."""

    def __init__(self) -> None:
        self.values = default_values()
        self.values["train"] |= {"epochs": 1, "batch_size": 12, "hidden": 8}
        self.values["ablations"] = {}
        for path in artifacts.TRAINING:
            path.parent.mkdir(parents=True, exist_ok=True)
        np.save(artifacts.FEATURES, np.random.default_rng(0).random((PICTURES, 8, 2, 2)).astype(np.float16))
        ids = [f"{n:02d}" for n in range(PICTURES)]
        labels, splits = np.arange(PICTURES) % CLASSES, ["train", "val", "test", "train"] * (PICTURES // 4)
        pd.DataFrame({"id": ids, "label": labels, "split": splits}).to_parquet(artifacts.SPLIT)
        pd.DataFrame({"id": ids, "view": 0}).to_parquet(artifacts.VIEWS)
        pd.DataFrame({"label": range(CLASSES), "landmark_id": list("abc")}).to_csv(artifacts.TRAINING[3], index=False)
        artifacts.BACKBONE.touch()

    def run(self, repeats: int) -> str:
        """Runs the stage; returns its summary."""
        self.values["train"]["repeats"] = repeats
        Path("params.yaml").write_text(yaml.safe_dump(self.values), encoding="utf-8")
        return train_repeats.main()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    return Workspace()


def outs() -> dict[str, bytes]:
    """All files of the out."""
    files = filter(Path.is_file, artifacts.REPEATS.rglob("*"))
    return {path.relative_to(artifacts.REPEATS).as_posix(): path.read_bytes() for path in files}


def test_one_more_repeat_trains_one_more_seed_of_every_model(workspace: Workspace) -> None:
    assert workspace.run(3) == "4 trained, 0 kept"
    three = outs()
    assert workspace.run(3) == "0 trained, 4 kept"
    assert workspace.run(4) == "2 trained, 4 kept"
    four = outs()
    trainings = [f"{name}/{seed}" for name in ("baseline", "abn") for seed in (2020, 2021, 2022)]
    files = {f"{training}/{file}" for training in trainings for file in ("answers.parquet", "fingerprint")}
    assert set(four) == files | {"trainings.csv"}
    assert four["trainings.csv"].decode().split() == ["model,seed", *(name.replace("/", ",") for name in trainings)]
    assert three.items() - four.items() == {("trainings.csv", three["trainings.csv"])}
    assert list(Path(".scratch/repeats").iterdir()) == []

    tables = [pd.read_parquet(artifacts.REPEATS / name / artifacts.ANSWERS) for name in trainings]
    split = pd.read_parquet(artifacts.SPLIT)
    judged = pd.concat([split[split["split"] == name] for name in ("val", "test")], ignore_index=True)
    for table in tables:
        assert table[["id", "label", "split"]].equals(judged) and table["predicted"].isin(range(CLASSES)).all()
    assert len({table["predicted"].to_numpy().tobytes() for table in tables}) > 2, "the seeds of a model differ"

    (artifacts.REPEATS / "abn/notes.txt").touch()  # of the user
    workspace.run(1)
    assert outs() == {"trainings.csv": b"model,seed\n", "abn/notes.txt": b""}
    assert {path.name for path in artifacts.REPEATS.iterdir()} == {"trainings.csv", "abn"}
    (artifacts.REPEATS / "abn/notes.txt").unlink()
    workspace.run(4)
    assert outs() == four


def test_only_models_whose_settings_changed_are_trained_again(workspace: Workspace) -> None:
    """Models that are no longer in the table are removed."""
    workspace.values["ablations"] = {"changed": workspace.values["abn"], "removed": workspace.values["abn"]}
    workspace.run(2)
    before = outs()
    assert before["changed/2020/answers.parquet"] == before["abn/2020/answers.parquet"]
    workspace.values["ablations"] = {"changed": workspace.values["abn"] | {"alpha": 0.5}}
    assert workspace.run(2) == "1 trained, 2 kept"
    after = outs()
    assert {name.split("/")[0] for name in after} == {"baseline", "abn", "changed", "trainings.csv"}
    assert after["changed/2020/fingerprint"] != before["changed/2020/fingerprint"]


def test_another_input_or_seed_trains_everything_again(workspace: Workspace) -> None:
    workspace.run(2)
    artifacts.BACKBONE.write_bytes(b"other")
    assert workspace.run(2) == "2 trained, 0 kept"
    workspace.values["seed"] += 1
    assert workspace.run(2) == "2 trained, 0 kept"
    assert {path.name for path in artifacts.REPEATS.glob("*/*")} == {"2021"}


def test_an_unfinished_training_is_made_again(workspace: Workspace) -> None:
    """Also after a kill, which leaves a temporary folder."""
    workspace.run(2)
    before = outs()
    (artifacts.REPEATS / "abn/2020").rename(artifacts.REPEATS / "abn/.2020.part")
    assert workspace.run(2) == "1 trained, 1 kept"
    assert outs() == before


def test_nothing_to_train_loads_no_slow_package(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    code = "import sys; from stages import train_repeats; print(train_repeats.main(), *sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("0 trained") and {"torch", "dvclive"}.isdisjoint(done.stdout.split())


def test_workers_are_compared_by_a_model_with_attention() -> None:
    """Convolutions may differ between machines. Without a tail, only the attention branch trains any."""
    p = params.load(ROOT / "params.yaml")
    planned = [Job(p.backbone, p.train, abn, p.seed, "cpu") for abn in p.models.values()]
    assert planned[0].abn is None and probe(planned).abn == p.abn
    assert probe(planned[:1]) == planned[0]
