"""Splits into training, validation and test: stratified by class, near-duplicates always in the same split."""

from collections.abc import Iterable

from landmarks.determinism import stream
from landmarks.stage import UserError

import numpy as np
import pandas as pd


def assign(labels: np.ndarray, groups: np.ndarray, fractions: dict[str, float], seed: int) -> np.ndarray:
    """Assigns whole groups of pictures to splits so that each class approaches `fractions` (share by split name).

    `labels` and `groups` are [N]. The largest groups are assigned first, each to the split that lacks most pictures of
    its classes. The stream "split" orders groups of equal size. Returns split names [N].
    """
    names = list(fractions)
    label, group = (np.unique(values, return_inverse=True)[1] for values in (labels, groups))
    sizes = np.bincount(group)
    members = np.split(label[np.argsort(group, kind="stable")], np.cumsum(sizes)[:-1])
    lack = np.bincount(label)[:, None] * np.array(list(fractions.values()))  # classes x splits
    order = stream(seed, "split").permutation(len(sizes))
    chosen = np.empty(len(sizes), dtype=int)
    for number in order[np.argsort(-sizes[order], kind="stable")]:
        classes, counts = np.unique(members[number], return_counts=True)
        if len(classes) > 1:  # the sum of products in the order of a dense row, because rounding decides between equals
            classes, counts = np.arange(len(lack)), np.bincount(members[number], minlength=len(lack))
        chosen[number] = np.argmax(counts @ lack[classes])
        lack[classes, chosen[number]] -= counts
    return np.array(names)[chosen[group]]


def check(labels: pd.Series, splits: np.ndarray, names: Iterable[str]) -> None:
    """Raises `UserError` if a class is missing from one of the splits `names`. `labels` and `splits` are [N]."""
    counts = pd.crosstab(labels, splits).reindex(columns=list(names), fill_value=0)
    for name in counts:
        empty = counts.index[counts[name] == 0]
        if len(empty):
            raise UserError(
                f"split.{name}: class {empty[0]} has no picture left for it; raise split.{name} or filter.min_images"
            )
