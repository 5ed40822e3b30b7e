"""Runs the pipeline of HEAD once for each row of a study, in one clone, and writes a section of the study's page.

    .venv/bin/python -m studies.STUDY HEADING [-S KEY=VALUE ...] [--only TEXT]

The section HEADING is written after each run, so a study that is stopped leaves what it has. `-S` applies to all rows.
`--only` limits the section to the rows whose name contains TEXT.
"""

import argparse
import re
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.speed import machine, table
from landmarks import artifacts, stage
from landmarks.report import percent
from tools.clone import Clone, Repro, pair, temporary_folder

import torch

Name = tuple[str, ...]  # one cell for each column of `Study.key`
Rows = dict[Name, list[str]]  # the other cells of a row, those of all tables in order


class Study(NamedTuple):
    """Which experiments to run, and the tables of their results."""

    page: Path
    key: Name  # the columns that name a row
    tables: dict[str, list[str]]  # the further columns of each table, by caption
    rows: dict[Name, dict[str, object]]  # the parameters of each row
    measure: Callable[[Name, dict, Clone, Repro], list[str]]  # the cells of a row; gets results.json
    timed: bool = False  # without the run cache: a stage runs again unless the row before has the same settings


def with_section(text: str, heading: str, body: str) -> str:
    """The document with the section `heading` replaced or added at its end."""
    start, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    named = dict(section.split("\n", 1) for section in sections) | {heading: f"\n{body}\n"}
    return "\n\n".join([start.strip(), *(f"## {name}\n\n{content.strip()}" for name, content in named.items())]) + "\n"


def origin(command: str, start: float, rows: int) -> str:
    """How the `rows` of a section were made by a command that began at `start` (of `time.monotonic`)."""
    minutes = (time.monotonic() - start) / 60
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"- Command: `{command}`\n- Hardware: {machine(gpu)}\n- Duration: {minutes:.0f} minutes for {rows} rows\n"


def attention(abn: dict) -> list[str]:
    """The test accuracy of both branches and the energy, deletion and insertion of the map, in percent."""
    measured = abn["attention"]
    values = [abn["perception_accuracy"], abn["attention_accuracy"], measured["energy"]["map"]]
    return list(map(percent, [*values, measured["deletion"]["map"], measured["insertion"]["map"]]))


def write_tables(study: Study, rows: Rows) -> str:
    """The tables of a section, in the order of the study; a table has only rows with a value in it."""
    text, start = [], 0
    for caption, columns in study.tables.items():
        end = start + len(columns)
        body = [[*name, *rows[name][start:end]] for name in study.rows if any(rows.get(name, [])[start:end])]
        if body:
            text.append(f"### {caption}\n\n{table([*study.key, *columns], body)}\n")
        start = end
    return "\n".join(text)


def run(study: Study, name: Name, clone: Clone) -> list[str]:
    """The cells of one row, whose settings hold for no other row. Raises `UserError` if the pipeline fails."""
    params = clone.root / "params.yaml"
    before = params.read_text(encoding="utf-8")
    for key, value in study.rows[name].items():
        clone.set(key, value)
    if study.timed:
        shutil.rmtree(clone.root / ".dvc/cache/runs", ignore_errors=True)
    with Repro(clone) as repro:
        repro.finish()
    results = artifacts.read_results(clone.root)
    cells = study.measure(name, results, clone, repro)
    params.write_text(before, encoding="utf-8")
    return cells


def main(study: Study) -> str:
    parser = argparse.ArgumentParser(prog=study.page.stem)
    parser.add_argument("heading")
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("-S", dest="settings", action="append", default=[], type=pair, metavar="KEY=VALUE")
    given = parser.parse_args()
    wanted = [name for name in study.rows if given.only in " ".join(name)]
    if not wanted:
        parser.error(f"--only {given.only}: no such row; there are {'; '.join(map(' '.join, study.rows))}")
    settings = [word for key, value in given.settings for word in ("-S", f"{key}={value}")]
    only = ["--only", given.only] if given.only else []
    command = shlex.join(["python", "-m", f"studies.{study.page.stem}", given.heading, *settings, *only])
    start, done = time.monotonic(), Rows()
    with temporary_folder() as folder, stage.progress(len(wanted), study.page.stem) as bar:
        clone = Clone(Path.cwd(), folder)
        clone.set("ablations", {})
        clone.apply(given.settings)
        clone.remove_results()
        for name in wanted:
            done[name] = run(study, name, clone)
            page, body = study.page.read_text(encoding="utf-8"), f"{origin(command, start, len(done))}\n"
            text = with_section(page, given.heading, body + write_tables(study, done))
            with stage.atomic_output(study.page) as part:
                part.write_text(text, encoding="utf-8")
            bar.update()
    return f"{len(done)} rows, {study.page}"
