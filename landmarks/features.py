"""Features of the frozen trunk: computed once per view, in the order of the augmentation index."""

import io
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from landmarks import augment, determinism, images
from landmarks.augment import View
from landmarks.networks import Trunk
from landmarks.params import Backbone
from landmarks.stage import UserError
from landmarks.stage.errors import is_memory_error

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from landmarks.cluster import Driver

# Views per forward pass. The last batch is padded to this size: other sizes may use kernels that round differently.
CPU_BATCH = 8  # larger batches are no faster
GPU_BATCH = 128
AHEAD = 2  # batches queued on a GPU while the CPU writes an earlier one

Group = list[tuple[bytes, list[View]]]  # encoded pictures, each with its views


class Inputs(Dataset):
    """The network's inputs for the rows of an index, in index order. An item has the views of a row group of pictures.

    Items are independent, so any thread or process can prepare them. Each picture is decoded once for all its views.
    """

    def __init__(self, directory: Path, index: pd.DataFrame, crop: int) -> None:
        """`index` is sorted by id and view. It covers the pictures of `directory`, except the first ones if an earlier
        run has processed them. Raises `AssertionError` if it does not match the pictures.
        """
        self.index, self.crop = index, crop
        self.groups: list[tuple[images.RowGroup, int, int]] = []  # row group, first row of the index, end
        start, ids = 0, index["id"].to_numpy(dtype=object)
        for group in images.row_groups(directory):
            stop = int(np.searchsorted(ids, group.last_id, side="right"))
            assert stop > start or not self.groups, "the index is not of these pictures"
            if stop > start:
                self.groups.append((group, start, stop))
            start = stop
        assert start == len(index), "the index is not of these pictures"

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> Tensor:
        """The views of a row group, uint8 [rows, crop, crop, 3]."""
        return decode_group(self.load(number), self.crop, map)

    def load(self, number: int) -> Group:
        """The encoded pictures of a row group, with their views."""
        group, start, stop = self.groups[number]
        rows = groupby(augment.views(self.index.iloc[start:stop]), key=lambda view: view.id)
        views = {name: list(found) for name, found in rows}
        done = next(iter(views)) if number == 0 else ""  # an earlier run processed the pictures before it
        pictures = [picture for picture in group.read() if picture.id >= done]
        assert [picture.id for picture in pictures] == list(views), "the index is not of these pictures"
        return [(picture.picture, rows) for picture, rows in zip(pictures, views.values(), strict=True)]


def decode_group(group: Group, crop: int, run: Callable[..., Iterable[list[np.ndarray]]]) -> Tensor:
    """The views of some pictures, uint8 [rows, crop, crop, 3].

    `run`, such as `map` or `pool.map`, calls `decode_views` for each picture.
    """
    decoded = run(decode_views, group, [crop] * len(group))
    return torch.from_numpy(np.stack([view for found in decoded for view in found]))


def decode_views(picture: tuple[bytes, list[View]], crop: int) -> list[np.ndarray]:
    """The views of one picture, uint8 [crop, crop, 3] each."""
    data, rows = picture
    image = images.decode(data)
    return [np.asarray(augment.apply(image, row, crop)) for row in rows]


def decode(inputs: Inputs, device: torch.device, workers: int = 0) -> Iterator[Tensor]:
    """Streams the items of `inputs` in order, decoded on all cores; for CUDA in pinned memory.

    For a GPU, `workers` processes (0: one per core) decode ahead, because the threads of one interpreter use only a few
    cores. Without a GPU, threads decode in turns with the trunk: at the same time, they would wait for each other at
    every layer (95 % of the trunk's own speed on two Zen 4 cores; in turns 97 %).
    """
    if device.type == "cpu":
        with ThreadPoolExecutor() as pool:  # Pillow releases the GIL
            for number in range(len(inputs)):
                yield decode_group(inputs.load(number), inputs.crop, pool.map)
    else:
        from joblib import cpu_count  # respects CPU affinity and container limits

        workers = workers or cpu_count()
        check_shared_memory(inputs, workers)
        yield from DataLoader(inputs, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda")


def check_shared_memory(inputs: Inputs, workers: int, folder: Path = Path("/dev/shm")) -> None:  # noqa: S108 - Linux's
    """Raises `UserError` if the processes of a `DataLoader` could fill the shared memory: it would wait for ever."""
    rows = max((stop - start for _, start, stop in inputs.groups), default=0)
    needed = 2 * workers * rows * 3 * inputs.crop**2  # bytes; each process prepares two items ahead
    if folder.is_dir() and (free := shutil.disk_usage(folder).free) < needed:
        raise UserError(
            f"compute.workers: {workers} processes need {needed / 1e6:.0f} MB of shared memory, and {folder} has "
            f"{free / 1e6:.0f}; set fewer, or enlarge it (docker run --shm-size=4g)"
        )


def batches(groups: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Regroups the rows of `groups` into tensors of `size` rows; the last one may be smaller."""
    rest: Tensor | None = None
    for group in groups:
        rest = group if rest is None else torch.cat([rest, group])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest is not None and len(rest):
        yield rest


def batch_size(device: torch.device) -> int:
    """Views per forward pass on `device`."""
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


@torch.inference_mode()
def forward(trunk: Trunk, views: Tensor, precision: str = "float32") -> Tensor:
    """The trunk's output for uint8 views [N, S, S, 3] on its device, float16 [N, C, H, W].

    N is at most the batch size of the device. The bits of a row do not depend on the other rows.
    `precision` bfloat16 uses autocast: it is faster, and the features differ slightly.
    """
    size = batch_size(views.device)
    padded = torch.cat([views, views[:1].expand(size - len(views), -1, -1, -1)])
    with torch.autocast(views.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return trunk(padded)[: len(views)].contiguous()


def extract(
    trunk: Trunk, directory: Path, index: pd.DataFrame, crop: int, precision: str = "float32", workers: int = 0
) -> Iterator[np.ndarray]:
    """Streams the features of the rows of `index` in order, a batch at a time: float16 [N, C, H, W].

    On a CUDA device, decoding, copies and the trunk overlap: `AHEAD` more batches are queued before this waits for one.
    """
    device = trunk.mean.device
    groups = (determinism.send(group, device) for group in decode(Inputs(directory, index, crop), device, workers))
    waiting: deque[Callable[[], np.ndarray]] = deque()
    for batch in batches(groups, batch_size(device)):
        waiting.append(fetch(forward(trunk, batch, precision)))
        if device.type != "cuda" or len(waiting) > AHEAD:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


def extract_on_cluster(
    address: str,
    trunk: Trunk,
    weights: dict[str, Tensor],
    backbone: Backbone,
    directory: Path,
    index: pd.DataFrame,
    crop: int,
    precision: str,
) -> Iterator[np.ndarray]:
    """What `extract` yields, computed by the workers of the cluster at `address`, a row group of pictures at a time.

    Pictures travel to the workers, `weights` once to each, and features back.
    """
    from landmarks import cluster  # imported here because it needs Dask

    inputs = Inputs(directory, index, crop)
    if not len(inputs):
        return
    probe = inputs.load(0)[:CPU_BATCH]
    answer = sha256(group_features(trunk, crop, precision, probe).tobytes()).hexdigest()
    make = partial(group_extractor, backbone, crop, precision, trunk.mean.device.type, probe, answer)
    yield from cluster.imap(address, make, map(inputs.load, range(len(inputs))), {"weights": lambda: weights})


def group_extractor(
    backbone: Backbone, crop: int, precision: str, device: str, probe: Group, answer: str, driver: "Driver"
) -> Callable[[Group], np.ndarray]:
    """On a worker: `group_features` with the driver's weights.

    Raises `UserError` if the features of `probe` have another SHA-256 than `answer`.
    """
    from landmarks import cluster

    determinism.prepare_inference()
    trunk = Trunk(driver.weights(), backbone).to(determinism.pick_device(device))
    extract = partial(group_features, trunk, crop, precision)
    if sha256(extract(probe).tobytes()).hexdigest() != answer:
        raise UserError(cluster.OTHER_BITS)
    return extract


def group_features(trunk: Trunk, crop: int, precision: str, group: Group) -> np.ndarray:
    """The features of the views of some pictures, float16 [rows, C, H, W]."""
    device = trunk.mean.device
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        views = determinism.send(decode_group(group, crop, pool.map), device)
    return torch.cat([forward(trunk, batch, precision) for batch in batches([views], batch_size(device))]).cpu().numpy()


def fetch(tensor: Tensor) -> Callable[[], np.ndarray]:
    """Starts copying `tensor` to the CPU. Returns a function that waits for the copy and returns it."""
    if tensor.device.type != "cuda":
        return lambda: tensor.cpu().numpy()
    copy = tensor.to("cpu", non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> np.ndarray:
        copied.synchronize()
        return copy.numpy()

    return wait


@torch.inference_mode()
def shape(trunk: Trunk, rows: int, crop: int) -> tuple[int, int, int, int]:
    """The shape of the features of `rows` views: (rows, channels, height, width).

    Raises `UserError` if `crop` (pixels) is too small for the trunk.
    """
    try:
        return rows, *trunk(torch.zeros(1, 3, crop, crop, device=trunk.mean.device)).shape[1:]
    except RuntimeError as error:
        if is_memory_error(error):
            raise
        raise UserError(
            f"augment.crop: {crop} pixels are too few for the backbone ({error!s:.100}); raise it"
        ) from None


def resume_npy(file: BinaryIO, shape: tuple[int, ...]) -> int:
    """Prepares `file`, open as "a+b", for appending rows to a .npy array of float16 `shape`. Returns the rows it has.

    Writes the header into an empty file, and removes an incomplete last row. Unlike a memory map, appending needs no
    record of finished rows and no more memory for more rows, and a full disk raises an error instead of a signal.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": shape})
    start, row = header.tell(), 2 * prod(shape[1:])
    rows = max(0, file.seek(0, os.SEEK_END) - start) // row
    file.truncate(start + rows * row if rows else 0)
    if not rows:
        file.write(header.getvalue())
    return rows
