"""How much do the results depend on chance? Other initial weights, order and dropout, on the same pictures and views.

    .venv/bin/python -m studies.seeds [SEED...]      after `make reproduce`; seeds 0 1 2 unless given

Trains the baseline, abn and every ablation of params.yaml with each seed, prints test accuracy (mean and standard
deviation over seeds, in percent), the last epoch's training loss, and the difference from the baseline. Its 95 %
interval is a bootstrap over pictures; the value of a picture is the share of seeds that classify it correctly.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

from landmarks import artifacts, determinism, metrics, params, stage
from landmarks.training import Features, predict, prepare_training, read_tail, train_model

import numpy as np


def main() -> str:
    prepare_training()
    p, seeds = params.load(), [int(seed) for seed in sys.argv[1:]] or [0, 1, 2]
    array, index = artifacts.read_features(), artifacts.read_labelled_views()
    test = Features(array, index[index["split"] == "test"])
    landmarks = [str(label) for label in range(index["label"].max() + 1)]
    device = determinism.pick_device(p.compute.device)
    tail = read_tail(p.backbone, artifacts.BACKBONE)
    train = partial(train_model, array, index, landmarks=landmarks, train=p.train, device=device, tail=tail)
    right: dict[str, np.ndarray] = {}
    print("| model | test | each seed | last training loss | above baseline | its 95 % interval |")
    print("|---|---:|---|---:|---:|---:|")
    for name, abn in p.models.items():
        hits, losses = [], []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as log:
                model, last = train(abn=abn, seed=seed, log=Path(log) / "log")
            scores = model.probabilities(predict(model, test))
            hits.append(scores.argmax(1).numpy() == test.labels)
            losses.append(last["train/loss"])
        right[name] = np.mean(hits, axis=0)
        each = 100 * np.mean(hits, axis=1)
        gains = right[name] - right["baseline"]
        low, high = metrics.interval(gains, determinism.stream(p.seed, "bootstrap"))
        cells = [f"{each.mean():.2f} ± {each.std(ddof=1):.2f}", ", ".join(f"{value:.2f}" for value in each)]
        cells += [f"{np.mean(losses):.3f}", f"{100 * gains.mean():+.2f}"]
        print(f"| {name} | {' | '.join(cells)} | {100 * low:.2f} to {100 * high:.2f} |", flush=True)
    return f"{len(seeds)} seeds, {len(test)} test pictures"


if __name__ == "__main__":
    stage.run(main)
