"""`data.root` wherever it is: a directory, a file, or anything that fsspec reaches (https, s3, gs)."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from landmarks import stage
from landmarks.determinism import stream
from landmarks.params import Download
from landmarks.sources.retry import Pace, Stopped, reason, retry
from landmarks.stage import UserError

import aiohttp
import fsspec
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

USER_AGENT = "landmark-recognition-pipeline/1.0 (fetches a research data set; honours Retry-After)"
CHUNK = 1 << 20  # bytes

T = TypeVar("T")


def client_settings(timeout: float) -> dict:
    """Settings of an aiohttp session: how long to wait for a connection and for bytes, and who asks."""
    return {
        # No limit for a whole request (aiohttp's is five minutes): a tar takes as long as it takes.
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout),
        "headers": {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        "trust_env": True,  # proxies
    }


class Root:
    """The directory or file `url`, which may be a path or anything that fsspec reaches (https, s3, gs).

    Raises `UserError` if the package for the URL's scheme is not installed.
    """

    def __init__(self, url: str, download: Download, seed: int) -> None:
        self.url, self.timeout, self.seed = url.rstrip("/"), download.timeout, seed
        options = (
            {"client_kwargs": client_settings(download.timeout)} if url.startswith(("http://", "https://")) else {}
        )
        try:
            self.fs, self.path = fsspec.url_to_fs(self.url, **options)
        except Exception as error:  # every scheme has a package and errors of its own
            raise UserError(f"data.root: {url}: {error}") from None
        self.local = isinstance(self.fs, LocalFileSystem)
        self.http = isinstance(self.fs, HTTPFileSystem)
        self.foreign = not self.local and not self.http  # the packages behind s3 and gs have errors of their own
        self.retries = 0 if self.local else download.retries
        self.stop = threading.Event()  # set from another thread, it ends all waiting

    def name(self, path: str) -> str:
        """The full name of a file below the root, or of the root itself."""
        return f"{self.url}/{path}" if path else self.url

    def full(self, path: str) -> str:
        return f"{self.path}/{path}" if path else self.path

    def open(self, path: str) -> "BinaryIO | HttpFile":
        """A file to be read as it comes."""
        return HttpFile(self, self.full(path)) if self.http else self.fs.open(self.full(path), "rb")

    def size(self, file: "BinaryIO | HttpFile") -> int | None:
        """Bytes of a file that `open` gave, if that is known."""
        if not isinstance(file, HttpFile):
            return file.size
        length = file.headers.get("Content-Length")
        return None if length is None else int(length)

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
            with self.open(path) as file:
                content, pace = b"", Pace(self.timeout)
                while len(content) < 1024 and (data := file.read(1024)):
                    content += data
                    pace.count(len(data))
            return content.decode("utf-8", "replace")

        return self.retry(path, read, denied)

    def exists(self, path: str, denied: bool = False) -> bool:
        return self.retry(path, lambda: self.open(path).close() or True, denied) is True

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
        if not copy.exists() and self.retry(path, lambda: self.fetch(path, copy), optional) is None and optional:
            copy.touch()
        try:
            yield copy if copy.exists() and copy.stat().st_size else None
        except UserError:
            copy.unlink(missing_ok=True)
            raise

    def fetch(self, path: str, copy: Path) -> bool:
        """Streams a file to `copy`. Raises `UserError` if that cannot be written."""
        with stage.atomic_output(copy) as part, part.open("wb") as out:
            pace = Pace(self.timeout)
            with self.open(path) as file, stage.progress(self.size(file), "B", copy.name) as bar:
                while data := file.read(CHUNK):
                    pace.count(len(data))
                    bar.update(len(data))
                    try:
                        out.write(data)
                        out.flush()  # else a full disk would be noticed outside
                    except OSError as error:
                        raise UserError(f"{copy}: {reason(error)}; make room") from None
        return True

    def retry(self, path: str, task: Callable[[], T], denied: bool = False) -> T | Literal[False] | None:
        """`retry.retry` for a task that reads the file `path`, with no retries for a local file."""
        settings = {"retries": self.retries, "stop": self.stop, "local": self.local, "denied": denied}
        return retry(task, self.name(path), stream(self.seed, "backoff", path), foreign=self.foreign, **settings)


class HttpFile:
    """A file over HTTP, read as it comes. fsspec's own, but that one waits for a stalled server even when stopped."""

    def __init__(self, root: Root, url: str) -> None:
        self.root = root
        self.file = root.run(root.fs.open_async(url, size=1))  # without a size, it asks for it first
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


def too_large(download: Download) -> str:
    """The reason of a picture that is larger than download.max_megabytes."""
    return f"over {download.max_megabytes:g} MB"


def limit_changed(reason: str, download: Download) -> bool:
    """Whether a picture was too large for another limit."""
    return reason.startswith("over ") and reason != too_large(download)
