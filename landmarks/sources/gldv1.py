"""Google Landmarks v1: an index of `id,url,landmark_id`, whose pictures lie where their owners put them.

Years later many links are dead. Each of those is recorded with its reason, and the rest goes on.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from landmarks import images, stage
from landmarks.determinism import stream
from landmarks.images import Picture
from landmarks.params import Download
from landmarks.sources import read_index, remote
from landmarks.sources.store import Store

import aiohttp
import pandas as pd

REQUESTS = 64  # at a time to all hosts; download.workers is for one


class Unwanted(Exception):
    """An answer that is not what was asked for, and will not be; its text is the reason."""


@dataclass
class Gldv1:
    """The pictures of the index file `root`. A picture whose URL changes is another one to the store."""

    root: remote.Root
    store: Store
    download: Download
    not_before: dict[str, float] = field(default_factory=dict)  # by host, what its last Retry-After asked for

    def index(self) -> pd.DataFrame:
        with self.root.copy("", self.store.directory) as copy:
            return read_index(copy, ["id", "url", "landmark_id"], self.root.url)

    def fetch(self, wanted: pd.DataFrame) -> dict[str, str]:
        rows = list(zip(wanted["id"], wanted["url"], strict=True))
        stored, failures = self.store.pictures(), self.store.failures()
        attempts = {row: failures[row][1] if row in failures else 0 for row in rows if row not in stored}
        asyncio.run(self.fetch_all({row: n for row, n in attempts.items() if n <= self.download.retries}, len(rows)))
        failures = self.store.failures()
        return {row[0]: failures[row][0] for row in rows if row in failures}

    def pictures(self, wanted: pd.DataFrame) -> Iterator[Picture]:
        rows = zip(wanted["id"], wanted["url"], wanted["landmark_id"], strict=True)
        for name, url, landmark_id in rows:
            yield Picture(name, landmark_id, self.store.read(name, url))

    async def fetch_all(self, attempts: dict[tuple[str, str], int], total: int) -> None:
        """Fetches every (id, URL), for which so many attempts have failed before, into the store, several at a time."""
        todo = iter(attempts.items())
        connector = aiohttp.TCPConnector(limit=REQUESTS, limit_per_host=self.download.workers)
        settings = remote.client(self.download.timeout) | {"auto_decompress": False}  # a picture gains nothing by it
        async with aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), raise_for_status=True, **settings
        ) as session:
            with stage.progress(total, "pictures") as bar:
                bar.update(total - len(attempts))

                async def work() -> None:
                    for row, tried in todo:
                        await self.fetch_one(session, *row, tried)
                        bar.update()

                await asyncio.gather(*(work() for _ in range(REQUESTS)))

    async def fetch_one(self, session: aiohttp.ClientSession, name: str, url: str, tried: int) -> None:
        """Stores one picture, or why it cannot be had."""
        rng = stream(self.root.seed, "backoff", name)
        for attempt in range(tried, self.download.retries + 1):
            try:
                await self.until_asked_again(url)
                data = await self.get(session, url)
                images.check_header(data)
                return self.store.add(name, url, data)
            except (images.Unfit, Unwanted) as error:
                return self.store.fail(name, url, str(error), None)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                if not remote.may_pass(error):
                    return self.store.fail(name, url, remote.reason(error), None)
                seconds = remote.wait(error, attempt, rng)
                if attempt == self.download.retries or seconds > remote.LONGEST_WAIT:
                    return self.store.fail(name, url, remote.reason(error), self.download.retries + 1)
                self.store.fail(name, url, remote.reason(error), attempt + 1)
                asked = remote.retry_after(getattr(error, "headers", None) or {})
                if asked:
                    self.not_before[host(url)] = time.monotonic() + asked
                await asyncio.sleep(seconds)

    async def until_asked_again(self, url: str) -> None:
        """Waits while the host has asked for rest, whichever request it told so."""
        while (seconds := self.not_before.get(host(url), 0) - time.monotonic()) > 0:
            await asyncio.sleep(seconds)

    async def get(self, session: aiohttp.ClientSession, url: str) -> bytes:
        """The body behind a URL. Raises `Unwanted` or what aiohttp raises."""
        limit = round(self.download.max_megabytes * 1e6)
        pace = remote.Pace(self.download.timeout)
        async with session.get(url, max_redirects=5) as response:
            if response.url.scheme not in ("http", "https"):
                raise Unwanted("neither http nor https")
            if (response.content_length or 0) > limit:
                raise Unwanted("too large")
            body = bytearray()
            async for data in response.content.iter_any():
                body += data
                if len(body) > limit:
                    raise Unwanted("too large")
                pace.count(len(data))
            return bytes(body)


def host(url: str) -> str:
    return urlsplit(url).netloc
