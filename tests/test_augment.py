"""Views: how they are drawn, and how they are applied to a picture."""

from itertools import product

from landmarks import augment
from landmarks.augment import View

import numpy as np
import pandas as pd
import pytest
from conftest import VIEWS, drawing
from PIL import Image

SIZES = {"a": (341, 256), "b": (256, 341), "c": (80, 80), "d": (500, 64)}


def table(names: str = "abcdefghijklmnop") -> pd.DataFrame:
    """Pictures in reverse id order; half of them train."""
    rows = []
    for n, name in enumerate(names):
        width, height = SIZES.get(name, (256 + n, 300))
        rows.append({"id": name, "width": width, "height": height, "split": ("train", "train", "val", "test")[n % 4]})
    return pd.DataFrame(rows[::-1])


def drawn(pictures: pd.DataFrame | None = None, seed: int = 3, **changes: object) -> pd.DataFrame:
    settings = VIEWS.model_copy(update={"views": 5} | changes)
    return augment.draw(table() if pictures is None else pictures, settings, seed)


def view(**changes: object) -> View:
    """A view that leaves a picture of 64 x 64 pixels as it is, except for `changes`."""
    return View("a", 0, 0.0, 0, 0, 64, 1.0, False)._replace(**changes)


def pixels(image: Image.Image, **changes: object) -> np.ndarray:
    return np.asarray(augment.apply(image, view(**changes), 64), dtype=float)


def test_the_index_has_a_row_per_view_in_order() -> None:
    index = drawn()
    assert list(index.columns) == ["id", "view", "angle", "left", "top", "side", "brightness", "flip"]
    splits = table().set_index("id")["split"].sort_index()
    expected = [(name, n) for name, part in splits.items() for n in range(5 if part == "train" else 1)]
    assert list(index[["id", "view"]].itertuples(index=False, name=None)) == expected


def test_boxes_lie_inside_their_pictures() -> None:
    index = drawn(views=40).merge(table(), on="id")
    assert (index[["left", "top"]] >= 0).all(axis=None) and (index["side"] > 0).all()
    assert (index["left"] + index["side"] <= index["width"]).all()
    assert (index["top"] + index["side"] <= index["height"]).all()


def test_training_views_fill_their_ranges() -> None:
    index = drawn(views=200).merge(table(), on="id").query("split == 'train'")
    share = index["side"] / index[["width", "height"]].min(axis=1)
    for values, low, high in ((index["angle"], -45, 45), (share, 0.7, 1.0), (index["brightness"], 0.75, 1.25)):
        margin = 0.02 * (high - low)
        assert low - margin < values.min() < low + margin and high - margin < values.max() < high + margin
    assert index["angle"].between(-45, 45).all() and index["brightness"].between(0.75, 1.25).all()
    assert 0.4 < index["flip"].mean() < 0.6


def test_augmentations_can_be_switched_off() -> None:
    index = drawn(rotation=0.0, scale=(1.0, 1.0), brightness=0.0, flip=False).merge(table(), on="id")
    train = index[index["split"] == "train"]
    assert (train["angle"] == 0).all() and (train["brightness"] == 1).all() and not train["flip"].any()
    assert (train["side"] == train[["width", "height"]].min(axis=1)).all()


def test_validation_and_test_see_the_untouched_centre() -> None:
    index = drawn().merge(table(), on="id").query("split != 'train'")
    assert (index["angle"] == 0).all() and (index["brightness"] == 1).all() and not index["flip"].any()
    assert (index["side"] == (index[["width", "height"]].min(axis=1) * 0.875).round()).all()
    assert ((2 * index["left"] + index["side"] - index["width"]).abs() <= 1).all()
    assert ((2 * index["top"] + index["side"] - index["height"]).abs() <= 1).all()


def test_validation_and_test_pictures_can_be_rotated() -> None:
    """Each picture has its own angle within the range. Nothing else changes, nor do training views."""
    plain, rotated = (drawn(eval_rotation=angle).merge(table(), on="id") for angle in (0.0, 45.0))
    judged = rotated["split"] != "train"
    angles = rotated.loc[judged, "angle"]
    assert angles.between(-45, 45).all() and angles.nunique() == len(angles) and angles.abs().max() > 10
    assert rotated[~judged].equals(plain[~judged])
    assert rotated.drop(columns="angle").equals(plain.drop(columns="angle"))


@pytest.mark.parametrize("others", ["ab", "abcdefghijklmnop"])
def test_the_views_of_a_picture_do_not_depend_on_other_pictures(others: str) -> None:
    alone, among = (drawn(table(names)).query("id == 'b'").reset_index(drop=True) for names in ("ab", others + "qrst"))
    assert alone.equals(among)


def test_more_views_do_not_change_the_first_ones() -> None:
    few, many = drawn(views=2), drawn(views=5)
    assert few.equals(many[many["view"] < 2].reset_index(drop=True))


def test_views_pictures_and_seeds_differ() -> None:
    index = drawn().query("id in ('a', 'b')")
    assert index[["angle", "brightness"]].duplicated().sum() == 0
    assert drawn().equals(drawn())
    assert not drawn().equals(drawn(seed=4))


def test_rows_of_the_index_become_views() -> None:
    index = drawn()
    rows = list(augment.views(index.assign(label=1)[["label", *index.columns[::-1]]]))
    assert pd.DataFrame(rows).equals(index)


def test_the_plain_view_is_the_picture() -> None:
    image = drawing(0, 64, 64)
    assert (pixels(image) == np.asarray(image)).all()


@pytest.mark.parametrize("crop", [32, 64, 224])
def test_the_input_has_the_size_of_the_crop(crop: int) -> None:
    image = augment.apply(drawing(), view(angle=30.0, left=10, top=5, side=70, flip=True, brightness=1.2), crop)
    assert image.size == (crop, crop) and image.mode == "RGB"


def test_the_box_is_cropped() -> None:
    image = drawing(0, 200, 150)
    assert (pixels(image, left=30, top=40) == np.asarray(image)[40:104, 30:94]).all()


def test_flip_mirrors() -> None:
    image = drawing(0, 64, 64)
    assert (pixels(image, flip=True) == np.asarray(image)[:, ::-1]).all()


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.25])
def test_brightness_is_a_factor(factor: float) -> None:
    image = Image.fromarray(np.asarray(drawing(0, 64, 64)) // 2)
    assert np.abs(pixels(image, brightness=factor) - factor * np.asarray(image)).max() <= 1


def test_rotation_is_counter_clockwise_about_the_centre() -> None:
    image = drawing(0, 64, 64)
    assert (pixels(image, angle=90.0) == np.rot90(np.asarray(image))).all()
    turned = pixels(image, angle=45.0)
    assert (turned[[0, 0, -1, -1], [0, -1, 0, -1]] == 0).all(), "uncovered corners are black"
    assert np.abs(turned[31:33, 31:33] - np.asarray(image, dtype=float)[31:33, 31:33]).max() < 30


@pytest.mark.parametrize("size", [(341, 256), (256, 300), (64, 64), (300, 70)])
@pytest.mark.parametrize("crop", [32, 112, 224])
def test_only_the_box_is_rotated(size: tuple[int, int], crop: int) -> None:
    """The input is the one that rotating the whole picture gives, also at the picture's edges.

    Exceptions: a sample at a rounding boundary, and tall pictures, which Pillow resizes vertically first at 224 pixels.
    """
    image, (width, height), short = drawing(0, *size), size, min(size)
    boxes = [(0, 0, short), (width - short, height - short, short), (width // 4, height // 4, short // 2)]
    for (left, top, side), angle in product(boxes, (-45.0, -7.31, 20.0, 90.0, 133.7, 180.0)):
        whole = image.rotate(angle, Image.Resampling.BILINEAR)
        expected = augment.apply(whole, view(left=left, top=top, side=side), crop)
        found = augment.apply(image, view(left=left, top=top, side=side, angle=angle), crop)
        changed = np.asarray(found).astype(int) - np.asarray(expected)
        assert abs(changed).max() <= 1
        assert (changed != 0).mean() < 1e-4 or (crop == 224 and height > width)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((128, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(pixels(Image.fromarray(stripes), side=128)[:, 2:-2] - 127.5).max() <= 1


@pytest.mark.parametrize(
    ("changes", "cells"),
    [
        ({}, [[0.5, 0.0], [0.5, 0.0]]),
        ({"flip": True}, [[0.0, 0.5], [0.0, 0.5]]),
        ({"side": 32}, [[1.0, 0.0], [1.0, 0.0]]),
        ({"angle": 90.0}, [[0.0, 0.0], [0.5, 0.5]]),
    ],
    ids=["plain", "flipped", "cropped", "turned"],
)
def test_mask_cells_are_the_covered_share(changes: dict, cells: list[list[float]]) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 16, 64))
    assert np.abs(augment.mask_cells(mask, view(**changes), (2, 2)) - cells).max() < 0.01


def test_cells_without_a_mask_are_unknown() -> None:
    cells = augment.mask_cells(None, view(), (7, 5))
    assert cells.shape == (7, 5) and np.isnan(cells).all()


def test_mask_and_picture_are_transformed_alike() -> None:
    mask = drawing(1, 200, 150).convert("L").point(lambda value: 255 * (value > 128))
    seen = view(angle=25.0, left=30, top=20, side=100, flip=True)
    cells = augment.mask_cells(mask, seen, (4, 4))
    shown = np.asarray(augment.apply(mask.convert("RGB"), seen, 128), dtype=float)[..., 0] / 255
    assert np.abs(cells - shown.reshape(4, 32, 4, 32).mean((1, 3))).max() < 0.05
