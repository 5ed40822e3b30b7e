"""The README tells the truth: its numbers, files and parameters are those of the repository."""

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
