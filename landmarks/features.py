"""What the frozen trunk makes of each view: computed once, kept as one memory-mapped array in index order."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path

from landmarks import augment, images
from landmarks.augment import View
from landmarks.backbone import GRID, Trunk

import numpy as np
import pandas as pd
import torch

BATCH = 32  # pictures per forward pass; always as many, for another number may take other code, with other last bits


def views(picture: images.Picture, rows: list[View], crop: int) -> list[np.ndarray]:
    """The views of one picture, uint8 [crop, crop, 3] each."""
    image = images.decode(picture.picture)
    return [np.asarray(augment.apply(image, row, crop)) for row in rows]


def inputs(directory: Path, index: pd.DataFrame, crop: int) -> Iterator[np.ndarray]:
    """Streams the input of every row of `index` (sorted by id and view) from a directory of shards."""
    rows = groupby(augment.views(index), key=lambda row: row.id)
    with ThreadPoolExecutor() as pool:
        for group in images.read_groups(directory):
            # Pictures and rows are both in id order. The views of a group are made while the trunk is at work.
            jobs = []
            for picture, (name, of_picture) in zip(group, rows):  # noqa: B905  rows goes on to the next group
                assert name == picture.id, "the index is not of these pictures"
                jobs.append(pool.submit(views, picture, list(of_picture), crop))
            for job in jobs:
                yield from job.result()


@torch.inference_mode()
def forward(trunk: Trunk, batch: list[np.ndarray]) -> np.ndarray:
    """The trunk's output for up to `BATCH` inputs of uint8 [S, S, 3]: float16 [N, C, 7, 7].

    A row's bits depend on that row alone, whatever comes with it.
    """
    padded = np.stack(batch + batch[:1] * (BATCH - len(batch)))
    pictures = torch.from_numpy(padded).to(trunk.mean.device).permute(0, 3, 1, 2).float() / 255
    return trunk(pictures)[: len(batch)].half().cpu().contiguous().numpy()


def extract(trunk: Trunk, directory: Path, index: pd.DataFrame, crop: int) -> Iterator[np.ndarray]:
    """Streams the features of every row of `index`, in its order, `BATCH` rows or fewer at a time."""
    stream = inputs(directory, index, crop)
    while batch := list(islice(stream, BATCH)):
        yield forward(trunk, batch)


def shape(trunk: Trunk, rows: int) -> tuple[int, int, int, int]:
    """The shape of the features of `rows` views: rows, channels, height, width."""
    channels = [layer.out_channels for layer in trunk.features if isinstance(layer, torch.nn.Conv2d)][-1]
    return rows, channels, GRID, GRID
