"""The ranking of landmarks."""

from typing import Literal

from landmarks import classes

import pandas as pd
import pytest
from conftest import SHARED, shared, user_error

SIZES = {"b": 5, "a": 5, "c": 9, "d": 2, "e": 3}
INDEX = pd.DataFrame({"landmark_id": [name for name, size in SIZES.items() for _ in range(size)]})


def ranked(skip_top: int = 0, top_k: int | Literal["all"] = 2, min_images: int = 2) -> pd.DataFrame:
    return classes.rank(INDEX, skip_top=skip_top, top_k=top_k, min_images=min_images)


def test_ranking_is_by_size_and_ties_by_id() -> None:
    ranking = ranked()
    assert list(ranking.columns) == ["rank", "landmark_id", "images", "kept"]
    assert ranking["landmark_id"].tolist() == ["c", "a", "b", "e", "d"]
    assert ranking["images"].tolist() == [9, 5, 5, 3, 2]
    assert ranking["rank"].tolist() == [1, 2, 3, 4, 5]


def test_ranking_does_not_depend_on_the_order_of_the_index() -> None:
    mixed = INDEX.sample(frac=1, random_state=0)
    assert classes.rank(mixed, skip_top=1, top_k=2, min_images=2).equals(ranked(skip_top=1))


@pytest.mark.parametrize(
    ("skip_top", "top_k", "kept"), [(0, 2, ["c", "a"]), (1, 2, ["a", "b"]), (3, 2, ["e", "d"]), (0, 5, list("cabed"))]
)
def test_skip_top_and_top_k(skip_top: int, top_k: int, kept: list[str]) -> None:
    ranking = ranked(skip_top, top_k)
    assert ranking.loc[ranking["kept"], "landmark_id"].tolist() == kept


@pytest.mark.parametrize(("skip_top", "top_k"), [(0, 6), (4, 2), (9, 2)])
def test_too_few_classes_are_an_error(skip_top: int, top_k: int) -> None:
    with user_error(rf"filter\.top_k: {skip_top} \+ {top_k} classes .*the index has 5"):
        ranked(skip_top, top_k)


def test_a_kept_class_that_is_too_small_is_an_error() -> None:
    with user_error(r"filter\.min_images: class d has 2 pictures, fewer than 3"):
        ranked(skip_top=3, min_images=3)
    assert not ranked(skip_top=2, min_images=3)["kept"].iloc[-1], "other classes may be smaller"


@pytest.mark.parametrize(("skip_top", "min_images", "kept"), [(0, 4, ["c", "a", "b"]), (1, 3, ["a", "b", "e"])])
def test_all_classes_that_are_large_enough(skip_top: int, min_images: int, kept: list[str]) -> None:
    ranking = ranked(skip_top, "all", min_images)
    assert ranking.loc[ranking["kept"], "landmark_id"].tolist() == kept


def test_one_class_is_not_enough() -> None:
    with user_error(r"filter\.min_images: 1 classes after filter\.skip_top have at least 9 pictures, 2 are needed"):
        ranked(0, "all", min_images=9)


def test_small_classes_are_named() -> None:
    sizes = ranked().set_index("landmark_id")["images"]
    assert classes.too_small(sizes, 4) == "; 2 classes with fewer than 4 pictures: e (3), d (2)"
    assert classes.too_small(sizes, 2) == ""
    assert classes.too_small(pd.Series(1, range(12)), 2).endswith(
        ": " + ", ".join(f"{n} (1)" for n in range(10)) + " and 2 more"
    )


@shared("gldv1/class_counts.csv")
def test_the_classes_of_the_study() -> None:
    """Of all 1,193,208 rows of Google Landmarks v1, ranks 4 to 30 are kept."""
    counts = pd.read_csv(SHARED / "gldv1/class_counts.csv", dtype={"landmark_id": str})
    index = pd.DataFrame({"landmark_id": counts["landmark_id"].repeat(counts["images"])})
    assert len(index) == 1_193_208
    ranking = classes.rank(index, skip_top=3, top_k=27, min_images=10)
    kept = ranking[ranking["kept"]]
    assert len(ranking) == (counts["images"] > 0).sum()
    assert kept["rank"].tolist() == list(range(4, 31))
    assert kept["landmark_id"].iloc[0] == "9779" and kept["landmark_id"].iloc[-1] == "9029"
    assert kept["images"].iloc[0] == 18_010 and kept["images"].iloc[-1] == 2_524
