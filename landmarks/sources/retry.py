"""The retry policy: which errors are transient, how long to wait, when to give up, and which answers are too slow."""

import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
import numpy as np

FIRST_WAIT = 1.0  # seconds before the first retry; each further wait is twice as long
LONGEST_WAIT = 600.0  # seconds; a server that asks for a longer wait is given up
MAX_REDIRECTS = 5
MIN_BYTES_PER_SECOND = 1024  # a slower stream counts as a timeout
TRANSIENT_STATUSES = (408, 425, 429)  # transient HTTP statuses below 500
ERRORS = (OSError, aiohttp.ClientError, ValueError)  # what reading a file or a URL raises
REASONS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (  # the first that fits an error
    (aiohttp.TooManyRedirects, "too many redirects"),
    (aiohttp.ClientConnectorCertificateError, "bad certificate"),
    (aiohttp.NonHttpUrlClientError, "neither http nor https"),
    ((aiohttp.InvalidURL, ValueError), "no valid URL"),
    (aiohttp.ClientConnectorDNSError, "unknown host"),
    (TimeoutError, "timeout"),
    ((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionResetError), "broken off"),
    ((aiohttp.ClientConnectionError, ConnectionError), "no connection"),
    (FileNotFoundError, "no such file"),
)


class Stopped(Exception):
    """Another thread has failed, or the user has interrupted the run."""


def is_missing(error: Exception) -> bool:
    """Whether the file does not exist."""
    return isinstance(error, FileNotFoundError) or getattr(error, "status", None) in (404, 410)


def is_forbidden(error: Exception) -> bool:
    """Whether access to the file is denied."""
    return isinstance(error, PermissionError) or getattr(error, "status", None) == 403


def is_permanent(error: Exception) -> bool:
    """Whether this URL is invalid or its file does not exist, so that no later run will succeed."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):  # this is also a ValueError
        return False
    return is_missing(error) or isinstance(error, aiohttp.NonHttpUrlClientError | ValueError)


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status in TRANSIENT_STATUSES or error.status >= 500
    if is_permanent(error) or is_forbidden(error):
        return False
    if isinstance(error, aiohttp.ClientConnectorCertificateError | IsADirectoryError):
        return False
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return error.os_error.errno == socket.EAI_AGAIN
    return isinstance(error, aiohttp.ClientError | OSError)


def reason(error: Exception) -> str:
    """A short description of the error, without details that differ between runs."""
    if text := next((text for cls, text in REASONS if isinstance(error, cls)), None):
        return text
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status}"
    strerror = getattr(error, "strerror", None)
    return strerror.lower() if strerror else str(error) or type(error).__name__


def seconds_before_retry(error: Exception, attempt: int, retries: int, rng: np.random.Generator) -> float | None:
    """Seconds between `attempt` (from 0) and the next one: about 1, 2, 4, ..., with jitter, or more if the server asks.

    None to give up: after the last of `retries`, if the error is not transient, or if the server asks for too long.
    """
    asked = retry_after(error)
    if attempt >= retries or not is_transient(error) or asked > LONGEST_WAIT:
        return None
    return max(asked, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * rng.uniform(0.5, 1.5))


def retry_after(error: Exception) -> float:
    """Seconds that a transient HTTP error asks for in its header Retry-After (RFC 9110, 10.2.3); 0 without one.

    A permanent error, such as 404, says nothing about other pictures of its host.
    """
    headers: Mapping[str, str] = getattr(error, "headers", None) or {}
    value = headers.get("Retry-After", "") if is_transient(error) else ""
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def header_seconds(timeout: float) -> float:
    """How long to wait for the headers of an answer, redirects included. Each byte of them may arrive in time."""
    return (1 + MAX_REDIRECTS) * timeout


class Pace:
    """Detects a stream that trickles: each byte arrives in time for the read timeout, but the whole takes forever."""

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
