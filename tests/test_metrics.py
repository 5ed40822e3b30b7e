"""Metrics, against numbers worked out by hand."""

import json

from landmarks import metrics

import numpy as np
import pytest

# Five pictures, three classes: right, right, wrong, wrong, right, with confidences .9, .6, .8, .5, .4.
PROBABILITIES = np.array([[0.9, 0.1, 0.0], [0.3, 0.6, 0.1], [0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.3, 0.3, 0.4]])
LABELS = np.array([0, 1, 1, 2, 2])
CORRECT = np.array([True, True, False, False, True])
CONFIDENCE = PROBABILITIES.max(1)


def test_summary() -> None:
    found = metrics.summary(PROBABILITIES, LABELS, 10)
    low, high = found.pop("accuracy_ci95")
    assert found == {
        "accuracy": pytest.approx(3 / 5),
        "top5": 1,  # of three classes, every one is among the first five
        "macro_recall": pytest.approx((1 + 1 / 2 + 1 / 2) / 3),
        # By confidence: right, wrong, right, wrong, right. Precision at each right one, over all five pictures.
        "gap": pytest.approx((1 + 2 / 3 + 3 / 5) / 5),
        # Each picture has a bin of its own: |1 - .9|, |0 - .8|, |1 - .6|, |0 - .5|, |1 - .4|.
        "ece": pytest.approx((0.1 + 0.8 + 0.4 + 0.5 + 0.6) / 5),
    }
    # Wilson: (p + z2/2n +- z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n)
    z, n, p = 1.959964, 5, 0.6
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    middle = p + z * z / (2 * n)
    assert [low, high] == pytest.approx([(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)], abs=1e-6)


def test_top5_is_of_five() -> None:
    probabilities = np.tile([0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05], (7, 1))
    assert metrics.summary(probabilities, np.arange(7), 10)["top5"] == pytest.approx(5 / 7)


def test_two_classes_are_enough() -> None:
    found = metrics.summary(np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]), np.array([0, 1, 1]), 10)
    assert found["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("correct", "expected"),
    [([1, 1, 1], 1.0), ([0, 0, 0], 0.0), ([1, 0, 0], 1 / 3), ([0, 0, 1], 1 / 9), ([0, 1, 1], (1 / 2 + 2 / 3) / 3)],
)
def test_gap(correct: list[int], expected: float) -> None:
    """Pictures in the order of their confidence."""
    shuffled = [2, 0, 1]
    confidence, right = np.array([0.9, 0.8, 0.7])[shuffled], np.array(correct, dtype=bool)[shuffled]
    assert metrics.gap(confidence, right) == pytest.approx(expected)


def test_calibration_bins() -> None:
    confidence = np.array([0.95, 1.0, 0.55, 0.5, 0.0])
    correct = np.array([True, False, True, True, False])
    ece, rows = metrics.calibration(confidence, correct, 10)
    assert rows == pytest.approx(np.array([[0.0, 0.0, 1], [0.525, 1.0, 2], [0.975, 0.5, 2]]))
    assert ece == pytest.approx((0 + 2 * 0.475 + 2 * 0.475) / 5)


def test_one_bin_compares_the_means() -> None:
    ece, rows = metrics.calibration(CONFIDENCE, CORRECT, 1)
    assert rows.shape == (1, 3)
    assert ece == pytest.approx(abs(CONFIDENCE.mean() - 0.6))


MASK = np.array([[1.0, 0.8], [0.4, 0.0]])  # the upper cells are the landmark's


@pytest.mark.parametrize(
    ("heed", "expected"),
    [
        ([[0.9, 0.8], [0.2, 0.1]], 1.0),
        ([[0.1, 0.2], [0.8, 0.9]], 0.0),
        ([[0.5, 0.5], [0.5, 0.5]], 0.5),
        ([[0.9, 0.1], [0.5, 0.0]], 3 / 4),
    ],
)
def test_attention_auc_of_a_picture(heed: list, expected: float) -> None:
    assert metrics.attention_auc(np.array([heed]), MASK[None]) == pytest.approx(expected)


def test_attention_auc_leaves_out_pictures_that_say_nothing() -> None:
    good, bad = np.array([[0.9, 0.8], [0.2, 0.1]]), np.array([[0.1, 0.2], [0.8, 0.9]])
    full, empty, unknown = np.ones((2, 2)), np.zeros((2, 2)), np.full((2, 2), np.nan)
    maps = np.stack([good, bad, bad, bad])
    assert metrics.attention_auc(maps, np.stack([MASK, full, empty, unknown])) == pytest.approx(1.0)
    assert metrics.attention_auc(np.stack([good, bad]), np.stack([MASK, MASK])) == pytest.approx(0.5)
    assert metrics.attention_auc(maps[:1], unknown[None]) is None


def test_rounded_is_plain_json() -> None:
    value = {"a": np.float32(1 / 3), "b": [np.int64(1), 2 / 3], "c": None, "d": {"e": np.float64(0.1)}}
    assert json.loads(json.dumps(metrics.rounded(value))) == {
        "a": 0.333333,
        "b": [1.0, 0.666667],
        "c": None,
        "d": {"e": 0.1},
    }


def entry(accuracy: float, attention: float | None) -> dict:
    """An entry of results.json."""
    names = ("top5", "macro_recall", "gap", "ece", "perception_accuracy")
    numbers = {name: 0.5 for name in names} | {"attention_accuracy": attention, "attention_auc": attention}
    return {"accuracy": accuracy, "accuracy_ci95": [0.1, 0.9], **numbers}


RESULTS = {
    "majority_class": 0.1234,
    "baseline": {"val": entry(0.7111, None), "test": entry(0.7222, None)},
    "my-ablation": {"val": entry(0.8111, 0.6333), "test": entry(0.8222, 0.6333)},
}


def test_the_table_has_a_row_per_model_and_the_studys_numbers() -> None:
    lines = metrics.table(RESULTS, "sample").splitlines()
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines[2:]}
    assert rows["baseline"][:3] == ["71.11", "72.22", "10.00 to 90.00"] and rows["baseline"][-2:] == ["", ""]
    assert rows["my-ablation"][:2] == ["81.11", "82.22"] and rows["my-ablation"][-1] == "63.33"
    published = {name: cells[:2] for name, cells in rows.items() if "study" in name}
    assert list(published.values()) == [["87.93", "87.97"], ["30.54", "27.66"], ["32.71", "32.58"]]
    assert len({len(cells) for cells in rows.values()}) == 1, "all rows have the columns of the head"
    assert "majority_class" not in rows and "12.34" in lines[0]


@pytest.mark.parametrize(("source", "synthetic"), [("sample", True), ("gldv2", False)])
def test_the_table_says_whether_the_pictures_are_synthetic(source: str, synthetic: bool) -> None:
    first = metrics.table(RESULTS, source).splitlines()[0]
    assert ("synthetic" in first) is synthetic and source in first
