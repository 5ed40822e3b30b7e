"""Features from the cache and features computed on the fly."""

from pathlib import Path

from landmarks import augment, backbone, features, images
from landmarks.backbone import Trunk

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import pictures

COUNT = 70  # pictures: more than a group of a shard, and than two batches
PICTURES = pictures(COUNT)
SETTINGS = {
    **{"views": 2, "rotation": 45.0, "eval_rotation": 0.0, "scale": (0.7, 1.0), "brightness": 0.25, "flip": True},
    "seed": 1,
}


def draw(count: int) -> pd.DataFrame:
    """The index of the first pictures, every third of which trains and so has two views."""
    splits = ["test" if n % 3 else "train" for n in range(count)]
    table = pd.DataFrame({"id": [p.id for p in PICTURES[:count]], "width": 96, "height": 80, "split": splits})
    return augment.draw(table, **SETTINGS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shards")
    images.write_shards(directory, PICTURES, COUNT)
    return directory


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return backbone.fetch("random", 1)


def inputs(index: pd.DataFrame, crop: int) -> list[np.ndarray]:
    """The input of every row, made from the pictures as they are: no shard, no order, no thread."""
    encoded = {picture.id: picture.picture for picture in PICTURES}
    rows = augment.views(index)
    return [np.asarray(augment.apply(images.decode(encoded[row.id]), row, crop)) for row in rows]


@pytest.mark.parametrize(("layer", "crop"), [("conv4", 64), ("conv4", 112), ("conv5", 224)])
def test_cached_features_equal_those_on_the_fly_to_the_bit(state: dict, tmp_path: Path, layer: str, crop: int) -> None:
    """On the fly: the trunk applied to one input at a time."""
    trunk, count = Trunk(state, layer), 25
    index = draw(count)
    assert 32 < len(index) < 64, "a whole batch, and one that is not"
    images.write_shards(tmp_path, PICTURES[:count], count)
    batches = list(features.extract(trunk, tmp_path, index, crop))
    assert [len(batch) for batch in batches] == [32, len(index) - 32]
    cached = np.concatenate(batches)
    assert cached.dtype == np.float16 and cached.shape == features.shape(trunk, len(index))
    checked = [0, 1, 31, len(index) - 1]
    pictures_in = inputs(index, crop)
    expected = np.concatenate([features.forward(trunk, [pictures_in[row]]) for row in checked])
    assert cached[checked].tobytes() == expected.tobytes()
    assert len(np.unique(cached.reshape(len(index), -1), axis=0)) == len(index), "every view looks different"


@pytest.mark.parametrize(("layer", "channels"), [("conv3", 256), ("conv5", 512)])
@torch.inference_mode()
def test_features_are_the_trunks_output_in_half_precision(state: dict, layer: str, channels: int) -> None:
    trunk, batch = Trunk(state, layer), inputs(draw(3), 64)
    expected = trunk(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2) / 255)
    found = features.forward(trunk, batch)
    assert found.shape == (len(batch), channels, 7, 7) == features.shape(trunk, len(batch))
    assert np.allclose(found, expected.numpy(), rtol=1e-3, atol=1e-6)


def test_inputs_are_in_the_order_of_the_index(shards: Path) -> None:
    index = draw(COUNT)
    found = list(features.inputs(shards, index, 64))
    assert len(found) == len(index) > COUNT
    for one, two in zip(found, inputs(index, 64), strict=True):
        assert one.dtype == np.uint8 and np.array_equal(one, two)


def test_shards_and_index_must_agree(shards: Path) -> None:
    index = draw(COUNT)
    with pytest.raises(AssertionError, match="not of these pictures"):
        list(features.inputs(shards, index[index["id"] != PICTURES[3].id], 64))
