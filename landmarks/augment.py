"""The augmentation index: all random choices about the network's inputs, drawn once, a row per picture and view.

A picture and a row determine an input completely, so the features of frozen layers are computed once, for all models.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from landmarks.determinism import stream

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

if TYPE_CHECKING:
    from landmarks.params import Augment

    import pandas as pd

# Side of the centre crop for validation and test, relative to the short side: 224 of 256 pixels, as in the study.
CENTRE_SCALE = 0.875


class View(NamedTuple):
    """A row of the index. The box (left, top, side) is in pixels of the stored picture, after the rotation."""

    id: str
    view: int
    angle: float  # degrees, counter-clockwise
    left: int
    top: int
    side: int
    brightness: float  # factor
    flip: bool


def random_view(rng: np.random.Generator, picture: tuple[str, int, int], view: int, settings: "Augment") -> View:
    """Draws a training view of a picture (id, width, height) with the block `augment` of params.yaml.

    The angle is within +-`rotation` degrees, the side within `scale` times the short side, the brightness factor within
    1 +- `brightness`; with `flip`, half of the views are mirrored.
    """
    name, width, height = picture
    side = max(1, round(min(width, height) * rng.uniform(*settings.scale)))
    return View(
        id=name,
        view=view,
        angle=round(rng.uniform(-settings.rotation, settings.rotation), 2),
        left=int(rng.integers(width - side + 1)),
        top=int(rng.integers(height - side + 1)),
        side=side,
        brightness=round(rng.uniform(1 - settings.brightness, 1 + settings.brightness), 3),
        flip=bool(rng.integers(2)) and settings.flip,
    )


def centre_view(picture: tuple[str, int, int], angle: float = 0.0, scale: float = CENTRE_SCALE) -> View:
    """The centre of a photo, or of a validation or test picture (id, width, height), rotated by `angle` degrees.

    The side of the box is `scale` times the short side.
    """
    name, width, height = picture
    side = max(1, round(min(width, height) * scale))
    return View(name, 0, angle, (width - side) // 2, (height - side) // 2, side, 1.0, False)


def draw(pictures: "pd.DataFrame", settings: "Augment", seed: int) -> "pd.DataFrame":
    """Draws the index of `pictures` (`id`, `width`, `height`, `split`): a row per view, sorted by `id` and `view`.

    Training pictures get `views` random views. Others get the centre view, rotated by up to `eval_rotation` degrees.
    Each picture has its own random stream, so that its views do not depend on other pictures.
    """
    rows: list[View] = []
    for row in pictures.sort_values("id").itertuples():
        picture = (row.id, row.width, row.height)
        rng = stream(seed, "augment", row.id)
        if row.split == "train":
            rows += [random_view(rng, picture, view, settings) for view in range(settings.views)]
        else:
            angle = round(rng.uniform(-settings.eval_rotation, settings.eval_rotation), 2) + 0.0  # no -0.0
            rows.append(centre_view(picture, angle))
    import pandas as pd  # imported here because it is slow and prediction does not need it

    return pd.DataFrame(rows, columns=View._fields)


def views(index: "pd.DataFrame") -> Iterator[View]:
    """The views in a table that has at least the columns of the index."""
    return map(View._make, index[list(View._fields)].itertuples(index=False))


def apply(image: Image.Image, view: View, crop: int) -> Image.Image:
    """The network's input, crop x crop RGB: rotates `image` about its centre, crops, resizes, brightens, mirrors.

    Corners that the rotation uncovers are black, as in the study. Resizing is antialiased.
    """
    left, top, side = view.left, view.top, view.side
    if view.angle:
        margin = math.ceil(side / crop)  # the filter of the resizing reads pixels around the box
        x, y = max(0, left - margin), max(0, top - margin)
        right, bottom = min(image.width, left + side + margin), min(image.height, top + side + margin)
        image = rotate_part(image, view.angle, (x, y, right, bottom))
        left, top = left - x, top - y
    image = image.resize((crop, crop), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    if view.brightness != 1:
        image = ImageEnhance.Brightness(image).enhance(view.brightness)
    return ImageOps.mirror(image) if view.flip else image


def rotate_part(image: Image.Image, angle: float, box: tuple[int, int, int, int]) -> Image.Image:
    """`image.rotate(angle, BILINEAR).crop(box)`, but computes only the pixels of `box`, which lies inside the image."""
    left, top, right, bottom = box
    radians = -math.radians(angle % 360)  # computed and rounded as Pillow does, for the same bits
    cos, sin = round(math.cos(radians), 15), round(math.sin(radians), 15)
    x, y = image.width / 2, image.height / 2  # the centre of the rotation
    across, down = left - x, top - y
    matrix = (cos, sin, cos * across + sin * down + x, -sin, cos, -sin * across + cos * down + y)
    return image.transform((right - left, bottom - top), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def mask_cells(mask: Image.Image | None, view: View, grid: tuple[int, int]) -> np.ndarray:
    """The share (0..1) of each cell of a feature map that the landmark covers in `view`: [H, W], NaN without a mask."""
    if mask is None:
        return np.full(grid, np.nan)
    mask = mask.convert("L").rotate(view.angle)
    box = (view.left, view.top, view.left + view.side, view.top + view.side)
    mask = mask.resize(grid[::-1], Image.Resampling.BOX, box=box)
    return np.asarray(ImageOps.mirror(mask) if view.flip else mask) / 255
