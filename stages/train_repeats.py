"""train-repeats: what every model predicts if it is trained with other seeds.

Trains each model `train.repeats` - 1 more times, with the seeds that follow `seed`. A finished training is used again
until its settings, inputs or code change, so a higher number trains only the new seeds. An interrupted training
continues from its last checkpoint. Trainings of removed ablations and of seeds beyond `train.repeats` are deleted.
"""

import re
from pathlib import Path
from typing import NamedTuple

from landmarks import artifacts, determinism, params, stage

import pandas as pd

FINGERPRINT = "fingerprint"  # the file that identifies what the answers beside it were computed from


class Training(NamedTuple):
    """A model to be trained with a seed."""

    folder: Path
    abn: params.Abn | None
    seed: int
    fingerprint: str

    @property
    def finished(self) -> bool:
        file = self.folder / FINGERPRINT
        return file.is_file() and file.read_text(encoding="utf-8") == self.fingerprint


def planned(p: params.Params) -> list[Training]:
    """All trainings, finished ones included. Reads the inputs only if there are any trainings."""
    seeds = range(p.seed + 1, p.seed + p.train.repeats)
    if not seeds:
        return []
    shared = stage.fingerprint({"train": p.train, "backbone": p.backbone}, artifacts.TRAINING)
    trainings = []
    for name, abn in p.models.items():
        for seed in seeds:
            fingerprint = stage.fingerprint({"shared": shared, "abn": abn, "seed": seed}, [])
            trainings.append(Training(artifacts.REPEATS / name / str(seed), abn, seed, fingerprint))
    return trainings


def run(trainings: list[Training], p: params.Params) -> None:
    """Trains, and writes the predictions for validation and test pictures with the fingerprint."""
    from landmarks.answers import predictions  # imported here because torch takes seconds
    from landmarks.training import prepare_training, trainer

    prepare_training()
    device = determinism.pick_device(p.compute.device)
    train = trainer(p.backbone, p.train, device)
    features, views = artifacts.read_features(), artifacts.read_labelled_views()
    judged = [views[views["split"] == split] for split in ("val", "test")]
    with stage.progress(len(trainings), "trainings") as bar:
        for folder, abn, seed, fingerprint in trainings:
            bar.set_postfix_str(f"{folder.parent.name}, seed {seed}")
            settings = {"training": fingerprint, "device": device.type}
            with stage.scratch("repeats", settings, []) as scratch, stage.atomic_output(folder) as out:
                model, _ = train(abn=abn, seed=seed, log=scratch / "log", checkpoint=scratch / "checkpoint.pt")
                tables = [predictions(model.to(device), features, rows) for rows in judged]
                out.mkdir()
                pd.concat(tables).to_parquet(out / artifacts.ANSWERS, index=False)
                (out / FINGERPRINT).write_text(fingerprint, encoding="utf-8")
            bar.update()


def main() -> str:
    p = params.load()
    artifacts.REPEATS.mkdir(parents=True, exist_ok=True)
    trainings = planned(p)
    missing = [training for training in trainings if not training.finished]
    if missing:
        run(missing, p)
    wanted = {training.folder for training in trainings}
    for path in sorted(artifacts.REPEATS.glob("*/*")):
        if path not in wanted and re.fullmatch(r"\d+|\.\d+\.part", path.name):  # other files are the user's
            stage.remove(path)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    with stage.atomic_output(artifacts.REPEATS / "trainings.csv") as out:  # DVC warns about folders without a file
        rows = [{"model": training.folder.parent.name, "seed": training.seed} for training in trainings]
        pd.DataFrame(rows, columns=["model", "seed"]).to_csv(out, index=False, lineterminator="\n")
    return f"{len(missing)} trained, {len(trainings) - len(missing)} kept"


if __name__ == "__main__":
    stage.run(main)
