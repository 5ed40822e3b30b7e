"""alpha x attention x layer, each by `dvc exp run`: the tables of docs/ablations.md.

    .venv/bin/python -m studies.ablations HEADING [-S KEY=VALUE ...]

Writes or replaces the section HEADING of docs/ablations.md and keeps the rest of the page. Settings after the heading
apply to all experiments. Needs a clean working tree and changes nothing in it but the page. The experiments stay:
`dvc exp show`, `dvc exp remove`.
"""

import csv
import io
import itertools
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.speed import table
from landmarks import stage
from studies.document import origin, with_section

OUT = Path("docs/ablations.md")
ELSEWHERE = (".", f":!{OUT}")
DVC = (sys.executable, "-m", "dvc")
ALPHAS, ATTENTIONS, LAYERS = (0.0, 0.25, 0.5, 1.0), ("residual", "multiply"), ("conv4", "conv5")
SETTINGS = {"backbone.layer": "layer", "abn.attention": "attention", "abn.alpha": "alpha"}
# The tables of a section: the metrics and their columns.
TABLES = {
    "Accuracy": {
        "baseline.test.accuracy": "baseline",
        "abn.test.accuracy": "abn",
        "abn.test.above_baseline": "abn above baseline",
        "abn.test.perception_accuracy": "perception branch",
        "abn.test.attention_accuracy": "attention branch",
    },
    "Attention map": {
        "abn.test.attention.energy": "energy",
        "abn.test.attention.deletion.map": "deletion",
        "abn.test.attention.insertion.map": "insertion",
    },
}


def run(*command: str, capture: bool = False) -> str:
    """Runs a command and returns what it prints, if that is asked for. Raises `UserError` when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True, check=False)
    if done.returncode:
        raise stage.UserError(f"{' '.join(command)}: exit status {done.returncode}; see above")
    return done.stdout or ""


def show(names: list[str]) -> list[dict[str, str]]:
    """The settings and metrics of the experiments called `names`, in that order, as `dvc exp show` gives them."""
    columns = ("Experiment", *SETTINGS, *itertools.chain.from_iterable(TABLES.values()))
    keep = "|".join(f"{re.escape(column)}$" for column in columns)
    text = run(*DVC, "exp", "show", "--csv", "--drop", ".*", "--keep", keep, capture=True)
    experiments = {row["Experiment"]: row for row in csv.DictReader(io.StringIO(text))}
    return [experiments[name] for name in names]


def tables(rows: list[dict[str, str]]) -> str:
    """The tables of a section, in percent. A metric that the first row lacks is left out: the energy needs masks."""
    text = []
    for caption, metrics in TABLES.items():
        shown = [metric for metric in metrics if rows[0].get(metric)]
        body = [
            [*(row[key] for key in SETTINGS), *(f"{100 * float(row[metric]):.2f}" for metric in shown)] for row in rows
        ]
        columns = [*SETTINGS.values(), *(metrics[metric] for metric in shown)]
        text.append(f"### {caption}\n\n{table(columns, body)}\n")
    return "\n".join(text)


def main() -> str:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise stage.UserError("HEADING is missing: python -m studies.ablations HEADING [-S KEY=VALUE ...]")
    heading, *settings = sys.argv[1:]
    command, start = shlex.join(["python", "-m", "studies.ablations", heading, *settings]), time.monotonic()
    if run("git", "status", "--porcelain", "--", *ELSEWHERE, capture=True):
        raise stage.UserError("the working tree has changes; commit or stash them, for experiments overwrite files")
    names, existing = [], run(*DVC, "exp", "list", "--name-only", capture=True).split()
    for layer, attention, alpha in itertools.product(LAYERS, ATTENTIONS, ALPHAS):
        names.append(f"{heading.lower().replace(' ', '-')}-{layer}-{attention}-alpha-{alpha:g}")
        values = {"backbone.layer": layer, "abn.attention": attention, "abn.alpha": alpha}
        changes = [part for key, value in values.items() for part in ("-S", f"{key}={value}")]
        if names[-1] in existing:
            run(*DVC, "exp", "remove", names[-1])
        run(*DVC, "exp", "run", "--name", names[-1], *settings, *changes)
    text = f"{origin(command, start, len(names))}\n{tables(show(names))}"
    run("git", "checkout", "--quiet", "--", *ELSEWHERE)
    run(*DVC, "checkout", "--quiet")
    OUT.write_text(with_section(OUT.read_text(encoding="utf-8"), heading, text), encoding="utf-8")
    return f"{len(names)} experiments, {OUT}"


if __name__ == "__main__":
    stage.run(main)
