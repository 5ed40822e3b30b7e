"""Measures of attention maps, for maps with known results."""

from landmarks import attention

import numpy as np
import pandas as pd
import pytest

MASK = np.array([[1.0, 0.8], [0.4, 0.0]])  # 55 % of the area
MAPS = {
    "on it": [[1.0, 0.0], [0.0, 0.0]],
    "half on it": [[0.5, 0.0], [0.0, 0.5]],
    "flat": [[0.3, 0.3], [0.3, 0.3]],
    "beside it": [[0.0, 0.0], [0.1, 0.9]],
}


@pytest.mark.parametrize(("name", "expected"), [("on it", 1), ("half on it", 0.5), ("flat", 0.55), ("beside it", 0.04)])
def test_energy_is_the_share_of_the_map_on_the_landmark(name: str, expected: float) -> None:
    assert attention.energy(np.array([MAPS[name]]), MASK[None]) == pytest.approx([expected])


@pytest.mark.parametrize(("name", "expected"), [("on it", 1), ("half on it", 0.5), ("flat", 0.55), ("beside it", 0)])
def test_pointing_depends_only_on_the_maximum(name: str, expected: float) -> None:
    assert attention.pointing(np.array([MAPS[name]]), MASK[None]) == pytest.approx([expected])


def blobs(count: int) -> np.ndarray:
    """Masks as in photographs: landmarks in the centre, of several sizes, [count, 7, 7]."""
    sizes = np.random.default_rng(1).uniform(1, 3.5, (count, 1, 1))
    rows, columns = np.mgrid[-3:4, -3:4]
    return np.clip(sizes - np.hypot(rows, columns) + 0.5, 0, 1)


@pytest.mark.parametrize("score", [attention.energy, attention.pointing])
def test_random_maps_score_the_area_of_the_landmark(score: object) -> None:
    """An uninformative map does not profit from landmarks being in the centre."""
    masks = blobs(4000)
    maps = np.random.default_rng(2).random(masks.shape)
    found, area = score(maps, masks).mean(), masks.mean()
    assert found == pytest.approx(area, abs=0.02)
    assert score(masks, masks).mean() > area + 0.2, "an informative map scores more"


def test_pictures_without_a_visible_landmark_are_left_out() -> None:
    masks = np.stack([MASK, np.zeros((2, 2)), np.full((2, 2), np.nan)])
    maps = [np.array(MAPS[name], dtype=np.float32).ravel() for name in ("on it", "beside it", "flat")]
    columns = {f"{curve}_map": [0.25, np.nan, 0.75] for curve in ("deletion", "insertion")}
    answers = pd.DataFrame({"map": maps, "grad_cam": maps[::-1], **columns})
    entry = attention.summary(answers, masks)
    assert entry["energy"] == pytest.approx({"map": 1, "grad_cam": 0.55, "centre": 0.55})
    assert entry["pointing"] == pytest.approx({"map": 1, "grad_cam": 0.55, "centre": 0.55})
    assert entry["area"] == pytest.approx(0.55) and entry["deletion"] == entry["insertion"] == {"map": 0.5}
    nothing = attention.summary(answers, np.full((3, 2, 2), np.nan))
    assert nothing["energy"] == nothing["pointing"] == {"map": None, "grad_cam": None, "centre": None}
    assert nothing["area"] is None
