"""Google Landmarks v1: an index of `id,url,landmark_id`, whose pictures lie where their owners put them.

Years later many links are dead. Each of those is recorded with its reason, and the rest goes on.
"""

import asyncio
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from landmarks import images, stage
from landmarks.determinism import stream
from landmarks.images import Picture
from landmarks.params import Download
from landmarks.sources import remote, retry
from landmarks.sources.index import read_index
from landmarks.sources.store import Store

import aiohttp
import pandas as pd

REQUESTS = 64  # at a time to all hosts; download.workers is for one
Row = tuple[str, str]  # id and URL


@dataclass
class Gldv1:
    """The pictures of the index file `root`. A picture whose URL changes is another one to the store."""

    root: remote.Root
    store: Store
    download: Download
    # By host: until when it has asked to be left alone, and the answer that said so.
    rest: dict[str, tuple[float, Exception]] = field(default_factory=dict)

    def index(self) -> pd.DataFrame:
        with self.root.copy("", self.store.directory) as copy:
            return read_index(copy, ["id", "url", "landmark_id"], self.root.url)

    def fetch(self, wanted: pd.DataFrame) -> dict[str, str]:
        rows = list(zip(wanted["id"], wanted["url"], strict=True))
        too_large = remote.too_large(self.download)
        stored, failures = self.store.pictures(), self.store.failures()
        tried = {row: n for row, (reason, n) in failures.items() if not remote.limit_changed(reason, self.download)}
        attempts = {row: tried.get(row, 0) for row in rows if row not in stored}
        attempts = {row: n for row, n in attempts.items() if n <= self.download.retries}
        try:
            asyncio.run(self.fetch_all(attempts, len(rows)))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        stored, failures = self.store.pictures(), self.store.failures()
        reasons = {row: failures[row][0] for row in rows if row not in stored}
        reasons |= {row: too_large for row in rows if stored.get(row, 0) > self.download.max_bytes}
        return {name: reason for (name, _), reason in reasons.items()}

    def pictures(self, wanted: pd.DataFrame) -> Iterator[Picture]:
        rows = zip(wanted["id"], wanted["url"], wanted["landmark_id"], strict=True)
        for name, url, landmark_id in rows:
            yield Picture(name, landmark_id, self.store.read(name, url))

    def names(self) -> dict[str, str]:
        return {}

    async def fetch_all(self, attempts: dict[Row, int], total: int) -> None:
        """Fetches every (id, URL), for which so many attempts have failed before, into the store.

        Each host has its own queue, so that one that is slow or wants rest keeps no other waiting.
        """
        # asyncio.run's own handler would cancel between any two instructions, even amid the setting of a result.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, asyncio.current_task().cancel)
        queues: dict[str, list[Row]] = {}
        for row in attempts:
            queues.setdefault(host(row[1]), []).append(row)
        slots = asyncio.Semaphore(REQUESTS)
        settings = remote.client_settings(self.download.timeout) | {
            "auto_decompress": False
        }  # a picture gains nothing by it
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            raise_for_status=True,
            **settings,
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
        """Stores one picture, or why it cannot be had."""
        name, url = row
        rng = stream(self.root.seed, "backoff", name)
        last = self.download.retries + 1
        for attempt in range(tried, last):
            try:
                data = await self.get(session, slots, url)
                images.check_header(data)
                return self.store.add(name, url, data)
            except images.Unfit as error:
                return self.store.fail(name, url, str(error), last)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                reason, seconds = retry.reason(error), retry.seconds_before_retry(error, attempt, rng)
                if retry.is_permanent(error):
                    return self.store.fail(name, url, reason, None)
                if attempt + 1 == last or not retry.is_transient(error) or seconds > retry.LONGEST_WAIT:
                    return self.store.fail(name, url, reason, last)
                self.store.fail(name, url, reason, attempt + 1)
                await asyncio.sleep(seconds)

    async def get(self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, url: str) -> bytes:
        """The body behind a URL, once there is a slot and the host is not resting. Raises what aiohttp raises."""
        while True:
            async with slots:
                until, error = self.rest.get(host(url), (0.0, None))
                seconds = until - time.monotonic()
                if seconds <= 0:
                    try:
                        return await self.body(session, url)
                    except aiohttp.ClientResponseError as answer:
                        until = time.monotonic() + retry.retry_after(answer.headers or {})
                        if until > self.rest.get(host(url), (time.monotonic(), None))[0]:
                            self.rest[host(url)] = until, answer
                        raise
            if seconds > retry.LONGEST_WAIT:
                raise error
            await asyncio.sleep(seconds)

    async def body(self, session: aiohttp.ClientSession, url: str) -> bytes:
        if urlsplit(url).scheme not in ("http", "https"):
            raise aiohttp.NonHttpUrlClientError(url) if urlsplit(url).scheme else aiohttp.InvalidURL(url)
        async with session.get(url, max_redirects=5) as response:
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
    """The server that a URL names, empty if it is no URL."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""
