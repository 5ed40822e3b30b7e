"""What the workers of tests/test_cluster.py compute."""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from landmarks.cluster import Driver


def waiting(seconds: float, _: "Driver") -> Callable[[int], tuple[int, int]]:
    """A function that waits, and returns its argument and the process that ran it."""

    def wait(item: int) -> tuple[int, int]:
        time.sleep(seconds)
        return item, os.getpid()

    return wait


def blocked(_: "Driver") -> Callable[[int], int]:
    """A function that waits for the file `released`, and returns its process, which it also adds to `started`."""

    def wait(_: int) -> int:
        with open("started", "a") as file:
            print(os.getpid(), file=file)
        while not os.path.exists("released"):
            time.sleep(0.05)
        return os.getpid()

    return wait


def asking(driver: "Driver") -> Callable[[str], int]:
    """A function that asks the driver for the length of a text, or for what it lacks."""
    return lambda text: driver.length(text)


def failing(driver: "Driver") -> Callable[[int], None]:
    """A function that lacks a file of the worker."""

    def fail(item: int) -> None:
        open(f"missing-{item}").close()

    return fail
