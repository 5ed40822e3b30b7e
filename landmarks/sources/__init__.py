"""Where pictures come from. Every source looks the same to the download stage.

A source lists all its pictures in an index, fetches the wanted ones that are not on this machine yet, and hands them
over in the order of their ids.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from landmarks.images import Picture
from landmarks.params import Data, Download
from landmarks.stage import UserError

import pandas as pd
import pyarrow as pa
from pyarrow import compute, csv


class Source(Protocol):
    def index(self) -> pd.DataFrame:
        """A row per picture: `id`, `landmark_id` (text) and what else `fetch` needs, sorted by `id`, each `id` once."""

    def fetch(self, wanted: pd.DataFrame) -> dict[str, str]:
        """Fetches pictures of the index, unless an earlier run did. Returns the reason of each that cannot be had."""

    def pictures(self, wanted: pd.DataFrame) -> Iterator[Picture]:
        """Those pictures, which have been fetched, in the order of `wanted`."""

    def names(self) -> dict[str, str]:
        """The names of landmarks by id, as far as they are known."""


@contextmanager
def open_source(data: Data, download: Download, *, seed: int, workers: int, scratch: Path) -> Iterator[Source]:
    """The source that `data` names; what it fetches from elsewhere is kept below `scratch`.

    Raises `UserError` if the source needs `data.root` and that is not of the right kind.
    """
    if data.source == "sample":
        from landmarks.sources.sample import Sample

        yield Sample(seed, workers)
        return
    if data.root is None:
        raise UserError(f"data.root: missing; data.source {data.source} needs {NEEDS[data.source]}")
    local = data.source == "folder" or "://" not in data.root
    if local and not (Path(data.root).is_file() if data.source == "gldv1" else Path(data.root).is_dir()):
        raise UserError(f"data.root: {data.root} is not {NEEDS[data.source]}; correct the path")
    if data.source == "folder":
        from landmarks.sources.folder import open_folder

        yield open_folder(Path(data.root))
        return
    # Imported here because aiohttp takes long to import, and other sources do without.
    from landmarks.sources.gldv1 import Gldv1
    from landmarks.sources.gldv2 import Gldv2
    from landmarks.sources.remote import Root
    from landmarks.sources.store import Store

    root = Root(data.root, download, seed)
    key = hashlib.sha256(root.fs.unstrip_protocol(root.path).encode()).hexdigest()[:12]
    with Store(scratch / f"{data.source}-{key}") as store:
        yield (Gldv1 if data.source == "gldv1" else Gldv2)(root, store, download)


NEEDS = {
    "folder": "the directory of the pictures",
    "gldv1": "an index file (path or URL) with id, url and landmark_id",
    "gldv2": "the data set's top directory (path or URL)",
}


def read_index(path: Path | None, columns: list[str], name: str = "") -> pd.DataFrame:
    """Reads the text `columns` of a CSV whose rows are pictures, sorted by `id`. Errors call it `name`, else `path`.

    Raises `UserError` naming the file if it is missing, empty, not CSV, lacks a column, or repeats or omits an id.
    """
    name = name or str(path)
    if path is None:
        raise UserError(f"{name}: no such file; data.root must hold it")
    text = csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=columns)
    try:
        table = csv.read_csv(path, convert_options=text).sort_by("id")
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({reason(error)}); data.root must hold it") from None
    except KeyError as error:
        raise UserError(f"{name}: {error.args[0].rstrip('.')}; it needs {', '.join(columns)}") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{name}: {error}") from None
    if not len(table):
        raise UserError(f"{name}: no rows; it needs a row per picture")
    for column in columns:
        if compute.any(compute.equal(table[column], "")).as_py():
            raise UserError(f"{name}: a row without {column}; fill it in or remove the row")
    ids = table["id"]
    repeated = ids[1:].filter(compute.equal(ids[1:], ids[:-1]))  # a set of five million would take a gigabyte
    if len(repeated):
        raise UserError(f"{name}: id {repeated[0]} is there more than once; ids must differ")
    return table.to_pandas()


def reason(error: OSError | ValueError) -> str:
    """What the system says of a file, or Python of its name, in a few words."""
    return (getattr(error, "strerror", None) or str(error)).lower()
