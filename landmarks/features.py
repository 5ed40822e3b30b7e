"""What the frozen trunk makes of each view: computed once, kept as one memory-mapped array in index order."""

import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, dropwhile, groupby, islice
from math import prod
from pathlib import Path
from typing import BinaryIO

from landmarks import augment, determinism, images
from landmarks.augment import View
from landmarks.networks import Trunk
from landmarks.stage import UserError

import numpy as np
import pandas as pd
import torch

BATCH = 8  # pictures per forward pass, more are no faster; always as many, for one alone may take other code, with
# other last bits
GROUP = 64  # pictures that are decoded at a time; more would only cost memory


def views(picture: images.Picture, rows: list[View], crop: int) -> list[np.ndarray]:
    """The views of one picture, uint8 [crop, crop, 3] each."""
    assert all(row.id == picture.id for row in rows), "the index is not of these pictures"
    image = images.decode(picture.picture)
    return [np.asarray(augment.apply(image, row, crop)) for row in rows]


def inputs(directory: Path, index: pd.DataFrame, crop: int, ahead: int = 0) -> Iterator[np.ndarray]:
    """Streams the input of every row of `index` (sorted by id and view, or the end of such a one) from a directory of
    shards. Each picture is decoded once for all its views, on threads, for Pillow does not hold the GIL: a group of
    pictures at a time, and `ahead` more groups while their inputs are used.
    """
    if index.empty:
        return
    first = index["id"].iloc[0]  # of the rows that an interrupted run left
    pictures = dropwhile(lambda p: p.id < first, (p for group in images.read_groups(directory) for p in group))
    pairs = zip(pictures, groupby(augment.views(index), key=lambda row: row.id), strict=True)
    waiting = deque()
    with ThreadPoolExecutor() as pool:

        def groups() -> Iterator[list[Future]]:
            while group := [(picture, list(rows)) for picture, (_, rows) in islice(pairs, GROUP)]:
                yield [pool.submit(views, *pair, crop) for pair in group]

        for jobs in chain(groups(), [[]] * ahead):
            waiting.append(jobs)
            if len(waiting) > ahead:
                for found in [job.result() for job in waiting.popleft()]:
                    yield from found


@torch.inference_mode()
def forward(trunk: Trunk, batch: list[np.ndarray], precision: str = "float32") -> np.ndarray:
    """The trunk's output for up to `BATCH` inputs of uint8 [S, S, 3]: float16 [N, C, H, W].

    A row's bits depend on that row alone, whatever comes with it. `precision` bfloat16 is for speed (autocast).
    """
    padded = torch.from_numpy(np.stack(batch + batch[:1] * (BATCH - len(batch))))
    pictures = determinism.send(padded, trunk.mean.device).permute(0, 3, 1, 2).float() / 255
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return trunk(pictures)[: len(batch)].half().contiguous().cpu().numpy()


def extract(
    trunk: Trunk, directory: Path, index: pd.DataFrame, crop: int, precision: str = "float32"
) -> Iterator[np.ndarray]:
    """Streams the features of every row of `index`, in its order, `BATCH` rows or fewer at a time.

    A GPU leaves the processor free to decode the next group meanwhile. Without one, decoding and the trunk take turns:
    at the same time they wait for each other at every layer (measured on a Zen 4, inputs at hand being 1: 0.95, in
    turns 0.97).
    """
    stream = inputs(directory, index, crop, ahead=0 if trunk.mean.device.type == "cpu" else 1)
    while batch := list(islice(stream, BATCH)):
        yield forward(trunk, batch, precision)


@torch.inference_mode()
def shape(trunk: Trunk, rows: int, crop: int) -> tuple[int, int, int, int]:
    """The shape of the features of `rows` views: rows, channels, height, width. Raises `UserError` if `crop` is too
    small for the trunk."""
    try:
        return rows, *trunk(torch.zeros(1, 3, crop, crop, device=trunk.mean.device)).shape[1:]
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"augment.crop: {crop} pixels do not get through the backbone ({reason}); set more") from None


def resume_npy(file: BinaryIO, shape: tuple[int, ...]) -> int:
    """Makes `file`, open for reading and appending ("a+b"), a .npy of float16 `shape` as far as it has come.

    Returns how many whole rows it has; what follows is to be appended. Writing at the end, not into a memory map, needs
    no list of what is done, holds no more memory for more rows, and meets a full disk with an error, not a signal.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": shape})
    start, row = header.tell(), 2 * prod(shape[1:])
    rows = max(0, file.seek(0, os.SEEK_END) - start) // row
    file.truncate(start + rows * row if rows else 0)
    if not rows:
        file.write(header.getvalue())
    return rows
