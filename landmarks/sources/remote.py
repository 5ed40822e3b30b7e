"""Reaching `data.root` wherever it is, and patience with servers: what may pass, how long to wait, what is too slow."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent import futures
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

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
        except Exception as error:  # every scheme has a package and errors of its own
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
        file = HttpFile(self, self.full(path), {"Range": f"bytes={position}-"} if position else {})
        return file, position if file.headers.get("Content-Range", "").startswith(f"bytes {position}-") else 0

    def size(self, file: BinaryIO, position: int = 0) -> int | None:
        """Bytes of the whole file that `open` gave from `position` on, if that is known."""
        if not self.http:
            return file.size
        length = file.headers.get("Content-Length")
        return None if length is None else position + int(length)

    def run(self, task: Coroutine[None, None, T]) -> T:
        """What fsspec's event loop makes of `task`. Raises `Stopped` as soon as `stop` is set."""
        future = asyncio.run_coroutine_threadsafe(task, self.fs.loop)
        while not futures.wait([future], timeout=0.1).done:
            if self.stop.is_set():
                future.cancel()
                raise Stopped
        return future.result()

    def names(self, directory: str, ending: str) -> list[str]:
        """Files of a directory, without the ending, sorted. Not over HTTP, which cannot list."""
        if not self.fs.isdir(self.full(directory)):
            return []
        found = [name.rsplit("/", 1)[-1] for name in self.fs.ls(self.full(directory), detail=False)]
        return sorted(name.removesuffix(ending) for name in found if name.endswith(ending))

    @contextmanager
    def pool(self, workers: int) -> Iterator[futures.ThreadPoolExecutor]:
        """Threads that the first error, or Ctrl-C, stops all."""
        with futures.ThreadPoolExecutor(workers) as pool:
            try:
                yield pool
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def text(self, path: str, denied: bool = False) -> str | Literal[False] | None:
        """The first kilobyte of a file, or None if there is none."""

        def read() -> str:
            file, _ = self.open(path)
            with file:
                content, pace = b"", Pace(self.timeout)
                while len(content) < 1024 and (data := file.read(1024)):
                    content += data
                    pace.count(len(data))
            return content.decode("utf-8", "replace")

        return self.persist(path, read, denied)

    def exists(self, path: str, denied: bool = False) -> bool:
        return self.persist(path, lambda: self.open(path)[0].close() or True, denied) is True

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
        if not copy.exists() and self.persist(path, lambda: self.fetch(path, copy), optional) is None and optional:
            copy.touch()
        try:
            yield copy if copy.exists() and copy.stat().st_size else None
        except UserError:
            copy.unlink(missing_ok=True)
            raise

    def fetch(self, path: str, copy: Path) -> bool:
        """Streams a file to `copy`. Raises `UserError` if that cannot be written."""
        with stage.whole(copy) as part, part.open("wb") as out:
            file, _ = self.open(path)
            pace = Pace(self.timeout)
            with file, stage.progress(self.size(file), "B", copy.name) as bar:
                while data := file.read(CHUNK):
                    pace.count(len(data))
                    bar.update(len(data))
                    try:
                        out.write(data)
                        out.flush()  # else a full disk would be noticed outside
                    except OSError as error:
                        raise UserError(f"{copy}: {reason(error)}; make room") from None
        return True

    def persist(self, path: str, task: Callable[[], T], denied: bool = False) -> T | Literal[False] | None:
        """What `task` returns, tried again when that may help; None if there is no such file.

        With `denied`, the answer 403 gives False: S3 says so of files that are not there where strangers may not list.

        Raises `UserError` naming the file when all attempts have failed, and `Stopped` when `stop` is set meanwhile.
        """
        rng = stream(self.seed, "backoff", path)
        for attempt in range(self.retries + 1):
            try:
                return task()
            except (UserError, Stopped):
                raise
            except Exception as error:  # the packages behind s3 and gs have errors of their own
                if (self.local or self.http) and not isinstance(error, OSError | aiohttp.ClientError | ValueError):
                    raise
                if absent(error):
                    return None
                if denied and forbidden(error):
                    return False
                seconds = wait(error, attempt, rng)
                if attempt == self.retries or not may_pass(error) or seconds > LONGEST_WAIT:
                    times = f" after {attempt + 1} attempts" if attempt else ""
                    lasting = self.local or not may_pass(error)
                    advice = "correct data.root or the file" if lasting else "run it again to go on"
                    raise UserError(f"{self.name(path)}: {reason(error)}{times}; {advice}") from None
                if self.stop.wait(seconds):
                    raise Stopped from None
        raise AssertionError


class HttpFile:
    """A file over HTTP, read as it comes. fsspec's own, but that one waits for a stalled server even when stopped."""

    def __init__(self, root: Root, url: str, headers: dict[str, str]) -> None:
        self.root = root
        self.file = root.run(root.fs.open_async(url, size=1, headers=headers))  # without a size, it asks for it first
        try:
            self.read(0)  # sends the request
        except BaseException:
            self.close()
            raise
        self.headers = self.file.r.headers

    def read(self, size: int) -> bytes:
        return self.root.run(self.file.read(size))

    def close(self) -> None:
        futures.wait([asyncio.run_coroutine_threadsafe(self.file.close(), self.root.fs.loop)], timeout=1)

    def __enter__(self) -> "HttpFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def absent(error: Exception) -> bool:
    """Whether there is no such file."""
    return isinstance(error, FileNotFoundError) or getattr(error, "status", None) in (404, 410)


def forbidden(error: Exception) -> bool:
    return isinstance(error, PermissionError) or getattr(error, "status", None) == 403


def lasting(error: Exception) -> bool:
    """Whether this address will never lead anywhere, however good the network."""
    return absent(error) or (isinstance(error, aiohttp.NonHttpUrlClientError | ValueError) and not certificate(error))


def certificate(error: Exception) -> bool:
    return isinstance(error, aiohttp.ClientConnectorCertificateError)  # which is a ValueError, too


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status in LATER or error.status >= 500
    if lasting(error) or forbidden(error) or certificate(error) or isinstance(error, IsADirectoryError):
        return False
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return error.os_error.errno == socket.EAI_AGAIN
    return isinstance(error, aiohttp.ClientError | OSError)


def too_large(download: Download) -> str:
    """The reason of a picture that is larger than download.max_megabytes."""
    return f"over {download.max_megabytes:g} MB"


def outdated(reason: str, download: Download) -> bool:
    """Whether a picture was too large for another limit."""
    return reason.startswith("over ") and reason != too_large(download)


def reason(error: Exception) -> str:
    """What went wrong, in a few words that are the same whenever it happens."""
    match error:
        case aiohttp.TooManyRedirects():
            return "too many redirects"
        case aiohttp.ClientResponseError():
            return f"HTTP {error.status}"
        case aiohttp.ClientConnectorCertificateError():
            return "bad certificate"
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
    except (ValueError, OverflowError):
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
