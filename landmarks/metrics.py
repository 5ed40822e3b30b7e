"""How good answers are: every number is 0..1, computed from probabilities [N, K] and labels [N]."""

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score

# The study's published percentages (see the README): row, validation after 3 epochs, test.
STUDY = (
    ("VGG-16", 87.93, 87.97),
    ("ABN, alpha 0.25, beta 1", 30.54, 27.66),
    ("ABN, alpha 0, beta 1", 32.71, 32.58),
)
DIGITS = 6  # in files; more would only show the last bits of float32


def summary(probabilities: np.ndarray, labels: np.ndarray, calibration_bins: int) -> dict[str, float | list[float]]:
    """All metrics of one model on one split.

    accuracy, with its 95 % Wilson interval; top5; macro_recall, the mean of the classes' recalls; gap, see `gap`; ece,
    see `calibration`.
    """
    correct = probabilities.argmax(1) == labels
    confidence = probabilities.max(1)
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(0.95, "wilson")
    return {
        "accuracy": correct.mean(),
        "accuracy_ci95": [interval.low, interval.high],
        "top5": (np.argsort(-probabilities, axis=1, kind="stable")[:, :5] == labels[:, None]).any(1).mean(),
        "macro_recall": recall_score(labels, probabilities.argmax(1), average="macro", zero_division=0),
        "gap": gap(confidence, correct),
        "ece": calibration(confidence, correct, calibration_bins)[0],
    }


def gap(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Global Average Precision, the challenge's own metric: micro-AP of one prediction per picture (Weyand et al.,
    arXiv 2004.01804, eq. 1). Average precision counts recall among the correct answers; GAP among all pictures.
    """
    return average_precision_score(correct, confidence) * correct.mean() if correct.any() else 0.0


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int) -> tuple[float, np.ndarray]:
    """Expected calibration error over equal-width bins of confidence (Guo et al., arXiv 1706.04599, eq. 3).

    Returns it, and per non-empty bin: mean confidence, accuracy, number of pictures [bins, 3].
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = np.array(
        [(confidence[place == b].mean(), correct[place == b].mean(), (place == b).sum()) for b in np.unique(place)]
    )
    return float((np.abs(rows[:, 0] - rows[:, 1]) * rows[:, 2]).sum() / len(place)), rows


def attention_auc(maps: np.ndarray, masks: np.ndarray) -> float | None:
    """Does attention find the landmark? 0.5 is no preference, 1 is every cell of it above every other cell.

    `maps` [N, H, W]; `masks` [N, H, W], the share of each cell that the landmark covers, NaN where nobody drew a mask.
    Returns the mean over pictures of the area under the ROC curve of "more than half covered", None without masks.
    """
    inside = masks > 0.5
    scores = [
        roc_auc_score(truth.ravel(), heed.ravel())
        for truth, heed, mask in zip(inside, maps, masks, strict=True)
        if truth.any() and not truth.all() and not np.isnan(mask).any()
    ]
    return float(np.mean(scores)) if scores else None


def rounded(value: object) -> object:
    """The same nested dicts and lists with plain floats of `DIGITS` decimals, fit for a file that is compared."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return None if value is None else round(float(value), DIGITS)


def table(results: dict, source: str) -> str:
    """`results.json` as a Markdown table in percent, with the study's published numbers below."""

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f}"

    columns = ("accuracy", "top5", "macro_recall", "gap", "ece", "perception_accuracy", "attention_accuracy")
    kind = "synthetic pictures (`data.source: sample`)" if source == "sample" else f"`data.source: {source}`"
    lines = [
        f"Results on {kind}, in percent. Always naming the largest class: {percent(results['majority_class'])}.",
        "",
        "| model | val | test | test, 95 % interval | top-5 | macro recall | GAP | ECE | perception branch alone "
        "| attention branch alone | map finds landmark (AUC, 50 = chance) |",
        "|---|" + "---:|" * 10,
    ]
    for name, splits in results.items():
        if name == "majority_class":
            continue
        test = splits["test"]
        low, high = test["accuracy_ci95"]
        cells = [percent(splits["val"]["accuracy"]), percent(test["accuracy"]), f"{percent(low)} to {percent(high)}"]
        cells += [percent(test[column]) for column in columns[1:]] + [percent(test["attention_auc"])]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, val, test in STUDY:
        lines.append(f"| *the study: {name}* | {val:.2f} | {test:.2f} |" + " |" * 8)
    return "\n".join(lines) + "\n"
