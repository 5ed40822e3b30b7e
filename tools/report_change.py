"""What a change does to the results, as Markdown for a pull request.

    .venv/bin/python -m tools.report_change [REVISION] [--curves FILE] [--url URL]

Prints the parameters and test metrics that differ from REVISION (default: main). Draws the training curves of changed
models, at REVISION and now, into FILE (default: dvc_plots/curves.png), and prints a link to it: URL, if given.
"""

import argparse
import io
import json
import re
import subprocess
import sys
from pathlib import Path

from landmarks import artifacts, stage
from landmarks.stage import UserError
from landmarks.stage.errors import explain

import pandas as pd

CURVES = artifacts.PLOTS / "training.csv"
NOTE = "Metrics of the test split; `dvc metrics diff` shows the others and those of attention maps."


def output(*command: str) -> str:
    """What a command prints. Raises `UserError` if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or "failed to load" in done.stderr:  # for a broken file, DVC only warns
        raise UserError(f"{' '.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout


def table(title: str, differences: dict[str, dict]) -> list[str]:
    """The lines of a Markdown table of differences, which have `old`, `new` and, if these are numbers, `diff`."""

    def cell(value: object, sign: str = "") -> str:
        if isinstance(value, int | float):
            return f"{value:{sign}{'g' if isinstance(value, float) else ''}}"
        return "" if value is None else str(value).replace("|", "\\|")

    rows = [
        f"| {name} | {cell(entry.get('old'))} | {cell(entry.get('new'))} | {cell(entry.get('diff'), '+')} |"
        for name, entry in sorted(differences.items())
    ]
    return [f"| {title} | before | now | change |", "|---|---:|---:|---:|", *rows, ""] if rows else []


def test_metrics(differences: dict[str, dict]) -> dict[str, dict]:
    """The differences of each model's metrics on the test split, by `MODEL METRIC`; not of intervals and maps.

    A model that is new has no `old` values, and one that was removed no `new` ones.
    """
    found = {}
    for key, entry in differences.items():
        value = entry["old"] if entry["new"] is None else entry["new"]
        match = re.fullmatch(r"(.+)\.test\.([^.]+)", key)
        if match and isinstance(value, int | float):
            found[f"{match[1]} {match[2]}"] = entry
    return found


def changed_curves(before: pd.DataFrame, now: pd.DataFrame, revision: str) -> pd.DataFrame:
    """The training curves of each model whose curves differ: `MODEL (REVISION)` has the old ones, MODEL the new."""
    both = {name: [table[table["model"] == name] for table in (before, now)] for name in now["model"].unique()}
    pairs = [
        table
        for name, (old, new) in both.items()
        if not old.reset_index(drop=True).equals(new.reset_index(drop=True))
        for table in (old.assign(model=f"{name} ({revision})"), new)
    ]
    return pd.concat(pairs) if pairs else now.iloc[:0]


def main() -> str:
    parser = argparse.ArgumentParser(prog="report_change")
    parser.add_argument("revision", nargs="?", default="main")
    parser.add_argument("--curves", type=Path, default=Path("dvc_plots/curves.png"), metavar="FILE")
    parser.add_argument("--url", help="the address of FILE, for the link")
    args = parser.parse_args()
    resolve = ("git", "rev-parse", "--verify", f"{args.revision}^{{commit}}")
    if subprocess.run(resolve, capture_output=True, check=False).returncode:
        raise UserError(f"{args.revision}: git knows no such revision; fetch it, or name another")
    dvc = (sys.executable, "-m", "dvc")
    found = {kind: json.loads(output(*dvc, kind, "diff", "--json", args.revision)) for kind in ("params", "metrics")}
    params = found["params"].get("params.yaml", {})
    metrics = test_metrics(found["metrics"].get(artifacts.RESULTS.as_posix(), {}))
    lines = [f"## Results, compared with {args.revision}", ""]
    lines += [*table("parameter", params), *table("metric", metrics)]
    lines += [NOTE if metrics else "No metric of the test split changed.", ""]
    before = pd.read_csv(io.StringIO(output("git", "show", f"{args.revision}:{CURVES.as_posix()}")))
    curves = changed_curves(before, pd.read_csv(CURVES), args.revision)
    if len(curves):
        from landmarks import figures

        with stage.atomic_output(args.curves) as part:
            figures.save(figures.training_curves(curves), part)
        lines.append(f"![Training curves of changed models]({args.url or args.curves.as_posix()})")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(main())
    except (UserError, OSError) as error:
        sys.exit(f"report-change: {explain(error)}")
