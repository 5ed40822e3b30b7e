"""What the workers of tests/test_cluster.py compute."""

import os
import time
from collections.abc import Callable

import numpy as np


def waiting(seconds: float) -> Callable[[int], np.ndarray]:
    """A function that waits, and returns its argument and the process that ran it; for -1 zeros at once."""

    def wait(item: int) -> np.ndarray:
        if item == -1:
            return np.zeros(2, int)
        time.sleep(seconds)
        return np.array([item, os.getpid()])

    return wait
