"""The user's own pictures: a directory per class, or files listed in an `images.csv`."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from landmarks.images import MAX_BYTES, Picture
from landmarks.scan import printable, scan
from landmarks.sources import Source
from landmarks.sources.index import read_index, reason
from landmarks.stage import UserError, count_reasons

import pandas as pd

SPLITS = ("train", "training", "valid", "val", "validation", "dev", "test", "testing")


@dataclass
class Folder(Source):
    """Pictures below `root`. `files` has `id`, `landmark_id` and `file` (relative to `root`), sorted by `id`."""

    root: Path
    files: pd.DataFrame
    others: dict[str, str]  # why each other file below `root` is skipped

    def index(self) -> pd.DataFrame:
        return self.files

    def skipped(self) -> pd.DataFrame:
        rows = [(printable(name), why) for name, why in self.others.items()]
        return pd.DataFrame(
            [(name, landmark(name), why) for name, why in rows], columns=["id", "landmark_id", "reason"]
        )

    def fetch(self, wanted: pd.DataFrame) -> dict[str, str]:
        failures = {}
        for row in wanted.itertuples():
            try:
                path = self.root / row.file
                facts = path.stat()
                if not stat.S_ISREG(facts.st_mode):
                    failures[row.id] = "not a file"
                elif facts.st_size > MAX_BYTES:
                    failures[row.id] = "huge"
                elif not os.access(path, os.R_OK):
                    failures[row.id] = "permission denied"
            except (OSError, ValueError) as error:  # ValueError: a null byte in the name
                failures[row.id] = reason(error)
        return failures

    def pictures(self, wanted: pd.DataFrame) -> Iterator[Picture]:
        for row in wanted.itertuples():
            try:
                data = (self.root / row.file).read_bytes()
            except OSError as error:
                raise UserError(f"{self.root / row.file}: {reason(error)}; run it again") from None
            yield Picture(row.id, row.landmark_id, data)


def open_folder(root: Path) -> Folder:
    """Reads `root`/images.csv (columns id, landmark_id, file) if it exists, else a directory per class.

    A class is a directory directly below `root`, and its pictures are all that `scan` finds in it, at any depth. The id
    is the path relative to `root`. Raises `UserError` if images.csv is invalid, if there are no classes, or if the
    folders are those of a split (train, test...) instead of classes.
    """
    listed = root / "images.csv"
    files = read_index(listed, ["id", "landmark_id", "file"]) if listed.is_file() else None
    pictures, skipped = scan(root)
    if files is not None:
        skipped |= dict.fromkeys(pictures, "not in images.csv")
        used = {"images.csv", *(os.path.relpath(root / file, root) for file in files["file"])}
        return Folder(root, files, {name: why for name, why in skipped.items() if name not in used})
    skipped |= {name: why for name in pictures if (why := misplaced(name))}
    names = [name for name in pictures if name not in skipped]
    if not names:
        others = count_reasons(skipped.values())
        raise UserError(
            f"data.root: {root} has neither an images.csv nor a directory per class; add one{others and f' ({others})'}"
        )
    deep = {landmark(name) for name in names if name.count("/") > 1}
    splits = sorted(name for name in deep if name.lower().rstrip("_-0123456789") in SPLITS)  # train2017
    if len(splits) > 1 or set(splits) == set(map(landmark, names)):
        train = next((name for name in splits if name.lower().startswith("train")), splits[0])
        raise UserError(
            f"data.root: {root} has the folders {', '.join(splits)} of an exported split, not classes; "
            f"set data.root to {root / train}, or merge the class folders in them"
        )
    files = pd.DataFrame({"id": names, "landmark_id": map(landmark, names), "file": names})
    return Folder(root, files, skipped)


def misplaced(name: str) -> str:
    """Why a picture cannot be used: it is in no class, or no table can hold its name. Empty if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "name not UTF-8"
    if "\n" in name or "\r" in name:
        return "line break in the name"
    return "" if landmark(name) else "not in a class folder"


def landmark(name: str) -> str:
    """The class of a picture in a class folder; empty for a file that is in none."""
    return name.partition("/")[0] if "/" in name else ""
