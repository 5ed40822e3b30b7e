"""Several workers on the loopback address: the same features, and what happens if something is lost or differs."""

from collections.abc import Iterator
from pathlib import Path

from landmarks import augment, features, images, networks, weight_files

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, VGG, pictures

pytest.importorskip("distributed", reason="needs requirements-cluster.txt, see docs/cluster.md")
COUNT, CROP = 200, 32
SETTINGS = {
    **{"views": 2, "rotation": 45.0, "eval_rotation": 0.0, "scale": (0.7, 1.0), "brightness": 0.25, "flip": True},
    "seed": 1,
}


class Work:
    """Four row groups of pictures, their index, and a trunk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        images.write_shards(directory, pictures(COUNT), COUNT)
        table = pd.DataFrame({"id": [p.id for p in pictures(COUNT)], "width": 96, "height": 80, "split": "train"})
        self.index = augment.draw(table, **SETTINGS)
        self.weights = weight_files.fetch("vgg16", "random", 1)
        self.trunk = networks.Trunk(self.weights, VGG)

    def here(self) -> bytes:
        return np.concatenate(list(features.extract(self.trunk, self.directory, self.index, CROP))).tobytes()

    def on(self, address: str, done: int = 0) -> Iterator[np.ndarray]:
        kept = networks.trunk_weights(self.weights, VGG)
        left = self.index.iloc[done:]
        return features.extract_on_cluster(address, self.trunk, kept, VGG, self.directory, left, CROP, "float32")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("shards"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3])
def test_workers_give_the_same_features(work: Work, number: int) -> None:
    found = list(work.on(f"local:{number}"))
    assert [len(part) for part in found] == [128, 128, 128, 16]
    assert np.concatenate(found).tobytes() == work.here()
