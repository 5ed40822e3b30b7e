"""Worker processes that end with the stage, however it ends."""

import os
import signal
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker

from landmarks.stage.signals import end_with_parent, later


def workers(count: int, jobs: Iterable[tuple]) -> Iterator:
    """Streams the results of `jobs` (of joblib's `delayed`), in order as they come, from so many processes (0: one per
    core), which end with this one.
    """
    from joblib import Parallel  # slow to import, and two stages need it

    # An end is one line. joblib counts what was given up, and where a pool breaks between removing a semaphore and
    # saying so, its helper process warns of that.
    warnings.filterwarnings("ignore", r"\d+ tasks which were still being processed")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]))
    parallel = Parallel(count or -1, return_as="generator", initializer=end_with_parent, initargs=(os.getpid(),))
    # Ctrl-C reaches every process of a terminal; what to do about it is the parent's business. Workers inherit what is
    # blocked here, so that they do not hear it from their first moment on. The helper process that Python starts with
    # the first worker would unblock it, so that one is started before.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with later():
            return parallel(jobs)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
