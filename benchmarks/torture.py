"""kill -9 at random moments of the pipeline: whether the results are the same in the end.

    .venv/bin/python -m benchmarks.torture [--kills 50] [--seed 0] [-S KEY=VALUE ...]

Runs the pipeline of HEAD once in a clone, to know how long each stage takes. In another clone `dvc repro` is killed,
with all that it has started, at moments spread over that time, each further on; after every kill the same command goes
on. Where DVC itself no longer starts, the remedies of the README are applied, and counted. Prints the kills of each
stage; fails if a process survives, or if dvc.lock, metrics/ or plots/ differ from the first run's.
"""

import argparse
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

from benchmarks.verify import Clone, pair, workplace
from landmarks import stage
from landmarks.determinism import stream
from landmarks.stage import UserError

import numpy as np
import psutil

STARTING = "dvc itself"


class Repro:
    """A `dvc repro` that runs in a clone. `begun` has each stage that it has begun, with the second when."""

    def __init__(self, clone: Clone) -> None:
        self.root, self.begun, self.said = clone.root, [(STARTING, time.monotonic())], []
        self.process = subprocess.Popen(
            [*clone.command, "-m", "dvc", "repro"],
            cwd=clone.root,
            env=clone.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        for line in self.process.stdout:
            self.said.append(line.rsplit("\r", 1)[-1])
            if found := re.match(r"Running stage '(.+)':", line):
                self.begun.append((found[1], time.monotonic()))

    def is_at(self, order: list[str], number: int, second: float) -> bool:
        """Whether it has come to that second of stage `number` of `order`, or is just past that stage."""
        name, start = self.begun[-1]
        past = order.index(name) - number
        return past >= 0 and time.monotonic() - start >= (min(second, 1.0) if past else second)

    def wait(self) -> int:
        self.process.wait()
        self.reader.join()
        return self.process.returncode

    def kill(self) -> str:
        """Kills it and all it has started; returns the stage that was running. Raises `UserError` if one survives."""
        running = self.begun[-1][0]
        os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()
        time.sleep(1)
        for process in psutil.process_iter(["cwd", "cmdline"]):
            if process.info["cwd"] == str(self.root):
                raise UserError(f"{running} was killed, and this one lives: {' '.join(process.info['cmdline'])}")
        return running

    def seconds(self) -> dict[str, float]:
        """How long each stage took, with what DVC had to do for it, in order."""
        ends = [*(start for _, start in self.begun[1:]), time.monotonic()]
        return {name: end - start for (name, start), end in zip(self.begun, ends, strict=True)}


def remedy(clone: Clone, said: list[str]) -> str:
    """Mends what keeps DVC from starting, as the README says; returns what it was. Raises `UserError` if it is new."""
    text = " ".join("".join(line for line in said if not line.startswith("WARNING")).split())[-500:]
    if "rwlock" in text.lower():
        stage.remove(clone.root / ".dvc/tmp/rwlock")
        return "rwlock removed"
    if "dvc.lock" in text:
        clone.git("checkout", "dvc.lock")
        return "dvc.lock taken from git"
    raise UserError(f"dvc repro failed: {text}")


def moments(seconds: dict[str, float], kills: int, seed: int) -> list[tuple[int, float]]:
    """Random moments of a run, in order: the number of the stage, and the second of it."""
    ends = np.cumsum(list(seconds.values()))
    times = np.sort(stream(seed, "torture").uniform(0, ends[-1], kills))
    stages = np.searchsorted(ends, times, side="right")
    return [
        (int(number), time - (ends[number - 1] if number else 0)) for number, time in zip(stages, times, strict=True)
    ]


def torture(clone: Clone, seconds: dict[str, float], kills: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """Kills so many times, then lets it run to its end. Returns the kills of each stage, and the remedies."""
    killed: Counter[str] = Counter()
    remedies: Counter[str] = Counter()
    order = list(seconds)
    for number, second in [*moments(seconds, kills, seed), (len(order), 0.0)]:
        while True:
            repro = Repro(clone)
            # If that stage is quicker this time, or was finished before the last kill, the next one has its turn.
            while repro.process.poll() is None and not repro.is_at(order, number, second):
                time.sleep(0.005)
            if repro.process.poll() is None:
                killed[repro.kill()] += 1
            elif repro.wait():
                remedies[remedy(clone, repro.said)] += 1
                continue
            break
    return killed, remedies


def main() -> str:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-S", dest="settings", action="append", default=[], type=pair, metavar="KEY=VALUE")
    given = parser.parse_args()
    with workplace() as place:
        first = Clone(Path.cwd(), place / "first")
        first.settle(given.settings)
        first.forget()
        repro = Repro(first)
        if repro.wait():
            raise UserError(f"the first run failed: {' '.join(''.join(repro.said).split())[-500:]}")
        seconds = repro.seconds()
        first.commit()

        second = Clone(first.root, place / "second")
        second.forget()
        killed, remedies = torture(second, seconds, given.kills, given.seed)
        print("| stage | seconds | kills |", "|---|---:|---:|", sep="\n")
        for name, took in seconds.items():
            print(f"| {name} | {took:.1f} | {killed[name]} |")
        lines = second.differences()
        if lines:
            print(*lines, sep="\n")
            raise UserError(
                f"{len(lines)} differences after {sum(killed.values())} kills; the run stays in {second.root}"
            )
    remedied = ", ".join(f"{number} x {text}" for text, number in sorted(remedies.items())) or "none"
    return f"{sum(killed.values())} kills, the same dvc.lock; remedies: {remedied}"


if __name__ == "__main__":
    stage.run(main)
