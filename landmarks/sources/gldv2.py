"""Google Landmarks v2 in its official layout: `metadata/train.csv`, `train/*.tar`, `md5sum/train/*.txt`.

Tars are streamed, several at a time: only wanted members are kept, nothing is unpacked to disk, and every byte is
hashed. An interrupted run continues with the tars that are not finished, each from its beginning.
"""

import hashlib
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import count
from pathlib import PurePosixPath
from typing import BinaryIO, Literal
from urllib.parse import unquote

from landmarks import stage
from landmarks.images import Picture
from landmarks.params import Download
from landmarks.sources.index import read_index
from landmarks.sources.remote import HttpFile, Root, limit_changed, too_large
from landmarks.sources.retry import Pace, Stopped
from landmarks.sources.store import Store, Tar
from landmarks.stage import UserError

import pandas as pd
import pyarrow as pa
from pyarrow import compute, csv
from tqdm import tqdm

BUFFER = 1 << 16  # bytes that tarfile asks for at a time
STORED_AT_A_TIME = 1 << 24  # bytes of pictures that are in memory before they are stored
BATCH = 16  # files asked for at once to find out which tars there are
CREDITS = ["author", "license", "title"]  # columns of train_attribution.csv


class DamagedTar(OSError):
    """A tar whose bytes are not those that its MD5 is of, or that is no tar."""


def title(category: bytes) -> str:
    """What a category is called: http://commons.wikimedia.org/wiki/Category:Ajanta_Caves is "Ajanta Caves"."""
    text = unquote(category.decode("utf-8", "replace").rsplit("Category:", 1)[-1])
    return " ".join(text.replace("_", " ").split())


@dataclass
class Gldv2:
    """The data set below the directory or base URL `root`. What has come over the network is taken not to change."""

    root: Root
    store: Store
    download: Download

    def index(self) -> pd.DataFrame:
        path = "metadata/train.csv"
        with self.root.copy(path, self.store.directory) as copy:
            return read_index(copy, ["id", "landmark_id"], self.root.name(path))

    def fetch(self, wanted: pd.DataFrame) -> dict[str, str]:
        if self.root.local or not self.store.tars():
            self.store.set_tars(self.list_tars())
        ids = set(wanted["id"])
        # A tar that was read half way for other ids, or for fewer, is looked at again for those that were passed over.
        while tars := self.unread(ids):
            self.read_tars(tars, ids)
        large = {name for name, _ in self.store.pictures().keys() | self.store.failures().keys()}
        lacking = sorted(ids - self.origins().keys())
        return {name: too_large(self.download) if name in large else "missing" for name in lacking}

    def pictures(self, wanted: pd.DataFrame) -> Iterator[Picture]:
        credits, origins = self.credits(wanted["id"]), self.origins()
        for name, landmark_id in zip(wanted["id"], wanted["landmark_id"], strict=True):
            yield Picture(name, landmark_id, self.store.read(name, origins[name]), None, *credits.get(name, ()))

    def names(self) -> dict[str, str]:
        """As Wikimedia Commons calls the categories that the landmarks were taken from, if there is a file of them."""
        path = "metadata/train_label_to_category.csv"
        columns = ["landmark_id", "category"]
        types = csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.binary()), include_columns=columns)
        lines = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip")
        with self.root.copy(path, self.store.directory, optional=True) as copy:
            if copy is None:
                return {}
            try:
                rows = csv.read_csv(copy, convert_options=types, parse_options=lines).to_pylist()
            except (KeyError, pa.ArrowInvalid) as error:
                raise UserError(f"{self.root.name(path)}: {error}; it needs {', '.join(columns)}") from None
        return {row["landmark_id"].decode("utf-8", "replace"): title(row["category"]) for row in rows}

    def origins(self) -> dict[str, str]:
        """The tar of each picture that is not too large; the first one of several."""
        sizes = sorted(self.store.pictures().items(), reverse=True)
        return {name: tar for (name, tar), size in sizes if size <= self.download.max_bytes}

    def credits(self, ids: pd.Series) -> dict[str, list[str]]:
        """Author, licence and title of pictures, by id, if there is a file that has them."""
        path = "metadata/train_attribution.csv"
        columns = ["id", *CREDITS]
        # Binary, and rows of another length are passed over: strangers wrote these names, and none is worth a stop.
        types = csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.binary()), include_columns=columns)
        lines = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip")
        wanted = pa.array(ids, pa.string()).cast(pa.binary())
        found: dict[str, list[str]] = {}
        with self.root.copy(path, self.store.directory, optional=True) as copy:
            if copy is None:
                return {}
            try:
                with csv.open_csv(copy, convert_options=types, parse_options=lines) as batches:
                    for batch in batches:
                        for row in batch.filter(compute.is_in(batch["id"], wanted)).to_pylist():
                            found[row["id"].decode()] = [row[name].decode("utf-8", "replace") for name in CREDITS]
            except (KeyError, pa.ArrowInvalid) as error:
                raise UserError(f"{self.root.name(path)}: {error}; it needs {', '.join(columns)}") from None
        return found

    def list_tars(self) -> dict[str, str]:
        """The MD5 of every tar."""
        with self.root.pool(BATCH) as pool:
            if self.root.http:
                sums = self.probe_tars(pool)
            else:
                names = self.root.retry("train", lambda: self.root.names("train", ".tar")) or []
                sums = dict(zip(names, pool.map(self.expected_md5, names), strict=True))
        if not sums:
            raise UserError(f"{self.root.name('train')}: no tars; data.root must be the data set's top directory")
        return sums

    def probe_tars(self, pool: ThreadPoolExecutor) -> dict[str, str]:
        """The same over HTTP, which cannot list a directory: numbers are tried until none of a batch is there."""
        sums: dict[str, str] = {}
        denied: list[str] = []
        for first in count(0, BATCH):
            names = [f"images_{number:03d}" for number in range(first, first + BATCH)]
            batch = dict(zip(names, pool.map(lambda name: self.expected_md5(name, probe=True), names), strict=True))
            if not any(batch.values()):
                break
            sums |= {name: md5 for name, md5 in batch.items() if md5}
            denied += [name for name, md5 in batch.items() if md5 is False]
        for name in denied:
            if name < max(sums):  # in between, it is no sign of the end
                self.expected_md5(name)
        return sums

    def expected_md5(self, tar: str, probe: bool = False) -> str | Literal[False] | None:
        """The sum from `md5sum/train/md5.<tar>.txt`, one line "<md5>  <tar>.tar".

        With `probe`, None where there is neither tar nor sum, and False where both are denied.
        """
        path = f"md5sum/train/md5.{tar}.txt"
        text = self.root.text(path, denied=probe)
        if text is None or text is False:
            if probe and not self.root.exists(f"train/{tar}.tar", denied=True):
                return text
            raise UserError(f"{self.root.name(path)}: no such file; every tar needs its MD5 file")
        found = re.match(r"\s*([0-9a-fA-F]{32})\b", text)
        if not found:
            raise UserError(f'{self.root.name(path)}: not an MD5 file; it needs the line "<md5>  {tar}.tar"')
        return found[1].lower()

    def unread(self, ids: set[str]) -> list[Tar]:
        """The tars of which something is to be read, in order."""
        failures = self.store.failures().items()
        settled = self.store.pictures().keys() | {
            row for row, (reason, _) in failures if not limit_changed(reason, self.download)
        }
        return [
            tar
            for tar in self.store.tars().values()
            if not tar.done or any(name in ids and (name, tar.name) not in settled for name in tar.members.split("\n"))
        ]

    def read_tars(self, tars: list[Tar], ids: set[str]) -> None:
        """Reads tars, several at a time."""
        with stage.progress(None, "B", "tars") as bar, self.root.pool(self.download.workers) as pool:

            def read(tar: Tar) -> None:
                path = f"train/{tar.name}.tar"
                if self.root.retry(path, lambda: self.read_tar(path, tar, ids, bar, len(tars))) is None:
                    raise UserError(f"{self.root.name(path)}: no such file, but its MD5 file is there")

            for future in as_completed([pool.submit(read, tar) for tar in tars]):
                future.result()

    def read_tar(self, path: str, tar: Tar, ids: set[str], bar: tqdm, tars: int) -> bool:
        """Reads a tar, and stores the pictures of `ids` that it holds."""
        with self.root.open(path) as file:
            tar.md5 = tar.md5 or self.expected_md5(tar.name)
            bar.total = tars * (self.root.size(file) or 0) or None  # they are all about as large
            reader = Md5Reader(file, self.root, bar)
            try:
                members = self.read_members(reader, tar, ids)
                reader.finish(tar.md5)
            except BaseException as error:
                bar.update(-reader.position)
                if not isinstance(error, tarfile.TarError | ValueError | DamagedTar):
                    raise
                self.store.restart(tar)
                raise DamagedTar(f"truncated or damaged tar ({error})") from None
            self.store.finish(tar, members)
        return True

    def read_members(self, reader: "Md5Reader", tar: Tar, ids: set[str]) -> list[str]:
        """Stores the pictures of `ids`; returns all ids in the tar."""
        pictures: list[tuple[str, bytes]] = []
        failures: list[tuple[str, str]] = []
        members = []
        with tarfile.open(fileobj=reader, mode="r|", bufsize=BUFFER) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isreg() or ".." in name.parts or not name.stem.isprintable():
                    continue
                members.append(name.stem)
                if name.stem not in ids:
                    continue
                if member.size > self.download.max_bytes:
                    failures.append((name.stem, too_large(self.download)))
                else:
                    pictures.append((name.stem, archive.extractfile(member).read()))
                if sum(len(data) for _, data in pictures) >= STORED_AT_A_TIME:
                    self.store.add_from_tar(tar, pictures, failures)
                    pictures.clear()
                    failures.clear()
        self.store.add_from_tar(tar, pictures, failures)
        return members


class Md5Reader:
    """A readable stream that computes the MD5 of what passes through it."""

    def __init__(self, file: BinaryIO | HttpFile, root: Root, bar: tqdm) -> None:
        self.file, self.root, self.bar = file, root, bar
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.position = 0
        self.pace = Pace(root.timeout)

    def read(self, size: int) -> bytes:
        """Raises `Stopped` if another tar has failed, `TimeoutError` if the stream is too slow."""
        if self.root.stop.is_set():
            raise Stopped
        data = self.file.read(size)
        self.pace.count(len(data))
        self.md5.update(data)
        self.position += len(data)
        self.bar.update(len(data))
        return data

    def finish(self, expected: str) -> None:
        """Reads the rest, since the sum is of the whole file. Raises `DamagedTar` if the sum is not `expected`."""
        while self.read(BUFFER):
            pass
        found = self.md5.hexdigest()
        if found != expected:
            raise DamagedTar(f"MD5 is {found}, not {expected}")
