"""Model folders: the threshold has the promised rate of false alarms; the card says what it must."""

import json
from pathlib import Path

from landmarks import release
from landmarks.artifacts import DIGITS

import numpy as np
import pytest
from conftest import abn, model_folder, user_error


@pytest.mark.parametrize("pictures", [19, 40, 155])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_false_alarm_rate_is_kept(pictures: int, rate: float) -> None:
    """Measured over many random draws of validation pictures and one new picture."""
    rng = np.random.default_rng(0)
    draws = rng.beta(4, 1, (4000, pictures + 1)).round(DIGITS)
    alarms = np.mean([row[-1] < release.threshold(row[:-1], rate) for row in draws])
    assert alarms <= rate + 0.01
    assert alarms >= rate - 1 / (pictures + 1) - 0.01, "not stricter than it must be"


@pytest.mark.parametrize(("pictures", "rate"), [(18, 0.05), (1000, 0.0), (1, 0.4)])
def test_with_too_few_pictures_there_is_no_alarm(pictures: int, rate: float) -> None:
    assert release.threshold(np.full(pictures, 0.5), rate) == 0


def test_the_threshold_is_the_jth_smallest() -> None:
    assert release.threshold(np.arange(1, 20)[::-1] / 20, 0.05) == 0.05
    assert release.threshold(np.arange(1, 20) / 20, 0.1) == 0.1
    assert release.threshold(np.arange(1, 11) / 10, 0.999999999999) == 1, "the largest, for almost any rate"


def test_the_threshold_is_evaluated_on_test_pictures() -> None:
    found = release.calibrate_rejection(np.linspace(0.3, 1, 39), np.array([0.1, 0.2, 0.9, 1.0]), 0.05)
    assert found["validation"] == {"pictures": 39, "alarms": 1}
    assert found["test"]["pictures"] == 4 and found["test"]["alarms"] == 2
    low, high = found["test"]["rate_ci95"]
    assert 0 < low < 0.5 < high < 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_no_model_folder(tmp_path: Path, content: str) -> None:
    with user_error(r"release\.json: missing or broken"):
        release.read(tmp_path)
    (tmp_path / "release.json").write_text(content, encoding="utf-8")
    with user_error(r"release\.json: missing or broken"):
        release.read(tmp_path)


def test_another_format(tmp_path: Path) -> None:
    (tmp_path / "release.json").write_text(json.dumps({"format": 99}), encoding="utf-8")
    with user_error("format 99, this code reads 3"):
        release.read(tmp_path)


def test_a_missing_key(tmp_path: Path) -> None:
    content = json.loads((model_folder(tmp_path / "m") / "release.json").read_text(encoding="utf-8"))
    del content["results"]
    (tmp_path / "m/release.json").write_text(json.dumps(content), encoding="utf-8")
    with user_error(r"release\.json: lacks results; copy the folder again"):
        release.read(tmp_path / "m")


@pytest.mark.parametrize("source", ["sample", "gldv2"])
@pytest.mark.parametrize("block", [None, abn()], ids=["baseline", "abn"])
def test_the_model_card(tmp_path: Path, source: str, block: object) -> None:
    card = (model_folder(tmp_path / "m", block, source) / "README.md").read_text(encoding="utf-8")
    assert ("ynthetic" in card) is (source == "sample")
    assert ("alpha 0.25" in card) is (block is not None)
    assert "40.00 % to 60.00 %" in card and "at most 5.00 %" in card and "None of" in card
    assert max(map(len, card.splitlines())) <= 120 and "stayed on one side" in " ".join(card.split())
    assert ("# m\n\nVGG-16's classifier" in card) is (block is None)
    content = release.read(tmp_path / "m")
    content["params"]["train"]["hidden"] = 0
    linear = release.card(content, 3, {"train": 30, "val": 40, "test": 40}, together=False)
    assert ("# m\n\nA linear classifier" in linear) is (block is None)
    assert "may be on both sides" in " ".join(linear.split())
