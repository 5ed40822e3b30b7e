"""README and docs: short, without broken links, and true for this repository."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path

from landmarks import images, report
from landmarks.serving.cli import VERSION

import pytest
import yaml
from conftest import ROOT

README = ROOT / "README.md"
PAGES = [
    README,
    *(page for folder in ("docs", "benchmarks", "metrics") for page in sorted((ROOT / folder).glob("*.md"))),
]
MAX_WORDS, MAX_LINES = 900, 150


@cache
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text(page), flags=re.MULTILINE | re.DOTALL)


@cache
def code(page: Path) -> str:
    """The code blocks and code spans of a page."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", prose(page))])


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number, free = 0, slug
        while free in found:
            number += 1
            free = f"{slug}-{number}"
        found.add(free)
    return found


def links(page: Path) -> list[str]:
    """The targets of the links and images of a page."""
    markdown = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return markdown + re.findall(r"""(?:src|href)=["']([^"']+)["']""", prose(page))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"https?://", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_readme_is_short() -> None:
    assert len(text(README).split()) <= MAX_WORDS and len(text(README).splitlines()) <= MAX_LINES


def test_the_readme_links_every_page() -> None:
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(links(README))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w./-]+):", text(ROOT / "Makefile"), re.MULTILINE))
    assert set(re.findall(r"^make ([\w./-]+)", code(page), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_module_that_is_run_exists(page: Path) -> None:
    modules = set(re.findall(r"\bpython -m ((?:benchmarks|landmarks|stages|studies|tools)[\w.]*)", code(page)))
    files = [ROOT / module.replace(".", "/") for module in modules]
    assert [file for file in files if not file.with_suffix(".py").is_file() and not file.is_dir()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    pattern = r"\b((?:benchmarks|docs|landmarks|metrics|plots|stages|studies|tests|tools)/[\w./-]*+)(?!\*)"
    named = {path for path in re.findall(pattern, code(page)) if "NAME" not in path}
    ignored = subprocess.run(
        ["git", "check-ignore", "--stdin"],
        cwd=ROOT,
        input="\n".join(named),
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    assert [path for path in named if path not in ignored and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_parameter_that_is_set_exists(page: Path) -> None:
    values = yaml.safe_load(text(ROOT / "params.yaml"))
    for block, key in re.findall(r"-S (\w+)\.([\w-]+)=", code(page)):
        assert key in values[block]


def test_every_parameter_is_in_the_table_of_what_runs_again() -> None:
    values = yaml.safe_load(text(ROOT / "params.yaml"))
    section = text(ROOT / "docs/architecture.md").split("## What a changed parameter runs again\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE))
    assert set(values) == set(rows)
    for block, value in values.items():
        if isinstance(value, dict) and block != "ablations":
            assert re.findall(r"`(\w+)`", rows[block]) == list(value)


def test_the_readme_has_the_results_of_the_last_run() -> None:
    results = json.loads(text(ROOT / "metrics/results.json"))
    rows = re.findall(r"^\| `([\w-]+)`.*?\| ([\d.]+) % \| ([\d.]+) to ([\d.]+) \| (.*?)\|$", text(README), re.MULTILINE)
    assert [row[0] for row in rows] == [model for model in results if model != "majority_class"]
    for model, accuracy, low, high, difference in rows:
        test = results[model]["test"]
        expected = [test["accuracy"], *test["accuracy_ci95"]]
        assert [accuracy, low, high] == [f"{100 * value:.2f}" for value in expected]
        assert difference.strip() == ("" if model == "baseline" else f"{100 * test['above_baseline']:+.2f}")


def test_the_readme_has_the_published_numbers() -> None:
    shown = re.findall(r"^\| \*published: .*?\| ([\d.]+) % \| \| ([+-][\d.]+)? *\|$", text(README), re.MULTILINE)
    baseline = report.STUDY[0][2]
    differences = ["", *(f"{test - baseline:+.2f}" for _, _, test in report.STUDY[1:])]
    assert shown == [
        (f"{test:.2f}", difference) for (_, _, test), difference in zip(report.STUDY, differences, strict=True)
    ]


def test_the_claims_hold_for_the_last_run() -> None:
    """The study's loss ruins the accuracy, attention does not cost accuracy, and its map finds the landmark."""
    results = json.loads(text(ROOT / "metrics/results.json"))
    accuracy = {model: results[model]["test"]["accuracy"] for model in ("baseline", "abn", "study")}
    assert accuracy["study"] <= accuracy["baseline"] - 0.15 and accuracy["abn"] >= accuracy["baseline"]
    assert results["study"]["test"]["above_baseline_ci95"][1] < 0
    attention = results["abn"]["test"]["attention"]
    assert min(attention["energy"]["map"], attention["pointing"]["map"]) > attention["area"]
    assert attention["deletion"]["map"] < attention["deletion"]["centre"] < attention["deletion"]["random"]
    assert attention["insertion"]["map"] > attention["insertion"]["centre"] > attention["insertion"]["random"]


def test_the_accepted_formats_are_documented() -> None:
    listed = re.search(r"Accepted formats are (.+?)\.", text(ROOT / "docs/own-pictures.md"), re.DOTALL)[1]
    assert set(re.findall(r"\w+", listed.upper())) - {"AND"} == {*images.FORMATS, "HEIC"} - {"HEIF"}


def test_citation_and_changelog_have_the_version_of_the_package() -> None:
    assert yaml.safe_load(text(ROOT / "CITATION.cff"))["version"] == VERSION
    assert f"\n## [{VERSION}] - " in text(ROOT / "CHANGELOG.md")
