"""train-baseline, train-abn and train-ablation@NAME: one model on the frozen features.

Call    python -m stages.train MODEL: baseline (VGG-16's classifier), abn (the Attention Branch Network with the block
        `abn`), or NAME or train-ablation@NAME (the same with the block `ablations.NAME`).
Reads   data/features/, data/augment.parquet, data/split.parquet, data/filtered/classes.csv; with a trained tail also
        models/backbone.safetensors.
Writes  models/MODEL/ (weights and design), metrics/train/MODEL/ (DVCLive: loss and accuracy per epoch).
Holds   on the CPU, the same weights on any x86-64 machine; an interrupted run continues from its last checkpoint.
"""

import sys
from pathlib import Path

from landmarks import determinism, models, params, stage
from landmarks.params import Abn, Params
from landmarks.training import labelled, read_tail, train_model

import numpy as np
import pandas as pd

FEATURES = Path("data/features/features.npy")
INDEX = Path("data/augment.parquet")
SPLIT = Path("data/split.parquet")
CLASSES = Path("data/filtered/classes.csv")
BACKBONE = Path("models/backbone.safetensors")


def train(name: str, abn: Abn | None, p: Params) -> str:
    """Trains the model called `name` and writes its outputs; returns the summary line."""
    determinism.prepare_training()
    device = determinism.pick_device(p.compute.device)
    blocks = {"train": p.train, "abn": abn, "backbone": p.backbone}
    settings = {key: block and block.model_dump() for key, block in blocks.items()}
    settings |= {"seed": p.seed, "device": device.type}
    with (
        stage.scratch(f"train-{name}", settings, [FEATURES, INDEX, SPLIT, CLASSES, BACKBONE]) as scratch,
        stage.atomic_output(Path("models") / name) as out,
        stage.atomic_output(Path("metrics/train") / name) as log,
    ):
        model, metrics = train_model(
            np.load(FEATURES, mmap_mode="r"),
            labelled(pd.read_parquet(INDEX), pd.read_parquet(SPLIT)),
            landmarks=pd.read_csv(CLASSES, dtype={"landmark_id": str}, keep_default_na=False)["landmark_id"].tolist(),
            abn=abn,
            train=p.train,
            seed=p.seed,
            device=device,
            log=log,
            checkpoint=scratch / "checkpoint.safetensors",
            tail=read_tail(p.backbone, BACKBONE),
        )
        models.save(model, out)
    return f"{name}: {', '.join(f'{key} {value:.4f}' for key, value in metrics.items())}"


def main() -> str:
    if len(sys.argv) != 2:
        raise stage.UserError("MODEL is missing: python -m stages.train MODEL")
    name, p = sys.argv[1].rpartition("@")[2], params.load()
    blocks = {"baseline": None, "abn": p.abn, **p.ablations}
    if name not in blocks:
        raise stage.UserError(f"ablations.{name}: not in params.yaml; it has {', '.join(sorted(p.ablations))}")
    return train(name, blocks[name], p)


if __name__ == "__main__":
    stage.run(main)
