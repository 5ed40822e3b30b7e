"""Training, validation and test."""

from landmarks import images, split

import numpy as np
import pandas as pd
import pytest
from conftest import drawing, jpeg, user_error

FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}

NAMES = ("train", "val", "test")


def group_hashes(*hashes: int) -> list[int]:
    """The groups of the hashes, numbered in order of appearance."""
    groups = split.near_duplicates(np.array(hashes, dtype=np.uint64))
    return pd.factorize(groups)[0].tolist()


@pytest.mark.parametrize(("bits", "together"), [(0, True), (1, True), (6, True), (7, False), (64, False)])
def test_hashes_within_six_bits_are_near_duplicates(bits: int, together: bool) -> None:
    one = 0x0123_4567_89AB_CDEF
    assert group_hashes(one, one ^ ((1 << bits) - 1)) == [0, 0 if together else 1]


def test_near_duplicates_form_chains() -> None:
    assert group_hashes(0b111111, 2**64 - 1, 0, 0b111111 << 6 | 0b111111) == [0, 1, 0, 0]


def test_groups_span_blocks() -> None:
    """Finds exactly the planted pairs among many unrelated hashes, at any distance in the array."""
    hashes = np.random.default_rng(0).integers(0, 2**64, 3 * split.BLOCK, dtype=np.uint64)
    planted = {3: 700, 255: 256, 10: 20}
    for first, second in planted.items():
        hashes[second] = hashes[first] ^ np.uint64(0b10101)
    groups = split.near_duplicates(hashes)
    assert {first: int(np.flatnonzero(groups == groups[first])[-1]) for first in planted} == planted
    assert len(np.unique(groups)) == len(hashes) - len(planted)


def test_copies_of_a_picture_are_one_group() -> None:
    originals = [drawing(seed, 320, 256) for seed in range(4)]
    copies = [images.decode(jpeg(image.resize((200, 160)), quality=50)) for image in originals]
    assert group_hashes(*map(images.perceptual_hash, originals + copies)) == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_within_one_picture_of_the_fractions(seed: int) -> None:
    labels = np.repeat([0, 1, 2, 3], [10, 14, 63, 102])
    assigned = split.assign(labels, np.arange(len(labels)), FRACTIONS, seed)
    for label in range(4):
        own = assigned[labels == label]
        for name, fraction in FRACTIONS.items():
            assert abs((own == name).sum() - fraction * len(own)) <= 1


def grouped(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of 300 pictures, and groups of 1 to 6 of them; some groups have pictures of several classes."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 5, 300), rng.choice(110, 300)


def test_a_group_is_never_split() -> None:
    labels, groups = grouped()
    assigned = pd.Series(split.assign(labels, groups, FRACTIONS, 1))
    assert (assigned.groupby(groups).nunique() == 1).all()
    assert assigned.value_counts(normalize=True).to_dict() == pytest.approx(FRACTIONS, abs=0.03)


def test_the_seed_determines_the_split() -> None:
    labels, groups = grouped()
    first, again, other = (split.assign(labels, groups, FRACTIONS, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_group_numbers_need_not_be_consecutive() -> None:
    labels, groups = grouped()
    assert (split.assign(labels, groups, FRACTIONS, 1) == split.assign(labels, groups * 7 + 3, FRACTIONS, 1)).all()


def test_a_class_missing_from_a_split_is_an_error() -> None:
    labels = pd.Series(["a", "a", "a", "b", "b"])
    splits = np.array(["train", "val", "test", "train", "val"])
    with user_error(r"split\.test: class b has no picture"):
        split.check(labels, splits, NAMES)
    split.check(labels[:3], splits[:3], NAMES)


def test_an_empty_split_is_an_error() -> None:
    with user_error(r"split\.test: class a has no picture"):
        split.check(pd.Series(["a", "a", "b", "b"]), np.array(["train", "val", "train", "val"]), NAMES)
