"""Worker processes that end with the stage, however it ends."""

import os
import signal
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker

from landmarks.stage.signals import deferred_signals, exit_with_parent


def run_in_processes(count: int, jobs: Iterable[tuple]) -> Iterator:
    """Runs `jobs` (made with joblib's `delayed`) in `count` processes (0: one per core); yields the results in order.

    The processes end when this one ends.
    """
    from joblib import Parallel  # imported here because it is slow

    # An error is one line: no warnings from joblib about abandoned tasks, or from its helper process about semaphores.
    warnings.filterwarnings("ignore", r"\d+ tasks which were still being processed")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]))
    parallel = Parallel(count or -1, return_as="generator", initializer=exit_with_parent, initargs=(os.getpid(),))
    # Ctrl-C reaches every process of a terminal, but only the parent handles it: workers inherit the blocked signal.
    # Python's resource tracker, which starts with the first worker, would unblock it, so it is started here.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with deferred_signals():
            return parallel(jobs)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
