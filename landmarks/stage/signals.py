"""Ctrl-C, SIGTERM and the end of the parent process: each ends a stage with one line and leaves no process behind."""

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
    """Raised on SIGTERM."""


# By signal: the exception that it raises, the exit status and the message.
SIGNAL_OUTCOMES: dict[int, tuple[type[BaseException], int, str]] = {
    signal.SIGINT: (KeyboardInterrupt, 130, "interrupted"),
    signal.SIGTERM: (Terminated, 143, "terminated"),
}
received_signals: list[int] = []


def record(number: int) -> None:
    """Records a signal, and ignores further ones: DVC passes Ctrl-C on, so it arrives twice."""
    received_signals.append(number)
    for other in SIGNAL_OUTCOMES:
        signal.signal(other, signal.SIG_IGN)


def on_signal(number: int, _: object) -> None:
    """Raises the signal's exception, so that pools end their processes and unfinished outputs are removed.

    `received_signals` records the signal: a pool whose workers die of it may raise another exception.
    """
    record(number)
    threading.excepthook = lambda _: None  # a pool's threads may fail when its workers end
    raise SIGNAL_OUTCOMES[number][0]


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Delays signals until the block ends, because a worker that is interrupted while it starts prints a traceback.

    Blocking them is not enough: another thread may receive them, and Python handles them in the main thread.
    """
    caught: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in SIGNAL_OUTCOMES}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def interrupt_on_termination() -> None:
    """Makes SIGTERM act like Ctrl-C, and the end of the terminal, too, unless nohup ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes its background jobs ignore Ctrl-C
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))


def exit_with_parent(parent: int) -> None:
    """Ends this process soon after `parent` ends, so that no stage keeps writing outs after its DVC was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def handle_early_signals() -> None:
    """One line for Ctrl-C and SIGTERM while a stage imports its modules, before `run` starts."""

    def interrupt(number: int, _: object) -> None:
        record(number)
        raise KeyboardInterrupt  # unlike SystemExit, it is passed to the excepthook

    def excepthook(cls: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(cls, KeyboardInterrupt):
            return sys.__excepthook__(cls, error, trace)
        _, status, text = SIGNAL_OUTCOMES[received_signals[0]]
        restore_outs()
        print(f"{os.environ['DVC_STAGE']}: {text}", file=sys.stderr, flush=True)
        os._exit(status)

    sys.excepthook = excepthook
    for number in SIGNAL_OUTCOMES:
        signal.signal(number, interrupt)
