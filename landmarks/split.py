"""Training, validation and test: stratified by class, near-duplicates never on both sides."""

from collections.abc import Iterable

from landmarks.determinism import stream
from landmarks.stage import UserError

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Bits of 64. Two unrelated photographs differ in about 32; re-encoded, resized or lightly edited copies in up to 6.
NEAR = 6
BLOCK = 256  # rows compared with all others at a time: 256 x 176,000 x 8 bytes = 360 MB at the size of the study


def near_duplicates(hashes: np.ndarray) -> np.ndarray:
    """Groups 64-bit hashes (uint64, n) by chains of at most `NEAR` differing bits. Returns a group number each, (n,).

    Compares all pairs, exactly: n = 176,000 takes about a minute.
    """
    left, right = [], []
    for start in range(0, len(hashes), BLOCK):
        rows, columns = np.nonzero(np.bitwise_count(hashes[start : start + BLOCK, None] ^ hashes[None, start:]) <= NEAR)
        left.append(rows + start)
        right.append(columns + start)
    edges = (np.concatenate(left), np.concatenate(right))
    graph = coo_array((np.ones(len(edges[0]), dtype=bool), edges), shape=(len(hashes), len(hashes)))
    return connected_components(graph, directed=False)[1]


def assign(labels: np.ndarray, groups: np.ndarray, fractions: dict[str, float], seed: int) -> np.ndarray:
    """Assigns every picture to a split, whole groups at a time, so that each class comes near to `fractions`.

    `labels` and `groups` are (n,), `fractions` is share by name. Large groups go first, each to the split that lacks
    most pictures of its classes; the order of equal ones is drawn from the stream "split". Returns names, (n,).
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
    """Raises `UserError` naming a class that is absent from one of the splits called `names`."""
    counts = pd.crosstab(labels, splits).reindex(columns=list(names), fill_value=0)
    for name in counts:
        empty = counts.index[counts[name] == 0]
        if len(empty):
            raise UserError(
                f"split.{name}: class {empty[0]} has no picture left for it; raise split.{name} or filter.min_images"
            )
