"""Training, validation and test."""

import tracemalloc

from landmarks import split
from landmarks.determinism import stream

import numpy as np
import pandas as pd
import pytest
from conftest import user_error

FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}

NAMES = ("train", "val", "test")


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


@pytest.mark.parametrize("seed", range(20))
def test_every_group_is_assigned_as_with_a_dense_table(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, groups, number = rng.integers(2, 30), rng.integers(1, 200), rng.integers(1, 500)
    labels, groups = rng.integers(0, classes, number), rng.integers(0, groups, number)
    sizes = pd.crosstab(groups, labels).to_numpy()
    lack = sizes.sum(0)[:, None] * np.array(list(FRACTIONS.values()))
    order = stream(seed, "split").permutation(len(sizes))
    chosen: dict[int, int] = {}
    empty, left = np.ones(lack.shape, dtype=bool), (sizes > 0).sum(0)
    for group in order[np.argsort(-sizes[order].sum(1), kind="stable")]:
        own = sizes[group] > 0
        urgent = own & (left <= empty.sum(1))
        barred = urgent.any() & ~empty[urgent].any(0)
        chosen[group] = np.argmax(np.where(barred, -np.inf, sizes[group] @ lack))
        lack[:, chosen[group]] -= sizes[group]
        empty[own, chosen[group]] = False
        left -= own
    expected = [NAMES[chosen[group]] for group in np.unique(groups, return_inverse=True)[1]]
    assert split.assign(labels, groups, FRACTIONS, seed).tolist() == expected


@pytest.mark.parametrize("sizes", [(5, 5, 5), (9, 1, 1), (6, 6, 2, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_three_groups_are_enough_for_three_splits(sizes: tuple[int, ...], seed: int) -> None:
    """A class of three bursts of near-duplicates has one in each split."""
    groups = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), 10 + np.arange(60)])
    labels = np.repeat([0, 1], [sum(sizes), 60])
    splits = split.assign(labels, groups, FRACTIONS, seed)
    assert set(splits[labels == 0]) == set(NAMES)
    assert (splits[labels == 1] == "train").sum() == pytest.approx(42, abs=1)


@pytest.mark.slow
def test_memory_of_assign_is_linear_in_pictures() -> None:
    """A table of groups by classes would have 400 million cells."""
    tracemalloc.start()
    try:
        split.assign(np.arange(20_000), np.arange(20_000), FRACTIONS, 0)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_the_seed_determines_the_split() -> None:
    labels, groups = grouped()
    first, again, other = (split.assign(labels, groups, FRACTIONS, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_group_numbers_need_not_be_consecutive() -> None:
    labels, groups = grouped()
    assert (split.assign(labels, groups, FRACTIONS, 1) == split.assign(labels, groups * 7 + 3, FRACTIONS, 1)).all()


def given_splits() -> tuple[np.ndarray, np.ndarray]:
    """Labels and splits of 100 pictures: class 0 has all splits, 1 no val, 2 no test, 3 only train, 4 no train."""
    sizes = {0: (14, 3, 3), 1: (17, 0, 3), 2: (17, 3, 0), 3: (20, 0, 0), 4: (0, 10, 10)}
    labels = np.repeat(list(sizes), 20)
    return labels, np.concatenate([np.repeat(NAMES, numbers) for numbers in sizes.values()])


def test_a_class_without_val_or_test_pictures_gets_some_of_its_train_pictures() -> None:
    labels, given = given_splits()
    splits = split.complete(labels, np.arange(100), given, FRACTIONS, 0)
    assert (given[splits != given] == "train").all()
    counts = pd.crosstab(labels, splits)[list(NAMES)].to_numpy().tolist()
    assert counts == [[14, 3, 3], [14, 3, 3], [14, 3, 3], [14, 3, 3], [0, 10, 10]]
    whole = split.complete(labels[60:80], np.arange(20), given[60:80], FRACTIONS, 0)
    assert whole.tolist() == split.assign(labels[60:80], np.arange(20), FRACTIONS, 0).tolist(), "all is train"


def test_near_duplicates_of_pictures_that_stay_are_not_moved() -> None:
    labels, given = given_splits()
    groups = np.arange(100)
    groups[60:78] = groups[:18]  # of class 3, like pictures of class 0 in train and val
    splits = split.complete(labels, groups, given, FRACTIONS, 0)
    assert (splits[60:78] == "train").all()
    assert set(splits[78:80]) == {"val", "test"}, "the class keeps the others in train"
    groups[60:80] = 60
    assert (split.complete(labels, groups, given, FRACTIONS, 0)[60:80] == "train").all()


def test_a_class_missing_from_a_given_split_is_an_error() -> None:
    labels, given = given_splits()
    with user_error(r"split\.train: class 4 has no picture left for it; add some, or set split\.given: redraw"):
        split.check(pd.Series(labels), split.complete(labels, np.arange(100), given, FRACTIONS, 0), NAMES, given=True)


def test_a_class_missing_from_a_split_is_an_error() -> None:
    labels = pd.Series(["a", "a", "a", "b", "b"])
    splits = np.array(["train", "val", "test", "train", "val"])
    with user_error(r"split\.test: class b has no picture"):
        split.check(labels, splits, NAMES)
    split.check(labels[:3], splits[:3], NAMES)


def test_an_empty_split_is_an_error() -> None:
    with user_error(r"split\.test: class a has no picture"):
        split.check(pd.Series(["a", "a", "b", "b"]), np.array(["train", "val", "train", "val"]), NAMES)
