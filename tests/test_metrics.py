"""Metrics, compared with numbers calculated by hand."""

import json
import tracemalloc

from landmarks import metrics

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

# Five pictures, three classes: right, right, wrong, wrong, right, with confidences .9, .6, .8, .5, .4.
PROBABILITIES = np.array([[0.9, 0.1, 0.0], [0.3, 0.6, 0.1], [0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.3, 0.3, 0.4]])
LABELS = np.array([0, 1, 1, 2, 2])
CORRECT = np.array([True, True, False, False, True])
CONFIDENCE = PROBABILITIES.max(1)


def summary(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    ids = np.array([f"id-{n}" for n in range(len(labels))])
    return metrics.summary(probabilities, labels, ids, 10, np.random.default_rng(0))


def test_summary() -> None:
    found = summary(PROBABILITIES, LABELS)
    low, high = found.pop("accuracy_ci95")
    assert found == {
        "accuracy": pytest.approx(3 / 5),
        "top5": 1,  # there are only three classes
        "macro_recall": pytest.approx((1 + 1 / 2 + 1 / 2) / 3),
        # By confidence: right, wrong, right, wrong, right. Precision at each right one, over all five pictures.
        "gap": pytest.approx((1 + 2 / 3 + 3 / 5) / 5),
        # Each picture has a bin of its own: |1 - .9|, |0 - .8|, |1 - .6|, |0 - .5|, |1 - .4|.
        "ece": pytest.approx((0.1 + 0.8 + 0.4 + 0.5 + 0.6) / 5),
    }
    # In a resample of five pictures, none is right with probability 1 %, at most one with 8.7 %, all with 7.8 %.
    assert (low, high) == (pytest.approx(0.2), 1)


def test_top5_counts_the_first_five() -> None:
    probabilities = np.tile([0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05], (7, 1))
    assert summary(probabilities, np.arange(7))["top5"] == pytest.approx(5 / 7)


def test_top5_ranks_equal_classes_by_label() -> None:
    assert summary(np.full((7, 7), 1 / 7), np.arange(7))["top5"] == pytest.approx(5 / 7)


def test_classes_in_most_mistakes() -> None:
    labels, predicted = np.array([0, 0, 1, 2, 3, 3]), np.array([0, 3, 1, 3, 3, 2])
    assert metrics.often_confused(labels, predicted, 5, 2).tolist() == [2, 3]
    assert metrics.often_confused(labels, predicted, 5, 40).tolist() == [0, 1, 2, 3, 4]


def test_two_classes_are_enough() -> None:
    found = summary(np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]), np.array([0, 1, 1]))
    assert found["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("right", "count"), [(0.8, 145), (0.6, 358), (0.95, 2000)])
def test_the_interval_of_an_accuracy_is_that_of_the_binomial_distribution(right: float, count: int) -> None:
    values = np.arange(count) < round(right * count)
    found = metrics.interval(values, np.random.default_rng(1))
    assert found == pytest.approx(binom.ppf([0.025, 0.975], count, values.mean()) / count, abs=2.1 / count)


def test_the_interval_has_a_width_if_all_answers_are_right_or_all_are_wrong() -> None:
    """Wilson's interval of k = n: n / (n + z**2) to 1."""
    sure, labels = np.eye(2)[[0, 1, 0, 1]], np.array([0, 1, 0, 1])
    assert summary(sure, labels)["accuracy_ci95"] == pytest.approx([4 / (4 + 1.96**2), 1], abs=1e-3)
    assert summary(sure, 1 - labels)["accuracy_ci95"] == pytest.approx([0, 1.96**2 / (4 + 1.96**2)], abs=1e-3)


def test_the_interval_equals_that_of_resampled_pictures() -> None:
    """For a paired difference. This resamples pictures; `interval` draws how often each value occurs."""
    rng = np.random.default_rng(2)
    values = rng.choice([-1, 0, 1], 300, p=[0.1, 0.7, 0.2])
    means = values[rng.integers(300, size=(10_000, 300))].mean(1)
    assert metrics.interval(values, rng) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.005)


def test_the_interval_over_equal_seeds_is_that_of_one() -> None:
    values = np.random.default_rng(4).choice([-1, 0, 1], 100)
    one, three = (metrics.interval(rows, np.random.default_rng(5)) for rows in (values, np.tile(values, (3, 1))))
    assert three == pytest.approx(one)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        # The pictures agree. Three draws of three seeds are all the same seed with probability 1/27 = 3.7 %.
        ([[-1] * 9, [0] * 9, [1] * 9], [-1, 1]),
        ([[0] * 9, [0] * 9, [0] * 9, [1] * 9], [0, 0.75]),  # four draws are the last seed in 0.4 %, three in 5 %
        # Draws have the seed 0, 1 or 2 times and the picture 0, 1 or 2 times: 4/4 with 6.25 %, 0 with 7/16.
        ([[1, 0], [0, 0]], [0, 1]),
        ([[0, 1], [0, 1], [0, 1], [0, 1]], [0, 1]),
    ],
)
def test_the_interval_over_seeds_and_pictures(matrix: list[list[int]], expected: list[float]) -> None:
    assert metrics.interval(np.array(matrix), np.random.default_rng(6)) == pytest.approx(expected)


def test_seeds_and_pictures_are_resampled_independently() -> None:
    """The interval equals that of the resampled matrix, and is wider than that of the means over seeds."""
    rng = np.random.default_rng(7)
    effects = rng.normal(0.3, 0.4, (3, 1)) + rng.normal(0, 0.5, (1, 200)) + rng.normal(0, 0.5, (3, 200))
    matrix = effects.round().clip(-1, 1)
    means = [matrix[rng.integers(3, size=(3, 1)), rng.integers(200, size=(1, 200))].mean() for _ in range(2_000)]
    found = metrics.interval(matrix, rng)
    assert found == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)
    pictures = metrics.interval(matrix.mean(0), rng)
    assert found[1] - found[0] > 1.3 * (pictures[1] - pictures[0])


def test_the_interval_of_many_seeds_needs_little_memory() -> None:
    values = np.random.default_rng(8).integers(0, 2, (12, 1_000))  # hardly two columns are equal
    tracemalloc.start()
    try:
        metrics.interval(values, np.random.default_rng(9))
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_repeats() -> None:
    right = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    baseline = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]])
    found = metrics.repeats(right, baseline, np.random.default_rng(8))
    low, high = found.pop("above_baseline_ci95")
    # The deviations from the mean are -1/4, 0 and 1/4; the differences are 1/4, 1/4 and 1/2.
    expected = {"seeds": 3, "each": [0.5, 0.75, 1], "mean": 0.75, "std": 0.25, "above_baseline": pytest.approx(1 / 3)}
    assert found == expected and 0 <= low < 1 / 3 < high <= 1


def test_a_difference_is_paired() -> None:
    """A gain of 10 of 200 pictures without losses is significant, although the accuracies' intervals are far wider."""
    baseline = np.arange(200) < 100
    model = np.arange(200) < 110
    found = metrics.difference(model.astype(int), baseline.astype(int), np.random.default_rng(3))
    low, high = found["above_baseline_ci95"]
    assert found["above_baseline"] == 0.05 and 0.02 <= low < 0.05 < high <= 0.085
    single = metrics.interval(model, np.random.default_rng(3))
    assert single[1] - single[0] > 2 * (high - low)
    same = metrics.difference(model.astype(int), model.astype(int), np.random.default_rng(3))
    assert same == {"above_baseline": 0, "above_baseline_ci95": [0, 0]}


def gap(correct: list[int], confidence: list[float] | None = None, ids: str | None = None, labels: str = "") -> float:
    """GAP for right (1) and wrong (0) predictions; "-" in `labels` is a picture without a landmark."""
    count = len(correct)
    truth = np.array([-1 if letter == "-" else 7 for letter in labels or "x" * count])
    names = np.array(list(ids or "abcdefgh"[:count]))
    confidence = np.linspace(0.9, 0.1, count) if confidence is None else np.array(confidence)
    return metrics.gap(names, truth, np.where(correct, 7, 8), confidence)


@pytest.mark.parametrize(
    ("correct", "expected"),
    [([1, 1, 1], 1.0), ([0, 0, 0], 0.0), ([1, 0, 0], 1 / 3), ([0, 0, 1], 1 / 9), ([0, 1, 1], (1 / 2 + 2 / 3) / 3)],
)
def test_gap(correct: list[int], expected: float) -> None:
    """The order of the pictures does not matter."""
    assert gap(correct) == pytest.approx(expected)
    shuffled = [2, 0, 1]
    assert gap([correct[n] for n in shuffled], [[0.9, 0.8, 0.7][n] for n in shuffled]) == pytest.approx(expected)


def test_gap_of_pictures_without_a_landmark() -> None:
    """Any prediction for them is wrong, but they do not count in the denominator."""
    assert gap([0, 1, 1], labels="-xx") == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert gap([1, 1, 0], labels="xx-") == pytest.approx(1)
    with pytest.raises(ValueError, match="none of the pictures has a landmark"):
        gap([0, 0], labels="--")


def test_gap_of_pictures_without_a_prediction() -> None:
    """They have no rank but count in the denominator. If there is no landmark, it is best to predict none."""
    ids, confidence = np.array(["a", "b", "c"]), np.array([0.9, 0.8, 0.7])
    assert metrics.gap(ids, np.array([7, 7, 7]), np.array([-1, 7, 7]), confidence) == pytest.approx(2 / 3)
    assert metrics.gap(ids, np.array([-1, 7, 7]), np.array([-1, 7, 7]), confidence) == pytest.approx(1)
    assert metrics.gap(ids, np.array([7, 7, 7]), np.array([-1, -1, -1]), confidence) == 0


def test_gap_ranks_equal_scores_by_id() -> None:
    assert gap([1, 0], [0.5, 0.5], "ab") == pytest.approx(1 / 2)
    assert gap([1, 0], [0.5, 0.5], "ba") == pytest.approx(1 / 4)
    assert gap([0, 1, 1], [0.5, 0.5, 0.6], "bca") == pytest.approx((1 + 2 / 3) / 3)


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


def test_rounded_is_plain_json() -> None:
    value = {"a": np.float32(1 / 3), "b": [np.int64(1), 2 / 3], "c": None, "d": {"e": np.float64(0.1)}}
    assert json.loads(json.dumps(metrics.rounded(value))) == {
        "a": 0.333333,
        "b": [1.0, 0.666667],
        "c": None,
        "d": {"e": 0.1},
    }


def test_the_most_frequent_confusions_come_first() -> None:
    named = pd.DataFrame({"actual": list("aabbbc"), "predicted": list("bbbcac")})
    assert metrics.confused(named).to_numpy().tolist() == [["a", "b", 2], ["b", "a", 1], ["b", "c", 1]]
    assert metrics.confused(named[named["actual"] == "c"]).empty


def test_classes_are_counted_by_hand() -> None:
    table = metrics.per_class(np.array([0, 0, 0, 0, 1, 2]), np.array([0, 1, 2, 2, 1, 0]), 3)
    assert table["precision"].tolist() == [0.5, 0.5, 0]
    assert table["recall"].tolist() == [0.25, 1, 0]
    assert table["confused_with"].tolist() == [2, -1, 0]
    never = metrics.per_class(np.array([0, 1]), np.array([0, 0]), 2)
    assert np.isnan(never["precision"][1]) and never["confused_with"].tolist() == [-1, 0]
