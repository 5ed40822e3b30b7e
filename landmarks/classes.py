"""Ranks landmarks by their number of pictures and selects those to keep."""

from landmarks.stage import UserError

import pandas as pd


def rank(index: pd.DataFrame, *, skip_top: int, top_k: int, min_images: int) -> pd.DataFrame:
    """Ranks classes by number of pictures, then by id; keeps the `top_k` that follow the first `skip_top`.

    `index` has a row per picture with `landmark_id`. Returns `rank` (from 1), `landmark_id`, `images` and `kept`, in
    rank order. Raises `UserError` if there are too few classes or a kept one has fewer than `min_images` pictures.
    """
    images = index["landmark_id"].value_counts(sort=False).rename_axis("landmark_id").reset_index(name="images")
    ranking = images.sort_values(["images", "landmark_id"], ascending=[False, True], ignore_index=True)
    ranking.insert(0, "rank", ranking.index + 1)
    ranking["kept"] = ranking["rank"].between(skip_top + 1, skip_top + top_k)
    if len(ranking) < skip_top + top_k:
        raise UserError(
            f"filter.top_k: {skip_top} + {top_k} classes wanted (filter.skip_top + filter.top_k), "
            f"the index has {len(ranking)}; lower one of them"
        )
    check_sizes(ranking[ranking["kept"]].set_index("landmark_id")["images"], min_images)
    return ranking


def check_sizes(images: pd.Series, min_images: int) -> None:
    """Raises `UserError` naming the smallest class if it has fewer than `min_images` pictures."""
    if images.min() < min_images:
        raise UserError(
            f"filter.min_images: class {images.idxmin()} has {images.min()} pictures, fewer than {min_images}; "
            "lower filter.min_images or filter.top_k"
        )
