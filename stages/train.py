"""train-baseline, train-abn and train-ablation@NAME: one model on the frozen features.

    python -m stages.train MODEL

MODEL is baseline (VGG-16's classifier), abn (the Attention Branch Network with the block `abn`), or an ablation (the
same with the block `ablations.NAME`), as NAME or train-ablation@NAME. On the CPU, the weights are the same on any
x86-64 machine. An interrupted run continues from its last checkpoint. At the end, the model answers for validation and
test pictures; evaluate reads these answers.
"""

import sys

from landmarks import artifacts, determinism, models, params, stage
from landmarks.answers import answers
from landmarks.training import prepare_training, trainer

import pandas as pd


def main() -> str:
    if len(sys.argv) != 2:
        raise stage.UserError("MODEL is missing: python -m stages.train MODEL")
    name, p = sys.argv[1].rpartition("@")[2], params.load()
    abn = p.model(name)
    prepare_training()
    device = determinism.pick_device(p.compute.device)
    settings = {"train": p.train, "abn": abn, "backbone": p.backbone, "seed": p.seed, "device": device.type}
    with (
        stage.scratch(f"train-{name}", settings, artifacts.TRAINING) as scratch,
        stage.atomic_output(artifacts.MODELS / name) as out,
        stage.atomic_output(artifacts.LOGS / name) as log,
    ):
        train = trainer(p.backbone, p.train, device)
        model, metrics = train(abn=abn, seed=p.seed, log=log, checkpoint=scratch / "checkpoint.pt")
        models.save(model, out)
        features, views = artifacts.read_features(), artifacts.read_labelled_views()
        judged = [views[views["split"] == split] for split in ("val", "test")]
        tables = [answers(model.to(device), features, rows, p.seed) for rows in judged]
        pd.concat(tables).to_parquet(log / artifacts.ANSWERS, index=False)
    return f"{name}: {', '.join(f'{key} {value:.4f}' for key, value in metrics.items())}"


if __name__ == "__main__":
    stage.run(main)
