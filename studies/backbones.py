"""Backbones x levels x tail, with and without attention: the tables of docs/backbones.md.

    .venv/bin/python -m studies.backbones HEADING [-S KEY=VALUE ...] [--only TEXT]

Runs the pipeline of HEAD, without ablations, for each row of `ROWS` in one clone, and writes or replaces the section
HEADING of docs/backbones.md after each, so that a run that is stopped leaves what it has. `--only` takes the rows
whose name has that text in it, and leaves the others as they are.
"""

import argparse
import json
import re
import shlex
import shutil
import time
from pathlib import Path

from benchmarks.speed import table
from landmarks import artifacts, metrics, stage
from landmarks.determinism import stream
from landmarks.stage import UserError
from studies.document import origin, with_section
from tools.clone import Clone, Repro, pair, temporary_folder

import numpy as np
import pandas as pd

OUT = Path("docs/backbones.md")
VGG, LITE0 = ("vgg16", "hed-bsds500"), ("tf_efficientnet_lite0", "efficientnet-lite0")
ROWS = (
    *((*VGG, layer, "none") for layer in ("conv3", "conv4", "conv5")),
    (*VGG, "conv4", "trained"),
    *((*LITE0, layer, "none") for layer in ("level3", "level4", "last")),
    *((*LITE0, layer, "trained") for layer in ("level3", "level4")),
)
KEYS = ("name", "weights", "layer", "tail")
INTERVAL = "95 % interval"
# The tables of a section: after the first column, those of all tables are the cells of a row.
TABLES = {
    "Accuracy": ["backbone", "baseline", INTERVAL, "abn", INTERVAL, "abn above baseline", INTERVAL],
    "What the trained tail adds": ["backbone", "to the baseline", INTERVAL, "to abn", INTERVAL],
    "Branches and attention map of abn": [
        *("backbone", "perception branch", "attention branch", "energy", "deletion", "insertion")
    ],
    "Cost": ["backbone", "views/s", "baseline, s", "abn, s", "MB"],
}


def title(row: tuple[str, ...]) -> str:
    name, _, layer, tail = row
    return f"{name} {layer}{', trained tail' if tail == 'trained' else ''}"


def percent(*values: float | None) -> str:
    return " to ".join("" if value is None else f"{100 * value:.2f}" for value in values)


def right(predictions: pd.DataFrame) -> dict[str, np.ndarray]:
    """By model, whether each test picture is named rightly: 1 or 0, in one order for all backbones."""
    test = predictions[predictions["split"] == "test"]
    return {name: (rows["label"] == rows["predicted"]).to_numpy(int) for name, rows in test.groupby("model")}


def gained(trained: dict[str, np.ndarray], none: dict[str, np.ndarray] | None) -> list[str]:
    """What a trained tail adds to the baseline and to abn, each with its interval; empty if nothing was run without."""
    if none is None:
        return [""] * 4
    texts = []
    for name in ("baseline", "abn"):
        found = metrics.difference(trained[name], none[name], stream(0, "bootstrap"))
        texts += [percent(found["above_baseline"]), percent(*found["above_baseline_ci95"])]
    return texts


def cells(results: dict, tail: list[str], seconds: dict[str, float], views: int, megabytes: float) -> list[str]:
    """What a row says: of results.json, what the tail adds, how long each stage took, and the model folder's size."""
    baseline, abn = (results[name]["test"] for name in ("baseline", "abn"))
    attention = abn["attention"]
    accuracy = [percent(*value) for model in (baseline, abn) for value in ([model["accuracy"]], model["accuracy_ci95"])]
    above = [percent(abn["above_baseline"]), percent(*abn["above_baseline_ci95"])]
    parts = [abn["perception_accuracy"], abn["attention_accuracy"], attention["energy"]]
    parts += [attention[kind]["map"] for kind in ("deletion", "insertion")]
    times = [f"{seconds[name]:.0f}" for name in ("train-baseline", "train-abn")]
    speed = f"{views / seconds['extract-features']:.1f}"
    return [*accuracy, *above, *tail, *map(percent, parts), speed, *times, f"{megabytes:.0f}"]


def run(
    clone: Clone, row: tuple[str, ...], none: dict[str, np.ndarray] | None
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Runs the pipeline in the clone with a row's backbone; returns its cells and what it names rightly. `none` is what
    the row without a trained tail names rightly, to compare with. Raises `UserError` if it fails."""
    for key, value in zip(KEYS, row, strict=True):
        clone.set(f"backbone.{key}", value)
    for made in ("data/features", "models", "metrics"):  # or DVC would not make them again, and be quicker
        stage.remove(clone.root / made)
    shutil.rmtree(clone.root / ".dvc/cache/runs", ignore_errors=True)
    repro = Repro(clone)
    if repro.wait():
        raise UserError(f"{title(row)}: {' '.join(''.join(repro.output).split())[-500:]}")
    results = json.loads((clone.root / artifacts.RESULTS).read_text(encoding="utf-8"))
    views = len(pd.read_parquet(clone.root / artifacts.VIEWS))
    size = sum(path.stat().st_size for path in (clone.root / artifacts.RELEASED / "abn").iterdir() if path.is_file())
    named = right(pd.read_parquet(clone.root / artifacts.PREDICTIONS))
    return cells(results, gained(named, none), repro.seconds(), views, size / 1e6), named


def read_rows(section: str) -> dict[str, list[str]]:
    """The cells of each row of a section, as `cells` returns them; empty in tables that do not have the row."""
    _, *parts = re.split(r"^### (.+)\n", section, flags=re.MULTILINE)
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))
    rows: dict[str, list[str]] = {title(row): [] for row in ROWS}
    for caption, columns in TABLES.items():
        lines = [line for line in bodies.get(caption, "").splitlines() if line.startswith("| ")]
        found = {name.strip(): values for name, *values in (line.strip("|").split("|") for line in lines)}
        for name, values in rows.items():
            values += [value.strip() for value in found.get(name, [""] * (len(columns) - 1))]
    return {name: values for name, values in rows.items() if any(values)}


def tables(rows: dict[str, list[str]]) -> str:
    """The tables of a section, in the order of `ROWS`; a table has only rows with a value in it."""
    text, start = [], 0
    for caption, columns in TABLES.items():
        end = start + len(columns) - 1
        body = [[name, *rows[name][start:end]] for name in map(title, ROWS) if any(rows.get(name, [])[start:end])]
        if body:
            text.append(f"### {caption}\n\n{table(columns, body)}\n")
        start = end
    return "\n".join(text)


def with_rows(text: str, heading: str, origin: str, rows: dict[str, list[str]]) -> str:
    """The page with these rows in the section `heading`; its other rows and the rest of the page stay."""
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return with_section(text, heading, f"{origin}\n{tables(read_rows(section) | rows)}")


def main() -> str:
    parser = argparse.ArgumentParser(prog="backbones", description=__doc__.split("\n")[0])
    parser.add_argument("heading")
    parser.add_argument("--only", default="", help="rows whose name has this text in it")
    parser.add_argument("-S", dest="settings", action="append", default=[], type=pair, metavar="KEY=VALUE")
    given = parser.parse_args()
    wanted = [row for row in ROWS if given.only in title(row)]
    if not wanted:
        parser.error(f"--only {given.only}: no such row; there are {', '.join(map(title, ROWS))}")
    settings = [word for key, value in given.settings for word in ("-S", f"{key}={value}")]
    command = shlex.join(["python", "-m", "studies.backbones", given.heading, *settings])
    start = time.monotonic()
    done: dict[str, list[str]] = {}
    named: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
    with temporary_folder() as folder, stage.progress(len(wanted), "backbones") as bar:
        clone = Clone(Path.cwd(), folder)
        clone.set("ablations", {})
        clone.apply(given.settings)
        clone.remove_results()
        for row in wanted:
            done[title(row)], named[row] = run(clone, row, named.get((*row[:-1], "none")))
            text = with_rows(OUT.read_text(encoding="utf-8"), given.heading, origin(command, start, len(done)), done)
            OUT.write_text(text, encoding="utf-8")
            bar.update()
    return f"{len(done)} backbones, {OUT}"


if __name__ == "__main__":
    stage.run(main)
