"""Reaching `data.root` wherever it is, and patience with servers: what may pass, how long to wait, what is too slow."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

from landmarks import stage
from landmarks.determinism import stream
from landmarks.params import Download
from landmarks.stage import UserError

import aiohttp
import fsspec
import numpy as np
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

USER_AGENT = "landmark-recognition-pipeline/1.0 (fetches a research data set; honours Retry-After)"
LONGEST_WAIT = 600.0  # seconds; a server that asks for more is given up
SLOWEST = 1024  # bytes per second; what comes slower than this is as good as broken off
LATER = (408, 425, 429)  # besides 5xx, the statuses that mean: later
CHUNK = 1 << 20  # bytes
FIRST_WAIT = 1.0  # seconds; the next ones are twice as long each

T = TypeVar("T")


def client(timeout: float) -> dict:
    """Settings of an aiohttp session: how long to wait for a connection and for bytes, and who asks."""
    return {
        # No limit for a whole request (aiohttp's is five minutes): a tar takes as long as it takes.
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout),
        "headers": {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        "trust_env": True,  # proxies
    }


class Stopped(Exception):
    """Something else has failed, or the user has had enough; there is no sense in going on."""


class Root:
    """The directory or file `url`, which may be a path or anything that fsspec reaches (https, s3, gs).

    Raises `UserError` if the package for the URL's scheme is not installed.
    """

    def __init__(self, url: str, download: Download, seed: int) -> None:
        self.url, self.timeout, self.seed = url.rstrip("/"), download.timeout, seed
        options = {"client_kwargs": client(download.timeout)} if url.startswith(("http://", "https://")) else {}
        try:
            self.fs, self.path = fsspec.url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise UserError(f"data.root: {url}: {error}") from None
        self.local = isinstance(self.fs, LocalFileSystem)
        self.http = isinstance(self.fs, HTTPFileSystem)
        self.retries = 0 if self.local else download.retries  # a file does not mend by itself
        self.stop = threading.Event()  # set from another thread, it ends all waiting

    def name(self, path: str) -> str:
        """The full name of a file below the root, or of the root itself."""
        return f"{self.url}/{path}" if path else self.url

    def full(self, path: str) -> str:
        return f"{self.path}/{path}" if path else self.path

    def open(self, path: str, position: int = 0) -> tuple[BinaryIO, int]:
        """A file to be read as it comes, and where it begins: at `position`, or at 0 if the server cannot do that."""
        if not self.http:
            file = self.fs.open(self.full(path), "rb")
            file.seek(position)
            return file, position
        headers = {"Range": f"bytes={position}-"} if position else {}
        file = self.fs.open(self.full(path), block_size=0, size=1, headers=headers)  # a size, else it asks for it first
        return file, position if file.r.status == 206 else 0

    def size(self, file: BinaryIO, position: int = 0) -> int | None:
        """Bytes of the whole file that `open` gave from `position` on, if that is known."""
        if not self.http:
            return file.size
        length = file.r.headers.get("Content-Length")
        return None if length is None else position + int(length)

    def names(self, directory: str, ending: str) -> list[str] | None:
        """Files of a directory, without the ending, sorted; None over HTTP, which cannot list."""
        if self.http:
            return None
        if not self.fs.isdir(self.full(directory)):
            return []
        found = [name.rsplit("/", 1)[-1] for name in self.fs.ls(self.full(directory), detail=False)]
        return sorted(name.removesuffix(ending) for name in found if name.endswith(ending))

    def text(self, path: str) -> str | None:
        """The content of a small file, or None if there is none."""
        content = self.persist(path, lambda: self.fs.cat_file(self.full(path)))
        return None if content is None else content.decode("utf-8", "replace")

    def exists(self, path: str) -> bool:
        return self.persist(path, lambda: self.open(path)[0].close() or True) is True

    @contextmanager
    def copy(self, path: str, directory: Path, optional: bool = False) -> Iterator[Path | None]:
        """The file on this machine: itself, or a copy in `directory`, fetched once. None if there is none.

        That an `optional` file is not there is remembered as well, as an empty copy. When the block ends in a
        `UserError`, the copy is removed: what is wrong with it can be mended only where it comes from.
        """
        if self.local:
            local = Path(self.full(path))
            yield local if local.exists() else None
            return
        copy = directory / (path.rsplit("/", 1)[-1] or "index.csv")
        if not copy.exists() and not self.persist(path, lambda: self.fetch(path, copy)) and optional:
            copy.touch()
        try:
            yield copy if copy.exists() and copy.stat().st_size else None
        except UserError:
            copy.unlink(missing_ok=True)
            raise

    def fetch(self, path: str, copy: Path) -> bool:
        """Streams a file to `copy`."""
        with stage.whole(copy) as part, part.open("wb") as out:
            file, _ = self.open(path)
            pace = Pace(self.timeout)
            with file, stage.progress(self.size(file), "B", copy.name) as bar:
                while data := file.read(CHUNK):
                    pace.count(len(data))
                    out.write(data)
                    bar.update(len(data))
        return True

    def persist(self, path: str, task: Callable[[], T]) -> T | None:
        """What `task` returns, tried again when that may help; None if there is no such file.

        Raises `UserError` naming the file when all attempts have failed, and `Stopped` when `stop` is set meanwhile.
        """
        rng = stream(self.seed, "backoff", path)
        for attempt in range(self.retries + 1):
            try:
                return task()
            except (UserError, Stopped):
                raise
            except Exception as error:  # the packages behind s3 and gs have errors of their own
                if (self.local or self.http) and not isinstance(error, OSError | aiohttp.ClientError):
                    raise
                if absent(error) and not (self.local and isinstance(error, PermissionError)):
                    return None
                seconds = wait(error, attempt, rng)
                if attempt == self.retries or not may_pass(error) or seconds > LONGEST_WAIT:
                    times = f" after {attempt + 1} attempts" if attempt else ""
                    lasting = self.local or not may_pass(error)
                    advice = "correct data.root or the file" if lasting else "run it again to go on"
                    raise UserError(f"{self.name(path)}: {reason(error)}{times}; {advice}") from None
                if self.stop.wait(seconds):
                    raise Stopped from None
        raise AssertionError


def absent(error: Exception) -> bool:
    """Whether the server says that there is no such file. S3 says 403 where it does not let strangers list."""
    return isinstance(error, FileNotFoundError | PermissionError) or getattr(error, "status", None) in (403, 404, 410)


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status in LATER or error.status >= 500
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError | IsADirectoryError) or absent(error):
        return False
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return error.os_error.errno == socket.EAI_AGAIN
    return isinstance(error, aiohttp.ClientError | OSError)


def reason(error: Exception) -> str:
    """What went wrong, in a few words that are the same whenever it happens."""
    match error:
        case aiohttp.TooManyRedirects():
            return "too many redirects"
        case aiohttp.ClientResponseError():
            return f"HTTP {error.status}"
        case aiohttp.NonHttpUrlClientError():
            return "neither http nor https"
        case aiohttp.InvalidURL() | ValueError():
            return "no valid URL"
        case aiohttp.ClientConnectorDNSError():
            return "unknown host"
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError() | ConnectionResetError():
            return "broken off"
        case aiohttp.ClientConnectionError() | ConnectionError():
            return "no connection"
        case FileNotFoundError():
            return "no such file"
        case OSError():
            return error.strerror.lower() if error.strerror else str(error)
        case _:
            return str(error) or type(error).__name__


def wait(error: Exception, attempt: int, rng: np.random.Generator) -> float:
    """Seconds before the next attempt: about 1, 2, 4, ..., with jitter, or more if the server asks for it."""
    backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * rng.uniform(0.5, 1.5)
    return max(backoff, retry_after(getattr(error, "headers", None) or {}))


def retry_after(headers: dict) -> float:
    """Seconds that the header Retry-After asks for, which may be a number or a date (RFC 9110, 10.2.3); else 0."""
    value = headers.get("Retry-After", "")
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


class Pace:
    """Notices a stream that trickles: its bytes keep every timeout for reading from ending."""

    def __init__(self, timeout: float) -> None:
        self.timeout, self.since, self.bytes = timeout, time.monotonic(), 0

    def count(self, size: int) -> None:
        """Counts `size` more bytes. Raises `TimeoutError` if the last `timeout` seconds brought too few."""
        self.bytes += size
        passed = time.monotonic() - self.since
        if passed >= self.timeout:
            if self.bytes < SLOWEST * passed:
                raise TimeoutError
            self.since, self.bytes = time.monotonic(), 0
