"""How many training pictures per landmark a model needs.

    .venv/bin/python -m studies.pictures MODEL [--seeds 3]

Trains MODEL of params.yaml (baseline, abn...) on 10, 20, 40 and all training pictures of every landmark, each with
several seeds, and prints the accuracy on all test pictures. It reads the features of the last run, such as that of
`make photos`.
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.speed import table
from landmarks import artifacts, determinism, params, stage, training
from landmarks.answers import predictions
from landmarks.determinism import stream
from landmarks.report import percent
from landmarks.serving import cli

import numpy as np
import pandas as pd

NUMBERS = (10, 20, 40, None)  # None: all


def subset(views: pd.DataFrame, number: int | None, seed: int) -> pd.DataFrame:
    """`views` (`id`, `label`, `split`) without all but `number` random training pictures of each label."""
    training = views[views["split"] == "train"].drop_duplicates("id")
    kept = [
        ids[stream(seed, "pictures", int(label)).permutation(len(ids))[:number]]
        for label, ids in training.groupby("label")["id"].agg(np.asarray).items()
    ]
    return views[(views["split"] != "train") | views["id"].isin(np.concatenate(kept))]


def main() -> str:
    parser = argparse.ArgumentParser(prog="studies.pictures")
    parser.add_argument("model", help="a model of params.yaml")
    parser.add_argument("--seeds", type=cli.number(1), default=3)
    arguments, p = parser.parse_args(), params.load()
    abn = p.model(arguments.model)
    training.prepare_training()
    device = determinism.pick_device(p.compute.device)
    features, views = artifacts.read_features(), artifacts.read_labelled_views()
    test = views[views["split"] == "test"]
    train = training.trainer(p.backbone, p.train, device)
    rows = []
    for number in NUMBERS:
        used = subset(views, number, p.seed)
        accuracies, seconds = [], []
        for seed in range(p.seed, p.seed + arguments.seeds):
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as log:
                model, _ = train(index=used, abn=abn, seed=seed, log=Path(log))
            seconds.append(time.monotonic() - start)
            found = predictions(model.to(device), features, test)
            accuracies.append((found["predicted"] == found["label"]).mean())
        deviation = percent(float(np.std(accuracies, ddof=1))) if len(accuracies) > 1 else ""
        cells = [percent(float(np.mean(accuracies))), deviation, f"{np.median(seconds):.0f}"]
        rows.append([str(number or "all"), *cells])
    return f"\n{table(['pictures per landmark', 'test accuracy', 'deviation', 'seconds of training'], rows)}"


if __name__ == "__main__":
    stage.run(main)
