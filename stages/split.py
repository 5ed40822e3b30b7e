"""split: which pictures train, which validate, which test. Near-duplicates share a split, unless splits are given."""

from landmarks import artifacts, duplicates, params, split, stage

import numpy as np
import pandas as pd


def effect_of_groups(assigned: np.ndarray, ungrouped: np.ndarray, fractions: dict[str, float]) -> str:
    """Which fractions near-duplicates have moved by more than a point. The splits are [N], with and without groups."""
    missed = [
        f"{name} {(assigned == name).mean():.1%} instead of {fraction:.1%}"
        for name, fraction in fractions.items()
        if abs((assigned == name).mean() - fraction) > max(0.01, abs((ungrouped == name).mean() - fraction))
    ]
    return f", which makes {', '.join(missed)}" if missed else ""


def main() -> str:
    p = params.load()
    table = pd.read_parquet(artifacts.FILTERED / "hashes.parquet")
    near = duplicates.near_duplicates(table.pop("hash").to_numpy())
    given = table.pop("split").to_numpy() if "split" in table else None
    classes = artifacts.read_classes().set_index("landmark_id")["label"]
    table.insert(2, "label", table["landmark_id"].map(classes))
    alone = np.arange(len(table))
    table["group"] = near if p.split.group_near_duplicates else alone
    labels, groups = table["label"].to_numpy(), table["group"].to_numpy()
    fractions = {"train": p.split.train, "val": p.split.val, "test": p.split.test}
    if keep := given is not None and p.split.given == "keep":
        table["split"] = split.complete(labels, groups, given, fractions, p.seed)
        drawn = stage.count_reasons(table["split"][table["split"] != given])
        astride = table["split"].groupby(near).transform("nunique").gt(1).sum()
        text = f", as given{drawn and f' ({drawn} drawn from train)'}"
        if astride:
            text += (
                f"; {astride} near-duplicates are in different splits, set split.given: redraw to keep them together"
            )
    else:
        assigned, ungrouped = (split.assign(labels, g, fractions, p.seed) for g in (groups, alone))
        table["split"] = assigned
        together = len(table) - table["group"].nunique()
        text = f"; {together} near-duplicates kept together{effect_of_groups(assigned, ungrouped, fractions)}"
    split.check(table["landmark_id"], table["split"].to_numpy(), fractions, given=keep)
    with stage.atomic_output(artifacts.SPLIT) as out:
        table.to_parquet(out, index=False)
    sizes = table["split"].value_counts()
    counts = ", ".join(f"{sizes[name]} {name}" for name in fractions)
    return f"{counts}{text}"


if __name__ == "__main__":
    stage.run(main)
