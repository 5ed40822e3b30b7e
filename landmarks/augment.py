"""The augmentation index: all randomness of the network's inputs, drawn once, one row per (picture, view).

A row and a picture determine the input completely, so that features of frozen layers can be computed once and shared by
every model that trains on them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from landmarks.determinism import stream

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

if TYPE_CHECKING:
    import pandas as pd

# Validation and test see the centre at this fraction of the short side: 224 of 256 pixels, as the study cropped.
CENTRE_SCALE = 0.875


class View(NamedTuple):
    """One row of the index. The box is in pixels of the stored picture, after the rotation."""

    id: str
    view: int
    angle: float  # degrees, counter-clockwise
    left: int
    top: int
    side: int
    brightness: float  # factor
    flip: bool


def random_view(
    rng: np.random.Generator,
    *,
    picture: tuple[str, int, int],
    view: int,
    rotation: float,
    scale: tuple[float, float],
    brightness: float,
    flip: bool,
) -> View:
    """A training view of a picture (`id`, width, height): rotation, random square crop, brightness, flip."""
    name, width, height = picture
    side = max(1, round(min(width, height) * rng.uniform(*scale)))
    return View(
        id=name,
        view=view,
        angle=round(rng.uniform(-rotation, rotation), 2),
        left=int(rng.integers(width - side + 1)),
        top=int(rng.integers(height - side + 1)),
        side=side,
        brightness=round(rng.uniform(1 - brightness, 1 + brightness), 3),
        flip=bool(rng.integers(2)) and flip,
    )


def centre_view(
    rng: np.random.Generator, *, picture: tuple[str, int, int], rotation: float, scale: float = CENTRE_SCALE
) -> View:
    """The one view of a validation or test picture: its centre, upright (`rotation` 0) or rotated, else untouched."""
    name, width, height = picture
    side = max(1, round(min(width, height) * scale))
    angle = round(rng.uniform(-rotation, rotation), 2) + 0.0  # no -0.0
    return View(name, 0, angle, (width - side) // 2, (height - side) // 2, side, 1.0, False)


def draw(
    pictures: "pd.DataFrame",
    *,
    views: int,
    rotation: float,
    eval_rotation: float,
    scale: tuple[float, float],
    brightness: float,
    flip: bool,
    seed: int,
) -> "pd.DataFrame":
    """The index of `pictures` (`id`, `width`, `height`, `split`), a row per view, sorted by `id` and `view`.

    Training pictures have `views` random views, others the centre one. Every picture draws from the stream of its own
    name, so that adding pictures changes none of the others' views.
    """
    rows: list[View] = []
    for row in pictures.sort_values("id").itertuples():
        picture = (row.id, row.width, row.height)
        rng = stream(seed, "augment", row.id)
        if row.split != "train":
            rows.append(centre_view(rng, picture=picture, rotation=eval_rotation))
            continue
        rows += [
            random_view(
                rng, picture=picture, view=view, rotation=rotation, scale=scale, brightness=brightness, flip=flip
            )
            for view in range(views)
        ]
    import pandas as pd  # slow to import, and whoever uses a model does without

    return pd.DataFrame(rows, columns=View._fields)


def views(index: "pd.DataFrame") -> Iterator[View]:
    """The rows of an index, or of a selection of it with further columns."""
    return map(View._make, index[list(View._fields)].itertuples(index=False))


def apply(image: Image.Image, view: View, crop: int) -> Image.Image:
    """The network's input: `image` (RGB) rotated about its centre, cropped, resized to `crop` pixels, lit, mirrored.

    Corners that the rotation uncovers are black, as in the study. Shrinking averages, so that nothing aliases.
    """
    if view.angle:
        image = image.rotate(view.angle, Image.Resampling.BILINEAR)
    box = (view.left, view.top, view.left + view.side, view.top + view.side)
    image = image.resize((crop, crop), Image.Resampling.BILINEAR, box=box)
    if view.brightness != 1:
        image = ImageEnhance.Brightness(image).enhance(view.brightness)
    return ImageOps.mirror(image) if view.flip else image


def mask_cells(mask: Image.Image | None, view: View, grid: tuple[int, int]) -> np.ndarray:
    """The share of each cell of a feature map that the landmark covers, as `view` sees it: [H, W], NaN without mask."""
    if mask is None:
        return np.full(grid, np.nan)
    mask = mask.convert("L").rotate(view.angle)
    box = (view.left, view.top, view.left + view.side, view.top + view.side)
    mask = mask.resize(grid[::-1], Image.Resampling.BOX, box=box)
    return np.asarray(ImageOps.mirror(mask) if view.flip else mask) / 255
