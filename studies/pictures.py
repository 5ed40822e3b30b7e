"""How many training pictures per landmark a model needs.

    .venv/bin/python -m studies.pictures MODEL [--seeds 3] [--numbers 10 20 40 0] [--half]

Trains MODEL of params.yaml (baseline, abn...) on 10, 20, 40 and all (0) training pictures of every landmark, each with
several seeds, and prints the accuracy on all validation and test pictures. With `--half`, only every second landmark
exists. It reads the features of the last run, such as that of `make photos`. All seeds train on the same pictures.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.speed import table
from landmarks import artifacts, determinism, params, stage, training
from landmarks.answers import predictions
from landmarks.determinism import stream
from landmarks.report import percent
from landmarks.serving import cli

import numpy as np
import pandas as pd

NUMBERS = (10, 20, 40, 0)  # 0: all


def subset(views: pd.DataFrame, number: int, seed: int) -> pd.DataFrame:
    """`views` (`id`, `label`, `split`) without all but `number` random training pictures of each label; 0 keeps all."""
    training = views[views["split"] == "train"].drop_duplicates("id")
    kept = [
        ids[stream(seed, "pictures", int(label)).permutation(len(ids))[: number or None]]
        for label, ids in training.groupby("label")["id"].agg(np.asarray).items()
    ]
    return views[(views["split"] != "train") | views["id"].isin(np.concatenate(kept))]


def every_second(views: pd.DataFrame) -> pd.DataFrame:
    """`views` of the landmarks 0, 2, 4..., with the labels 0, 1, 2..."""
    return views[views["label"] % 2 == 0].assign(label=lambda rows: rows["label"] // 2)


def mean_and_deviation(accuracies: list[float]) -> str:
    """In percent, like 91.34 ± 0.50; without the deviation if there is one value."""
    deviation = f" ± {percent(float(np.std(accuracies, ddof=1)))}" if len(accuracies) > 1 else ""
    return f"{percent(float(np.mean(accuracies)))}{deviation}"


def main() -> str:
    parser = argparse.ArgumentParser(prog="studies.pictures")
    parser.add_argument("model", help="a model of params.yaml")
    parser.add_argument("--seeds", type=cli.number(1), default=3)
    parser.add_argument("--numbers", type=cli.number(0), nargs="+", default=NUMBERS, help="0: all pictures")
    parser.add_argument("--half", action="store_true", help="only every second landmark")
    arguments, p = parser.parse_args(), params.load()
    abn = p.model(arguments.model)
    training.prepare_training()
    device = determinism.pick_device(p.compute.device)
    features, views = artifacts.read_features(), artifacts.read_labelled_views()
    landmarks = artifacts.read_classes()["landmark_id"].tolist()
    if arguments.half:
        views, landmarks = every_second(views), landmarks[::2]
    judged = views[views["split"] != "train"]
    train = partial(training.trainer(p.backbone, p.train, device), landmarks=landmarks)
    rows = []
    for number in arguments.numbers:
        used = subset(views, number, p.seed)
        accuracies: dict[str, list[float]] = {"val": [], "test": []}
        seconds = []
        for seed in range(p.seed, p.seed + arguments.seeds):
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as log:
                model, _ = train(index=used, abn=abn, seed=seed, log=Path(log))
            seconds.append(time.monotonic() - start)
            found = predictions(model.to(device), features, judged)
            for split, right in (found["predicted"] == found["label"]).groupby(found["split"]):
                accuracies[split].append(right.mean())
        cells = map(mean_and_deviation, accuracies.values())
        rows.append([str(number or "all"), *cells, f"{np.median(seconds):.0f}"])
    columns = ["pictures per landmark, at most", "validation accuracy", "test accuracy", "seconds of training"]
    return f"\n{table(columns, rows)}"


if __name__ == "__main__":
    stage.run(main)
