"""split: which picture trains, which validates, which tests.

Reads   data/filtered/hashes.parquet and classes.csv.
Writes  data/split.parquet: id, landmark_id, label, width, height, group, split (train, val or test), in id order.
Holds   pictures of one group (near-duplicates) share a split.
"""

from pathlib import Path

from landmarks import params, split, stage

import numpy as np
import pandas as pd

FILTERED = Path("data/filtered")
OUT = Path("data/split.parquet")


def main() -> str:
    p = params.load()
    table = pd.read_parquet(FILTERED / "hashes.parquet")
    labels = pd.read_csv(FILTERED / "classes.csv", dtype={"landmark_id": str}, keep_default_na=False).set_index(
        "landmark_id"
    )["label"]
    hashes = table.pop("hash").to_numpy()
    table.insert(2, "label", table["landmark_id"].map(labels))
    table["group"] = split.near_duplicates(hashes) if p.split.group_near_duplicates else np.arange(len(table))
    fractions = {"train": p.split.train, "val": p.split.val, "test": p.split.test}
    table["split"] = split.assign(table["label"].to_numpy(), table["group"].to_numpy(), fractions, p.seed)
    split.check(table["landmark_id"], table["split"].to_numpy(), fractions)
    with stage.atomic_output(OUT) as out:
        table.to_parquet(out, index=False)
    sizes = table["split"].value_counts()
    near = len(table) - table["group"].nunique()
    return f"{sizes['train']} train, {sizes['val']} val, {sizes['test']} test; {near} near-duplicates kept together"


if __name__ == "__main__":
    stage.run(main)
