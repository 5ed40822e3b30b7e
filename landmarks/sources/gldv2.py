"""Google Landmarks v2 in its official layout: `metadata/train.csv`, `train/*.tar`, `md5sum/train/*.txt`.

Several tars are streamed at a time, by this machine or by the workers of a cluster. Only the wanted members are stored,
and the MD5 of every tar is checked. An interrupted run resumes with the unfinished tars, each from its beginning.
"""

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, cast
from urllib.parse import unquote

from landmarks import stage
from landmarks.images import Picture
from landmarks.params import Download
from landmarks.scan import CONTROL
from landmarks.sources import Source
from landmarks.sources.index import BLOCK, read_landmarks
from landmarks.sources.remote import Root, Stream, limit_changed, too_large
from landmarks.sources.store import Store, Tar
from landmarks.stage import UserError

import pandas as pd
import pyarrow as pa
from pyarrow import compute, csv
from tqdm import tqdm

if TYPE_CHECKING:
    from landmarks.cluster import Driver

BUFFER = 1 << 16  # bytes per read of a tar
PROBES = 16  # tars whose existence is checked at the same time
MAX_TARS = 10_000  # version 2 has 500
CREDITS = ["author", "license", "title"]  # columns of train_attribution.csv


class DamagedTar(OSError):
    """A file that is not a tar, or whose MD5 is wrong."""


@dataclass
class Gldv2(Source):
    """The data set below the directory or base URL `root`. Files fetched over the network are assumed not to change."""

    root: Root
    store: Store
    download: Download
    cluster: str | None = None  # compute.cluster
    without_landmark: pd.DataFrame = field(init=False)  # set by `index`

    def index(self) -> pd.DataFrame:
        path = "metadata/train.csv"
        with self.root.copy(path, self.store.directory) as copy:
            rows, self.without_landmark = read_landmarks(copy, ["id", "landmark_id"], self.root.name(path))
        return rows

    def skipped(self) -> pd.DataFrame:
        return self.without_landmark

    def fetch(self, wanted: pd.DataFrame) -> dict[str, str]:
        if self.root.local or not self.store.tars():
            self.store.set_tars(self.list_tars())
        ids = set(wanted["id"])
        if tars := self.unread(ids):
            self.read_tars(tars, ids)
        large = {name for name, _ in self.store.pictures().keys() | self.store.failures().keys()}
        lacking = sorted(ids - self.origins().keys())
        return {name: too_large(self.download) if name in large else "missing" for name in lacking}

    def pictures(self, wanted: pd.DataFrame) -> Iterator[Picture]:
        origins = self.origins()
        ids = pa.array(wanted["id"], pa.string()).cast(pa.binary())
        credits: dict[str, list[str]] = {}  # author, licence and title by id, where known
        for batch in self.read_columns("metadata/train_attribution.csv", ["id", *CREDITS]):
            for row in batch.filter(compute.is_in(batch["id"], ids)).to_pylist():
                credits[row["id"].decode()] = [decode(row[name]) for name in CREDITS]
        for name, landmark_id in zip(wanted["id"], wanted["landmark_id"], strict=True):
            yield Picture(name, landmark_id, self.store.read(name, origins[name]), None, *credits.get(name, ()))

    def names(self) -> dict[str, str]:
        """The names of the landmarks' categories on Wikimedia Commons, by landmark id; empty without the file."""
        batches = self.read_columns("metadata/train_label_to_category.csv", ["landmark_id", "category"])
        rows = [row for batch in batches for row in batch.to_pylist()]
        return {decode(row["landmark_id"]): category_name(decode(row["category"])) for row in rows}

    def read_columns(self, path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Streams binary `columns` of an optional CSV file; nothing without the file.

        The public wrote these texts, and errors in them do not matter: they are read as bytes, and rows of the wrong
        length are skipped. Raises `UserError` if a column is missing.
        """
        blocks = csv.ReadOptions(block_size=BLOCK)
        parse = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip")
        convert = csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.binary()), include_columns=columns)
        with self.root.copy(path, self.store.directory, optional=True) as copy:
            if copy is None:
                return
            try:
                with csv.open_csv(copy, blocks, parse, convert) as batches:
                    yield from batches
            except (KeyError, pa.ArrowInvalid) as error:
                raise UserError(f"{self.root.name(path)}: {error}; it needs {', '.join(columns)}") from None

    def origins(self) -> dict[str, str]:
        """The tar of each picture that is not too large; the first if there are several."""
        sizes = sorted(self.store.pictures().items(), reverse=True)
        return {name: tar for (name, tar), size in sizes if size <= self.download.max_bytes}

    def list_tars(self) -> dict[str, str]:
        """The MD5 of every tar, by name."""
        with self.root.pool(PROBES) as pool:
            if self.root.http:
                md5s = self.probe_tars(pool)
            else:
                names = self.root.retry("train", lambda: self.root.list_names("train", ".tar")) or []
                md5s = dict(zip(names, pool.map(lambda name: self.find_md5(name, listed=True), names), strict=True))
        if not md5s:
            raise UserError(f"{self.root.name('train')}: no tars; data.root must be the data set's top directory")
        return {name: md5 for name, md5 in md5s.items() if md5}

    def probe_tars(self, pool: ThreadPoolExecutor) -> dict[str, str | None]:
        """The MD5s over HTTP. It cannot list a directory, so numbers are tried until a whole batch is missing."""
        md5s: dict[str, str | None] = {}
        for first in range(0, MAX_TARS, PROBES):
            names = [f"images_{number:03d}" for number in range(first, first + PROBES)]
            found = pool.map(lambda name: self.find_md5(name, denied_is_missing=True), names)
            batch = dict(zip(names, found, strict=True))
            if not any(batch.values()):
                break
            md5s |= batch
        last = max((name for name, md5 in md5s.items() if md5), default="")
        for name, md5 in md5s.items():
            if name < last and not md5:  # a denied tar between others must not be skipped
                self.find_md5(name)
        return md5s

    def find_md5(self, tar: str, listed: bool = False, denied_is_missing: bool = False) -> str | None:
        """The MD5 of a tar according to its MD5 file; None if neither file exists.

        Raises `UserError` if only the tar exists (as it does if `listed`), or the MD5 file is malformed.
        """
        path = f"md5sum/train/md5.{tar}.txt"
        text = self.root.text(path, denied_is_missing)
        if text is None:
            if not listed and self.root.text(f"train/{tar}.tar", denied_is_missing) is None:
                return None
            raise UserError(f"{self.root.name(path)}: no such file; every tar needs its MD5 file")
        found = re.match(r"\s*([0-9a-fA-F]{32})\b", text)
        if not found:
            raise UserError(f'{self.root.name(path)}: not an MD5 file; it needs the line "<md5>  {tar}.tar"')
        return found[1].lower()

    def unread(self, ids: set[str]) -> list[Tar]:
        """The tars that are unfinished or hold pictures of `ids` that are neither stored nor failed, by name."""
        failures = self.store.failures().items()
        failed = {row for row, (reason, _) in failures if not limit_changed(reason, self.download)}
        settled = self.store.pictures().keys() | failed
        return [
            tar
            for tar in self.store.tars().values()
            if not tar.done or any(name in ids and (name, tar.name) not in settled for name in tar.members.split("\n"))
        ]

    def read_tars(self, tars: list[Tar], ids: set[str]) -> None:
        """Reads several tars at a time, and stores the pictures of `ids` in them."""
        if self.cluster:
            return self.read_tars_on_cluster(self.cluster, tars, ids)
        with stage.progress(None, "B", "tars") as bar, self.root.pool(self.download.workers) as pool:
            for future in as_completed([pool.submit(self.read, tar, ids, bar, len(tars)) for tar in tars]):
                future.result()

    def read_tars_on_cluster(self, address: str, tars: list[Tar], ids: set[str]) -> None:
        """The same by the workers of the cluster at `address`. Each reads a tar at a time, and sends its pictures."""
        from landmarks import cluster  # imported here because it needs Dask

        functions: dict[str, Callable] = {"wanted": lambda: ids}
        functions |= {name: getattr(self.store, name) for name in ("add", "fail", "reopen", "restart", "finish")}
        url = self.root.path if self.root.local else self.root.url  # of a path, the absolute one
        make = partial(tar_reader, url, self.download, self.root.seed)
        for _ in stage.progress(len(tars), "tars", items=cluster.imap(address, make, tars, functions)):
            pass

    def read(self, tar: Tar, ids: set[str], bar: tqdm, tars: int) -> None:
        """Reads one of `tars` tars, again after transient errors, and stores the pictures of `ids` in it."""
        path = f"train/{tar.name}.tar"
        if not self.root.retry(path, lambda: self.read_tar(path, tar, ids, bar, tars)):
            raise UserError(f"{self.root.name(path)}: no such file, but its MD5 file exists; restore the tar")

    def read_tar(self, path: str, tar: Tar, ids: set[str], bar: tqdm, tars: int) -> bool:
        """Reads one of `tars` tars, stores the pictures of `ids` in it, checks its MD5 and returns True."""
        tar.md5 = tar.md5 or self.find_md5(tar.name, listed=True) or ""
        with closing(Stream(self.root, path)) as file:
            bar.total = tars * (file.size or 0) or None  # tars are about equally large
            reader = Md5Reader(file, bar)
            try:
                members = self.read_members(reader, tar, ids)
                reader.finish(tar.md5)
            except BaseException as error:
                bar.update(-reader.position)
                if not isinstance(error, tarfile.TarError | ValueError | RecursionError | DamagedTar):
                    raise
                self.store.restart(tar.name)
                tar.md5 = ""
                raise DamagedTar(f"truncated or damaged tar ({error})") from None
            self.store.finish(tar, members)
        return True

    def read_members(self, reader: "Md5Reader", tar: Tar, ids: set[str]) -> list[str]:
        """Stores the pictures of `ids`, of equal ones the first; returns all ids in the tar."""
        members: dict[str, None] = {}
        with tarfile.open(fileobj=cast(IO[bytes], reader), mode="r|", bufsize=BUFFER) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isreg() or ".." in name.parts or not name.stem.isprintable() or name.stem in members:
                    continue
                members[name.stem] = None
                if name.stem not in ids:
                    continue
                if tar.done:
                    tar.done = False
                    self.store.reopen(tar)
                if member.size > self.download.max_bytes:
                    self.store.fail(name.stem, tar.name, too_large(self.download), None)
                elif content := archive.extractfile(member):
                    self.store.add(name.stem, tar.name, content.read())
        return list(members)


def tar_reader(url: str, download: Download, seed: int, driver: "Driver") -> Callable[[Tar], None]:
    """On a worker: `Gldv2.read` with the driver's store. Raises `UserError` if this machine cannot read `url`."""
    root, ids = Root(url, download, seed), driver.wanted()
    if root.text("metadata/train.csv") is None:
        raise UserError(f"data.root: {url} is not on its machine; mount it there, or use other workers")
    source = Gldv2(root, cast(Store, driver), download)
    return lambda tar: source.read(tar, ids, tqdm(disable=True), 1)


class Md5Reader:
    """Passes a stream through, computes its MD5 and advances the progress bar."""

    def __init__(self, file: Stream, bar: tqdm) -> None:
        self.file, self.bar, self.position = file, bar, 0
        self.md5 = hashlib.md5(usedforsecurity=False)

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.md5.update(data)
        self.position += len(data)
        self.bar.update(len(data))
        return data

    def finish(self, expected: str) -> None:
        """Reads the rest of the file. Raises `DamagedTar` if the MD5 of the whole is not `expected`."""
        while self.read(BUFFER):
            pass
        found = self.md5.hexdigest()
        if found != expected:
            raise DamagedTar(f"MD5 is {found}, not {expected}")


def decode(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def category_name(url: str) -> str:
    """ "Ajanta Caves" for http://commons.wikimedia.org/wiki/Category:Ajanta_Caves."""
    name = unquote(url.rsplit("Category:", 1)[-1])
    return " ".join(re.sub(CONTROL, " ", name).replace("_", " ").split())
