"""Google Landmarks v2 in its official layout: `metadata/train.csv`, `train/*.tar`, `md5sum/train/*.txt`.

Tars are streamed, several at a time: only wanted members are kept, nothing is unpacked to disk, and every byte is
hashed. What is found is stored together with how far the tar has been read and the state of its hash, so that an
interrupted run goes on in the middle of a tar.
"""

import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import PurePosixPath
from typing import BinaryIO

from landmarks import stage
from landmarks.images import Picture
from landmarks.params import Download
from landmarks.sources import read_index
from landmarks.sources.md5 import Md5
from landmarks.sources.remote import Pace, Root, Stopped
from landmarks.sources.store import Store, Tar
from landmarks.stage import UserError

import pandas as pd
import pyarrow as pa
from pyarrow import compute, csv
from tqdm import tqdm

BUFFER = 1 << 16  # bytes that tarfile asks for at a time
LEAST_STEP, STEPS = 1 << 20, 64  # a tar's progress is stored every 64th of it, but not more often than every MB
BATCH = 16  # files asked for at once to find out which tars there are
CREDITS = ["author", "license", "title"]  # columns of train_attribution.csv


class Damaged(OSError):
    """A tar whose bytes are not those that its MD5 is of, or that is no tar."""


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
        failures = {name: reason for (name, _), (reason, _) in self.store.failures().items()}
        return {name: failures.get(name, "missing") for name in sorted(ids - self.origins().keys())}

    def pictures(self, wanted: pd.DataFrame) -> Iterator[Picture]:
        credits, origins = self.credits(wanted["id"]), self.origins()
        for name, landmark_id in zip(wanted["id"], wanted["landmark_id"], strict=True):
            yield Picture(name, landmark_id, self.store.read(name, origins[name]), None, *credits.get(name, ()))

    def origins(self) -> dict[str, str]:
        """The tar of each picture that is stored; the first one of several."""
        return dict(sorted(self.store.pictures(), reverse=True))

    def credits(self, ids: pd.Series) -> dict[str, list[str]]:
        """Author, licence and title of pictures, by id, if there is a file that has them."""
        path = "metadata/train_attribution.csv"
        columns = ["id", *CREDITS]
        text = csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=columns)
        lines = csv.ParseOptions(newlines_in_values=True)
        wanted = pa.array(ids, pa.string())
        found: dict[str, list[str]] = {}
        with self.root.copy(path, self.store.directory, optional=True) as copy:
            if copy is None:
                return {}
            try:
                with csv.open_csv(copy, convert_options=text, parse_options=lines) as batches:
                    for batch in batches:
                        for row in batch.filter(compute.is_in(batch["id"], wanted)).to_pylist():
                            found[row["id"]] = [row[name] for name in CREDITS]
            except (KeyError, pa.ArrowInvalid) as error:
                raise UserError(f"{self.root.name(path)}: {error}; it needs {', '.join(columns)}") from None
        return found

    def list_tars(self) -> dict[str, str]:
        """The MD5 of every tar. HTTP cannot list a directory: there, numbers are tried until none is there."""
        names = self.root.names("train", ".tar")
        numbers = (f"images_{number:03d}" for number in count())
        sums: dict[str, str] = {}
        with ThreadPoolExecutor(BATCH) as pool:
            while batch := list(islice(numbers, BATCH)) if names is None else names[len(sums) : len(sums) + BATCH]:
                found = dict(zip(batch, pool.map(self.expected_md5, batch), strict=True))
                if not any(found.values()):
                    break
                sums |= {name: md5 for name, md5 in found.items() if md5}
        if not sums:
            raise UserError(f"{self.root.name('train')}: no tars; data.root must be the data set's top directory")
        return sums

    def expected_md5(self, tar: str) -> str | None:
        """The sum from `md5sum/train/md5.<tar>.txt`, one line "<md5>  <tar>.tar"; None where there is no such tar."""
        path = f"md5sum/train/md5.{tar}.txt"
        text = self.root.text(path)
        if text is None:
            if not self.root.exists(f"train/{tar}.tar"):
                return None
            raise UserError(f"{self.root.name(path)}: no such file; every tar needs its MD5 file")
        found = re.match(r"\s*([0-9a-fA-F]{32})\b", text)
        if not found:
            raise UserError(f'{self.root.name(path)}: not an MD5 file; it needs the line "<md5>  {tar}.tar"')
        return found[1].lower()

    def unread(self, ids: set[str]) -> list[Tar]:
        """The tars of which something is to be read, in order."""
        settled = self.store.pictures() | self.store.failures().keys()
        tars = []
        for tar in self.store.tars().values():
            if tar.done and any(name in ids and (name, tar.name) not in settled for name in tar.members.split("\n")):
                tar = replace(tar, position=0, state=None, members="", done=False)
            if not tar.done:
                tars.append(tar)
        return tars

    def read_tars(self, tars: list[Tar], ids: set[str]) -> None:
        """Reads tars, several at a time. The first error, or Ctrl-C, stops them all at what they have stored."""
        with stage.progress(None, "B", "tars") as bar, ThreadPoolExecutor(self.download.workers) as pool:
            bar.update(sum(tar.position for tar in tars))

            def read(tar: Tar) -> None:
                path = f"train/{tar.name}.tar"
                if self.root.persist(path, lambda: self.read_tar(path, tar, ids, bar, len(tars))) is None:
                    raise UserError(f"{self.root.name(path)}: no such file, but its MD5 file is there")

            try:
                for future in as_completed([pool.submit(read, tar) for tar in tars]):
                    future.result()
            except BaseException:
                self.root.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def read_tar(self, path: str, tar: Tar, ids: set[str], bar: tqdm, tars: int) -> bool:
        """Reads a tar from where the last attempt left it, and stores the pictures of `ids` that it holds."""
        file, position = self.root.open(path, tar.position)
        with file:
            if position != tar.position:
                bar.update(-tar.position)
                self.store.restart(tar)
            tar.md5 = tar.md5 or self.expected_md5(tar.name) or ""
            size = self.root.size(file, position) or 0
            bar.total = tars * size or None  # they are all about as large
            step = max(LEAST_STEP, size // STEPS)
            reader = HashingReader(file, tar, self.root, bar)
            pictures: list[tuple[str, bytes]] = []
            failures: list[tuple[str, str]] = []
            members = [tar.members] if tar.members else []

            def save() -> None:
                tar.members = "\n".join(members)
                self.store.advance(tar, pictures, failures)
                pictures.clear()
                failures.clear()

            try:
                with tarfile.open(fileobj=reader, mode="r|", bufsize=BUFFER) as archive:
                    for member in archive:
                        start = position + member.offset
                        if start - tar.position >= step:
                            state = reader.state_at(start)
                            if state:
                                tar.position, tar.state = start, state
                                save()
                        name = PurePosixPath(member.name)
                        if not member.isreg() or ".." in name.parts:
                            continue
                        members.append(name.stem)
                        if name.stem not in ids:
                            continue
                        if member.size > self.download.max_megabytes * 1e6:
                            failures.append((name.stem, "too large"))
                        else:
                            pictures.append((name.stem, archive.extractfile(member).read()))
                reader.finish()
            except (tarfile.TarError, Damaged) as error:
                bar.update(-reader.position)
                self.store.restart(tar)
                raise Damaged(f"truncated or damaged tar ({error})") from None
            tar.done, tar.position, tar.state = True, reader.position, None
            save()
        return True


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
        """The state of the sum of all bytes before `position`."""
        self.hash(position - (self.position - len(self.kept)))
        return self.md5.state

    def finish(self) -> None:
        """Reads what is left, for the sum is of the whole file. Raises `Damaged` if it is not as expected."""
        while self.read(BUFFER):
            pass
        self.hash(len(self.kept))
        found = self.md5.hexdigest()
        if found != self.tar.md5:
            raise Damaged(f"MD5 is {found}, not {self.tar.md5}")
