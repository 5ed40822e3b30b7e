"""The sample: its index and its pictures."""

import io

from landmarks.sources import sample
from landmarks.sources.sample import raster

import numpy as np
import pytest
from PIL import Image

SEED = 7
INDEX = sample.Sample(SEED).index()
FIRST = INDEX.drop_duplicates("landmark_id").sort_values("landmark_id")


def picture_of(family: str) -> tuple[str, str]:
    """The id and landmark of one picture of the family."""
    row = FIRST[FIRST.landmark_id.str.startswith(family)].iloc[0]
    return row.id, row.landmark_id


def test_index_is_sorted_unique_and_the_same_every_time() -> None:
    assert INDEX.equals(sample.Sample(SEED).index())
    assert list(INDEX.columns) == ["id", "landmark_id"]
    assert INDEX.id.is_unique and INDEX.id.is_monotonic_increasing
    assert INDEX.id.str.fullmatch("[0-9a-f]{16}").all()


def test_index_has_the_class_sizes_of_google_landmarks() -> None:
    sizes = INDEX.landmark_id.value_counts().to_numpy()
    assert len(sizes) == 60
    assert sizes[0] == 279 and sizes[3] == 102 and sizes[29] == 14
    assert 900 <= sizes[3:30].sum() <= 1100


def test_index_of_another_seed_has_other_ids() -> None:
    assert not set(INDEX.id) & set(sample.Sample(SEED + 1).index().id)


def test_landmarks_of_neighbouring_size_are_of_different_families() -> None:
    sizes = INDEX.groupby("landmark_id").size()
    largest = sizes[sizes > 60].sort_values()
    assert len({name.split("-")[0] for name in largest.index[:5]}) == 5


@pytest.mark.parametrize("family", sample.FAMILIES)
def test_every_family_is_drawn_with_a_mask_of_the_same_size(family: str) -> None:
    drawn = sample.render(SEED, *picture_of(family))
    assert drawn.mask
    picture, mask = Image.open(io.BytesIO(drawn.picture)), Image.open(io.BytesIO(drawn.mask))
    assert picture.format == "JPEG" and picture.mode == "RGB" and min(picture.size) == 256
    assert mask.format == "PNG" and mask.mode == "L" and mask.size == picture.size
    values = np.asarray(mask)
    assert set(np.unique(values)) == {0, 255}
    assert 0.02 < (values > 0).mean() < 0.8


def test_a_picture_does_not_depend_on_what_was_drawn_before() -> None:
    picture = picture_of("castle")
    before = sample.render(SEED, *picture)
    sample.render(SEED, *picture_of("arch"))
    assert sample.render(SEED, *picture) == before


def test_pictures_and_seeds_differ() -> None:
    _, landmark = picture_of("tower")
    one, two = INDEX[INDEX.landmark_id == landmark].id.iloc[:2]
    drawn = sample.render(SEED, one, landmark).picture
    assert drawn != sample.render(SEED, two, landmark).picture
    assert drawn != sample.render(SEED + 1, one, landmark).picture


def test_the_nearest_of_overlapping_quadrilaterals_is_visible_wherever_it_covers_a_sample() -> None:
    small = ((1, 6, 6, 1), (1, 1, 3, 3), (0.5, 0.5, 0.5, 0.5))
    tilted = ((0, 8, 8, 0), (0, 0, 6, 6), (0.1, 0.9, 0.9, 0.1))
    triangle = ((2, 6, 4, 4), (5, 5, 1, 1), (0.95, 0.95, 0.95, 0.95))
    points = np.stack([small, tilted, triangle], axis=2).astype(float)
    expected = np.full((6, 8), 2)
    expected[1:3, 1:4] = 1  # the tilted one is nearer from the fourth column on
    expected[2:4, 3:5] = expected[4, 2:6] = 3
    for order in ([0, 1, 2], [2, 1, 0]):
        buffer = np.zeros((6, 8), int)
        raster._rasterize(points[..., order], np.array([1, 2, 3])[order], buffer, np.full(6, 0.5))
        assert ((buffer & raster.NUMBER) == expected).all()
