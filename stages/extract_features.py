"""extract-features: what the frozen trunk sees in every row of the augmentation index.

Reads   data/filtered/ (pictures), data/augment.parquet, models/backbone.safetensors.
Writes  data/features/features.npy: float16 [rows of the index, channels, 7, 7].
Holds   each row is a function of its picture, its row of the index and the weights alone.
"""

from pathlib import Path

from landmarks import features, params, stage
from landmarks.backbone import Trunk
from landmarks.determinism import pick_device

import numpy as np
import pandas as pd
from safetensors.torch import load_file

PICTURES = Path("data/filtered")
INDEX = Path("data/augment.parquet")
BACKBONE = Path("models/backbone.safetensors")
OUT = Path("data/features")


def main() -> str:
    p = params.load()
    index = pd.read_parquet(INDEX)
    trunk = Trunk(load_file(BACKBONE), p.backbone.layer).to(pick_device(p.compute.device))
    shape = features.shape(trunk, len(index))
    with stage.whole(OUT) as out, stage.progress(len(index), "views") as bar:
        out.mkdir()
        array = np.lib.format.open_memmap(out / "features.npy", "w+", np.float16, shape)
        for batch in features.extract(trunk, PICTURES, index, p.augment.crop):
            array[bar.n : bar.n + len(batch)] = batch
            bar.update(len(batch))
        array.flush()
    return f"{len(index)} views -> {' x '.join(map(str, shape[1:]))} of float16, {array.nbytes / 1e6:.0f} MB"


if __name__ == "__main__":
    stage.run(main)
