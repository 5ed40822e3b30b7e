"""The attention map over the photo."""

from landmarks.serving import overlay

import numpy as np
import pytest
from conftest import drawing

BOX = (0.1, 0.2, 0.7, 0.9)


@pytest.mark.parametrize("cell", [(0, 0), (3, 5), (6, 6)])
@pytest.mark.parametrize("size", [(96, 80), (700, 900)])
def test_the_drawn_maximum_is_the_maps_maximum(cell: tuple[int, int], size: tuple[int, int]) -> None:
    attention_map = np.full((7, 7), 0.2)
    attention_map[cell] = 0.9
    drawn = np.asarray(overlay.draw(drawing(0, *size), attention_map, BOX, opacity=1.0), dtype=float).sum(2)
    assert min(drawn.shape) >= overlay.SHORT_SIDE
    height, width = drawn.shape
    left, top, right, bottom = BOX
    rows = slice(round(top * height), round(bottom * height))
    columns = slice(round(left * width), round(right * width))
    seen = drawn[rows, columns]
    place = np.unravel_index(seen.argmax(), seen.shape)
    assert tuple(int(7 * x / side) for x, side in zip(place, seen.shape, strict=True)) == cell


@pytest.mark.parametrize("attention_map", [None, np.eye(7)], ids=["no map", "transparent"])
def test_without_a_map_only_the_surroundings_are_darkened(attention_map: np.ndarray | None) -> None:
    photo = drawing(1, 640, 640)
    drawn, plain = (np.asarray(image, dtype=float) for image in (overlay.draw(photo, attention_map, BOX, 0.0), photo))
    assert np.array_equal(drawn[200:500, 100:400], plain[200:500, 100:400])
    assert np.abs(drawn[:100] - plain[:100] / 2).max() <= 1
