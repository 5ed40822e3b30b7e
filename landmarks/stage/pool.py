"""Worker processes that end with the stage, however it ends."""

import os
import signal
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker

from landmarks.stage.signals import deferred_signals, exit_with_parent


def run_in_processes(count: int, jobs: Iterable[tuple]) -> Iterator:
    """Streams the results of `jobs` (made with joblib's `delayed`) in their order, from `count` processes (0: one per
    core), which end with this one.
    """
    from joblib import Parallel  # slow to import; only two stages need it

    # An error must be one line: joblib warns of the tasks that it gave up, and its helper process of semaphores that a
    # broken pool left.
    warnings.filterwarnings("ignore", r"\d+ tasks which were still being processed")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]))
    parallel = Parallel(count or -1, return_as="generator", initializer=exit_with_parent, initargs=(os.getpid(),))
    # Ctrl-C reaches every process of a terminal, but only the parent handles it. Workers inherit the block that is set
    # here, so that they ignore it from their first moment. The helper process that Python starts with the first worker
    # would unblock it, so that one is started before.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with deferred_signals():
            return parallel(jobs)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
