"""alpha x attention x layer, each by `dvc exp run`, in one table of `dvc exp show`: docs/ablations.md.

    .venv/bin/python -m studies.ablations HEADING [-S KEY=VALUE ...]

Writes or replaces the section HEADING of docs/ablations.md; settings after it hold for all its experiments. Wants a
clean working tree, and leaves it so but for the table. The experiments stay: `dvc exp show`, `dvc exp remove`.
"""

import itertools
import re
import subprocess
import sys
from pathlib import Path

from landmarks import stage

OUT = Path("docs/ablations.md")
INTRODUCTION = """# Ablations

Made by `make ablations`: `abn` with every alpha, attention and layer; means over test pictures, 0 to 1. `baseline` is
the same classifier without attention; `perception` and `attention` are the branches alone; `energy` is the share of the
map on the landmark, where it is known; deletion is better when small, insertion when large.
"""
ELSEWHERE = (".", f":!{OUT}")
DVC = (sys.executable, "-m", "dvc")
ALPHAS, ATTENTIONS, LAYERS = (0.0, 0.25, 0.5, 1.0), ("residual", "multiply"), ("conv4", "conv5")
COLUMNS = {
    **{key: key for key in ("abn.alpha", "abn.attention", "backbone.layer")},
    "baseline.test.accuracy": "baseline",
    "abn.test.accuracy": "abn",
    "abn.test.above_baseline": "above baseline",
    "abn.test.perception_accuracy": "perception",
    "abn.test.attention_accuracy": "attention",
    "abn.test.attention.energy": "energy",
    "abn.test.attention.deletion.map": "deletion",
    "abn.test.attention.insertion.map": "insertion",
}


def run(*command: str, capture: bool = False) -> str:
    """Runs a command and returns what it prints, if that is asked for. Raises `UserError` when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True, check=False)
    if done.returncode:
        raise stage.UserError(f"{' '.join(command)}: exit status {done.returncode}; see above")
    return done.stdout or ""


def table(names: list[str]) -> str:
    """The rows of `dvc exp show` for the experiments called `names`, in that order, as a Markdown table."""
    keep = "|".join(f"{re.escape(column)}$" for column in ("Experiment", *COLUMNS))
    show = (*DVC, "exp", "show", "--md", "--no-pager", "--hide-workspace", "--precision", "4")
    lines = run(*show, "--drop", ".*", "--keep", keep, capture=True).strip().splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    by_name = {match[1]: row for row in rows if (match := re.search(r"\[(.+)\]", row[0]))}
    shown = [column for column in COLUMNS if column in head]  # not a metric that nobody has, such as energy
    cells = [[COLUMNS[column] for column in shown], ["---"] * len(shown)]
    cells += [[by_name[name][head.index(column)] for column in shown] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def with_section(text: str, heading: str, body: str) -> str:
    """The document with the section `heading` replaced or added at its end."""
    start, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    named = dict(section.split("\n", 1) for section in sections) | {heading: f"\n{body}\n"}
    return "\n\n".join([start.strip(), *(f"## {name}\n\n{content.strip()}" for name, content in named.items())]) + "\n"


def main() -> str:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise stage.UserError("HEADING is missing: python -m studies.ablations HEADING [-S KEY=VALUE ...]")
    heading, *settings = sys.argv[1:]
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
    rows = table(names)
    run("git", "checkout", "--quiet", "--", *ELSEWHERE)
    run(*DVC, "checkout", "--quiet")
    OUT.parent.mkdir(exist_ok=True)
    text = OUT.read_text(encoding="utf-8") if OUT.exists() else INTRODUCTION
    command = f"`python -m studies.ablations {' '.join(sys.argv[1:])}`"
    OUT.write_text(with_section(text, heading, f"{command}\n\n{rows}"), encoding="utf-8")
    return f"{len(names)} experiments, {OUT}"


if __name__ == "__main__":
    stage.run(main)
