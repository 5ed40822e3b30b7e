"""Access to `data.root`: a directory, a file, or a URL that fsspec can read (https, s3, gs)."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent import futures
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

from landmarks import stage
from landmarks.determinism import stream
from landmarks.params import Download
from landmarks.sources import retry
from landmarks.stage import UserError

import aiohttp
import fsspec
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

USER_AGENT = "landmark-recognition-pipeline/1.0 (fetches a research data set; honours Retry-After)"
CHUNK = 1 << 20  # bytes

T = TypeVar("T")


def client_settings(timeout: float) -> dict:
    """Settings of an aiohttp session. `timeout` is in seconds, for connecting and for each read."""
    return {
        # aiohttp limits a whole request to five minutes by default, too little for a tar.
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout),
        "headers": {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        "trust_env": True,  # proxies
    }


class Root:
    """The directory or file `url`: a path or a URL. `path` arguments of the methods are relative to it.

    Raises `UserError` if the package for the URL's scheme is not installed.
    """

    def __init__(self, url: str, download: Download, seed: int) -> None:
        self.url, self.timeout, self.seed = url.rstrip("/"), download.timeout, seed
        web = url.startswith(("http://", "https://"))
        options = {"client_kwargs": client_settings(download.timeout)} if web else {}
        try:
            if "://" in url:
                self.fs, self.path = fsspec.url_to_fs(self.url, **options)
            else:  # fsspec would take `::` in a path for a chain of file systems
                self.fs, self.path = LocalFileSystem(), os.path.abspath(self.url)
        except Exception as error:  # each scheme's package raises its own
            raise UserError(f"data.root: {url}: {error}") from None
        self.local = isinstance(self.fs, LocalFileSystem)
        self.http = isinstance(self.fs, HTTPFileSystem)
        self.retries = 0 if self.local else download.retries
        self.stop = threading.Event()  # when set, reads and waits of all threads raise `Stopped`

    def name(self, path: str) -> str:
        """The full name of a file below the root, or of the root itself, for messages."""
        return f"{self.url}/{path}" if path else self.url

    def full(self, path: str) -> str:
        """The same name in fsspec's spelling."""
        return f"{self.path}/{path}" if path else self.path

    def run(self, task: Coroutine[None, None, T]) -> T:
        """Runs `task` in fsspec's event loop. Raises `Stopped` as soon as `stop` is set."""
        future = asyncio.run_coroutine_threadsafe(task, self.fs.loop)
        while not futures.wait([future], timeout=0.1).done:
            if self.stop.is_set():
                future.cancel()
                raise retry.Stopped
        return future.result()

    def list_names(self, directory: str, ending: str) -> list[str]:
        """The sorted names of the files in a directory that have this ending, without it. HTTP cannot list."""
        if not self.fs.isdir(self.full(directory)):
            return []
        found = [name.rsplit("/", 1)[-1] for name in self.fs.ls(self.full(directory), detail=False)]
        return sorted(name.removesuffix(ending) for name in found if name.endswith(ending))

    @contextmanager
    def pool(self, workers: int) -> Iterator[futures.ThreadPoolExecutor]:
        """A thread pool; the first error or Ctrl-C stops all its threads."""
        with futures.ThreadPoolExecutor(workers) as pool:
            try:
                yield pool
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def text(self, path: str, denied_is_missing: bool = False) -> str | None:
        """The beginning of a file as text, about a kilobyte. None if it does not exist."""

        def read() -> str:
            with closing(Stream(self, path)) as file:
                content = b""
                while len(content) < 1024 and (data := file.read(1024)):
                    content += data
            return content.decode("utf-8", "replace")

        return self.retry(path, read, denied_is_missing)

    @contextmanager
    def copy(self, path: str, directory: Path, optional: bool = False) -> Iterator[Path | None]:
        """Yields a local path of the file: the file itself, or a copy in `directory`, fetched once. None: no such file.

        An empty copy records that an `optional` file does not exist. A `UserError` in the block removes the copy,
        because the original has to be corrected and fetched again.
        """
        if self.local:
            local = Path(self.full(path))
            yield local if local.exists() else None
            return
        copy = directory / (path.rsplit("/", 1)[-1] or "index.csv")
        if not copy.exists() and not self.retry(path, lambda: self.fetch(path, copy), optional) and optional:
            copy.touch()
        try:
            yield copy if copy.exists() and copy.stat().st_size else None
        except UserError:
            copy.unlink(missing_ok=True)
            raise

    def fetch(self, path: str, copy: Path) -> bool:
        """Streams a file to `copy`; returns True. Raises `UserError` if `copy` cannot be written."""
        with (
            stage.atomic_output(copy) as part,
            part.open("wb") as out,
            closing(Stream(self, path)) as file,
            stage.progress(file.size, "B", copy.name) as bar,
        ):
            while data := file.read(CHUNK):
                bar.update(len(data))
                try:
                    out.write(data)
                    out.flush()  # a full disk raises here, not when the file is closed
                except OSError as error:
                    raise UserError(f"{copy}: {retry.reason(error)}; make room") from None
        return True

    def retry(self, path: str, task: Callable[[], T], denied_is_missing: bool = False) -> T | None:
        """The result of `task`, which reads the file `path`; repeats it after transient errors. None: no such file.

        A local file is read once. With `denied_is_missing`, HTTP 403 means "no such file": S3 answers this way where
        listing is not allowed. Raises `UserError` naming the file after a permanent error or the last attempt,
        `Stopped` when `stop` is set.
        """
        rng = stream(self.seed, "backoff", path)
        # s3 and gs have errors of their own. Other exceptions are bugs.
        errors: tuple[type[Exception], ...] = retry.ERRORS if self.local or self.http else (Exception,)
        for attempt in count():
            try:
                return task()
            except (UserError, retry.Stopped):
                raise
            except errors as error:
                if retry.is_missing(error) or (denied_is_missing and retry.is_forbidden(error)):
                    return None
                seconds = retry.seconds_before_retry(error, attempt, self.retries, rng)
                if seconds is None:
                    times = f" after {attempt + 1} attempts" if attempt else ""
                    permanent = self.local or not retry.is_transient(error)
                    advice = "correct data.root or the file" if permanent else "run it again to go on"
                    raise UserError(f"{self.name(path)}: {retry.reason(error)}{times}; {advice}") from None
                if self.stop.wait(seconds):
                    raise retry.Stopped from None
        raise AssertionError("unreachable")


class Stream:
    """A file below `root`, read as it arrives. Over HTTP, fsspec's own file object cannot be stopped while it waits."""

    def __init__(self, root: Root, path: str) -> None:
        self.root = root
        if not root.http:
            self.file = root.fs.open(root.full(path), "rb")
            self.size = getattr(self.file, "size", None)  # bytes, None if unknown
        else:
            self.file = root.run(root.fs.open_async(root.full(path), size=1))  # without a size, fsspec asks for it
            try:
                root.run(asyncio.wait_for(self.file.read(0), retry.header_seconds(root.timeout)))  # sends the request
            except BaseException:
                self.close()
                raise
            length = self.file.r.headers.get("Content-Length")
            self.size = None if length is None else int(length)
        self.pace = retry.Pace(root.timeout)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes. Raises `Stopped` if another thread has failed, `TimeoutError` if the stream trickles."""
        if self.root.stop.is_set():
            raise retry.Stopped
        data = self.root.run(self.file.read(size)) if self.root.http else self.file.read(size)
        if not self.root.local:  # reading a file slowly is no failure: a disk may stall
            self.pace.count(len(data))
        return data

    def close(self) -> None:
        if self.root.http:
            futures.wait([asyncio.run_coroutine_threadsafe(self.file.close(), self.root.fs.loop)], timeout=1)
        else:
            self.file.close()


def too_large(download: Download) -> str:
    """The failure reason of a picture that is larger than download.max_megabytes."""
    return f"over {download.max_megabytes:g} MB"


def limit_changed(reason: str, download: Download) -> bool:
    """Whether a picture failed because it was larger than an earlier value of download.max_megabytes."""
    return reason.startswith("over ") and reason != too_large(download)
