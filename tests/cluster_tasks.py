"""What the workers of tests/test_cluster.py compute."""

import os
import time
from collections.abc import Callable

import numpy as np

ANSWER = 0


def waiting(seconds: float) -> Callable[[int], np.ndarray]:
    """A function that waits, and returns its argument and the process that ran it; for -1 `ANSWER` at once."""

    def wait(item: int) -> np.ndarray:
        if item == -1:
            return np.full(2, ANSWER)
        time.sleep(seconds)
        return np.array([item, os.getpid()])

    return wait
