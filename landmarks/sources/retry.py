"""The retry policy: which errors are transient, how long to wait, when to give up, and which streams are too slow."""

import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, TypeVar

from landmarks.stage import UserError

import aiohttp
import numpy as np

FIRST_WAIT = 1.0  # seconds; each further one is twice as long
LONGEST_WAIT = 600.0  # seconds; a server that asks for more is given up
MIN_BYTES_PER_SECOND = 1024  # bytes per second; what comes slower than this is as good as broken off
TRANSIENT_STATUSES = (408, 425, 429)  # besides 5xx, the statuses that mean: later

T = TypeVar("T")


class Stopped(Exception):
    """Something else has failed, or the user has had enough; there is no sense in going on."""


def retry(
    task: Callable[[], T],
    name: str,
    rng: np.random.Generator,
    *,
    retries: int,
    stop: threading.Event,
    local: bool = False,
    foreign: bool = False,
    denied: bool = False,
) -> T | Literal[False] | None:
    """The result of `task`, which reads the file `name` and is repeated after transient errors; None if there is no
    such file.

    `rng` draws the waiting times. `foreign` says that libraries with errors of their own are involved. With `denied`,
    status 403 gives False: S3 answers so for files that do not exist where strangers may not list.

    Raises `UserError` naming the file when all attempts have failed, and `Stopped` when `stop` is set meanwhile.
    """
    for attempt in range(retries + 1):
        try:
            return task()
        except (UserError, Stopped):
            raise
        except Exception as error:
            if not foreign and not isinstance(error, OSError | aiohttp.ClientError | ValueError):
                raise
            if is_missing(error):
                return None
            if denied and is_forbidden(error):
                return False
            seconds = seconds_before_retry(error, attempt, rng)
            if attempt == retries or not is_transient(error) or seconds > LONGEST_WAIT:
                times = f" after {attempt + 1} attempts" if attempt else ""
                permanent = local or not is_transient(error)
                advice = "correct data.root or the file" if permanent else "run it again to go on"
                raise UserError(f"{name}: {reason(error)}{times}; {advice}") from None
            if stop.wait(seconds):
                raise Stopped from None
    raise AssertionError


def is_missing(error: Exception) -> bool:
    """Whether there is no such file."""
    return isinstance(error, FileNotFoundError) or getattr(error, "status", None) in (404, 410)


def is_forbidden(error: Exception) -> bool:
    return isinstance(error, PermissionError) or getattr(error, "status", None) == 403


def is_permanent(error: Exception) -> bool:
    """Whether this address will never lead anywhere, however good the network."""
    return is_missing(error) or (
        isinstance(error, aiohttp.NonHttpUrlClientError | ValueError) and not is_bad_certificate(error)
    )


def is_bad_certificate(error: Exception) -> bool:
    return isinstance(error, aiohttp.ClientConnectorCertificateError)  # which is a ValueError, too


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status in TRANSIENT_STATUSES or error.status >= 500
    if is_permanent(error) or is_forbidden(error) or is_bad_certificate(error) or isinstance(error, IsADirectoryError):
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


def seconds_before_retry(error: Exception, attempt: int, rng: np.random.Generator) -> float:
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
            if self.bytes < MIN_BYTES_PER_SECOND * passed:
                raise TimeoutError
            self.since, self.bytes = time.monotonic(), 0
