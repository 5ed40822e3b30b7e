"""split: which pictures train, which validate, which test. Near-duplicates share a split."""

from landmarks import artifacts, duplicates, params, split, stage

import numpy as np
import pandas as pd


def main() -> str:
    p = params.load()
    table = pd.read_parquet(artifacts.FILTERED / "hashes.parquet")
    hashes = table.pop("hash").to_numpy()
    labels = artifacts.read_classes().set_index("landmark_id")["label"]
    table.insert(2, "label", table["landmark_id"].map(labels))
    table["group"] = duplicates.near_duplicates(hashes) if p.split.group_near_duplicates else np.arange(len(table))
    fractions = {"train": p.split.train, "val": p.split.val, "test": p.split.test}
    assigned, ungrouped = (
        split.assign(table["label"].to_numpy(), groups, fractions, p.seed)
        for groups in (table["group"].to_numpy(), np.arange(len(table)))
    )
    table["split"] = assigned
    split.check(table["landmark_id"], table["split"].to_numpy(), fractions)
    with stage.atomic_output(artifacts.SPLIT) as out:
        table.to_parquet(out, index=False)
    sizes = table["split"].value_counts()
    near = len(table) - table["group"].nunique()
    missed = [
        f"{name} {(assigned == name).mean():.1%} instead of {fraction:.1%}"
        for name, fraction in fractions.items()
        if abs((assigned == name).mean() - fraction) > max(0.01, abs((ungrouped == name).mean() - fraction))
    ]
    effect = f", which makes {', '.join(missed)}" if missed else ""
    counts = ", ".join(f"{sizes[name]} {name}" for name in fractions)
    return f"{counts}; {near} near-duplicates kept together{effect}"


if __name__ == "__main__":
    stage.run(main)
