"""train-repeats: what every model predicts if it is trained with other seeds.

Trains each model `train.repeats` - 1 more times, with the seeds that follow `seed`. A finished training is used again
until its settings, inputs, code or kind of device change, so a higher number trains only the new seeds. An interrupted
training continues from its last checkpoint. Trainings of removed ablations and of seeds beyond `train.repeats` are
deleted. With `compute.cluster`, the missing trainings run side by side on the workers.
"""

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from landmarks import artifacts, determinism, params, stage

import pandas as pd

FINGERPRINT = "fingerprint"  # the file that identifies what the answers beside it were computed from


class Planned(NamedTuple):
    """A model to be trained with a seed."""

    folder: Path
    abn: params.Abn | None
    seed: int
    fingerprint: str

    @property
    def finished(self) -> bool:
        answers, file = (self.folder / name for name in (artifacts.ANSWERS, FINGERPRINT))
        return answers.is_file() and file.is_file() and file.read_text(encoding="utf-8") == self.fingerprint


def plan(p: params.Params) -> list[Planned]:
    """All trainings, also the finished ones. Reads the inputs only if there are any."""
    seeds = range(p.seed + 1, p.seed + p.train.repeats)
    if not seeds:
        return []
    device = determinism.pick_device(p.compute.device).type  # a GPU gives other bits
    shared = stage.fingerprint({"train": p.train, "backbone": p.backbone, "device": device}, artifacts.TRAINING)
    trainings = []
    for name, abn in p.models.items():
        for seed in seeds:
            fingerprint = stage.fingerprint({"shared": shared, "abn": abn, "seed": seed}, [])
            trainings.append(Planned(artifacts.REPEATS / name / str(seed), abn, seed, fingerprint))
    return trainings


def run(planned: list[Planned], p: params.Params) -> None:
    """Trains, and writes the predictions for validation and test pictures with the fingerprint."""
    from landmarks.jobs import Files, Job, train_on_cluster, train_repeat, write  # here because torch is slow

    device = determinism.pick_device(p.compute.device).type
    jobs = {str(plan.folder): Job(p.backbone, p.train, plan.abn, plan.seed, device) for plan in planned}
    fingerprints = {str(plan.folder): plan.fingerprint for plan in planned}

    def scratch(folder: str) -> AbstractContextManager[Path]:
        """The folder of a training's checkpoint, locked; removed at the end."""
        return stage.scratch("repeats", {"training": fingerprints[folder]}, [])

    def keep(folder: str, files: Files) -> None:
        with scratch(folder), stage.atomic_output(Path(folder)) as out:
            write(files | {FINGERPRINT: fingerprints[folder].encode()}, out)

    if p.compute.cluster and len(jobs) > 1:  # a single training runs here, where it has checkpoints
        return train_on_cluster(p.compute.cluster, train_repeat, jobs, keep)
    with stage.progress(len(jobs), "trainings") as bar:
        for folder, job in jobs.items():
            bar.set_postfix_str(f"{Path(folder).parent.name}, seed {job.seed}")
            with scratch(folder) as directory, stage.atomic_output(Path(folder)) as out:
                train_repeat(job, out, directory)
                (out / FINGERPRINT).write_text(fingerprints[folder], encoding="utf-8")
            bar.update()


def main() -> str:
    p = params.load()
    artifacts.REPEATS.mkdir(parents=True, exist_ok=True)
    trainings = plan(p)
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
