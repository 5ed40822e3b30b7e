"""kill -9 at random moments of the pipeline: whether the results are the same in the end.

    .venv/bin/python -m tools.torture [--kills 50] [--seed 0] [-S KEY=VALUE ...]

Runs the pipeline of HEAD once in a clone, to know how long each stage takes. In another clone `dvc repro` is killed,
with all that it has started, at moments spread over that time, each further on; after every kill the same command goes
on. Where DVC itself no longer starts, the remedies of the README are applied, and counted. Prints the kills of each
stage; fails if a process survives, or if dvc.lock, metrics/ or plots/ differ from the first run's.
"""

import argparse
import time
from collections import Counter
from pathlib import Path

from landmarks import stage
from landmarks.determinism import stream
from landmarks.stage import UserError
from tools.clone import Clone, Repro, pair, temporary_folder

import numpy as np


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
    with temporary_folder() as folder:
        first = Clone(Path.cwd(), folder / "first")
        first.settle(given.settings)
        first.forget()
        repro = Repro(first)
        if repro.wait():
            raise UserError(f"the first run failed: {' '.join(''.join(repro.said).split())[-500:]}")
        seconds = repro.seconds()
        first.commit()

        second = Clone(first.root, folder / "second")
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
