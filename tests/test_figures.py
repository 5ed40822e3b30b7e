"""The figures show something, and are the same every time."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from landmarks import figures
from landmarks.images import Picture
from stages import plot

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, abn, drawing
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

RANKING = pd.DataFrame(
    {
        "rank": range(1, 7),
        "landmark_id": list("fbadce"),
        "images": [90, 50, 30, 20, 11, 10],
        "kept": [False, *[True] * 5],
    }
)
CURVES = pd.DataFrame(
    [
        {"model": model, "epoch": epoch, "split": split, "accuracy": 0.2 * epoch, "loss": 3 - epoch / 2}
        for model in ("baseline", "abn")
        for epoch in (1, 2, 3)
        for split in ("train", "val")
    ]
)
PREDICTIONS = pd.DataFrame({"label": [0, 0, 1, 2, 2, 2], "predicted": [0, 1, 1, 2, 2, 0]})
BINS = {"baseline": (0.1, np.array([[0.3, 0.4, 3], [0.8, 0.7, 9]])), "abn": (0.05, np.array([[0.5, 0.5, 12]]))}

NAMELESS = Picture("a", "1", b"")
NAMED = NAMELESS._replace(author="Jane Doe", license="CC BY-SA 3.0", title="\u585a $5 or $\\frac$6, " + "and on " * 30)


def gallery(models: list[str]) -> Figure:
    maps = {name: (np.eye(7, dtype=np.float16), f"{name}: right") for name in models}
    rows = [
        {"image": drawing(n, 64, 64), "title": f"landmark {n}", "maps": maps, "source": source}
        for n, source in enumerate([NAMELESS, NAMED])
    ]
    return figures.attention_gallery(rows, models)


def collapse(name: str = "study") -> Figure:
    """The study's loss stays high, abn's falls; the study gives most true classes a probability of 0."""
    epochs = np.arange(1, 41) / 10
    losses = {name: 3.3 - 0.05 * epochs, "abn": 3.3 * np.exp(-epochs)}
    steps = [pd.DataFrame({"model": name, "epoch": epochs, "loss": loss}) for name, loss in losses.items()]
    truth = {name: np.array([0.0] * 8 + [1.0] * 2), "abn": np.linspace(0, 1, 10)}
    return figures.collapse(pd.concat(steps), truth, {name: STUDY, "abn": abn()}, 27)


STUDY = abn(attention="multiply", objective="summed_softmax")

NAMES = [f"landmark {n}" for n in range(60)]
CURVE = pd.DataFrame({"share": [0.1, 1, 2], "pictures": [10, 100, 200], "accuracy": [0.5, 0.8, np.nan]}).assign(
    low=[0.4, 0.7, 0.8], high=[0.6, 0.9, 0.95], trend=[0.5, 0.8, 0.85]
)


def class_rows(count: int) -> pd.DataFrame:
    """A table like classes.csv; the first class has the lowest recall and is never predicted."""
    recall = np.linspace(0, 1, count)
    table = pd.DataFrame({"landmark_id": NAMES[:count], "name": "", "train": 9, "test": 3, "recall": recall})
    return table.assign(precision=[np.nan, *recall[1:]], confused_with=[NAMES[1], *[""] * (count - 1)])


DRAWN: dict[str, Callable[[], Figure]] = {
    "class_histogram": lambda: figures.class_histogram(RANKING),
    "training_curves": lambda: figures.training_curves(CURVES),
    "confusion": lambda: figures.confusion(PREDICTIONS, ["arch", "dome", "tower"], np.arange(3), "a title"),
    "reliability": lambda: figures.reliability(BINS),
    "one model": lambda: figures.reliability({"abn": BINS["abn"]}),
    "attention_gallery": lambda: gallery(["abn", "study"]),
    "collapse": collapse,
    "class_accuracy": lambda: figures.class_accuracy(class_rows(3), "abn"),
    "contact_sheet": lambda: figures.contact_sheet(
        [[(drawing(n), "a\nb"), (drawing(9 - n), "c\nd")] for n in range(4)], "t"
    ),
    "embedding": lambda: figures.embedding(np.random.default_rng(0).normal(size=(90, 2)), np.arange(90) % 60, NAMES),
    "learning_curve": lambda: figures.learning_curve(CURVE),
    "one map": lambda: gallery(["abn"]),
}


def test_a_class_and_the_one_it_is_taken_for_have_their_names() -> None:
    rows = class_rows(3).assign(name=["Arch", "Dome", "Tower"])
    (axes,) = figures.class_accuracy(rows, "abn").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Tower", "Dome", "Arch"]
    assert [text.get_text() for text in axes.texts][-1] == "3 test, 9 training, taken for Dome"


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_shows_something_and_is_the_same_every_time(tmp_path: Path, name: str) -> None:
    for number in (1, 2):
        figures.save(DRAWN[name](), tmp_path / f"{number}.png")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    pixels = np.asarray(Image.open(tmp_path / "1.png").convert("L"))
    assert min(pixels.shape) > 200
    assert pixels.std() > 5 and len(np.unique(pixels)) > 20


@pytest.mark.slow
def test_the_users_matplotlibrc_changes_no_figure(tmp_path: Path) -> None:
    code = """if True:
        import pandas, pathlib
        from landmarks import figures
        ranking = pandas.DataFrame({"rank": [1, 2], "landmark_id": ["a", "b"], "images": [9, 5], "kept": True})
        figures.save(figures.class_histogram(ranking), pathlib.Path("figure.png"))
    """
    found = []
    for text in ("", "lines.linewidth: 5\nfont.family: monospace\naxes.facecolor: red\nfigure.figsize: 2, 2\n"):
        (tmp_path / "matplotlibrc").write_text(text, encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
        found.append((tmp_path / "figure.png").read_bytes())
    assert found[0] == found[1]


ODD = ["Pa$$age", "Ke$ha $tage", "a_b^c", r"\alpha", r"$\frac$", r"\$5", "100 %", "{x}"]


@pytest.mark.slow
def test_names_are_drawn_as_they_are() -> None:
    ranking = pd.DataFrame({"rank": range(1, 9), "landmark_id": ODD, "images": 10, "kept": True})
    answers = pd.DataFrame({"label": range(8), "predicted": range(8)})
    maps = {"abn": (np.eye(7), "abn: wrong\n" + "\n".join(ODD))}
    source = NAMELESS._replace(title=" ".join(ODD), author=ODD[1], license=ODD[2])
    row = {"image": drawing(0, 64, 64), "title": "\n".join(ODD), "maps": maps, "source": source}
    odd_bins = {name: BINS["abn"] for name in ODD}
    curves = pd.concat(CURVES.assign(model=name) for name in ODD)
    for figure in (
        figures.class_histogram(ranking),
        figures.confusion(answers, ODD, np.arange(len(ODD)), ODD[0]),
        figures.attention_gallery([row], ["abn"]),
        figures.reliability(odd_bins),
        figures.training_curves(curves),
    ):
        figure.draw_without_rendering()
        texts = figure.findobj(Text)
        assert any("Pa$$age" in text.get_text() for text in texts)
        assert not any(text.get_parse_math() for text in texts)
        figure.savefig(io.BytesIO())
        plt.close(figure)


def test_kept_and_left_out_classes_have_their_colours() -> None:
    (axes,) = figures.class_histogram(RANKING).axes
    assert [bar.get_height() for bar in axes.patches[:6]] == RANKING["images"].tolist()
    colours = [bar.get_facecolor() for bar in axes.patches[:6]]
    assert len(set(colours[1:])) == 1 and colours[0] != colours[1]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["kept", "left out"]


def test_confusion_is_the_share_of_each_true_class() -> None:
    axes = figures.confusion(PREDICTIONS, ["arch", "dome", "tower"], np.arange(3), "a title").axes[0]
    shares = np.asarray(axes.images[0].get_array())
    assert shares == pytest.approx(np.array([[1 / 2, 1 / 2, 0], [0, 1, 0], [1 / 3, 0, 2 / 3]]))
    assert sorted(text.get_text() for text in axes.texts) == ["1", "1", "1", "1", "2"]


def test_confusion_of_some_classes_keeps_their_shares() -> None:
    axes = figures.confusion(PREDICTIONS, ["arch", "dome", "tower"], np.array([0, 2]), "a title").axes[0]
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(np.array([[1 / 2, 0], [1 / 3, 2 / 3]]))
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["arch", "tower"]


def test_attribution_has_title_author_and_licence() -> None:
    assert figures.attribution(NAMELESS) == ""
    assert figures.attribution(NAMED._replace(title="A tower")) == '"A tower" by Jane Doe, CC BY-SA 3.0'
    assert figures.attribution(NAMED._replace(title="", author=None)) == "CC BY-SA 3.0"
    below = [text.get_text() for axes in gallery(["abn"]).axes for text in axes.texts]
    assert below[0] == "" and below[1].startswith('"\u585a $5 or $') and below[1].endswith("CC BY-SA 3.0")


def test_curves_of_every_model_and_split() -> None:
    for axes in figures.training_curves(CURVES).axes:
        assert len(axes.lines) == 4
        assert all(line.get_xdata().tolist() == [1, 2, 3] for line in axes.lines)


def test_the_collapse_is_drawn_against_the_floors_and_chance() -> None:
    left, right, bars = collapse().axes
    heights = [line.get_ydata()[0] for line in left.lines if len(set(line.get_ydata())) == 1]
    assert heights == pytest.approx([3.296, 2.358, 2.134], abs=1e-3)
    texts = " ".join(text.get_text() for text in left.texts)
    assert all(number in texts for number in ("3.30", "2.36", "2.13"))
    study, ours = (line.get_ydata() for line in right.lines)
    assert study[0] == pytest.approx(0, abs=1e-6) and ours[0] == pytest.approx(2**0.5)
    assert [patch.get_data().values.max() for patch in bars.patches] == pytest.approx([0.8, 0.1])


def test_the_collapse_shows_any_ablation_with_the_studys_loss() -> None:
    left, right, _ = collapse("mistake").axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["mistake", "abn"]
    assert left.texts[2].get_text().startswith("mistake's floor")
    assert right.lines[0].get_label() == "mistake: gradient"


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ("tf tf tt ft", [(0, True), (1, True), (3, True), (0, False), (1, False), (3, False)]),
        ("tt tt tt tt", [(0, True), (1, True), (3, True)]),
        ("ff ff ff tf", [(3, True), (0, False), (1, False), (3, False)]),
    ],
)
def test_examples_are_right_and_wrong_of_different_landmarks(right: str, expected: list[tuple[int, bool]]) -> None:
    """At most three right and three wrong pictures, of four landmarks with two pictures each."""
    answers = [letter == "t" for letter in right if letter != " "]
    table = pd.DataFrame({"id": list("hgfedcba"), "label": [0, 0, 1, 1, 2, 2, 3, 3], "right": answers})
    found = figures.examples(table.sort_values("id"), 6)
    assert list(zip(found["label"], found["right"], strict=True)) == expected


def test_of_many_classes_the_worst_are_shown() -> None:
    (axes,) = figures.class_accuracy(class_rows(60), "abn").axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == NAMES[: figures.SHOWN_CLASSES][::-1] and "40 of 60" in axes.get_title("left")
    (axes,) = figures.embedding(np.zeros((60, 2)), np.arange(60), NAMES).axes
    assert len(axes.texts) == figures.SHOWN_CLASSES and "20 smaller" in axes.get_title()


def test_a_contact_sheet_of_nothing_says_so() -> None:
    assert figures.contact_sheet([], "Near-duplicates").axes[0].texts[0].get_text() == "Near-duplicates: none"


def test_the_gallery_shows_the_best_rival() -> None:
    """cam has the highest insertion, grad_cam the lowest deletion, and grad_cam_pp is best in both together."""
    insertion = {"map": 0.9, "cam": 0.8, "grad_cam": 0.4, "grad_cam_pp": 0.7}
    deletion = {"map": 0.1, "cam": 0.6, "grad_cam": 0.2, "grad_cam_pp": 0.3}
    columns = {f"insertion_{key}": [value, np.nan] for key, value in insertion.items()}
    columns |= {f"deletion_{key}": [value, np.nan] for key, value in deletion.items()}
    answers = pd.DataFrame(dict.fromkeys(insertion, 0) | columns)
    assert plot.best_rival(answers) == "grad_cam_pp"
    assert plot.best_rival(answers.drop(columns=["cam", "grad_cam_pp"])) == "grad_cam"
