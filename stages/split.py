"""split: which pictures train, which validate, which test. Near-duplicates share a split."""

from landmarks import artifacts, params, split, stage

import numpy as np
import pandas as pd


def main() -> str:
    p = params.load()
    table = pd.read_parquet(artifacts.FILTERED / "hashes.parquet")
    hashes = table.pop("hash").to_numpy()
    labels = artifacts.read_classes().set_index("landmark_id")["label"]
    table.insert(2, "label", table["landmark_id"].map(labels))
    table["group"] = split.near_duplicates(hashes) if p.split.group_near_duplicates else np.arange(len(table))
    fractions = {"train": p.split.train, "val": p.split.val, "test": p.split.test}
    table["split"] = split.assign(table["label"].to_numpy(), table["group"].to_numpy(), fractions, p.seed)
    split.check(table["landmark_id"], table["split"].to_numpy(), fractions)
    with stage.atomic_output(artifacts.SPLIT) as out:
        table.to_parquet(out, index=False)
    sizes = table["split"].value_counts()
    near = len(table) - table["group"].nunique()
    return f"{sizes['train']} train, {sizes['val']} val, {sizes['test']} test; {near} near-duplicates kept together"


if __name__ == "__main__":
    stage.run(main)
