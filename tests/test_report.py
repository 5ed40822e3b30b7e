"""The results as tables."""

from landmarks import report

import pytest


def entry(accuracy: float, attention: float | None) -> dict:
    """An entry of results.json."""
    names = ("top5", "macro_recall", "gap", "ece", "perception_accuracy")
    numbers = {name: 0.5 for name in names} | {"attention_accuracy": attention}
    curve = {"grad_cam": 0.32, "random": 0.33} | ({"map": 0.31} if attention else {})
    scores = {name: value + 0.3 for name, value in curve.items() if name != "random"}
    maps = {"energy": scores, "pointing": scores, "area": 0.2, "deletion": curve, "insertion": curve}
    gained = {"above_baseline": -0.0123, "above_baseline_ci95": [-0.05, 0.02]}
    return {"accuracy": accuracy, "accuracy_ci95": [0.1, 0.9], **gained, **numbers, "attention": maps}


RESULTS = {
    "majority_class": 0.1234,
    "baseline": {"val": entry(0.7111, None), "test": entry(0.7222, None)},
    "my-ablation": {"val": entry(0.8111, 0.6333), "test": entry(0.8222, 0.6333)},
}


def rows(lines: list[str]) -> dict[str, list[str]]:
    """A Markdown table: the cells of each row by the first one."""
    return {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}


def test_the_table_has_a_row_per_model_and_the_studys_numbers() -> None:
    first, _, *lines = report.table(RESULTS, "sample").splitlines()
    recognition, maps = rows(lines[: lines.index("")]), lines[lines.index("") + 1 :]
    assert recognition["baseline"][:5] == ["71.11", "72.22", "10.00 to 90.00", "", ""]
    assert recognition["my-ablation"][1:5] == ["82.22", "10.00 to 90.00", "-1.23", "-5.00 to 2.00"]
    assert recognition["baseline"][-1] == "" and recognition["my-ablation"][-1] == "63.33"
    published = {name: cells[:2] for name, cells in recognition.items() if "study" in name}
    assert list(published.values()) == [["87.93", "87.97"], ["30.54", "27.66"], ["32.71", "32.58"]]
    assert "majority_class" not in recognition and "12.34" in first
    assert len({len(cells) for cells in recognition.values()}) == 1, "every row has all columns"
    assert maps[2:] == [
        "| baseline | Grad-CAM | 62.00 | 62.00 | 32.00 | 32.00 |",
        "| baseline | chance | 20.00 | 20.00 | 33.00 | 33.00 |",
        "| my-ablation | attention map | 61.00 | 61.00 | 31.00 | 31.00 |",
        "| my-ablation | Grad-CAM | 62.00 | 62.00 | 32.00 | 32.00 |",
        "| my-ablation | chance | 20.00 | 20.00 | 33.00 | 33.00 |",
    ]


def test_a_folder_of_other_landmarks_is_not_compared_with_the_study() -> None:
    assert "study" in report.table(RESULTS, "gldv2") and "study" not in report.table(RESULTS, "folder")


def test_repeats_are_a_table_of_their_own() -> None:
    runs = {"seeds": 3.0, "each": [0.71, 0.7, 0.75], "mean": 0.72, "std": 0.0264575}
    runs |= {"above_baseline": 0.0321, "above_baseline_ci95": [-0.01, 0.07]}
    repeated = {"majority_class": 0.1234} | {
        name: {split: entry | {"repeats": runs} for split, entry in RESULTS[name].items()}
        for name in ("baseline", "my-ablation")
    }
    once, text = report.table(RESULTS, "sample"), report.table(repeated, "sample")
    assert text.startswith(once)
    _, caption, _, header, _, *lines = text.removeprefix(once).splitlines()
    assert "3 seeds" in caption
    cells = "72.00 ± 2.65 | 71.00, 70.00, 75.00"
    assert lines == [
        f"| baseline | val | {cells} |  |  |",
        f"| baseline | test | {cells} |  |  |",
        f"| my-ablation | val | {cells} | +3.21 | -1.00 to 7.00 |",
        f"| my-ablation | test | {cells} | +3.21 | -1.00 to 7.00 |",
    ]
    assert {line.count("|") for line in [header, *lines]} == {7}


@pytest.mark.parametrize(("source", "synthetic"), [("sample", True), ("gldv2", False)])
def test_the_table_states_whether_the_pictures_are_synthetic(source: str, synthetic: bool) -> None:
    first = report.table(RESULTS, source).splitlines()[0]
    assert ("synthetic" in first) is synthetic and source in first
