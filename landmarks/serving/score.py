"""The challenge's own score: Global Average Precision of a submission against the solution of Google Landmarks v2.

The measure, the reading of both files and the order of ties follow metrics.py and dataset_file_io.py of the challenge
(https://github.com/tensorflow/models/tree/master/research/delf/delf/python/datasets/google_landmarks_dataset).
"""

import csv
from pathlib import Path

from landmarks.stage import UserError

import numpy as np
import pandas as pd

USAGES = ("Public", "Private", "Ignored")


def read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """A CSV file as text, without empty rows. Raises `UserError` if it lacks one of `columns` or has an id twice."""
    needs = f"it needs a header with {','.join(columns)}"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", compression=None)
    except (ValueError, csv.Error) as error:  # pandas' own errors and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path}: not a CSV ({error}); {needs}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first column for a name of the rows
        raise UserError(f"{path}: the rows have more fields than the header; {needs}")
    if missing := [column for column in columns if column not in table]:
        raise UserError(f"{path}: no column {missing[0]}; {needs}")
    if (twice := table["id"].duplicated()).any():
        raise UserError(f"{path}: id {table['id'][twice].iloc[0]} appears more than once; remove a row")
    return table[columns]


def read_solution(path: Path) -> pd.DataFrame:
    """The official solution: `id`, `landmarks` (ids with blanks between them, or nothing) and `Usage`."""
    solution = read_table(path, ["id", "landmarks", "Usage"])
    for row in solution[~solution["Usage"].isin(USAGES)].itertuples():
        raise UserError(f"{path}: id {row.id} has Usage {row.Usage!r}; it must be one of {', '.join(USAGES)}")
    return solution


def read_submission(path: Path) -> pd.DataFrame:
    """The answers of a submission: `id`, `landmark_id` and `confidence`. Pictures without an answer have no row."""
    submission = read_table(path, ["id", "landmarks"])
    answers = submission[submission["landmarks"].str.strip() != ""]
    parts = answers["landmarks"].str.extract(r"^\s*(\S+) +(\S+)\s*$")
    confidence = pd.to_numeric(parts[1], errors="coerce")
    for row in answers[~np.isfinite(confidence)].itertuples():
        raise UserError(f"{path}: id {row.id} has {row.landmarks!r}; it must be one landmark_id and its confidence")
    return pd.DataFrame({"id": answers["id"], "landmark_id": parts[0], "confidence": confidence})


def global_average_precision(answers: pd.DataFrame, solution: pd.DataFrame) -> float:
    """Global Average Precision, 0 to 1: the sum of precision at i over all right answers i, by the number of pictures
    that show a landmark. NaN if no picture does.

    The answers are ranked by confidence, equal ones by id. An answer is right if it is one of the landmarks of its
    picture. Pictures without a landmark count only by the answers given to them, which are wrong.
    """
    landmarks = solution.set_index("id")["landmarks"].str.split()
    ranked = answers[answers["id"].isin(landmarks.index)].sort_values("id")
    ranked = ranked.sort_values("confidence", ascending=False, kind="stable")
    right = np.array([row.landmark_id in landmarks[row.id] for row in ranked.itertuples()], bool)
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    shown = int((landmarks.str.len() > 0).sum())
    return float(precision[right].sum() / shown) if shown else float("nan")


def score(submission: Path, solution: Path) -> str:
    """A table of the scores of the public and the private pictures, and of both together.

    Raises `UserError` that names the file and the row that does not fit, such as an answer for an unknown picture.
    """
    answers, truth = read_submission(submission), read_solution(solution)
    unknown = answers["id"][~answers["id"].isin(truth["id"])]
    if len(unknown):
        raise UserError(f"{submission}: id {unknown.iloc[0]} is not in {solution}; is it the same test set?")
    parts = {usage: truth[truth["Usage"] == usage] for usage in ("Public", "Private")}
    parts["all"] = pd.concat(parts.values())
    rows = [
        {
            "pictures": name,
            "number": len(part),
            "with a landmark": int((part["landmarks"].str.strip() != "").sum()),
            "answered": int(answers["id"].isin(part["id"]).sum()),
            "GAP": f"{global_average_precision(answers, part):.6f}",
        }
        for name, part in parts.items()
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
