"""The user's own pictures: a directory per class, perhaps in folders of a split, or files listed in `images.csv`."""

import os
import re
import stat
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from landmarks.images import MAX_BYTES, Picture
from landmarks.scan import CONTROL, printable, scan
from landmarks.sources import Source
from landmarks.sources.index import read_index
from landmarks.stage import UserError, count_reasons
from landmarks.stage.errors import reason

import pandas as pd

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
UNLABELLED = "no_label"  # where CVAT puts pictures without a label


@dataclass
class Folder(Source):
    """Pictures below `root`. `files` has `id`, `landmark_id`, `file` (relative to `root`) and, if given, `split`."""

    root: Path
    files: pd.DataFrame
    others: dict[str, str]  # why each other file below `root` is skipped
    splits: bool  # whether class folders are in folders of splits

    def index(self) -> pd.DataFrame:
        return self.files

    def skipped(self) -> pd.DataFrame:
        names = map(printable, self.others)
        rows = [(name, landmark(name, self.splits), why) for name, why in zip(names, self.others.values(), strict=True)]
        return pd.DataFrame(rows, columns=["id", "landmark_id", "reason"])

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
    """Reads `root`/images.csv (columns id, landmark_id, file, and perhaps split) if it exists, else class folders.

    A class is a directory directly below `root`, or below the folders of a given split (`has_splits`), and its pictures
    are all that `scan` finds in it, at any depth. The id is the path relative to `root`. Raises `UserError` if
    images.csv is invalid or names a file elsewhere, or if there are no classes.
    """
    if sys.getfilesystemencoding() != "utf-8":  # otherwise the ids would differ
        raise UserError("LC_ALL: this locale does not read names of files as UTF-8; export LC_ALL=C.UTF-8")
    listed = root / "images.csv"
    files = read_index(listed, ["id", "landmark_id", "file"], optional="split") if listed.is_file() else None
    found = scan(root)
    pictures, skipped = found.pictures, found.skipped | found.unreadable
    if files is not None:
        places = [os.path.relpath(root / file, root) for file in files["file"]]
        for file, place in zip(files["file"], places, strict=True):
            if place.split("/")[0] == "..":  # a list from someone else must not name private files
                raise UserError(f"{listed}: file {file} is not below {root}; move it there")
        skipped |= dict.fromkeys(pictures, "not in images.csv")
        used = {"images.csv", *places}
        if "split" in files:
            given = files["split"].map(split_name)
            if len(wrong := files["split"][given == ""]):
                raise UserError(
                    f"{listed}: split {wrong.iloc[0]!r} is none of {', '.join(SPLITS)}; correct it or rename the column"
                )
            files["split"] = given
        check_spelling(files["landmark_id"], listed)
        return Folder(root, files, {name: why for name, why in skipped.items() if name not in used}, splits=False)
    skipped |= {name: why for name in pictures if (why := unstorable(name))}
    names = [name for name in pictures if name not in skipped]
    splits = has_splits(root, names)
    skipped |= dict.fromkeys((name for name in names if not landmark(name, splits)), "not in a class folder")
    names = [name for name in names if name not in skipped]
    if not names:
        others = count_reasons(skipped.values())
        raise UserError(
            f"data.root: {root} has neither an images.csv nor a directory per class; add one{others and f' ({others})'}"
        )
    files = pd.DataFrame({"id": names, "landmark_id": [landmark(name, splits) for name in names], "file": names})
    if splits:
        files["split"] = [split_name(name.partition("/")[0]) for name in names]
    check_spelling(files["landmark_id"], root)
    return Folder(root, files, skipped, splits)


def check_spelling(names: pd.Series, where: Path) -> None:
    """Raises `UserError` if names of classes differ only in how Unicode encodes a letter such as é."""
    distinct = pd.Series(sorted(set(names)))
    same = distinct[distinct.map(lambda name: unicodedata.normalize("NFC", name)).duplicated()]
    if len(same):
        raise UserError(f"{where}: class {same.iloc[0]} is there in two encodings of its letters; rename one")


def has_splits(root: Path, names: list[str]) -> bool:
    """Whether the top folders of the pictures `names` are those of a split, with class folders in them.

    A picture directly in the folder of a split is in no class. If all folders named like splits have no class folders,
    or only one of several folders has that name, they are classes. Raises `UserError` for a mixture.
    """
    others = {top for name in names if (top := landmark(name, splits=False)) and not split_name(top)}
    deep = {landmark(name, splits=False) for name in names if name.count("/") > 1} - {*others, ""}
    if others and len(deep) > 1:
        raise UserError(
            f"data.root: {root} has folders of a split, {', '.join(sorted(deep))}, and others, such as {min(others)}; "
            "move one kind elsewhere"
        )
    return bool(deep) and not others


def split_name(name: str) -> str:
    """The split that a folder's name, such as Valid or train2017, stands for; empty if none."""
    plain = name.lower().rstrip("_-0123456789")
    return next((split for split, names in SPLITS.items() if plain in names), "")


def unstorable(name: str) -> str:
    """Why no table can hold a picture's name. Empty if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "name not UTF-8"
    return "control character in the name" if re.search(CONTROL, name) else ""


def landmark(name: str, splits: bool) -> str:
    """The class of a file: its top folder, or the one below if `splits` are the top folders. Empty if in no class."""
    folders = [*name.split("/")[splits:-1], ""]
    return "" if folders[0] == UNLABELLED else folders[0]
