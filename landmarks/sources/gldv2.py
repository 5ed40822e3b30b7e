"""Google Landmarks v2 in its official layout: `metadata/train.csv`, `train/*.tar`, `md5sum/train/*.txt`.

Tars are streamed: only wanted members are kept, nothing is unpacked to disk, and the whole stream is hashed.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from landmarks.images import Picture
from landmarks.sources import read_index, reason
from landmarks.stage import UserError

import pandas as pd


@dataclass
class Gldv2:
    """The data set below the directory `root`."""

    root: Path

    def index(self) -> pd.DataFrame:
        return read_index(self.root / "metadata" / "train.csv", ["id", "landmark_id"])

    def parts(self, wanted: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Every tar: which pictures one holds is known only once it is read."""
        tars = sorted(path.stem for path in (self.root / "train").glob("*.tar"))
        if not tars:
            raise UserError(f"{self.root / 'train'}: no tars; data.root must be the data set's top directory")
        return dict.fromkeys(tars, wanted)

    def version(self, part: str, rows: pd.DataFrame) -> str:
        return self.expected_md5(part)

    def fetch(self, part: str, rows: pd.DataFrame) -> Iterator[Picture]:
        path = self.root / "train" / f"{part}.tar"
        expected = self.expected_md5(part)
        landmark = dict(zip(rows["id"], rows["landmark_id"], strict=True))
        with path.open("rb") as file:
            stream = HashingReader(file)
            try:
                for name, data in members(stream):
                    if name in landmark:
                        yield Picture(name, landmark[name], data)
            except (tarfile.ReadError, EOFError, OSError) as error:
                raise UserError(f"{path}: truncated or damaged tar ({error}); fetch it again") from None
            stream.drain()
        if stream.md5.hexdigest() != expected:
            raise UserError(f"{path}: MD5 is {stream.md5.hexdigest()}, not {expected}; fetch it again")

    def expected_md5(self, part: str) -> str:
        """The sum from `md5sum/train/md5.<part>.txt`, whose one line is "<md5>  <tar>"."""
        path = self.root / "md5sum" / "train" / f"md5.{part}.txt"
        try:
            return path.read_text(encoding="ascii").split()[0]
        except OSError as error:
            raise UserError(f"{path}: {reason(error)}; every tar needs its MD5 file") from None
        except (IndexError, UnicodeDecodeError):
            raise UserError(f'{path}: not an MD5 file; it needs the line "<md5>  {part}.tar"') from None


class HashingReader:
    """A readable stream that hashes what passes through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.md5 = hashlib.md5(usedforsecurity=False)

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.md5.update(data)
        return data

    def drain(self) -> None:
        """Reads what is left, for the hash is of the whole file."""
        while self.read(1 << 20):
            pass


def members(stream: HashingReader) -> Iterator[tuple[str, bytes]]:
    """Name (without directory and ending) and content of each regular file of a tar, as it streams by."""
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if member.isreg():
                yield PurePosixPath(member.name).stem, tar.extractfile(member).read()
