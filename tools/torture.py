"""Kills the pipeline (kill -9) at random moments and checks that the final results are the same.

    .venv/bin/python -m tools.torture [--kills 50] [--seed 0] [-S KEY=VALUE ...]

Runs the pipeline of HEAD once in a clone to measure how long each stage takes. In a second clone, `dvc repro` and all
its processes are killed at random moments of that time, in order, and started again after each kill. If DVC itself no
longer starts, the remedies of docs/reproducibility.md are applied and counted. Prints the kills of each stage. Fails if
a process survives, or if dvc.lock, metrics/ or plots/ differ from those of the first run.
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


def remedy(clone: Clone, output: list[str]) -> str:
    """Applies the documented remedy if DVC does not start; returns its name. Raises `UserError` if none is known."""
    text = " ".join("".join(line for line in output if not line.startswith("WARNING")).split())[-500:]
    if "rwlock" in text.lower():
        stage.remove(clone.root / ".dvc/tmp/rwlock")
        return "rwlock removed"
    if "dvc.lock" in text:
        clone.git("checkout", "dvc.lock")
        return "dvc.lock restored from git"
    raise UserError(f"dvc repro failed: {text}")


def moments(seconds: dict[str, float], kills: int, seed: int) -> list[tuple[int, float]]:
    """Random moments of a run, in order, each as the number of a stage and the seconds since its start."""
    ends = np.cumsum(list(seconds.values()))
    times = np.sort(stream(seed, "torture").uniform(0, ends[-1], kills))
    stages = np.searchsorted(ends, times, side="right")
    return [
        (int(number), time - (ends[number - 1] if number else 0)) for number, time in zip(stages, times, strict=True)
    ]


def torture(clone: Clone, seconds: dict[str, float], kills: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """Kills `dvc repro` that many times, then lets it finish. Returns the number of kills by stage, and of remedies."""
    killed: Counter[str] = Counter()
    remedies: Counter[str] = Counter()
    order = list(seconds)
    for number, second in [*moments(seconds, kills, seed), (len(order), 0.0)]:
        while True:
            repro = Repro(clone)
            # If that stage is faster this time, or had finished before the last kill, the next stage is killed instead.
            while repro.process.poll() is None and not repro.is_at(order, number, second):
                time.sleep(0.005)
            if repro.process.poll() is None:
                killed[repro.stop()] += 1
            elif repro.wait():
                remedies[remedy(clone, repro.output)] += 1
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
        first.apply(given.settings)
        first.remove_results()
        repro = Repro(first)
        if repro.wait():
            raise UserError(f"the first run failed: {' '.join(''.join(repro.output).split())[-500:]}")
        seconds = repro.seconds()
        first.commit()

        second = Clone(first.root, folder / "second")
        second.remove_results()
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
