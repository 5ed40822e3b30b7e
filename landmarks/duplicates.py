"""Near-duplicate pictures, by their perceptual hashes of 64 bits."""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Of 64 bits, unrelated photographs differ in about 32; re-encoded, resized or lightly edited copies in up to 6.
MAX_DISTANCE = 6
MAX_COPIES = 20  # a picture with more copies in several classes is a placeholder
MAX_CELLS = 1 << 20  # distances in memory at a time


def near_duplicates(hashes: np.ndarray) -> np.ndarray:
    """Groups hashes [N] (uint64): those within `MAX_DISTANCE` bits, directly or by a chain. Returns group numbers [N].

    Hashes within 6 bits agree in at least one of 7 blocks of bits (pigeonhole principle), so only hashes that agree in
    a block are compared. Memory is linear in N; N = 176,000 random hashes take seconds.
    """
    values, inverse = np.unique(hashes, return_inverse=True)
    groups = np.arange(len(values))
    edges: list[np.ndarray] = []

    def merge() -> None:
        left, right = np.hstack(edges or [np.empty((2, 0), dtype=int)])
        graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(len(values), len(values)))
        groups[:] = connected_components(graph, directed=False)[1][groups]
        edges.clear()

    for bits in np.array_split(np.arange(64, dtype=np.uint64), MAX_DISTANCE + 1):
        block = values & np.bitwise_or.reduce(np.uint64(1) << bits)
        order = np.argsort(block, kind="stable")
        for equal in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
            rows = MAX_CELLS // max(len(equal), 1) + 1
            for start in range(0, len(equal), rows):
                left, right = equal[start : start + rows], equal[start:]
                if (groups[right] == groups[right[0]]).all():
                    break  # they are one group already
                row, column = np.nonzero(np.bitwise_count(values[left, None] ^ values[right]) <= MAX_DISTANCE)
                pairs = np.stack([groups[left[row]], groups[right[column]]])
                if (new := pairs[0] != pairs[1]).any():
                    edges.append(pairs[:, new])
                    if sum(pairs.shape[1] for pairs in edges) > MAX_CELLS:
                        merge()
        merge()
    return pd.factorize(groups[inverse])[0].astype(np.int32)


def worst_pairs(hashes: np.ndarray, labels: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """The pairs of near-duplicates that matter most. Returns positions and distances in bits, [M, 3], worst first.

    Each picture with near-duplicates is paired with one of them: of another class if there is one, then of another
    split, then the nearest. So a group of copies has at most as many pairs as pictures. The pairs are sorted likewise:
    those across classes first, then those across splits, then by distance. All arguments are [N]. The time grows with
    the square of the largest group: 0.4 s for 2,000 pictures.
    """
    pairs = set()
    for members in pd.Series(hashes).groupby(near_duplicates(hashes)).indices.values():
        for one in members if len(members) > 1 else []:
            distances = np.bitwise_count(hashes[members] ^ hashes[one])
            near = (distances <= MAX_DISTANCE) & (members != one)
            others = members[near]
            keys = distances[near], splits[others] == splits[one], labels[others] == labels[one]
            best = np.lexsort((others, *keys))[0]
            pairs.add((min(one, others[best]), max(one, others[best]), keys[0][best]))
    found = np.array(sorted(pairs), dtype=int).reshape(-1, 3)
    left, right, distance = found.T
    return found[np.lexsort((distance, splits[left] == splits[right], labels[left] == labels[right]))]


def placeholders(hashes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Finds placeholders, pictures like "photo no longer available". Returns whether each is one, [N].

    If more than `MAX_COPIES` pictures, of more than one class, are within `MAX_DISTANCE` bits of one hash, all of them
    are placeholders. `hashes` [N] are uint64, `labels` [N] are the classes.
    """
    found = np.zeros(len(hashes), dtype=bool)
    for members in pd.Series(labels).groupby(near_duplicates(hashes)).indices.values():
        possible = len(members) > MAX_COPIES and len(np.unique(labels[members])) > 1
        for value in np.unique(hashes[members]) if possible else []:
            near = members[np.bitwise_count(hashes[members] ^ value) <= MAX_DISTANCE]
            if len(near) > MAX_COPIES and (labels[near] != labels[near[0]]).any():
                found[near] = True
    return found
