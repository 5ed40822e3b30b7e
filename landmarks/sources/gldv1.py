"""Google Landmarks v1: an index of `id,url,landmark_id`, whose pictures are on the web sites of their owners.

Many links are dead by now. The reason for each is recorded, and the download continues.
"""

import asyncio
import math
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import quote, urlsplit

from landmarks import images, stage
from landmarks.determinism import stream
from landmarks.images import Picture
from landmarks.params import Download
from landmarks.sources import Source, remote, retry
from landmarks.sources.index import read_landmarks
from landmarks.sources.store import Store

import aiohttp
import pandas as pd
import yarl

MAX_REQUESTS = 64  # at the same time, to all hosts; download.workers limits those to one host
Row = tuple[str, str]  # id and URL
ILLEGAL = re.compile(r"[^\w.~:/?#\[\]@!$&'()*+,;=%-]|%(?![0-9A-Fa-f]{2})", re.ASCII)  # in a URL (RFC 3986)


@dataclass
class Gldv1(Source):
    """The pictures of the index file `root`. The store's key is id and URL: a changed URL is fetched again."""

    root: remote.Root
    store: Store
    download: Download
    # By host: the time before which it gets no requests, and the error that is the reason.
    paused: dict[str, tuple[float, Exception]] = field(default_factory=dict)
    # By host: the time of the first error since its last answer, and the number of errors.
    silent: dict[str, tuple[float, int]] = field(default_factory=dict)
    answered: float = math.inf  # when a host has last answered; infinity before the first answer
    without_landmark: pd.DataFrame = field(init=False)  # set by `index`

    def index(self) -> pd.DataFrame:
        with self.root.copy("", self.store.directory) as copy:
            rows, self.without_landmark = read_landmarks(copy, ["id", "url", "landmark_id"], self.root.url)
        return rows

    def skipped(self) -> pd.DataFrame:
        return self.without_landmark

    def fetch(self, wanted: pd.DataFrame) -> dict[str, str]:
        self.store.fetching = True
        rows = list(zip(wanted["id"], wanted["url"], strict=True))
        stored, failures = self.store.pictures(), self.store.failures()
        tried = {row: n for row, (reason, n) in failures.items() if not remote.limit_changed(reason, self.download)}
        missing = {row: tried.get(row, 0) for row in rows if row not in stored}
        attempts = {row: int(n) for row, n in missing.items() if n <= self.download.retries}
        handler = signal.getsignal(signal.SIGINT)
        try:
            asyncio.run(self.fetch_all(attempts, len(rows)))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            signal.signal(signal.SIGINT, handler)  # asyncio has replaced it
        stored, failures = self.store.pictures(), self.store.failures()
        reasons = {row: failures[row][0] for row in rows if row not in stored}
        reasons |= {
            row: remote.too_large(self.download) for row in rows if stored.get(row, 0) > self.download.max_bytes
        }
        return {name: reason for (name, _), reason in reasons.items()}

    def pictures(self, wanted: pd.DataFrame) -> Iterator[Picture]:
        for name, url, landmark_id in zip(wanted["id"], wanted["url"], wanted["landmark_id"], strict=True):
            yield Picture(name, landmark_id, self.store.read(name, url))

    async def fetch_all(self, attempts: dict[Row, int], total: int) -> None:
        """Fetches pictures into the store. `attempts` has the number of earlier attempts for each of them.

        Every host has its own queue, so a slow or paused host does not delay the others. The progress bar counts to
        `total`, which includes the pictures that are already stored.
        """
        # asyncio.run's own handler can cancel in the middle of setting a result.
        task = asyncio.current_task()
        assert task
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
        queues: dict[str, list[Row]] = {}
        for row in attempts:
            queues.setdefault(host(row[1]), []).append(row)
        slots = asyncio.Semaphore(MAX_REQUESTS)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            raise_for_status=True,
            auto_decompress=False,  # pictures are already compressed
            **remote.client_settings(self.download.timeout),
        ) as session:
            with stage.progress(total, "pictures") as bar:
                bar.update(total - len(attempts))

                async def work(rows: Iterator[Row]) -> None:
                    for row in rows:
                        await self.fetch_one(session, slots, row, attempts[row])
                        bar.update()

                workers = []
                for rows in queues.values():
                    queue = iter(rows)  # shared by the workers of a host
                    workers += [work(queue) for _ in range(min(self.download.workers, len(rows)))]
                await asyncio.gather(*workers)

    async def fetch_one(self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, row: Row, tried: int) -> None:
        """Stores a picture, or the reason of its failure, after `tried` earlier attempts."""
        name, url = row
        rng = stream(self.root.seed, "backoff", name)
        last = self.download.retries + 1
        for attempt in count(tried):
            try:
                data = await self.get(session, slots, url)
                images.check_header(data)
                return self.store.add(name, url, data)
            except images.Unfit as error:
                return self.store.fail(name, url, str(error), last)
            except retry.ERRORS as error:
                reason = retry.reason(error)
                if retry.is_permanent(error):
                    return self.store.fail(name, url, reason, None)
                if self.pause(url)[0] > retry.LONGEST_WAIT:  # the picture may be there: the next run asks for it again
                    return self.store.fail(name, url, reason, tried)
                seconds = retry.seconds_before_retry(error, attempt, self.download.retries, rng)
                if seconds is None:
                    return self.store.fail(name, url, reason, last)
                self.store.fail(name, url, reason, attempt + 1)
                await asyncio.sleep(seconds)

    async def get(self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, url: str) -> bytes:
        """The content of a URL. Waits for a slot and while the host is paused. Raises aiohttp's exceptions."""
        while True:
            async with slots:
                seconds, error = self.pause(url)
                if seconds <= 0:
                    return await self.body_of_host(session, url)
            if seconds > retry.LONGEST_WAIT:
                assert error
                raise error.with_traceback(None)  # otherwise it would hold the frames of every picture of the host
            await asyncio.sleep(seconds)

    def pause(self, url: str) -> tuple[float, Exception | None]:
        """Seconds until the host of a URL gets requests again, and the error that is the reason."""
        until, error = self.paused.get(host(url), (0.0, None))
        return until - time.monotonic(), error

    async def body_of_host(self, session: aiohttp.ClientSession, url: str) -> bytes:
        """The same as `body`. Pauses the host if it asks for that, or is silent for too long while others answer."""
        name = host(url)
        try:
            data = await self.body(session, url)
        except (TimeoutError, aiohttp.ClientConnectionError) as error:
            now = time.monotonic()
            since, errors = self.silent.get(name, (now, 0))
            self.silent[name] = since, errors + 1
            # This machine may be offline if hosts have answered before, but none since.
            if errors >= self.download.workers and min(now, self.answered) - since > retry.LONGEST_WAIT:
                self.paused[name] = math.inf, error
            raise
        except Exception as error:
            self.hear(name)
            until = time.monotonic() + retry.retry_after(error)
            if until > self.paused.get(name, (time.monotonic(), None))[0]:
                self.paused[name] = until, error
            raise
        self.hear(name)
        return data

    def hear(self, name: str) -> None:
        """Records that a host has answered."""
        self.answered = time.monotonic()
        self.silent.pop(name, None)

    async def body(self, session: aiohttp.ClientSession, url: str) -> bytes:
        """The content of a URL. Raises `Unfit` if it is too large, else aiohttp's exceptions."""
        if urlsplit(url).scheme not in ("http", "https"):
            raise aiohttp.NonHttpUrlClientError(url) if urlsplit(url).scheme else aiohttp.InvalidURL(url)
        async with asyncio.timeout(retry.header_seconds(self.download.timeout)):
            response = await session.get(as_written(url), max_redirects=retry.MAX_REDIRECTS)
        async with response:
            if response.url.scheme not in ("http", "https"):
                raise aiohttp.NonHttpUrlClientError(url)
            limit, body, pace = self.download.max_bytes, bytearray(), retry.Pace(self.download.timeout)
            if (response.content_length or 0) > limit:
                raise images.Unfit(remote.too_large(self.download))
            async for data in response.content.iter_any():
                body += data
                if len(body) > limit:
                    raise images.Unfit(remote.too_large(self.download))
                pace.count(len(data))
            return bytes(body)


def host(url: str) -> str:
    """The host of a URL, with its port if that is unusual; empty if the URL is not valid."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "") + ("" if parts.port in (None, 80, 443) else f":{parts.port}")
    except ValueError:
        return ""


def as_written(url: str) -> yarl.URL:
    """The URL with its own percent-encoding, which aiohttp would replace. Encodes only `ILLEGAL` characters."""
    checked = yarl.URL(url)  # raises ValueError
    if not host(url).isascii():
        return checked
    return yarl.URL(ILLEGAL.sub(lambda found: quote(found[0]), url.strip()), encoded=True)
