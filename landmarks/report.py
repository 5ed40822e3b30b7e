"""The results as tables, and as the Markdown of results.md, next to the numbers that the study published."""

from collections.abc import Iterable

import pandas as pd

# The study's published accuracies in percent: model, validation after 3 epochs, test.
STUDY = (
    ("VGG-16", 87.93, 87.97),
    ("ABN, alpha 0.25, beta 1", 30.54, 27.66),
    ("ABN, alpha 0, beta 1", 32.71, 32.58),
)
COLUMNS = (
    *("model", "val", "test", "test, 95 % interval", "test, above baseline", "its 95 % interval", "top-5"),
    *("macro recall", "GAP", "ECE", "perception branch alone", "attention branch alone"),
)
REPEAT_COLUMNS = ("model", "split", "accuracy", "each seed", "above baseline", "its 95 % interval")
MEASURES = ("energy", "pointing", "deletion", "insertion")
MAPS = {
    "map": "attention map",
    "cam": "class activation map",
    "grad_cam": "Grad-CAM",
    "grad_cam_pp": "Grad-CAM++",
    "centre": "centre prior",
    "random": "chance",
}


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def span(ends: list[float]) -> str:
    return " to ".join(map(percent, ends))


def models(results: dict) -> dict[str, dict]:
    """The entries of results.json by model."""
    return {name: splits for name, splits in results.items() if name != "majority_class"}


def best(predictions: "pd.DataFrame") -> str:
    """The model of predictions.parquet with the highest accuracy on validation pictures; of equals, the first."""
    val = predictions[predictions["split"] == "val"]
    return str((val["label"] == val["predicted"]).groupby(val["model"], sort=False).sum().idxmax())


def gain(name: str, entry: dict) -> list[str]:
    """The cells of a model's difference from the baseline and its interval."""
    if name == "baseline":
        return ["", ""]
    return [f"{100 * entry['above_baseline']:+.2f}", span(entry["above_baseline_ci95"])]


def recognition(results: dict) -> list[list[str]]:
    """The cells of `COLUMNS` for each model, in percent."""
    columns = ("top5", "macro_recall", "gap", "ece", "perception_accuracy", "attention_accuracy")
    rows = []
    for name, splits in models(results).items():
        test = splits["test"]
        cells = [name, percent(splits["val"]["accuracy"]), percent(test["accuracy"]), span(test["accuracy_ci95"])]
        rows.append(cells + gain(name, test) + [percent(test[column]) for column in columns])
    return rows


def repeats(results: dict) -> list[list[str]]:
    """The cells of `REPEAT_COLUMNS` for each model and split, in percent; none if each model was trained once."""
    rows = []
    for name, splits in models(results).items():
        for split, entry in splits.items():
            if runs := entry.get("repeats"):
                accuracy = f"{percent(runs['mean'])} ± {percent(runs['std'])}"
                rows.append([name, split, accuracy, ", ".join(map(percent, runs["each"])), *gain(name, runs)])
    return rows


def line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(results: dict, source: str) -> str:
    """Markdown tables of results.json in percent: recognition, with the study's numbers below, attention maps, and
    repeats if there are any.

    `source` is data.source. The study's numbers are no measure for other landmarks.
    """
    pictures = "synthetic pictures (`data.source: sample`)" if source == "sample" else f"`data.source: {source}`"
    lines = [
        f"Results on {pictures}, in percent. Always naming the largest class: {percent(results['majority_class'])}.",
        "",
        line(COLUMNS),
        "|---|" + "---:|" * (len(COLUMNS) - 1),
        *map(line, recognition(results)),
    ]
    for name, val, test in STUDY if source in ("sample", "gldv1", "gldv2") else ():
        lines.append(f"| *the study: {name}* | {val:.2f} | {test:.2f} |" + " |" * (len(COLUMNS) - 3))
    lines += [
        "",
        "| model | map | energy on landmark | maximum on landmark | deletion | insertion |",
        "|---|---|" + "---:|" * 4,
    ]
    for name, splits in models(results).items():
        attention = splits["test"]["attention"]
        for key, label in MAPS.items():
            if key in attention["deletion"]:
                numbers = [attention[measure].get(key, attention["area"]) for measure in MEASURES]
                lines.append(line([name, label, *map(percent, numbers)]))
    if rows := repeats(results):
        seeds = results["baseline"]["test"]["repeats"]["seeds"]
        caption = f"Accuracy with {seeds:.0f} seeds (`train.repeats`): mean ± standard deviation, in percent."
        lines += ["", caption, "", line(REPEAT_COLUMNS), "|---|---|---:|---|---:|---:|", *map(line, rows)]
    return "\n".join(lines) + "\n"
