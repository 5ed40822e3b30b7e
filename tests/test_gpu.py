"""What a CUDA GPU computes, against the CPU and against itself."""

from pathlib import Path

from landmarks import augment, determinism, features, images, models, weight_files
from landmarks.answers import answers
from landmarks.networks import Trunk
from landmarks.params import Abn, Backbone
from landmarks.training import Epoch, Features, fit, prepare_training

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BACKBONES, VGG, VIEWS, abn, design, pictures, tailed, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, which is not here")

COUNT = 300  # pictures: more than a batch of the GPU, in several row groups
SETTINGS = train(dropout=0.5)


@pytest.fixture(autouse=True)
def reproducible() -> None:
    determinism.pick_device("cuda")
    prepare_training()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shards")
    images.write_shards(directory, pictures(COUNT), COUNT)
    return directory


def index() -> pd.DataFrame:
    splits = ["test" if n % 3 else "train" for n in range(COUNT)]
    table = pd.DataFrame({"id": [p.id for p in pictures(COUNT)], "width": 96, "height": 80, "split": splits})
    return augment.draw(table, VIEWS, seed=1)


def eight() -> Features:
    array = np.random.default_rng(1).random((8, 8, 2, 2)).astype(np.float16) * 4
    return Features(array, pd.DataFrame({"row": np.arange(8), "label": np.arange(8) % 3}))


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.05)])
@pytest.mark.parametrize("block", BACKBONES)
def test_features_agree(block: Backbone, shards: Path, precision: str, tolerance: float) -> None:
    trunk = Trunk(weight_files.fetch(block.name, "random", 1), block)
    here = np.concatenate(list(features.extract(trunk, shards, index(), 64))).astype(float)
    there, again = (
        np.concatenate(list(features.extract(trunk.to("cuda"), shards, index(), 64, precision))) for _ in range(2)
    )
    assert there.shape == here.shape and np.array_equal(there, again)
    assert np.linalg.norm(there - here) < tolerance * np.linalg.norm(here)


def test_an_interrupted_extraction_continues_with_the_same_bits(shards: Path) -> None:
    trunk = Trunk(weight_files.fetch(VGG.name, "random", 1), VGG).to("cuda")
    whole, rest = (np.concatenate(list(features.extract(trunk, shards, part, 64))) for part in (index(), index()[37:]))
    assert np.array_equal(whole[37:], rest)


def train(block: Abn | None, device: str, dropout: float = 0.0) -> tuple[dict[str, torch.Tensor], Epoch]:
    model = models.build(design(block, dropout=dropout)).to(device)
    epochs = list(fit(model, [eight()], eight(), SETTINGS, 0, lambda: None))
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}, epochs[-1]


BLOCKS = [
    pytest.param(None, id="baseline"),
    pytest.param(abn(), id="abn"),
    pytest.param(abn(attention="multiply", objective="summed_softmax"), id="study"),
]


@pytest.mark.parametrize("block", BLOCKS)
def test_training_agrees(block: Abn | None) -> None:
    _, here = train(block, "cpu")
    _, there = train(block, "cuda")
    assert there.metrics == pytest.approx(here.metrics, rel=0.02)
    assert there.losses == pytest.approx(here.losses, rel=0.02)


@pytest.mark.parametrize("block", BLOCKS)
def test_training_twice_gives_the_same_bits(block: Abn | None) -> None:
    (one, first), (two, second) = (train(block, "cuda", dropout=0.5) for _ in range(2))
    assert first == second and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("tail", [False, True])
def test_answers_are_alike(tail: bool) -> None:
    shape = (256, 4, 4) if tail else (8, 7, 7)
    model = models.build(design(abn(), shape=shape, hidden=32, tail=tailed(VGG) if tail else None)).eval()
    array = np.random.default_rng(2).random((12, *shape)).astype(np.float16)
    views = pd.DataFrame({"split": "val", "id": "", "row": np.arange(12), "label": np.arange(12) % 3})
    here, there = (answers(model.to(device), array, views, 0) for device in ("cpu", "cuda"))
    curves = [name for name in here if name.startswith(("deletion", "insertion"))]
    assert here["map"].notna().all() and len(curves) == 12
    assert np.allclose(here[curves].mean(), there[curves].mean(), atol=1e-4)
