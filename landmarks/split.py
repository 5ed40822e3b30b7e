"""Splits into training, validation and test: stratified by class, near-duplicates always in the same split."""

from collections.abc import Iterable

from landmarks.determinism import stream
from landmarks.stage import UserError

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Of 64 bits, unrelated photographs differ in about 32; re-encoded, resized or lightly edited copies in up to 6.
MAX_DISTANCE = 6
BLOCK = 256  # rows per comparison: 256 x 176,000 x 8 bytes = 360 MB for the study's pictures


def near_duplicates(hashes: np.ndarray) -> np.ndarray:
    """Groups hashes [N] (uint64): those within `MAX_DISTANCE` bits, directly or by a chain. Returns group numbers [N].

    Compares all pairs: N = 176,000 takes about a minute.
    """
    left, right = [], []
    for start in range(0, len(hashes), BLOCK):
        distances = np.bitwise_count(hashes[start : start + BLOCK, None] ^ hashes[None, start:])
        rows, columns = np.nonzero(distances <= MAX_DISTANCE)
        left.append(rows + start)
        right.append(columns + start)
    edges = (np.concatenate(left), np.concatenate(right))
    graph = coo_array((np.ones(len(edges[0]), dtype=bool), edges), shape=(len(hashes), len(hashes)))
    return connected_components(graph, directed=False)[1]


def assign(labels: np.ndarray, groups: np.ndarray, fractions: dict[str, float], seed: int) -> np.ndarray:
    """Assigns whole groups of pictures to splits so that each class approaches `fractions` (share by split name).

    `labels` and `groups` are [N]. The largest groups are assigned first, each to the split that lacks most pictures of
    its classes. The stream "split" orders groups of equal size. Returns split names [N].
    """
    names = list(fractions)
    sizes = pd.crosstab(groups, labels).to_numpy()  # groups x classes
    lack = sizes.sum(0)[:, None] * np.array(list(fractions.values()))  # classes x splits
    order = stream(seed, "split").permutation(len(sizes))
    order = order[np.argsort(-sizes[order].sum(1), kind="stable")]
    chosen = np.empty(len(sizes), dtype=int)
    for group in order:
        members = sizes[group]
        chosen[group] = np.argmax(members @ lack)
        lack[:, chosen[group]] -= members
    return np.array(names)[chosen[np.unique(groups, return_inverse=True)[1]]]


def check(labels: pd.Series, splits: np.ndarray, names: Iterable[str]) -> None:
    """Raises `UserError` if a class is missing from one of the splits `names`. `labels` and `splits` are [N]."""
    counts = pd.crosstab(labels, splits).reindex(columns=list(names), fill_value=0)
    for name in counts:
        empty = counts.index[counts[name] == 0]
        if len(empty):
            raise UserError(
                f"split.{name}: class {empty[0]} has no picture left for it; raise split.{name} or filter.min_images"
            )
