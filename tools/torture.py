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
from landmarks.serving import cli
from landmarks.stage import UserError
from tools.clone import Clone, Repro, pair, temporary_folder

import numpy as np
import pandas as pd


def remedy(clone: Clone, text: str) -> str:
    """Applies the documented remedy if DVC does not start; returns its name. Raises `UserError` if none is known."""
    if "rwlock" in text.lower():
        stage.remove(clone.root / ".dvc/tmp/rwlock")
        return "rwlock removed"
    if "dvc.lock" in text:
        clone.git("checkout", "dvc.lock")
        return "dvc.lock restored from git"
    raise UserError(f"dvc repro failed: {text}")


def moments(seconds: dict[str, float], kills: int, seed: int) -> list[tuple[int, float]]:
    """Random moments of a run, in order, each as the number of a stage and the seconds since its start."""
    starts = np.cumsum([0, *seconds.values()])
    times = np.sort(stream(seed, "torture").uniform(0, starts[-1], kills))
    stages = np.searchsorted(starts, times, side="right") - 1
    return list(zip(stages.tolist(), times - starts[stages], strict=True))


def torture(clone: Clone, seconds: dict[str, float], kills: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """Kills `dvc repro` that many times, then lets it finish. Returns the number of kills by stage, and of remedies."""
    killed: Counter[str] = Counter()
    remedies: Counter[str] = Counter()
    order = list(seconds)
    for number, second in [*moments(seconds, kills, seed), (len(order), 0.0)]:
        while True:
            with Repro(clone) as repro:
                # If that stage is faster this time, or had finished before the last kill, the next one is killed.
                while repro.process.poll() is None and not repro.is_at(order, number, second):
                    time.sleep(0.005)
                if repro.process.poll() is None:
                    killed[repro.stop()] += 1
                elif repro.wait():
                    if len(repro.begun) > 1:  # a stage failed, not DVC
                        repro.finish()
                    remedies[remedy(clone, repro.text())] += 1
                    continue
            break
    return killed, remedies


def main() -> str:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=cli.number(1), default=50)
    parser.add_argument("--seed", type=cli.number(0), default=0)
    parser.add_argument("-S", dest="settings", action="append", default=[], type=pair, metavar="KEY=VALUE")
    given = parser.parse_args()
    with temporary_folder() as folder:
        first = Clone(Path.cwd(), folder / "first")
        first.apply(given.settings)
        first.remove_results()
        with Repro(first) as repro:
            repro.finish()
        seconds = repro.seconds()
        first.commit()

        second = Clone(first.root, folder / "second")
        second.remove_results()
        killed, remedies = torture(second, seconds, given.kills, given.seed)
        kills = {name: killed[name] for name in seconds}
        print(pd.DataFrame({"seconds": seconds, "kills": kills}).to_markdown(floatfmt=".1f"))
        second.check_differences()
    remedied = ", ".join(f"{number} x {text}" for text, number in sorted(remedies.items())) or "none"
    return f"{sum(killed.values())} kills, the same dvc.lock; remedies: {remedied}"


if __name__ == "__main__":
    stage.run(main)
