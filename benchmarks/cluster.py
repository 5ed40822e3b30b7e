"""What several machines cost, on the loopback address: benchmarks/cluster.md.

    .venv/bin/python -m benchmarks.cluster       after `make reproduce`, on an idle machine; takes 7 minutes

The workers share the cores of this machine, so only one of them computes. What is lost when workers end or join is
measured with tasks that wait.
"""

import os
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.speed import machine, table
from landmarks import artifacts, determinism, features, images, networks, params, stage

import psutil
from safetensors.torch import load_file

if TYPE_CHECKING:
    from landmarks.cluster import Driver

OUT = Path("benchmarks/cluster.md")
PICTURES, ROUNDS = 640, 3  # of the sample; extractions of each kind
TASKS, SECONDS = 120, 0.5  # that wait


class Loopback:
    """A scheduler and workers of this machine, each in a process of its own."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        self.address = self.start("scheduler", "tcp://127.0.0.1:0").split()[-1]

    def start(self, *arguments: str) -> str:
        """Starts `landmarks` with these arguments; returns its first line."""
        command = [sys.executable, "-m", "landmarks", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout
        if not (line := process.stdout.readline()):
            raise stage.UserError(f"`landmarks {' '.join(arguments)}` has ended")
        return line


@contextmanager
def loopback(workers: int) -> Iterator[Loopback]:
    """A scheduler and workers, which end with the block."""
    machines = Loopback()
    try:
        for _ in range(workers):
            machines.start("worker", machines.address)
        yield machines
    finally:
        for process in machines.processes:
            process.kill()
            process.wait()


def waiting(_: "Driver") -> Callable[[int], int]:
    """A task that waits, and returns the process that ran it."""

    def wait(_: int) -> int:
        time.sleep(SECONDS)
        return os.getpid()

    return wait


def times(address: str) -> Iterator[tuple[float, int]]:
    """When each task that waits has ended, in seconds, and the process that ran it."""
    from landmarks import cluster  # imported here because it needs Dask

    for process in cluster.imap(address, waiting, range(TASKS), {}):
        yield time.perf_counter(), process


def killed() -> float:
    """The time of a run in which one of three workers is killed halfway, as a multiple of the ideal time."""
    with loopback(3) as machines:
        found = times(machines.address)
        (start, _), *_ = islice(found, TASKS // 2)
        machines.processes[-1].kill()
        *_, (end, _) = found
    return (end - start) / (SECONDS * ((TASKS / 2 - 3) / 3 + TASKS / 2 / 2))  # three have ended at the start


def joined() -> float:
    """The rate after two more workers have joined one, as a multiple of the rate before."""
    with loopback(1) as machines:
        found = times(machines.address)
        alone = list(islice(found, TASKS // 3))
        for _ in range(2):
            machines.start("worker", machines.address)
        together = list(found)[-TASKS // 3 :]
    assert len({process for _, process in together}) == 3, "a worker joined too late"
    return (alone[-1][0] - alone[0][0]) / (together[-1][0] - together[0][0])


def extraction() -> tuple[float, float, float]:
    """Of extract-features: the rate of one worker as a multiple of the rate without a cluster, the bytes that travel
    as a multiple of those of pictures, weights and features, and the memory of the scheduler in MB."""
    p, views = params.load(), artifacts.read_views()
    index = views[views["id"].isin(views["id"].unique()[-PICTURES:])]  # the last ones, as after an interruption
    weights = load_file(artifacts.BACKBONE)
    trunk, kept = networks.Trunk(weights, p.backbone), networks.trunk_weights(weights, p.backbone)
    arguments = artifacts.FILTERED, index, p.augment.crop, "float32"
    size = sum(len(picture.picture) for picture in images.read_pictures(artifacts.FILTERED, index["id"].unique()))
    size += sum(tensor.nbytes for tensor in kept.values())
    ratios, travelled = [], []
    with loopback(1) as machines:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            output = sum(batch.nbytes for batch in features.extract(trunk, *arguments))
            middle, sent = time.perf_counter(), bytes_sent()
            on_cluster = features.extract_on_cluster(machines.address, trunk, kept, p.backbone, *arguments)
            assert sum(batch.nbytes for batch in on_cluster) == output
            ratios.append((middle - start) / (time.perf_counter() - middle))
            travelled.append((bytes_sent() - sent) / (size + output))
        memory = psutil.Process(machines.processes[0].pid).memory_info().rss / 1e6
    return statistics.median(ratios), statistics.median(travelled), memory


def bytes_sent() -> int:
    """What all programs have sent to the loopback address."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def main() -> str:
    determinism.prepare_inference()
    rate, travelled, memory = extraction()
    rows = {
        "rate of one worker, its connection included, relative to no cluster": f"{rate:.2f}",
        "bytes that travel, relative to pictures, weights and features": f"{travelled:.3f}",
        "memory of the scheduler": f"{memory:.0f} MB",
        "time if one of three workers is killed halfway, relative to the ideal": f"{killed():.2f}",
        "rate after two workers have joined one, relative to before": f"{joined():.2f}",
    }
    made = f"""Made by `python -m benchmarks.cluster` on {machine()}: a scheduler and workers on the loopback address.
The first two rows are medians of {ROUNDS} computations of the features of {PICTURES} pictures of the sample. The last
two have {TASKS} tasks that wait {SECONDS} seconds each."""
    text = f"""# Several machines

{textwrap.fill(" ".join(made.split()), 120)}

{table(["", ""], list(rows.items()))}
"""
    with stage.atomic_output(OUT) as out:
        out.write_text(text, encoding="utf-8")
    return str(OUT)


if __name__ == "__main__":
    stage.run(main)
