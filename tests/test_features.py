"""Cached features, inputs and batches."""

from pathlib import Path

from landmarks import augment, determinism, features, images
from landmarks.networks import Trunk
from landmarks.params import Backbone

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BACKBONES, LITE, VGG, VIEWS, pictures, random_weights, user_error

COUNT = 70  # pictures: more than a row group, and than eight batches
PICTURES = pictures(COUNT)


def draw(count: int) -> pd.DataFrame:
    """The index of the first `count` pictures; every third is a training picture with two views."""
    splits = ["test" if n % 3 else "train" for n in range(count)]
    table = pd.DataFrame({"id": [p.id for p in PICTURES[:count]], "width": 96, "height": 80, "split": splits})
    return augment.draw(table, VIEWS, seed=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shards")
    images.write_shards(directory, PICTURES, COUNT)
    return directory


def trunk_of(block: Backbone, **changes: str) -> Trunk:
    return Trunk(random_weights(block.name, 1), block.model_copy(update=changes))


def inputs(index: pd.DataFrame, crop: int) -> list[np.ndarray]:
    """The input of every row, made directly from the pictures, without shards or threads."""
    encoded = {picture.id: picture.picture for picture in PICTURES}
    rows = augment.views(index)
    return [np.asarray(augment.apply(images.decode(encoded[row.id]), row, crop)) for row in rows]


def tensor(batch: list[np.ndarray]) -> torch.Tensor:
    """A batch of views for the trunk, uint8 [N, S, S, 3]."""
    return torch.from_numpy(np.stack(batch))


@pytest.mark.slow
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
def test_cached_features_are_bit_identical_to_single_inputs(
    tmp_path: Path, block: Backbone, changes: dict[str, str], crop: int
) -> None:
    """Compared with the trunk applied to one input at a time."""
    trunk, count = trunk_of(block, **changes), 15
    index = draw(count)
    assert 2 * features.CPU_BATCH < len(index) < 3 * features.CPU_BATCH, "full batches and a smaller one"
    images.write_shards(tmp_path, PICTURES[:count], count)
    batches = list(features.extract(trunk, tmp_path, index, crop))
    assert [len(batch) for batch in batches] == [features.CPU_BATCH] * 2 + [len(index) - 2 * features.CPU_BATCH]
    cached = np.concatenate(batches)
    assert cached.dtype == np.float16 and cached.shape == features.shape(trunk, len(index), crop)
    checked = [0, 1, features.CPU_BATCH - 1, len(index) - 1]
    pictures_in = inputs(index, crop)
    expected = np.concatenate([features.forward(trunk, tensor([pictures_in[row]])) for row in checked])
    assert cached[checked].tobytes() == expected.tobytes()
    assert len(np.unique(cached.reshape(len(index), -1), axis=0)) == len(index), "every view looks different"


@pytest.mark.parametrize(("block", "channels"), [(VGG, 256), (LITE, 112)], ids=["vgg16", "timm"])
@torch.inference_mode()
def test_features_are_the_trunks_output_in_half_precision(block: Backbone, channels: int) -> None:
    trunk, batch = trunk_of(block), inputs(draw(3), 64)
    expected = trunk.pool(trunk.features((tensor(batch).permute(0, 3, 1, 2) / 255 - trunk.mean) / trunk.std))
    found = features.forward(trunk, tensor(batch)).numpy()
    assert found.shape == (len(batch), channels, 7, 7) == features.shape(trunk, len(batch), 64)
    assert np.allclose(found, expected.numpy(), rtol=1e-3, atol=1e-6 if block == VGG else 1e-5)


CPU = torch.device("cpu")


def decoded(shards: Path, index: pd.DataFrame) -> list[np.ndarray]:
    """The inputs of all rows of the index, as the stage reads them."""
    return [view.numpy() for group in features.decode(features.Inputs(shards, index, 64), CPU) for view in group]


def test_inputs_are_in_the_order_of_the_index(shards: Path) -> None:
    index = draw(COUNT)
    found = decoded(shards, index)
    assert len(found) == len(index) > COUNT
    for one, two in zip(found, inputs(index, 64), strict=True):
        assert one.dtype == np.uint8 and np.array_equal(one, two)


def test_processes_and_threads_decode_the_same(shards: Path) -> None:
    data = features.Inputs(shards, draw(COUNT), 64)
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2)
    for one, two in zip(loader, features.decode(data, CPU), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("size", [1, 8, 100, 1000])
def test_batches_keep_every_row_in_order(size: int) -> None:
    groups = torch.arange(600).view(300, 2).split([64, 1, 3, 0, 132, 100])
    found = list(features.batches(groups, size))
    assert [len(batch) for batch in found[:-1]] == [size] * (len(found) - 1) and 0 < len(found[-1]) <= size
    assert torch.equal(torch.cat(found), torch.cat(groups))
    assert list(features.batches([], size)) == []


@pytest.mark.parametrize("done", [1, 33, 69, 70, 92, 93])
def test_the_rest_of_the_index_gives_the_rest_of_the_inputs(shards: Path, done: int) -> None:
    """Also from the middle of a picture's views or of a row group, and when nothing is left."""
    index = draw(COUNT)
    assert index["id"].iloc[92] != index["id"].iloc[91] and len(index) == COUNT + 24
    whole, rest = (decoded(shards, part) for part in (index, index.iloc[done:]))
    assert len(rest) == len(index) - done
    assert all(np.array_equal(one, two) for one, two in zip(whole[done:], rest, strict=True))
    assert decoded(shards, index.iloc[:0]) == []


@pytest.mark.parametrize("cut", [0, 5, 127, 128, 129, 151, 152, 175, 10_000])
def test_a_truncated_file_resumes_after_its_last_complete_row(tmp_path: Path, cut: int) -> None:
    """The header has 128 bytes, a row 24."""
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


@pytest.mark.slow
@pytest.mark.parametrize("block", BACKBONES)
def test_features_do_not_depend_on_the_number_of_threads(block: Backbone) -> None:
    before, trunk, batch = torch.get_num_threads(), trunk_of(block), inputs(draw(3), 112)
    found = set()
    try:
        torch.set_num_threads(1)
        determinism.prepare_inference()
        assert torch.get_num_threads() > 1
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            found.add(features.forward(trunk, tensor(batch)).numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_bfloat16_is_close() -> None:
    trunk, batch = trunk_of(VGG), inputs(draw(3), 64)
    exact, fast = (
        features.forward(trunk, tensor(batch), precision).float().numpy() for precision in ("float32", "bfloat16")
    )
    assert not np.array_equal(exact, fast)
    assert np.abs(fast - exact).mean() < 0.02 * np.abs(exact).mean()


@pytest.mark.slow
def test_a_crop_too_small_for_the_network_is_an_error() -> None:
    block = Backbone(name="inception_v3", weights="random", layer="last", tail="none")
    with user_error(r"augment\.crop: 64 pixels are too few for the backbone \(.*\); raise it"):
        features.shape(trunk_of(block), 1, 64)


@pytest.mark.parametrize("missing", [PICTURES[3:4], PICTURES[64:65], PICTURES[64:]])
def test_shards_and_index_must_agree(shards: Path, missing: list[images.Picture]) -> None:
    """Pictures without rows: in the middle of a row group, at its start, and a whole row group."""
    index = draw(COUNT)
    with pytest.raises(AssertionError, match="not of these pictures"):
        decoded(shards, index[~index["id"].isin([picture.id for picture in missing])])


def test_too_little_shared_memory_is_an_error(shards: Path, tmp_path: Path) -> None:
    """The processes that decode for a GPU would wait for ever."""
    inputs = features.Inputs(shards, draw(COUNT), 224)
    features.check_shared_memory(inputs, 1, tmp_path / "nowhere")
    features.check_shared_memory(inputs, 1, tmp_path)
    with user_error(r"compute\.workers: 10000000 processes need \d+ MB of shared memory, and .* has \d+; set fewer"):
        features.check_shared_memory(inputs, 10_000_000, tmp_path)
