"""Google Landmarks v2 in its official layout: `metadata/train.csv`, `train/*.tar`, `md5sum/train/*.txt`.

Tars are streamed, several at a time: only wanted members are kept, nothing is unpacked to disk, and every byte is
hashed. What is found is stored together with how far the tar has been read and the state of its hash, so that an
interrupted run goes on in the middle of a tar.
"""

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
from landmarks.sources import read_index
from landmarks.sources.md5 import Md5
from landmarks.sources.remote import Pace, Root, Stopped, outdated, too_large
from landmarks.sources.store import Store, Tar
from landmarks.stage import UserError

import aiohttp
import pandas as pd
import pyarrow as pa
from pyarrow import compute, csv
from tqdm import tqdm

BUFFER = 1 << 16  # bytes that tarfile asks for at a time
STEPS, LEAST_STEP, LARGEST_STEP = 64, 1 << 20, 1 << 25  # progress is stored every 64th of a tar, or 1 to 32 MB
BATCH = 16  # files asked for at once to find out which tars there are
CREDITS = ["author", "license", "title"]  # columns of train_attribution.csv


class Damaged(OSError):
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
                names = self.root.persist("train", lambda: self.root.names("train", ".tar")) or []
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
            row for row, (reason, _) in failures if not outdated(reason, self.download)
        }
        return [
            tar
            for tar in self.store.tars().values()
            if not tar.done or any(name in ids and (name, tar.name) not in settled for name in tar.members.split("\n"))
        ]

    def read_tars(self, tars: list[Tar], ids: set[str]) -> None:
        """Reads tars, several at a time."""
        with stage.progress(None, "B", "tars") as bar, self.root.pool(self.download.workers) as pool:
            bar.update(sum(tar.position for tar in tars))

            def read(tar: Tar) -> None:
                path = f"train/{tar.name}.tar"
                if self.root.persist(path, lambda: self.read_tar(path, tar, ids, bar, len(tars))) is None:
                    raise UserError(f"{self.root.name(path)}: no such file, but its MD5 file is there")

            for future in as_completed([pool.submit(read, tar) for tar in tars]):
                future.result()

    def read_tar(self, path: str, tar: Tar, ids: set[str], bar: tqdm, tars: int) -> bool:
        """Reads a tar from where the last attempt left it, and stores the pictures of `ids` that it holds."""
        try:
            file, position = self.root.open(path, tar.position)
        except aiohttp.ClientResponseError as error:
            if error.status != 416:
                raise
            self.restart(tar, bar)
            raise Damaged("truncated tar (it was longer before)") from None
        with file:
            if position != tar.position:
                self.restart(tar, bar)
            tar.md5 = tar.md5 or self.expected_md5(tar.name)
            size = self.root.size(file, position) or 0
            bar.total = tars * size or None  # they are all about as large
            step = min(max(LEAST_STEP, size // STEPS), LARGEST_STEP)
            reader = HashingReader(file, tar, self.root, bar)
            try:
                members = self.read_members(reader, tar, ids, step)
                reader.finish()
            except (tarfile.TarError, ValueError, Damaged) as error:
                self.restart(tar, bar, reader.position)
                raise Damaged(f"truncated or damaged tar ({error})") from None
            except BaseException:
                bar.update(tar.position - reader.position)
                raise
            if not tar.done:
                tar.done, tar.members = True, "\n".join(members)
            tar.position, tar.state = 0, None
            self.store.advance(tar, [], [])
        return True

    def restart(self, tar: Tar, bar: tqdm, position: int | None = None) -> None:
        """Makes the next attempt read a tar from its beginning; this one has come to `position`."""
        bar.update(-(tar.position if position is None else position))
        self.store.restart(tar)

    def read_members(self, reader: "HashingReader", tar: Tar, ids: set[str], step: int) -> list[str]:
        """Stores the pictures of `ids`, and every `step` bytes how far the tar has been read; returns all its ids.

        What is stored twice, because the position could not be, does no harm.
        """
        begin = saved = tar.position
        pictures: list[tuple[str, bytes]] = []
        failures: list[tuple[str, str]] = []
        members = tar.members.split("\n") if tar.position and tar.members else []
        with tarfile.open(fileobj=reader, mode="r|", bufsize=BUFFER) as archive:
            for member in archive:
                start = begin + member.offset
                if start - saved >= step:
                    saved = start
                    state = reader.state_at(start)
                    if state:
                        tar.position, tar.state = start, state
                        tar.members = tar.members if tar.done else "\n".join(members)
                    self.store.advance(tar, pictures, failures)
                    pictures.clear()
                    failures.clear()
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
        self.store.advance(tar, pictures, failures)
        return members


class HashingReader:
    """A readable stream from a tar's `position` on, that hashes what passes through it.

    tarfile reads ahead of the member that it hands over, by less than two buffers, and the sum is wanted at members:
    so that much is kept back from hashing.
    """

    def __init__(self, file: BinaryIO, tar: Tar, root: Root, bar: tqdm) -> None:
        self.file, self.tar, self.root, self.bar = file, tar, root, bar
        self.md5 = Md5(tar.state)
        self.position = tar.position  # of the file
        self.kept = bytearray()  # read, but not hashed
        self.pace = Pace(root.timeout)

    def read(self, size: int) -> bytes:
        """Raises `Stopped` if another tar has failed, `TimeoutError` if the bytes but trickle."""
        if self.root.stop.is_set():
            raise Stopped
        data = self.file.read(size)
        self.pace.count(len(data))
        self.position += len(data)
        self.bar.update(len(data))
        self.kept += data
        self.hash(max(0, len(self.kept) - 2 * BUFFER))
        return data

    def hash(self, size: int) -> None:
        self.md5.update(bytes(self.kept[:size]))
        del self.kept[:size]

    def state_at(self, position: int) -> bytes | None:
        """The state of the sum of all bytes before `position`; None if it cannot be had."""
        ahead = position - (self.position - len(self.kept))
        if ahead < 0:  # a header of more than two buffers
            return None
        self.hash(ahead)
        return self.md5.state

    def finish(self) -> None:
        """Reads what is left, for the sum is of the whole file. Raises `Damaged` if it is not as expected."""
        while self.read(BUFFER):
            pass
        self.hash(len(self.kept))
        found = self.md5.hexdigest()
        if found != self.tar.md5:
            raise Damaged(f"MD5 is {found}, not {self.tar.md5}")
