"""The figures that explain the results. Each function takes tables and returns a matplotlib figure."""

import math
import textwrap
import warnings
from pathlib import Path

from landmarks import objectives
from landmarks.images import Picture
from landmarks.params import Abn

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

matplotlib.use("Agg")
plt.rc("font", size=9)
plt.rc("axes", grid=True, axisbelow=True)
plt.rc("axes.spines", top=False, right=False)
plt.rc("grid", alpha=0.3)
plt.rc("legend", frameon=False)
plt.rc("figure.constrained_layout", use=True)
plt.rc("text", parse_math=False, usetex=False)  # the names of landmarks may contain $
BLUE, RED, GREY = "#1f77b4", "#d62728", "#bbbbbb"


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, without matplotlib's version in its metadata: the bytes depend only on what the figure shows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a title in a script that the font does not have
        figure.savefig(path, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def class_histogram(ranking: pd.DataFrame) -> Figure:
    """The number of pictures of each class of `ranking` (rank, landmark_id, images, kept)."""
    figure, axes = plt.subplots(figsize=(11, 4))
    colours = np.where(ranking["kept"], BLUE, GREY)
    axes.bar(ranking["rank"], ranking["images"], color=colours)
    axes.set_xticks(ranking["rank"], ranking["landmark_id"], rotation=90, fontsize=7)
    axes.set(title=f"The {len(ranking)} largest classes", ylabel="pictures in the index", xlim=(0, len(ranking) + 1))
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (BLUE, GREY)]
    axes.legend(handles, ["kept", "left out"])
    axes.grid(axis="x", visible=False)
    return figure


def training_curves(curves: pd.DataFrame) -> Figure:
    """Accuracy and loss per epoch: `curves` has model, epoch (from 1), split (train, val), accuracy, loss."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2))
    for axes, metric in zip(panels, ("accuracy", "loss"), strict=True):
        for colour, (model, rows) in enumerate(curves.groupby("model", sort=False)):
            for split, style in (("val", "-"), ("train", ":")):
                line = rows[rows["split"] == split]
                label = model if split == "val" else None
                axes.plot(line["epoch"], line[metric], style, color=f"C{colour}", marker=".", label=label)
        axes.set(title=f"{metric.capitalize()} (solid: validation, dotted: training)", xlabel="epoch")
        axes.set_xticks(sorted(curves["epoch"].unique()))
    panels[0].set_ylim(0, 1)
    panels[0].legend(loc="best")
    return figure


def collapse(losses: pd.DataFrame, truth: dict[str, np.ndarray], blocks: dict[str, Abn], classes: int) -> Figure:
    """Why the study's objective fails: `blocks` has a model with the objective summed_softmax, then abn.

    Left: the training loss, and the lowest value that the first model's loss can have. `losses` has model, epoch (with
    a fraction) and loss of each step. Right: the norm of the loss's gradient with respect to the logits of the
    perception branch, against the probability of the true class, and the share of test pictures with that
    probability. `truth` has the probabilities by model, [N].
    """
    colours = dict(zip(blocks, (RED, BLUE), strict=True))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    for model, rows in losses.groupby("model", sort=False):
        smooth = rows["loss"].rolling(max(1, len(rows) // 25), min_periods=1, center=True).mean()
        left.plot(rows["epoch"], rows["loss"], color=colours[model], alpha=0.25, linewidth=0.8)
        left.plot(rows["epoch"], smooth, color=colours[model], label=model)
    name, summed = next(iter(blocks.items()))
    once = summed.model_copy(update={"alpha": 0.0, "beta": 1.0})
    levels = {
        f"chance: ln {classes}": math.log(classes),
        "floor of one softmax too many": objectives.floor(once, classes),
        f"{name}'s floor, with weights {summed.alpha:g} and {summed.beta:g}": objectives.floor(summed, classes),
    }
    for text, value in levels.items():
        side = "top" if text.startswith(name) else "bottom"
        left.axhline(value, color="grey", linestyle="--", linewidth=1)
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
        left.text(losses["epoch"].max(), value, f"{text}: {value:.2f}", ha="right", va=side, fontsize=8, bbox=box)
    left.set(title="Training loss of each step", xlabel="epoch", ylim=(0, None))
    left.legend(loc="lower left")

    chances = np.linspace(0, 1, 201)
    bars = right.twinx()
    edges = np.linspace(0, 1, 21)
    for model, block in blocks.items():
        norm = objectives.logit_gradient_norm(chances, block, classes)
        right.plot(chances, norm, color=colours[model], label=f"{model}: gradient")
        share = np.histogram(truth[model], edges)[0] / len(truth[model])
        bars.stairs(share, edges, color=colours[model], fill=True, alpha=0.25)
    right.set(title="What a wrong answer teaches", xlabel="probability of the true class (perception branch)")
    right.set(ylabel="norm of the loss's gradient by the logits (lines)", ylim=(0, None))
    bars.set(ylabel="share of test pictures (bars)", ylim=(0, 1))
    bars.grid(visible=False)
    bars.spines["right"].set_visible(True)
    right.legend(loc="upper right")
    return figure


def confusion(predictions: pd.DataFrame, landmarks: list[str], shown: np.ndarray, title: str) -> Figure:
    """The confusion matrix: the share of each true landmark's pictures (row) for each predicted landmark (column).

    Only the labels `shown`, ascending, have a row and a column. `landmarks` has the names of all labels.
    """
    inside = predictions[predictions[["label", "predicted"]].isin(shown).all(axis=1)]
    counts = np.zeros((len(shown), len(shown)))
    np.add.at(counts, tuple(np.searchsorted(shown, inside[column]) for column in ("label", "predicted")), 1)
    pictures = np.bincount(predictions["label"], minlength=len(landmarks))[shown]
    share = counts / np.maximum(pictures, 1)[:, None]
    figure, axes = plt.subplots(figsize=(8.6, 8))
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if share[row, column] > 0.6 else "black"
        axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    ticks, names = np.arange(len(shown)), [landmarks[label] for label in shown]
    axes.set_xticks(ticks, names, rotation=90, fontsize=7)
    axes.set_yticks(ticks, names, fontsize=7)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    axes.grid(visible=False)
    figure.colorbar(image, shrink=0.7, label="share of the true class")
    return figure


def reliability(bins: dict[str, tuple[float, np.ndarray]]) -> Figure:
    """Accuracy against confidence. `bins` has each model's ECE and, per bin, mean confidence, accuracy and number of
    pictures [bins, 3]."""
    figure, panels = plt.subplots(1, len(bins), figsize=(2.9 * len(bins), 3.2), sharey=True, squeeze=False)
    for axes, (model, (ece, rows)) in zip(panels[0], bins.items(), strict=True):
        axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
        axes.plot(rows[:, 0], rows[:, 1], color=BLUE, linewidth=1)
        axes.scatter(rows[:, 0], rows[:, 1], s=8 + 150 * rows[:, 2] / rows[:, 2].sum(), color=BLUE, clip_on=False)
        axes.set(title=f"{model}: ECE {100 * ece:.1f} %", xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    panels[0, 0].set_ylabel("accuracy (dot size: share of pictures)")
    return figure


def attribution(picture: Picture) -> str:
    """Title, author and licence of a picture, where known, shortened: "A tower" by Jane Doe, CC BY 2.0."""
    title, author = (textwrap.shorten(text or "", 60, placeholder="...") for text in (picture.title, picture.author))
    work = " ".join(filter(None, [title and f'"{title}"', author and f"by {author}"]))
    return ", ".join(filter(None, [work, picture.license]))


def examples(predictions: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows, evenly spread over labels: half of them `right`, the others wrong, in this order."""
    rows = predictions.sort_values(["label", "id"])
    halves = [half.drop_duplicates("label") for half in (rows[rows["right"]], rows[~rows["right"]])]
    positions = [np.linspace(0, len(half) - 1, min(count // 2, len(half))).astype(int) for half in halves]
    return pd.concat([half.iloc[chosen] for half, chosen in zip(halves, positions, strict=True)])


def attention_gallery(rows: list[dict], names: list[str]) -> Figure:
    """Pictures (rows) overlaid with each of the maps called `names` (columns).

    A row has `image` (RGB, the network's input), `title`, `source` (the `Picture`, credited below it) and `maps`: by
    name the map, 0..1 [H, W], and its title. The colour scale is 0 to 1 everywhere, so that maps can be compared.
    """
    height = 2.7 if any(attribution(row["source"]) for row in rows) else 2.35  # inches
    figure, panels = plt.subplots(
        len(rows), 1 + len(names), figsize=(2.2 * (1 + len(names)) + 0.8, height * len(rows)), squeeze=False
    )
    image = None
    for axes, row in zip(panels, rows, strict=True):
        size = row["image"].size
        axes[0].imshow(row["image"])
        axes[0].set_title(row["title"], fontsize=8)
        credit = textwrap.wrap(attribution(row["source"]), 52)
        below = {"ha": "center", "va": "top", "transform": axes[0].transAxes}
        axes[0].text(0.5, -0.03, "\n".join(credit), fontsize=5, **below)
        for cell, name in zip(axes[1:], names, strict=True):
            values, title = row["maps"][name]
            smooth = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
            cell.imshow(row["image"].convert("L"), cmap="gray")
            image = cell.imshow(np.clip(np.asarray(smooth), 0, 1), cmap="inferno", alpha=0.6, vmin=0, vmax=1)
            cell.set_title(title, fontsize=8)
    for axes in panels.ravel():
        axes.set(xticks=[], yticks=[])  # otherwise invisible ticks are laid out, which takes half of the time
        axes.axis("off")
    if image is not None:
        figure.colorbar(image, ax=panels, shrink=0.4, label="value of the map")
    return figure
