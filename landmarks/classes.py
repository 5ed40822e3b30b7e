"""Ranks landmarks by their number of pictures and selects those to keep."""

from typing import Literal

from landmarks.stage import UserError

import pandas as pd

SHOWN = 10  # names of classes in a summary line


def rank(index: pd.DataFrame, *, skip_top: int, top_k: int | Literal["all"], min_images: int) -> pd.DataFrame:
    """Ranks classes by number of pictures, then by id; keeps the `top_k` that follow the first `skip_top`.

    With "all", keeps every class after the first `skip_top` that has at least `min_images` pictures. `index` has a row
    per picture with `landmark_id`. Returns `rank` (from 1), `landmark_id`, `images` and `kept`, in rank order.

    Raises `UserError` if there is a single class, as in a folder above the class folders, if there are too few classes,
    or if one of the `top_k` has fewer than `min_images` pictures.
    """
    images = index["landmark_id"].value_counts(sort=False).rename_axis("landmark_id").reset_index(name="images")
    ranking = images.sort_values(["images", "landmark_id"], ascending=[False, True], ignore_index=True)
    ranking.insert(0, "rank", ranking.index + 1)
    if len(ranking) == 1:
        only = ranking["landmark_id"].iloc[0]
        fix = "name the folder that has the class folders, another index, or other pictures in data.only"
        raise UserError(f"data.root: all pictures are of one class, {only}; {fix}")
    if top_k == "all":
        ranking["kept"] = (ranking["rank"] > skip_top) & (ranking["images"] >= min_images)
        check_number(ranking["kept"].sum(), min_images)
        return ranking
    ranking["kept"] = ranking["rank"].between(skip_top + 1, skip_top + top_k)
    if len(ranking) < skip_top + top_k:
        raise UserError(
            f"filter.top_k: {skip_top} + {top_k} classes wanted (filter.skip_top + filter.top_k), "
            f"the index has {len(ranking)}; lower one of them"
        )
    check_sizes(ranking[ranking["kept"]].set_index("landmark_id")["images"], min_images)
    return ranking


def check_number(classes: int, min_images: int, unusable: str = "") -> None:
    """Raises `UserError` if fewer than two classes are left. `unusable`: why pictures were dropped, with numbers."""
    if classes < 2:
        raise UserError(
            f"filter.min_images: {classes} classes after filter.skip_top have at least {min_images} pictures, "
            f"2 are needed; lower one of them{dropped(unusable)}"
        )


def dropped(unusable: str) -> str:
    return unusable and f" (pictures dropped: {unusable})"


def check_sizes(images: pd.Series, min_images: int, unusable: str = "") -> None:
    """Raises `UserError` naming the smallest class if it has fewer than `min_images` pictures."""
    if images.min() < min_images:
        raise UserError(
            f"filter.min_images: class {images.idxmin()} has {images.min()} pictures, fewer than {min_images}; lower "
            f"filter.min_images or filter.top_k, or set filter.top_k: all{dropped(unusable)}"
        )


def too_small(images: pd.Series, min_images: int) -> str:
    """The end of a summary line that names the classes that are too small; `images` is their size by landmark_id."""
    small = images[images < min_images]
    if small.empty:
        return ""
    names = ", ".join(f"{name} ({number})" for name, number in small.head(SHOWN).items())
    more = f" and {len(small) - SHOWN} more" if len(small) > SHOWN else ""
    return f"; {len(small)} class{'es' * (len(small) > 1)} with fewer than {min_images} pictures: {names}{more}"
