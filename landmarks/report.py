"""The results as Markdown tables, next to the numbers that the study published."""

# The study's published accuracies in percent: model, validation after 3 epochs, test.
STUDY = (
    ("VGG-16", 87.93, 87.97),
    ("ABN, alpha 0.25, beta 1", 30.54, 27.66),
    ("ABN, alpha 0, beta 1", 32.71, 32.58),
)
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


def gain(name: str, entry: dict) -> list[str]:
    """The cells of a model's difference from the baseline and its interval."""
    if name == "baseline":
        return ["", ""]
    return [f"{100 * entry['above_baseline']:+.2f}", span(entry["above_baseline_ci95"])]


def table(results: dict, source: str) -> str:
    """Markdown tables of results.json in percent: recognition, with the study's numbers below, attention maps, and
    repeats if there are any.

    `source` is data.source.
    """
    pictures = "synthetic pictures (`data.source: sample`)" if source == "sample" else f"`data.source: {source}`"
    recognition = [
        f"Results on {pictures}, in percent. Always naming the largest class: {percent(results['majority_class'])}.",
        "",
        "| model | val | test | test, 95 % interval | test, above baseline | its 95 % interval | top-5 | macro recall "
        "| GAP | ECE | perception branch alone | attention branch alone |",
        "|---|" + "---:|" * 11,
    ]
    maps = [
        "| model | map | energy on landmark | maximum on landmark | deletion | insertion |",
        "|---|---|" + "---:|" * 4,
    ]
    columns = ("top5", "macro_recall", "gap", "ece", "perception_accuracy", "attention_accuracy")
    for name, splits in results.items():
        if name == "majority_class":
            continue
        test = splits["test"]
        cells = [percent(splits["val"]["accuracy"]), percent(test["accuracy"]), span(test["accuracy_ci95"])]
        cells += gain(name, test) + [percent(test[column]) for column in columns]
        recognition.append(f"| {name} | " + " | ".join(cells) + " |")
        attention = test["attention"]
        for key, label in MAPS.items():
            if key in attention["deletion"]:
                numbers = [attention[measure].get(key, attention["area"]) for measure in MEASURES]
                maps.append(f"| {name} | {label} | " + " | ".join(map(percent, numbers)) + " |")
    for name, val, test in STUDY:
        recognition.append(f"| *the study: {name}* | {val:.2f} | {test:.2f} |" + " |" * 9)
    return "\n".join([*recognition, "", *maps, *repeats(results)]) + "\n"


def repeats(results: dict) -> list[str]:
    """The lines of the table of repeats, after an empty line; none if each model was trained once."""
    lines: list[str] = []
    for name, splits in results.items():
        for split, entry in splits.items() if name != "majority_class" else ():
            if runs := entry.get("repeats"):
                accuracy = f"{percent(runs['mean'])} ± {percent(runs['std'])}"
                cells = [name, split, accuracy, ", ".join(map(percent, runs["each"])), *gain(name, runs)]
                lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return []
    return [
        "",
        f"Accuracy with {runs['seeds']:.0f} seeds (`train.repeats`): mean ± standard deviation, in percent.",
        "",
        "| model | split | accuracy | each seed | above baseline | its 95 % interval |",
        "|---|---|---:|---|---:|---:|",
        *lines,
    ]
