"""Which score tells photos of unknown landmarks from those of known ones? Compares the baselines of OpenOOD.

    .venv/bin/python -m studies.unknown MODEL            after `make reproduce`, with the same params.yaml
    .venv/bin/python -m studies.unknown MODEL --thirds   for data without other landmarks, such as your own photographs

The first command takes about 200 pictures of landmarks that the filter left out, equally many of each, the test
pictures of the classes, and the trained MODEL (baseline, abn...). It needs `augment.eval_rotation: 0`. The second takes
a third of the classes as unknown, trains MODEL on the others, and does so for each third; it prints the mean of the
three.

For every score (high: known), prints the area under the ROC curve (50 is chance), and the share of test pictures
(false alarms) and of unknown pictures (detected) below the threshold that validation pictures set. In percent.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.speed import table
from landmarks import artifacts, classes, images, inspection, models, params, release, sources, stage, training
from landmarks.params import Params
from landmarks.serving.recognizer import BATCH, Recognizer

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

PICTURES = 200
THIRDS = 3
COMPONENTS = 64  # dimensions that PCA and ViM keep
AREA = "area under the ROC curve"


class Evidence(NamedTuple):
    """What a model says about N pictures, float64: logits of both branches and probabilities [N, K]; the mean features
    of the trunk, those that the classifier reads [N, C], and the input of its last layer [N, H]. Without attention,
    `attention` is `perception`."""

    perception: np.ndarray
    attention: np.ndarray
    probabilities: np.ndarray
    trunk: np.ndarray
    weighted: np.ndarray
    hidden: np.ndarray


@torch.inference_mode()
def evidence(model: models.Baseline, data: training.Features) -> Evidence:
    model.eval()
    parts = []
    for batch, _ in data.batches(np.arange(len(data)), 64):
        output = model(batch)
        inputs = model.weighted_input(batch, output.map)
        inputs = inputs if model.tail is None else model.tail(inputs)
        hidden = model.classifier[:-1](inputs)
        attention = output.perception if output.attention is None else output.attention
        probabilities, trunk = model.probabilities(output), model.standardise(batch).mean((2, 3))
        parts.append((output.perception, attention, probabilities, trunk, inputs.mean((2, 3)), hidden))
    return Evidence(*(torch.cat(part).double().numpy() for part in zip(*parts, strict=True)))


def scores(single: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`single_scores` of some pictures, and their combinations, by name.

    Combinations rank a picture among the validation pictures, whose `single_scores` are `reference`.
    """
    found = dict(single)

    def rank(name: str) -> np.ndarray:
        return np.searchsorted(np.sort(reference[name]), found[name]) / len(reference[name])

    pairs = [
        ("maximum probability", "nearest neighbour, trunk"),
        ("energy", "nearest neighbour, trunk"),
        ("agreement: product", "nearest neighbour, trunk"),
        ("agreement: product", "nearest neighbour of the predicted class, trunk"),
        ("agreement: product", "relative Mahalanobis, trunk"),
        ("agreement: product", "ViM, hidden"),
    ]
    for first, second in pairs:
        found[f"mean rank: {first} and {second}"] = rank(first) + rank(second)
    for kind in ("trunk", "weighted"):
        name = f"nearest neighbour of the predicted class, {kind}"
        found[f"probability x {name}"] = found["maximum probability"] * np.maximum(1 + found[name], 0)
    return found


def single_scores(train: Evidence, labels: np.ndarray, query: Evidence) -> dict[str, np.ndarray]:
    """Scores of the pictures of `query`, by name; higher is more like a known landmark.

    `train` are training pictures of classes `labels`.
    """
    first, second = softmax(query.perception, 1), softmax(query.attention, 1)
    best, rows = query.probabilities.argmax(1), np.arange(len(query.trunk))
    middle = (first + second) / 2

    def divergence(p: np.ndarray) -> np.ndarray:
        return (p * (np.log(p + 1e-12) - np.log(middle + 1e-12))).sum(1)

    found = {
        "maximum probability": query.probabilities.max(1),
        "maximum logit": query.perception.max(1),
        "maximum logit, both branches": (query.perception + query.attention).max(1),
        "energy": logsumexp(query.perception, 1),
        "energy, both branches": logsumexp(query.perception, 1) + logsumexp(query.attention, 1),
        "agreement: product": log_softmax(query.perception, 1)[rows, best]
        + log_softmax(query.attention, 1)[rows, best],
        "agreement: Jensen-Shannon": -(divergence(first) + divergence(second)) / 2,
    }
    for kind in ("trunk", "weighted", "hidden"):
        found |= {f"{name}, {kind}": value for name, value in distances(train, labels, query, kind).items()}
    return found


def distances(train: Evidence, labels: np.ndarray, query: Evidence, kind: str) -> dict[str, np.ndarray]:
    """Scores from the features `kind` of training pictures."""
    x, y = getattr(train, kind), getattr(query, kind)
    if len(x) < 10:
        raise stage.UserError("augment.views: at least 10 training views are needed; use more views or pictures")
    centre, spread = x.mean(0), x.std(0) + 1e-6
    x, y = (x - centre) / spread, (y - centre) / spread
    best = query.probabilities.argmax(1)
    unit = [rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9) for rows in (x, y)]
    near = unit[1] @ unit[0].T
    same = np.where(labels == best[:, None], near, -1)
    ordered = -np.partition(-near, [0, 4, 9], axis=1)
    found = {
        "nearest neighbour": ordered[:, 0],
        "5th nearest neighbour": ordered[:, 4],
        "10th nearest neighbour": ordered[:, 9],
        "nearest neighbour of the predicted class": same.max(1),
    }
    means = np.stack([x[labels == label].mean(0) for label in np.unique(labels)])
    within = inspection.shrunk_covariance(x, labels, means)
    total = inspection.shrunk_covariance(x, np.zeros_like(labels), np.zeros((1, x.shape[1])))
    offsets = y[:, None] - means
    inverse = np.linalg.inv(within + 1e-6 * np.identity(len(within)))
    squared = np.stack([((y - m) @ inverse * (y - m)).sum(1) for m in means], 1)
    background = (y @ np.linalg.inv(total + 1e-6 * np.identity(len(total))) * y).sum(1)
    found |= {"Mahalanobis": -squared.min(1), "relative Mahalanobis": background - squared.min(1)}
    found["nearest class mean"] = -np.square(offsets).sum(2).min(1)
    most = min(x.shape)
    pca = PCA(COMPONENTS if most > COMPONENTS else most // 2, svd_solver="covariance_eigh").fit(x)
    residual = [np.linalg.norm(z - pca.inverse_transform(pca.transform(z)), axis=1) for z in (x, y)]
    scale = train.perception.max(1).mean() / residual[0].mean()
    found |= {"PCA residual": -residual[1], "ViM": logsumexp(query.perception, 1) - scale * residual[1]}
    return found


def left_out(index: pd.DataFrame, kept: Iterable[str]) -> pd.DataFrame:
    """About `PICTURES` rows of the index, evenly from the landmarks that are not kept (or all that they have)."""
    others = index[~index["landmark_id"].isin(kept)].sort_values(["landmark_id", "id"])
    if others.empty:
        text = "has no landmark that the filter left out; lower filter.top_k, or give --thirds"
        raise stage.UserError(f"data.source: {text}")
    each = -(-PICTURES // others["landmark_id"].nunique())
    chosen = others.groupby("landmark_id").head(each)
    return chosen.iloc[:: max(1, len(chosen) // PICTURES)].sort_values("id")


def measure(
    model: models.Baseline, array: np.ndarray, views: pd.DataFrame, unknown: training.Features, rate: float
) -> pd.DataFrame:
    """The table of one model: `array` and `views` are features and views of known landmarks."""
    parts = {split: evidence(model, training.Features(array, rows)) for split, rows in views.groupby("split")}
    labels = views.loc[views["split"] == "train", "label"].to_numpy()
    queries = parts["val"], parts["test"], evidence(model, unknown)
    singles = [single_scores(parts["train"], labels, query) for query in queries]
    groups = [scores(single, singles[0]) for single in singles]
    rows = {}
    for name, (val, test, other) in ((name, [group[name] for group in groups]) for name in groups[0]):
        limit = release.threshold(val, rate) or -np.inf  # 0: no alarm, but scores may be negative
        truth = [1] * len(test) + [0] * len(other)
        area = roc_auc_score(truth, np.concatenate([test, other]))
        rows[name] = [100 * area, 100 * np.mean(other < limit), 100 * np.mean(test < limit)]
    return pd.DataFrame.from_dict(rows, "index", columns=[AREA, "detected", "false alarms"])


def other_landmarks(p: Params, folder: Path) -> training.Features:
    """Features of pictures of landmarks that the filter left out."""
    with sources.open_source(
        p.data, p.download, seed=p.seed, workers=p.compute.workers, scratch=artifacts.DOWNLOADS
    ) as source:
        index, _ = sources.restrict(source.index(), p.data.only)
        ranking = classes.rank(index, skip_top=p.filter.skip_top, top_k=p.filter.top_k, min_images=p.filter.min_images)
        wanted = left_out(index, ranking.loc[ranking["kept"], "landmark_id"])
        failures = source.fetch(wanted)
        pictures = [picture.picture for picture in source.pictures(wanted[~wanted["id"].isin(failures)])]
    model, pixels = Recognizer(folder, "cpu"), []
    for data in pictures:
        try:
            pixels.append(torch.tensor(model.view(data).pixels))
        except images.Unfit:
            continue
    if not pixels:
        raise stage.UserError("data.source: no picture of another landmark is usable; give --thirds")
    with torch.inference_mode():
        array = torch.cat([model.trunk(batch) for batch in torch.stack(pixels).split(BATCH)]).numpy()
    return training.Features(array, pd.DataFrame({"row": range(len(array)), "label": 0}))


def thirds(
    train: Callable[..., tuple[models.Baseline, object]], array: np.ndarray, views: pd.DataFrame, rate: float
) -> Iterator[pd.DataFrame]:
    """The table for each third of the classes as unknown ones. `train` is `train_model` with its other settings."""
    if views["label"].nunique() < THIRDS:
        raise stage.UserError(f"--thirds: needs at least {THIRDS} landmarks; lower filter.min_images or use other data")
    for third in range(THIRDS):
        others = views["label"] % THIRDS == third
        known = views[~others].assign(label=lambda rows: pd.factorize(rows["label"], sort=True)[0])
        landmarks = views.loc[~others, "label"].drop_duplicates().sort_values().astype(str).tolist()
        with TemporaryDirectory() as log:
            model, _ = train(array=array, index=known, landmarks=landmarks, log=Path(log))
        unknown = training.Features(array, views[others & (views["split"] == "test")])
        yield measure(model, array, known, unknown, rate)


def main() -> str:
    parser = argparse.ArgumentParser(prog="studies.unknown")
    parser.add_argument("model", help="a model of params.yaml")
    parser.add_argument("--thirds", action="store_true")
    arguments, p = parser.parse_args(), params.load()
    abn = p.model(arguments.model)
    array, views, rate = artifacts.read_features(), artifacts.read_labelled_views(), p.package.false_alarm_rate
    if p.augment.eval_rotation and not arguments.thirds:
        raise stage.UserError(
            "augment.eval_rotation: pictures of unknown landmarks would be upright; set 0, or give --thirds"
        )
    if arguments.thirds:
        training.prepare_training()
        trainer = training.trainer(p.backbone, p.train, torch.device("cpu"))
        tables = list(thirds(partial(trainer, abn=abn, seed=p.seed), array, views, rate))
    else:
        folder = artifacts.RELEASED / arguments.model
        tables = [measure(models.load(folder), array, views, other_landmarks(p, folder), rate)]
    found = sum(tables[1:], tables[0]) / len(tables)
    rows = [[name, *(f"{value:.1f}" for value in found.loc[name])] for name in found.sort_values(AREA).index[::-1]]
    return f"\n{table(['score', *found], rows)}"


if __name__ == "__main__":
    stage.run(main)
