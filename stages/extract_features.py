"""extract-features: what the frozen trunk sees in every row of the augmentation index.

Reads   data/filtered/ (pictures), data/augment.parquet, models/backbone.safetensors.
Writes  data/features/features.npy: float16 [rows of the index, channels, 7, 7]; for a tail that is trained, the map as
        it is in place of 7 x 7.
Holds   each row is a function of its picture, its row of the index and the weights alone; an interrupted run goes on
        where it was.
"""

import shutil
from pathlib import Path

from landmarks import determinism, features, images, params, stage
from landmarks.networks import Trunk

import pandas as pd
from safetensors.torch import load_file

PICTURES = Path("data/filtered")
INDEX = Path("data/augment.parquet")
BACKBONE = Path("models/backbone.safetensors")
OUT = Path("data/features")


def main() -> str:
    determinism.prepare_inference()
    p = params.load()
    index = pd.read_parquet(INDEX)
    device = determinism.pick_device(p.compute.device)
    trunk = Trunk(load_file(BACKBONE), p.backbone).to(device)
    shape = features.shape(trunk, len(index), p.augment.crop)
    settings = {"crop": p.augment.crop, "backbone": p.backbone.model_dump(), "precision": p.compute.precision}
    settings["device"] = device.type  # an interrupted run goes on with bits of the same kind
    with stage.scratch("extract-features", settings, [INDEX, BACKBONE, *images.shards(PICTURES)]) as scratch:
        unfinished = scratch / "features.npy"
        with unfinished.open("a+b") as file, stage.progress(len(index), "views") as bar:
            bar.update(features.resume_npy(file, shape))
            left = index.iloc[bar.n :]
            for batch in features.extract(trunk, PICTURES, left, p.augment.crop, p.compute.precision):
                file.write(batch.tobytes())
                bar.update(len(batch))
        with stage.atomic_output(OUT) as out:
            out.mkdir()
            size = shutil.move(unfinished, out / "features.npy").stat().st_size
    return f"{len(index)} views -> {' x '.join(map(str, shape[1:]))} of float16, {size / 1e6:.0f} MB"


if __name__ == "__main__":
    stage.run(main)
