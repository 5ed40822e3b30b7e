"""Near-duplicate pictures and placeholders."""

import re
import tracemalloc
from functools import reduce
from pathlib import Path
from random import Random

from landmarks import artifacts, duplicates, images
from stages import download
from stages import filter as filter_stage
from stages import split as split_stage

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import default_values, drawing, jpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components


def group_hashes(*hashes: int) -> list[int]:
    """The groups of the hashes, numbered in order of appearance."""
    groups = duplicates.near_duplicates(np.array(hashes, dtype=np.uint64))
    return pd.factorize(groups)[0].tolist()


@pytest.mark.parametrize(("bits", "together"), [(0, True), (1, True), (6, True), (7, False), (64, False)])
def test_hashes_within_six_bits_are_near_duplicates(bits: int, together: bool) -> None:
    one = 0x0123_4567_89AB_CDEF
    assert group_hashes(one, one ^ ((1 << bits) - 1)) == [0, 0 if together else 1]


def test_near_duplicates_form_chains() -> None:
    assert group_hashes(0b111111, 2**64 - 1, 0, 0b111111 << 6 | 0b111111) == [0, 1, 0, 0]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 63), max_size=7)), min_size=1, max_size=60),
    st.integers(1, 64),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
def test_groups_are_those_of_all_pairs(pictures: list[tuple[int, list[int]]], cells: int, random: Random) -> None:
    """Hashes that differ in a few bits from a few others, compared in chunks of any size."""
    bases = [random.getrandbits(64) for _ in range(10)]
    values = [reduce(lambda value, bit: value ^ 1 << bit, bits, bases[base]) for base, bits in pictures]
    hashes = np.array(values, dtype=np.uint64)
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "MAX_CELLS", cells)
        groups = duplicates.near_duplicates(hashes)
    assert groups.tolist() == connected_components(near, directed=False)[1].tolist()


def test_many_equal_hashes_need_little_memory() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    hashes[:14_000] = hashes[0]
    tracemalloc.start()
    try:
        groups = duplicates.near_duplicates(hashes)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert len(np.unique(groups)) == 6_001


def test_copies_of_a_picture_are_one_group() -> None:
    originals = [drawing(seed, 320, 256) for seed in range(4)]
    copies = [images.decode(jpeg(image.resize((200, 160)), quality=50)) for image in originals]
    assert group_hashes(*map(images.perceptual_hash, originals + copies)) == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize(("copies", "classes", "found"), [(21, 2, True), (20, 2, False), (60, 1, False)])
def test_more_than_20_copies_in_several_classes_are_a_placeholder(copies: int, classes: int, found: bool) -> None:
    rng = np.random.default_rng(0)
    noise = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (3, copies), dtype=np.uint64))
    hashes = np.concatenate([np.uint64(0x0123_4567_89AB_CDEF) ^ noise, rng.integers(0, 2**64, 50, dtype=np.uint64)])
    labels = np.array([f"class {n % classes}" for n in range(len(hashes))])
    assert duplicates.placeholders(hashes, labels).tolist() == [found] * copies + [False] * 50


def test_a_long_chain_of_different_pictures_is_no_placeholder() -> None:
    hashes = np.array([(1 << n) - 1 for n in range(0, 64, 3)], dtype=np.uint64)
    assert len(hashes) > duplicates.MAX_COPIES and len(np.unique(duplicates.near_duplicates(hashes))) == 1
    assert not duplicates.placeholders(hashes, np.arange(len(hashes))).any()


@pytest.mark.slow
def test_placeholders_are_dropped_and_large_groups_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three classes, each with 10 pictures, 8 copies of the same placeholder and, in one class, 30 of one picture."""
    values = default_values()
    values["data"] = {"source": "folder", "root": "photos", "only": None, "version": None}
    values["filter"] |= {"skip_top": 0, "top_k": 3, "min_images": 10}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    for number, name in enumerate("abc"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for n in range(10):
            drawing(100 * number + n).save(tmp_path / f"photos/{name}/{n}.png")
        for n in range(8):
            drawing(999).save(tmp_path / f"photos/{name}/gone-{n}.jpg", quality=80 + n)
    for n in range(30):
        drawing(500).save(tmp_path / f"photos/a/same-{n}.jpg", quality=70 + n)
    monkeypatch.chdir(tmp_path)
    download.main()
    assert filter_stage.main().startswith("kept 60 pictures of 3 classes, dropped 24 (24 placeholder), ")
    dropped = artifacts.read_csv(artifacts.FILTERED / "dropped.csv")
    assert set(dropped["reason"]) == {"placeholder"} and dropped["id"].str.contains("gone").all()
    kept, wanted = (
        [picture_id for (picture_id,) in images.read_columns(directory, "id")]
        for directory in (artifacts.FILTERED, artifacts.DOWNLOADED)
    )
    assert sorted([*kept, *dropped["id"]]) == wanted
    assert pd.read_parquet(artifacts.FILTERED / "hashes.parquet")["id"].tolist() == kept
    assert artifacts.read_classes()["pictures"].tolist() == [40, 10, 10]
    summary = split_stage.main()
    assert re.search(r"; 29 near-duplicates kept together, which makes .*train 7\d\.\d% instead of 70\.0%", summary), (
        summary
    )


def test_each_picture_appears_in_its_worst_pair() -> None:
    """Other classes come before other splits, and these before the nearest; pairs are listed in the same order."""
    hashes = np.array([0, 0b1, 0b11, 0b111, 0xFFFF << 40, (0xFFFF << 40) + 3, 0xFFFF << 20], dtype=np.uint64)
    labels = np.array([0, 0, 1, 0, 2, 2, 3])
    splits = np.array(["train", "test", "train", "train", "train", "val", "train"])
    pairs = duplicates.worst_pairs(hashes, labels, splits).tolist()
    assert pairs == [[1, 2, 1], [2, 3, 1], [0, 2, 2], [4, 5, 2]]
    assert duplicates.worst_pairs(hashes[-2:], labels[-2:], splits[-2:]).shape == (0, 3)
    copies = duplicates.worst_pairs(np.zeros(50, dtype=np.uint64), np.zeros(50, dtype=int), np.zeros(50, dtype=str))
    assert len(copies) == 49
