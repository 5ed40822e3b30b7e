"""augment-index: which views of each picture the network will see.

Reads   data/split.parquet.
Writes  data/augment.parquet: id, view, angle, left, top, side, brightness, flip (see landmarks/augment.py), sorted by
        (id, view); `augment.views` random rows for a training picture, one plain row for the others.
Holds   all randomness of the network's inputs.
"""

from pathlib import Path

from landmarks import augment, params, stage

import pandas as pd

SPLIT = Path("data/split.parquet")
OUT = Path("data/augment.parquet")


def main() -> str:
    p = params.load()
    index = augment.draw(
        pd.read_parquet(SPLIT),
        views=p.augment.views,
        rotation=p.augment.rotation,
        eval_rotation=p.augment.eval_rotation,
        scale=p.augment.scale,
        brightness=p.augment.brightness,
        flip=p.augment.flip,
        seed=p.seed,
    )
    with stage.atomic_output(OUT) as out:
        index.to_parquet(out, index=False)
    return f"{len(index)} views of {index['id'].nunique()} pictures"


if __name__ == "__main__":
    stage.run(main)
