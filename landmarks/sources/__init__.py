"""Sources of pictures. They share one interface, `Source`, which the download stage uses.

A source lists all its pictures in an index, fetches the wanted ones that are not on this machine yet, and yields them
in id order.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from landmarks.images import Picture
from landmarks.params import Data, Download
from landmarks.sources.index import read_ids
from landmarks.stage import UserError, repository

import pandas as pd
import pyarrow as pa
from pyarrow import compute


class Source(Protocol):
    def index(self) -> pd.DataFrame:
        """A row per picture, sorted by `id`: unique `id`, `landmark_id` (both text) and further columns for `fetch`.

        `split` (train, val, test), if the data have given splits.
        """

    def fetch(self, wanted: pd.DataFrame) -> dict[str, str]:
        """Fetches rows of the index that no earlier run has fetched. Returns the failures: reason by id."""

    def pictures(self, wanted: pd.DataFrame) -> Iterator[Picture]:
        """Yields fetched pictures in the order of `wanted`."""

    def names(self) -> dict[str, str]:
        """Names of landmarks by id, where known."""
        return {}

    def skipped(self) -> pd.DataFrame:
        """A row per file or line that the index leaves out: `id`, `landmark_id` (may be empty) and `reason`."""
        return pd.DataFrame(columns=["id", "landmark_id", "reason"])


@contextmanager
def open_source(
    data: Data, download: Download, *, seed: int, workers: int, scratch: Path, cluster: str | None = None
) -> Iterator[Source]:
    """Opens the source that `data` names. It keeps what it downloads below `scratch`. `cluster` is compute.cluster.

    Raises `UserError` if the source needs a `data.root` and it is missing or wrong.
    """
    if data.source == "sample":
        from landmarks.sources.sample import Sample

        yield Sample(seed, workers)
        return
    if data.root is None:
        raise UserError(f"data.root: missing; data.source {data.source} needs {NEEDS[data.source]}")
    path = repository() / data.root
    local = data.source == "folder" or "://" not in data.root
    if local and not (os.path.isfile(path) if data.source == "gldv1" else os.path.isdir(path)):
        raise UserError(f"data.root: {data.root} is not {NEEDS[data.source]}; correct the path")
    if data.source == "folder":
        from landmarks.sources.folder import open_folder

        yield open_folder(path)
        return
    # Imported here because aiohttp is slow to import.
    from landmarks.sources.gldv1 import Gldv1
    from landmarks.sources.gldv2 import Gldv2
    from landmarks.sources.remote import Root
    from landmarks.sources.store import Store

    root = Root(str(path) if local else data.root, download, seed)
    key = hashlib.sha256(root.fs.unstrip_protocol(root.path).encode()).hexdigest()[:12]
    seconds = 1 if data.source == "gldv2" else 0  # an interrupted tar starts again
    with Store(scratch / f"{data.source}-{key}", seconds) as store:
        yield Gldv1(root, store, download) if data.source == "gldv1" else Gldv2(root, store, download, cluster)


def restrict(index: pd.DataFrame, only: str | None) -> tuple[pd.DataFrame, int]:
    """The rows of a source's index whose id is in the file `only`, or all. Also returns how many ids are not in it.

    Raises `UserError` that names data.only if the file cannot be used, or if no id is in the index.
    """
    if only is None:
        return index, 0
    ids = read_ids(repository() / only, only)
    found = compute.is_in(pa.array(index["id"], pa.string()), ids).to_numpy(zero_copy_only=False)
    if not found.any():
        first = index["id"].iloc[0]
        raise UserError(f"data.only: no id in {only} ({len(ids)}) is in the data, whose first id is {first}")
    return index[found].reset_index(drop=True), len(ids) - int(found.sum())


NEEDS = {
    "folder": "the directory of the pictures",
    "gldv1": "an index file (path or URL) with id, url and landmark_id",
    "gldv2": "the data set's top directory (path or URL)",
}
