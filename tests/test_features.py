"""Features from the cache and features computed on the fly."""

from pathlib import Path

from landmarks import augment, determinism, features, images, weight_files
from landmarks.networks import Trunk
from landmarks.params import Backbone

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BACKBONES, LITE, VGG, pictures, user_error

COUNT = 70  # pictures: more than a group of a shard, and than eight batches
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


def trunk_of(block: Backbone, **changes: str) -> Trunk:
    return Trunk(weight_files.fetch(block.name, "random", 1), block.model_copy(update=changes))


def inputs(index: pd.DataFrame, crop: int) -> list[np.ndarray]:
    """The input of every row, made from the pictures as they are: no shard, no order, no thread."""
    encoded = {picture.id: picture.picture for picture in PICTURES}
    rows = augment.views(index)
    return [np.asarray(augment.apply(images.decode(encoded[row.id]), row, crop)) for row in rows]


@pytest.mark.parametrize(
    ("block", "changes", "crop"),
    [
        (VGG, {"layer": "conv4"}, 64),
        (VGG, {"layer": "conv4"}, 112),
        (VGG, {"layer": "conv5"}, 224),
        (VGG, {"layer": "conv4", "tail": "trained"}, 112),
        (LITE, {"layer": "last"}, 112),
        (LITE, {"tail": "trained"}, 64),
    ],
)
def test_cached_features_equal_those_on_the_fly_to_the_bit(
    tmp_path: Path, block: Backbone, changes: dict[str, str], crop: int
) -> None:
    """On the fly: the trunk applied to one input at a time."""
    trunk, count = trunk_of(block, **changes), 15
    index = draw(count)
    assert 2 * features.BATCH < len(index) < 3 * features.BATCH, "whole batches, and one that is not"
    images.write_shards(tmp_path, PICTURES[:count], count)
    batches = list(features.extract(trunk, tmp_path, index, crop))
    assert [len(batch) for batch in batches] == [features.BATCH] * 2 + [len(index) - 2 * features.BATCH]
    cached = np.concatenate(batches)
    assert cached.dtype == np.float16 and cached.shape == features.shape(trunk, len(index), crop)
    checked = [0, 1, features.BATCH - 1, len(index) - 1]
    pictures_in = inputs(index, crop)
    expected = np.concatenate([features.forward(trunk, [pictures_in[row]]) for row in checked])
    assert cached[checked].tobytes() == expected.tobytes()
    assert len(np.unique(cached.reshape(len(index), -1), axis=0)) == len(index), "every view looks different"


@pytest.mark.parametrize(("block", "channels"), [(VGG, 256), (LITE, 112)], ids=["vgg16", "timm"])
@torch.inference_mode()
def test_features_are_the_trunks_output_in_half_precision(block: Backbone, channels: int) -> None:
    trunk, batch = trunk_of(block), inputs(draw(3), 64)
    expected = trunk(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2) / 255)
    found = features.forward(trunk, batch)
    assert found.shape == (len(batch), channels, 7, 7) == features.shape(trunk, len(batch), 64)
    assert np.allclose(found, expected.numpy(), rtol=1e-3, atol=1e-6 if block == VGG else 1e-5)


@pytest.mark.parametrize("ahead", [0, 1])
def test_inputs_are_in_the_order_of_the_index(shards: Path, ahead: int) -> None:
    index = draw(COUNT)
    found = list(features.inputs(shards, index, 64, ahead))
    assert len(found) == len(index) > COUNT
    for one, two in zip(found, inputs(index, 64), strict=True):
        assert one.dtype == np.uint8 and np.array_equal(one, two)


@pytest.mark.parametrize("done", [1, 33, 69, 70, 92, 93])
def test_what_is_left_of_the_index_is_the_end_of_the_whole(shards: Path, done: int) -> None:
    """Also in the middle of a picture's views, of a group of a shard, and where nothing is left."""
    index = draw(COUNT)
    assert index["id"].iloc[92] != index["id"].iloc[91] and len(index) == COUNT + 24
    whole, rest = (list(features.inputs(shards, part, 64)) for part in (index, index.iloc[done:]))
    assert len(rest) == len(index) - done
    assert all(np.array_equal(one, two) for one, two in zip(whole[done:], rest, strict=True))
    assert list(features.inputs(shards, index.iloc[:0], 64)) == []


@pytest.mark.parametrize("cut", [0, 5, 127, 128, 129, 151, 152, 175, 10_000])
def test_a_file_that_was_cut_off_goes_on_after_its_last_whole_row(tmp_path: Path, cut: int) -> None:
    """128 bytes of header and 24 a row."""
    rows = np.arange(5 * 12, dtype=np.float16).reshape(5, 3, 2, 2)
    path = tmp_path / "features.npy"
    np.save(path, rows)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with path.open("a+b") as file:
        done = features.resume_npy(file, rows.shape)
        assert done == min(5, max(0, cut - 128) // 24)
        file.write(rows[done:].tobytes())
    assert path.read_bytes() == whole


@pytest.mark.parametrize("block", BACKBONES)
def test_features_do_not_depend_on_the_number_of_threads(block: Backbone) -> None:
    before, trunk, batch = torch.get_num_threads(), trunk_of(block), inputs(draw(3), 112)
    found = set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            determinism.prepare_inference()
            found.add(features.forward(trunk, batch).tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_bfloat16_is_near() -> None:
    trunk, batch = trunk_of(VGG), inputs(draw(3), 64)
    exact, fast = (features.forward(trunk, batch, precision) for precision in ("float32", "bfloat16"))
    assert fast.dtype == np.float16 and not np.array_equal(exact, fast)
    assert np.abs(fast - exact).mean() < 0.02 * np.abs(exact).mean()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, which is not here")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.01), ("bfloat16", 0.05)])
@pytest.mark.parametrize("block", BACKBONES)
def test_a_gpu_sees_what_the_processor_sees(block: Backbone, shards: Path, precision: str, tolerance: float) -> None:
    index, trunk = draw(COUNT), trunk_of(block)
    on_cpu = np.concatenate(list(features.extract(trunk, shards, index, 64)))
    on_gpu = np.concatenate(list(features.extract(trunk.to("cuda"), shards, index, 64, precision)))
    assert on_gpu.shape == on_cpu.shape
    assert np.abs(on_gpu - on_cpu).mean() < tolerance * np.abs(on_cpu).mean()


def test_a_crop_that_is_too_small_for_the_network() -> None:
    block = Backbone(name="inception_v3", weights="random", layer="last", tail="none")
    with user_error(r"augment\.crop: 64 pixels do not get through the backbone \(.*\); set more"):
        features.shape(trunk_of(block), 1, 64)


def test_shards_and_index_must_agree(shards: Path) -> None:
    index = draw(COUNT)
    with pytest.raises(AssertionError, match="not of these pictures"):
        list(features.inputs(shards, index[index["id"] != PICTURES[3].id], 64))
