"""Ctrl-C, SIGTERM and the death of the parent process: each ends a stage in one line and leaves no process."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from landmarks.stage.pipeline import restore_outs


class Terminated(SystemExit):
    """SIGTERM."""


# What a signal raises, the exit status, and what is said.
ENDS = {signal.SIGINT: (KeyboardInterrupt, 130, "interrupted"), signal.SIGTERM: (Terminated, 143, "terminated")}
heard: list[int] = []


def hear(number: int, _: object) -> None:
    """Makes of a signal an exception, so that pools end their processes and half-written outs are removed.

    It is kept in `heard`, for a pool whose workers die of the same signal may raise another exception in its place.
    """
    heard.append(number)
    for other in ENDS:  # DVC passes Ctrl-C on, so that it comes twice
        signal.signal(other, signal.SIG_IGN)
    threading.excepthook = lambda _: None  # a pool's thread may stumble over what was taken from it
    raise ENDS[number][0]


@contextmanager
def later() -> Iterator[None]:
    """A signal is heard after the block: a worker whose start is broken off would say so with a traceback.

    Blocking it does not do, for another thread may take it, and Python then handles it in the main one.
    """
    caught: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in ENDS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def end_with_parent(parent: int) -> None:
    """Ends this process soon after `parent`: a DVC that was killed must not leave a stage that goes on writing outs."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The excepthook of a stage: Ctrl-C while its modules are being loaded, before `run`, is one line as well."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    restore_outs()
    print("interrupted", file=sys.stderr)
