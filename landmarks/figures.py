"""The figures that explain the results. Each function takes tables and returns a matplotlib figure."""

import io
import math
import textwrap
import warnings
from pathlib import Path

from landmarks import objectives
from landmarks.artifacts import shown_names
from landmarks.images import Picture
from landmarks.params import Abn

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image, ImageOps

matplotlib.use("Agg")
matplotlib.rcdefaults()  # the user's matplotlibrc would change the figures
plt.rc("font", size=9)
plt.rc("axes", grid=True, axisbelow=True)
plt.rc("axes.spines", top=False, right=False)
plt.rc("grid", alpha=0.3)
plt.rc("legend", frameon=False)
plt.rc("figure.constrained_layout", use=True)
plt.rc("text", parse_math=False, usetex=False)  # the names of landmarks may contain $
BLUE, RED, GREY = "#1f77b4", "#d62728", "#bbbbbb"
DPI = 110
SHOWN_CLASSES = 40  # the worst ones in `class_accuracy`, the largest ones in `embedding`
TILE = 104  # pixels; side of a picture on a contact sheet


def save(figure: Figure, path: Path, colours: int | None = None) -> None:
    """Writes a PNG, without matplotlib's version in its metadata: the bytes depend only on what the figure shows.

    `colours` limits the number of colours; with 256, figures of pictures take a third of the space.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a title in a script that the font does not have
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    if colours:
        image = Image.open(buffer).convert("RGB").quantize(colours)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
    path.write_bytes(buffer.getvalue())


def shorten(text: str, most: int) -> str:
    """The text in one line of at most `most` characters. textwrap's function drops a long word as a whole."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def class_histogram(ranking: pd.DataFrame) -> Figure:
    """The number of pictures of each class of `ranking` (rank, landmark_id, images, kept)."""
    figure, axes = plt.subplots(figsize=(11, 4))
    colours = np.where(ranking["kept"], BLUE, GREY)
    axes.bar(ranking["rank"], ranking["images"], color=colours)
    names = [shorten(name, 30) for name in ranking["landmark_id"]]
    axes.set_xticks(ranking["rank"], names, rotation=90, fontsize=7)
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
        f"{name}'s floor (weights {summed.alpha:g}, {summed.beta:g})": objectives.floor(summed, classes),
    }
    for text, value in levels.items():
        side = "top" if text.startswith(name) else "bottom"
        left.axhline(value, color="grey", linestyle="--", linewidth=1, zorder=1.8)
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
        style = {"ha": "right", "va": side, "fontsize": 8, "bbox": box, "zorder": 1.9}  # below the curves
        left.text(losses["epoch"].max(), value, f"{text}: {value:.2f}", **style)
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
    right.set(ylabel="gradient norm with respect to the logits (lines)", ylim=(0, None))
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
    ticks, names = np.arange(len(shown)), [shorten(landmarks[label], 30) for label in shown]
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
    title, author = (shorten(text or "", 60) for text in (picture.title, picture.author))
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
    colours = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), "inferno")
    for axes, row in zip(panels, rows, strict=True):
        size = row["image"].size
        axes[0].imshow(row["image"])
        axes[0].set_title(shorten(row["title"], 30), fontsize=8)
        credit = textwrap.wrap(attribution(row["source"]), 52)
        below = {"ha": "center", "va": "top", "transform": axes[0].transAxes}
        axes[0].text(0.5, -0.03, "\n".join(credit), fontsize=5, **below)
        for cell, name in zip(axes[1:], names, strict=True):
            values, title = row["maps"][name]
            smooth = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
            cell.imshow(row["image"].convert("L"), cmap="gray")
            cell.imshow(np.clip(np.asarray(smooth), 0, 1), cmap=colours.cmap, alpha=0.6, vmin=0, vmax=1)
            cell.set_title("\n".join(shorten(line, 30) for line in title.split("\n")), fontsize=8)
    for axes in panels.ravel():
        axes.set(xticks=[], yticks=[])  # otherwise invisible ticks are laid out, which takes half of the time
        axes.axis("off")
    figure.colorbar(colours, ax=panels, shrink=0.4, label="value of the map")
    return figure


def class_accuracy(classes: pd.DataFrame, model: str) -> Figure:
    """Recall (bar) and precision (dot) of the classes of classes.csv; of more than 40, those with the lowest recall.

    `model` is the name of the model that they describe.
    """
    names = shown_names(classes)
    rows = classes.sort_values(["recall", "landmark_id"]).head(SHOWN_CLASSES)[::-1]
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.2 * len(rows)))
    places = np.arange(len(rows))
    axes.barh(places, rows["recall"], color=BLUE, alpha=0.5, label="recall: share of its pictures that are named right")
    axes.plot(rows["precision"], places, "o", color=RED, markersize=4, clip_on=False)
    axes.plot([], [], "o", color=RED, markersize=4, label="precision: share of answers with its name that are right")
    axes.set_yticks(places, [shorten(names[name], 40) for name in rows["landmark_id"]], fontsize=7)
    for place, row in enumerate(rows.itertuples()):
        confused = f", taken for {names[row.confused_with]}" if row.confused_with else ""
        text = shorten(f"{row.test} test, {row.train} training{confused}", 60)
        axes.text(1.03, place, text, va="center", fontsize=7)
    left_out = f" ({len(rows)} of {len(classes)} classes)" if len(rows) < len(classes) else ""
    axes.set_title(f"The classes of {model} on test pictures, worst first{left_out}", pad=28, loc="left")
    axes.set(xlim=(0, 1), ylim=(-0.6, len(rows) - 0.4))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=7, borderaxespad=0.2)
    return figure


def contact_sheet(pairs: list[list[tuple[Image.Image, str]]], title: str) -> Figure:
    """Pairs of pictures with captions of two lines, three pairs in a row."""
    columns, gap, line = 3, 18, 42  # line: pixels for a caption
    width, height = 2 * TILE + gap, TILE + line
    rows = max(1, -(-len(pairs) // columns))
    sheet = Image.new("RGB", (columns * width + gap, rows * height + 40), "white")
    figure = plt.figure(figsize=(sheet.width / DPI, sheet.height / DPI), dpi=DPI, layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.text(gap, 14, title if pairs else f"{title}: none", va="center", fontsize=8, weight="bold")
    for number, pair in enumerate(pairs):
        for side, (image, caption) in enumerate(pair):
            x = gap + number % columns * width + side * (TILE + 4)
            y = 30 + number // columns * height
            sheet.paste(ImageOps.pad(image, (TILE, TILE), color="white"), (x, y))
            text = "\n".join(shorten(part, 22) for part in caption.split("\n"))
            axes.text(x, y + TILE + 3, text, va="top", fontsize=5.5, linespacing=1.1)
    axes.imshow(sheet, interpolation="none", extent=(0, sheet.width, sheet.height, 0))
    axes.axis("off")
    return figure


def embedding(points: np.ndarray, labels: np.ndarray, names: list[str]) -> Figure:
    """A map: `points` [N, 2] in the colours of `labels` [N]. Only the 40 largest classes have their names on it."""
    figure, axes = plt.subplots(figsize=(9, 8))
    counts = np.bincount(labels, minlength=len(names))
    named = np.argsort(-counts, kind="stable")[:SHOWN_CLASSES]
    rest = points[~np.isin(labels, named)]
    axes.scatter(rest[:, 0], rest[:, 1], s=6, color=GREY, linewidths=0)
    height, width = np.ptp(points, axis=0)[::-1] / (50, 10)  # of the box of a name
    places: list[np.ndarray] = []
    for number, label in enumerate(sorted(named)):
        members = points[labels == label]
        if not len(members):
            continue
        colour = matplotlib.colormaps["tab20"](number % 20)
        marker = "os^D"[number // 20 % 4]
        axes.scatter(members[:, 0], members[:, 1], s=16, color=colour, marker=marker, linewidths=0)
        centre = np.median(members, axis=0)
        while any((abs(centre - place) < (width, height)).all() for place in places):
            centre[1] += height / 4  # names do not overlap
        places.append(centre)
        box = {"facecolor": "white", "alpha": 0.7, "edgecolor": colour, "pad": 1.2, "linewidth": 0.8}
        text = shorten(names[label], 24)
        axes.text(centre[0], centre[1], text, fontsize=6, ha="center", va="center", bbox=box)
    left_out = f"; grey: {len(names) - len(named)} smaller classes" if len(names) > len(named) else ""
    axes.set(title=f"Similar pictures are neighbours (t-SNE of the pooled features{left_out})", xticks=[], yticks=[])
    return figure


def learning_curve(curve: pd.DataFrame) -> Figure:
    """Error against the number of training pictures, with the trend: the table of `inspection.learning_curve`."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    measured, expected = curve[:-1], curve.iloc[-1]
    axes.plot(curve["pictures"], 1 - curve["trend"], "--", color=GREY, label="trend: error = a * pictures ** -b")
    axes.fill_between(measured["pictures"], 1 - measured["high"], 1 - measured["low"], color=BLUE, alpha=0.2)
    axes.plot(measured["pictures"], 1 - measured["accuracy"], "o-", color=BLUE, label="measured")
    spread = [[expected["high"] - expected["trend"]], [expected["trend"] - expected["low"]]]
    axes.errorbar(expected["pictures"], 1 - expected["trend"], np.maximum(spread, 0), fmt="s", color=RED, capsize=3)
    text = f"twice as many:\naccuracy {expected['trend']:.1%}\n({expected['low']:.1%} to {expected['high']:.1%})"
    axes.annotate(
        text,
        (expected["pictures"], 1 - expected["low"]),
        (6, 5),
        textcoords="offset points",
        fontsize=8,
        ha="right",
        color=RED,
    )
    axes.set(xscale="log", yscale="log", xlabel="training pictures", ylabel="error on validation and test pictures")
    axes.set_xticks(curve["pictures"], curve["pictures"])
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1) if axes.get_ylim()[0] <= tick]
    axes.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title("Would more pictures help? The error of a linear classifier", loc="left")
    axes.legend(loc="lower left")
    return figure
