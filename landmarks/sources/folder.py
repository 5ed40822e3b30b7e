"""The user's own pictures: a directory per class, or files listed in an `images.csv`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from landmarks.images import ENDINGS, Picture
from landmarks.sources.index import read_index, reason
from landmarks.stage import UserError

import pandas as pd


@dataclass
class Folder:
    """Pictures below `root`. `files` has `id`, `landmark_id` and `file` (relative to `root`), sorted by `id`."""

    root: Path
    files: pd.DataFrame

    def index(self) -> pd.DataFrame:
        return self.files

    def fetch(self, wanted: pd.DataFrame) -> dict[str, str]:
        return {}

    def pictures(self, wanted: pd.DataFrame) -> Iterator[Picture]:
        for row in wanted.itertuples():
            try:
                data = (self.root / row.file).read_bytes()
            except (OSError, ValueError) as error:  # ValueError: a null byte in the name
                raise UserError(f"{self.root / row.file}: {reason(error)}; correct images.csv or the file") from None
            yield Picture(row.id, row.landmark_id, data)

    def names(self) -> dict[str, str]:
        return {}


def open_folder(root: Path) -> Folder:
    """Reads `root`/images.csv (columns id, landmark_id, file) if it exists, else a directory per class.

    Directories follow torchvision's ImageFolder: a class is a directory directly below `root`, and its pictures are all
    files below it, at any depth, with one of `images.ENDINGS`. The id is the path relative to `root`. Raises
    `UserError` for an invalid images.csv, without classes, and for a file name that is not printable.
    """
    if (root / "images.csv").is_file():
        return Folder(root, read_index(root / "images.csv", ["id", "landmark_id", "file"]))
    # Imported here because torchvision takes seconds to import.
    from torchvision.datasets.folder import make_dataset

    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if not classes:
        raise UserError(f"data.root: {root} has neither an images.csv nor a directory per class; add one")
    samples = make_dataset(
        str(root), dict(zip(classes, classes, strict=True)), extensions=tuple(ENDINGS), allow_empty=True
    )
    for path, _ in samples:
        if not path.isprintable():  # Parquet holds only valid UTF-8
            raise UserError(f"data.root: the name of {path!r} is not printable; rename it")
    files = pd.DataFrame(samples, columns=["path", "landmark_id"])
    files["file"] = [Path(path).relative_to(root).as_posix() for path in files["path"]]
    files["id"] = files["file"]
    return Folder(root, files[["id", "landmark_id", "file"]].sort_values("id", ignore_index=True))
