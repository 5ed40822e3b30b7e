"""Splits into training, validation and test: stratified by class, and near-duplicates together if they are grouped."""

from collections.abc import Collection, Iterable

from landmarks.determinism import stream
from landmarks.stage import UserError

import numpy as np
import pandas as pd


def assign(
    labels: np.ndarray, groups: np.ndarray, fractions: dict[str, float], seed: int, started: Collection = ()
) -> np.ndarray:
    """Assigns whole groups of pictures to splits so that each class approaches `fractions` (share by split name).

    `labels` and `groups` are [N]. The largest groups are assigned first, each to the split that lacks most pictures of
    its classes. If a class has no more groups left than empty splits, they go to empty splits if possible. For the
    labels `started`, the first split counts as not empty, because it already has other pictures of them. The stream
    "split" orders groups of equal size. Returns split names [N].
    """
    names = list(fractions)
    classes, label = np.unique(labels, return_inverse=True)
    group = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(group)
    members = np.split(label[np.argsort(group, kind="stable")], np.cumsum(sizes)[:-1])
    lack = np.bincount(label)[:, None] * np.array(list(fractions.values()))  # classes x splits
    empty = np.ones(lack.shape, dtype=bool)
    empty[np.isin(classes, list(started)), 0] = False
    left = np.bincount(np.unique([label, group], axis=1)[0])  # groups of each class
    order = stream(seed, "split").permutation(len(sizes))
    chosen = np.empty(len(sizes), dtype=int)
    for number in order[np.argsort(-sizes[order], kind="stable")]:
        own, counts = np.unique(members[number], return_counts=True)
        rows = own
        if len(own) > 1:  # the sum of products in the order of a dense row, because rounding decides between equals
            rows, counts = np.arange(len(lack)), np.bincount(members[number], minlength=len(lack))
        urgent = own[left[own] <= empty[own].sum(1)]
        allowed = empty[urgent].any(0) if len(urgent) else True
        chosen[number] = np.argmax(np.where(allowed, counts @ lack[rows], -np.inf))
        lack[rows, chosen[number]] -= counts
        empty[own, chosen[number]] = False
        left[own] -= 1
    return np.array(names)[chosen[group]]


def complete(
    labels: np.ndarray, groups: np.ndarray, given: np.ndarray, fractions: dict[str, float], seed: int
) -> np.ndarray:
    """Keeps the splits `given` [N], but moves train pictures of classes without val or test pictures into these.

    `assign` draws them, with the fractions of train and of what the class lacks. Groups that also have other pictures
    stay. Returns split names [N].
    """
    counts = pd.crosstab(labels, given).reindex(columns=list(fractions), fill_value=0)
    splits = given.copy()
    for lacking in ({"val"}, {"test"}, {"val", "test"}):
        shares = {name: share for name, share in fractions.items() if name == "train" or name in lacking}
        shares = {name: share / sum(shares.values()) for name, share in shares.items()}
        classes = counts.index[[set(counts.columns[row == 0]) - {"train"} == lacking for row in counts.to_numpy()]]
        fixed = (given != "train") | ~np.isin(labels, classes)
        free = ~np.isin(groups, groups[fixed])
        if free.any():
            started = np.unique(labels[(given == "train") & ~free])
            splits[free] = assign(labels[free], groups[free], shares, seed, started)
    return splits


def check(labels: pd.Series, splits: np.ndarray, names: Iterable[str], given: bool = False) -> None:
    """Raises `UserError` if a class is missing from one of the splits `names`. `labels` and `splits` are [N]."""
    counts = pd.crosstab(labels, splits).reindex(columns=list(names), fill_value=0)
    for name in counts:
        empty = counts.index[counts[name] == 0]
        if len(empty):
            drawn = "add pictures that are no near-duplicates, or remove the class"
            advice = "add some, or set split.given: redraw" if given else drawn
            raise UserError(f"split.{name}: class {empty[0]} has no picture left for it; {advice}")
