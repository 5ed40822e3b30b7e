"""Metrics of predictions, computed from probabilities [N, K] and labels [N]. All are in 0..1, differences in -1..1."""

import json

from landmarks.artifacts import DIGITS

import numpy as np
import pandas as pd

DRAWS = 10_000  # bootstrap resamples
BLOCK = 1000  # of these at a time, to limit memory


def summary(
    probabilities: np.ndarray, labels: np.ndarray, ids: np.ndarray, calibration_bins: int, rng: np.random.Generator
) -> dict:
    """All metrics of one model on one split. `ids` [N] are the ids of the pictures.

    accuracy; accuracy_ci95 (see `interval`, and `wilson` if all answers are right or all are wrong); top5;
    macro_recall, the mean recall of the classes; gap (see `gap`); ece (see `calibration`).
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    correct = predicted == labels
    return {
        "accuracy": correct.mean(),
        "accuracy_ci95": interval(correct, rng) if 0 < correct.mean() < 1 else wilson(correct),
        "top5": (true_rank(probabilities, labels) <= 5).mean(),
        "macro_recall": pd.Series(correct).groupby(labels).mean().mean(),
        "gap": gap(ids, labels, predicted, confidence),
        "ece": calibration(confidence, correct, calibration_bins)[0],
    }


def true_rank(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rank of the true class among the answers, from 1; of equals, the lower label comes first: [N]."""
    true = np.take_along_axis(probabilities, labels[:, None], 1)
    equals_before = (probabilities == true) & (np.arange(probabilities.shape[1]) < labels[:, None])
    return 1 + (probabilities > true).sum(1) + equals_before.sum(1)  # needs no sorting


def resample(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap over pictures: the sums of `values` [S, N] over N pictures drawn with replacement, [draws, S].

    Only a few columns are distinct, so a resample is a multinomial draw of how often each occurs.
    """
    distinct, counts = np.unique(values, axis=1, return_counts=True)
    blocks = [min(BLOCK, draws - start) for start in range(0, draws, BLOCK)]
    return np.concatenate([rng.multinomial(counts.sum(), counts / counts.sum(), n) @ distinct.T for n in blocks])


def interval(values: np.ndarray, rng: np.random.Generator) -> list[float]:
    """The 95 % bootstrap interval (Efron's percentiles) of the mean of `values`: [N], one per picture, or [S, N], one
    per seed and picture.

    The values are 1 (right) and 0 (wrong) for an accuracy, or 1, 0 and -1 for the paired difference of two models.
    Seeds and pictures are resampled independently of each other (the pigeonhole bootstrap: Owen, doi
    10.1214/07-AOAS122).
    """
    matrix = np.atleast_2d(values)
    seeds = len(matrix)
    sums = resample(matrix, DRAWS, rng)
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS)
    means = (drawn * sums).sum(1) / matrix.size
    return np.quantile(means, [0.025, 0.975]).tolist()


def wilson(correct: np.ndarray) -> list[float]:
    """Wilson's 95 % interval of an accuracy (JASA 22, 1927). The bootstrap's has no width if all answers are alike."""
    from scipy.stats import binomtest  # imported here because it is slow and rarely needed

    return list(binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson"))


def difference(right: np.ndarray, baseline: np.ndarray, rng: np.random.Generator) -> dict:
    """Accuracy of a model minus that of the baseline, with the paired interval. 1: right, 0: wrong; [N] or [S, N]."""
    better = right - baseline
    return {"above_baseline": better.mean(), "above_baseline_ci95": interval(better, rng)}


def repeats(right: np.ndarray, baseline: np.ndarray, rng: np.random.Generator) -> dict:
    """How the accuracy of a model depends on the seed, and its `difference` from the baseline. Inputs are [S, N]."""
    each = right.mean(1)
    spread = {"seeds": len(each), "each": each.tolist(), "mean": each.mean(), "std": each.std(ddof=1)}
    return spread | difference(right, baseline, rng)


def gap(ids: np.ndarray, labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> float:
    """Global Average Precision, the challenge's metric: micro-AP of one prediction per picture (Weyand et al., arXiv
    2004.01804, eq. 1). All arguments are [N].

    A negative label is a picture without a landmark; a negative prediction is no prediction. Predictions are ranked by
    confidence, then by id. The precisions at the ranks of right predictions are summed and divided by the number of
    pictures with a landmark. Raises `ValueError` if there are none.
    """
    queries = (labels >= 0).sum()
    if not queries:
        raise ValueError("GAP is undefined: none of the pictures has a landmark")
    order = np.lexsort((ids, -confidence))
    order = order[predicted[order] >= 0]
    right = (predicted == labels)[order]
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    return float((precision * right).sum() / queries)


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int) -> tuple[float, np.ndarray]:
    """Expected calibration error over equal-width bins of confidence (Guo et al., arXiv 1706.04599, eq. 3).

    Returns the error and a row per non-empty bin: mean confidence, accuracy, number of pictures.
    """
    row = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = np.array([(confidence[row == b].mean(), correct[row == b].mean(), (row == b).sum()) for b in np.unique(row)])
    return float((np.abs(rows[:, 0] - rows[:, 1]) * rows[:, 2]).sum() / len(row)), rows


def rounded(value: dict) -> dict:
    """The same nested dicts and lists, with every number as a float of `DIGITS` decimals."""

    def short(number: str) -> float:
        return round(float(number), DIGITS)

    return json.loads(json.dumps(value, default=float), parse_float=short, parse_int=short)


def often_confused(labels: np.ndarray, predicted: np.ndarray, classes: int, most: int) -> np.ndarray:
    """At most `most` of the labels 0 to `classes` - 1, ascending: those in most mistakes, as true or predicted class.

    `labels` and `predicted` are [N].
    """
    wrong = labels != predicted
    mistakes = np.bincount(np.concatenate([labels[wrong], predicted[wrong]]), minlength=classes)
    return np.sort(np.argsort(-mistakes, kind="stable")[:most])


def confused(named: pd.DataFrame) -> pd.DataFrame:
    """Counts the confusions in `named` (actual, predicted): adds `pictures`, most frequent first."""
    wrong = named[named["actual"] != named["predicted"]]
    pairs = wrong.groupby(["actual", "predicted"], as_index=False).size().rename(columns={"size": "pictures"})
    return pairs.sort_values("pictures", ascending=False, kind="stable", ignore_index=True)


def per_class(labels: np.ndarray, predicted: np.ndarray, classes: int) -> pd.DataFrame:
    """A row per class: `precision` (NaN if it is never predicted), `recall`, and `confused_with`, the class that its
    pictures are most often mistaken for (-1: none; of equals, the lowest). `labels` and `predicted` are [N].
    """
    rows = []
    for k in range(classes):
        answers = predicted[labels == k]
        wrong = np.bincount(answers[answers != k], minlength=classes)
        named = labels[predicted == k]
        precision = (named == k).mean() if len(named) else np.nan
        rows.append((precision, (answers == k).mean(), wrong.argmax() if wrong.any() else -1))
    return pd.DataFrame(rows, columns=["precision", "recall", "confused_with"])
