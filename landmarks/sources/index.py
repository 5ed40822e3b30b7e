"""Reads the index of pictures from a CSV file."""

from pathlib import Path

from landmarks.scan import CONTROL
from landmarks.stage import UserError
from landmarks.stage.errors import reason

import pandas as pd
import pyarrow as pa
from pyarrow import compute, csv

BLOCK = 2**24  # bytes per block of a CSV file; a row with a stray quote, which ends at the next one, must fit
UNKNOWN = ("", "none", "nan", "null", "na", "n/a")  # values that stand for no landmark_id, in lower case


def read_landmarks(path: Path | None, columns: list[str], name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`read_index` for Google Landmarks: the rows with a landmark_id, and the others as in `Source.skipped`."""
    rows = read_index(path, columns, name, required=["id"])
    unknown = rows["landmark_id"].str.strip().str.lower().isin(UNKNOWN)
    if unknown.all():
        raise UserError(f"{name}: no row has a landmark_id; correct the file")
    skipped = rows.loc[unknown, ["id", "landmark_id"]].assign(reason="no landmark_id")
    return rows[~unknown].reset_index(drop=True), skipped


def read_index(
    path: Path | None, columns: list[str], name: str = "", required: list[str] | None = None, optional: str = ""
) -> pd.DataFrame:
    """Reads `columns` of a CSV file with a row per picture, as text, sorted by `id`. Messages call it `name`.

    The column `optional` may be missing. Raises `UserError` naming the file if it is missing (`path` None), empty or
    not CSV, if a column or a value of the columns `required` (default: all) is missing, or if an id is repeated.
    """
    name = name or str(path)
    if path is None:
        raise UserError(f"{name}: no such file; data.root must hold it")
    wanted = [*columns, *filter(None, [optional])]
    text = csv.ConvertOptions(
        column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted, include_missing_columns=True
    )
    try:
        with path.open("rb") as file:
            compression = "gzip" if file.read(2) == b"\x1f\x8b" else "detect"  # a copy from a URL has no ending
        stream, lines = pa.input_stream(str(path), compression), csv.ParseOptions(newlines_in_values=True)
        table = csv.read_csv(stream, csv.ReadOptions(block_size=BLOCK), lines, text).sort_by("id")
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({reason(error)}); data.root must hold it") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{name}: {error}; correct the file") from None
    if not len(table):
        raise UserError(f"{name}: no rows; it needs a row per picture")
    missing = [column for column in wanted if table[column].null_count]
    if missing and missing != [optional]:
        raise UserError(f"{name}: no column {missing[0]}; it needs {', '.join(columns)}")
    table = table.drop_columns(missing)
    for column in required or columns:
        if compute.any(compute.equal(table[column], "")).as_py():
            raise UserError(f"{name}: a row without {column}; fill it in or remove the row")
    for column in columns:
        if compute.any(compute.match_substring_regex(table[column], CONTROL)).as_py():
            raise UserError(f"{name}: a control character, such as a line break, in {column}; remove it")
    ids = table["id"]
    repeated = ids[1:].filter(compute.equal(ids[1:], ids[:-1]))  # a Python set of five million ids takes a gigabyte
    if len(repeated):
        raise UserError(f"{name}: id {repeated[0]} is repeated; ids must be unique")
    return table.to_pandas()


def read_ids(path: Path, name: str) -> pa.Array:
    """The unique ids in a text file: one per line, or the column `images` of Google's train_clean.csv, separated by
    spaces. A file of millions of ids takes about twice its size in memory.

    Raises `UserError` that names data.only and the file `name`.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.readline().rstrip()
        if head == "landmark_id,images":
            lists = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types={"images": pa.string()}))
            ids = compute.utf8_split_whitespace(lists["images"].combine_chunks()).flatten()
        else:
            ids = compute.split_pattern(pa.array([path.read_text(encoding="utf-8-sig")]), "\n").flatten()
    except (OSError, ValueError) as error:  # ArrowInvalid and UnicodeDecodeError are ValueErrors
        raise UserError(
            f"data.only: {name}: {reason(error)}; it needs an id per line, or the columns landmark_id,images"
        ) from None
    return compute.unique(ids.filter(compute.not_equal(ids, "")))
