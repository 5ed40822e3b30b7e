"""The README tells the truth: its numbers, files and parameters are those of the repository."""

import json
import re
import subprocess

import pytest
import yaml
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_are_those_of_the_last_run() -> None:
    results = (ROOT / "metrics/results.md").read_text(encoding="utf-8")
    assert results.strip() in README


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:landmarks|stages|metrics|plots|tests)/[\w./-]*)`", README)))
)
def test_every_file_it_names_is_there(path: str) -> None:
    made = subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT, check=False).returncode == 0
    assert made or (ROOT / path).exists()


def test_every_picture_it_shows_is_there() -> None:
    shown = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert shown and all((ROOT / path).is_file() for path in shown)


def test_every_parameter_is_in_its_table() -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| (.*?) \|", README, re.MULTILINE)}
    assert set(values) == set(rows)
    for block, value in values.items():
        if isinstance(value, dict) and block != "ablations":
            assert re.findall(r"`(\w+)`", rows[block]) == list(value)


def test_its_claims_hold_for_the_last_run() -> None:
    """The study's recipe collapses, attention is worth having, and its map knows where the landmark is."""
    results = json.loads((ROOT / "metrics/results.json").read_text(encoding="utf-8"))
    accuracy = {name: results[name]["test"]["accuracy"] for name in ("baseline", "abn", "study")}
    assert accuracy["study"] <= accuracy["baseline"] - 0.15 and accuracy["abn"] >= accuracy["baseline"]
    assert results["study"]["test"]["above_baseline_ci95"][1] < 0
    seen = results["abn"]["test"]["attention"]
    assert min(seen["energy"], seen["pointing"]) > seen["area"]
    assert seen["deletion"]["map"] < seen["deletion"]["centre"] < seen["deletion"]["random"]
    assert seen["insertion"]["map"] > seen["insertion"]["centre"] > seen["insertion"]["random"]
