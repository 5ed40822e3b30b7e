"""Where pictures come from. Every source looks the same to the download stage.

A source lists all its pictures in an index, and hands over the wanted ones in parts, each of which can be fetched on
its own, in any order, in any process.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from landmarks.images import Picture
from landmarks.stage import UserError

import pandas as pd
import pyarrow as pa
from pyarrow import csv


class Source(Protocol):
    def index(self) -> pd.DataFrame:
        """A row per picture: `id`, `landmark_id` (text), sorted by `id`, each `id` once."""

    def parts(self, wanted: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Parts by name, fit for a file name, each with the rows of `wanted` that it may hold."""

    def version(self, part: str, rows: pd.DataFrame) -> str:
        """Changes when the part's content does, as far as that can be told without reading it."""

    def fetch(self, part: str, rows: pd.DataFrame) -> Iterator[Picture]:
        """The pictures of `rows` that the part holds, in any order."""


def open_source(name: str, root: str | None, seed: int) -> Source:
    """The source that `data.source` names. Raises `UserError` if it needs `data.root` and that is not a directory."""
    if name == "sample":
        from landmarks.sources.sample import Sample

        return Sample(seed)
    if root is None:
        raise UserError(f"data.root: missing; data.source {name} needs the directory of the pictures")
    if not Path(root).is_dir():
        raise UserError(f"data.root: {root} is no directory; correct the path")
    if name == "folder":
        from landmarks.sources.folder import open_folder

        return open_folder(Path(root))
    from landmarks.sources.gldv2 import Gldv2

    return Gldv2(Path(root))


def read_index(path: Path, columns: list[str]) -> pd.DataFrame:
    """Reads the text `columns` of a CSV whose rows are pictures, sorted by `id`.

    Raises `UserError` naming the file if it is missing, empty, not CSV, lacks a column, or repeats or omits an id.
    """
    text = csv.ConvertOptions(column_types={name: pa.string() for name in columns}, include_columns=columns)
    try:
        table = csv.read_csv(path, convert_options=text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); data.root must hold it") from None
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0].rstrip('.')}; it needs {', '.join(columns)}") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {error}") from None
    rows = table.to_pandas().sort_values("id", ignore_index=True)
    if rows.empty:
        raise UserError(f"{path}: no rows; it needs a row per picture")
    for column in columns:
        if (rows[column] == "").any():
            raise UserError(f"{path}: a row without {column}; fill it in or remove the row")
    repeated = rows.loc[rows["id"].duplicated(), "id"]
    if len(repeated):
        raise UserError(f"{path}: id {repeated.iloc[0]} is there more than once; ids must differ")
    return rows


def reason(error: OSError) -> str:
    """What the system says of a file, in a few words."""
    return (error.strerror or str(error)).lower()


def chunks(wanted: pd.DataFrame, size: int) -> dict[str, pd.DataFrame]:
    """Cuts the wanted rows into parts of `size`, for a source that has no parts of its own."""
    return {f"{start:08d}": wanted.iloc[start : start + size] for start in range(0, len(wanted), size)}
