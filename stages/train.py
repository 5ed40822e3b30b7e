"""train-baseline, train-abn and train-ablation@NAME: one model on the frozen features.

    python -m stages.train MODEL

MODEL is baseline (VGG-16's classifier), abn (the Attention Branch Network with the block `abn`), or an ablation: the
same with the block `ablations.NAME`. For an ablation, MODEL is NAME or train-ablation@NAME. On the CPU, the weights are
the same with AVX2 and with AVX-512. An interrupted run continues from its last checkpoint. At the end, the model
answers for validation and test pictures; evaluate reads these answers.

With `compute.cluster`, the first of these stages also trains the models of the others that DVC will run, side by side
on the workers. Each finished model waits in the scratch folder of its own stage.
"""

import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from landmarks import artifacts, determinism, params, stage
from landmarks.jobs import Files, Job, train_on_cluster, train_row, write

FINISHED = "finished"  # in the scratch folder: a trained model that is complete


def main() -> str:
    if len(sys.argv) != 2:
        raise stage.UserError("MODEL is missing: python -m stages.train MODEL")
    name, p = sys.argv[1].rpartition("@")[2], params.load()
    p.model(name)  # an error if there is no such model
    device = determinism.pick_device(p.compute.device).type
    jobs = {key: Job(p.backbone, p.train, abn, p.seed, device) for key, abn in p.models.items()}
    inputs = stage.fingerprint({}, artifacts.TRAINING)

    def scratch(key: str, keep: bool) -> AbstractContextManager[Path]:
        return stage.scratch(f"train-{key}", jobs[key]._asdict() | {"inputs": inputs}, [], keep)

    def is_finished(key: str) -> bool:
        with scratch(key, keep=True) as folder:
            return (folder / FINISHED).exists()

    def keep(key: str, files: Files) -> None:
        with scratch(key, keep=True) as folder:
            if not (folder / FINISHED).exists():  # a second worker may have trained it, if the first one hung
                with stage.atomic_output(folder / FINISHED) as out:
                    write(files, out)

    if p.compute.cluster and not is_finished(name):
        stages = {address(key): key for key in jobs if key != name}
        others = [stages[found] for found in stage.outdated(list(stages))]
        missing = {key: jobs[key] for key in sorted([name, *others]) if not is_finished(key)}
        if len(missing) > 1:  # a single training runs here, where it has checkpoints
            train_on_cluster(p.compute.cluster, train_row, missing, keep)
    with (
        scratch(name, keep=False) as folder,
        stage.atomic_output(artifacts.MODELS / name) as model,
        stage.atomic_output(artifacts.LOGS / name) as log,
    ):
        finished = folder / FINISHED
        if not finished.exists():
            with stage.atomic_output(finished) as out:
                train_row(jobs[name], out, folder)
        shutil.copytree(finished / "model", model)
        shutil.copytree(finished / "log", log)
        summary = (finished / "summary").read_text(encoding="utf-8")
    return f"{name}: {summary}"


def address(name: str) -> str:
    """The stage of a model in dvc.yaml."""
    return f"train-{name}" if name in ("baseline", "abn") else f"train-ablation@{name}"


if __name__ == "__main__":
    stage.run(main)
