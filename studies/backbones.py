"""docs/backbones.md: backbones, levels and tails, with and without attention. studies/experiments.py has the command.

A row with a trained tail is compared with the frozen one of the same level, if that has run too.
"""

from pathlib import Path

from landmarks import artifacts, metrics, stage
from landmarks.determinism import stream
from landmarks.report import percent, span
from studies import experiments
from studies.experiments import Name, Study
from tools.clone import Clone, Repro

import numpy as np
import pandas as pd

INTERVAL = "95 % interval"
VGG, LITE0 = ("vgg16", "hed-bsds500"), ("tf_efficientnet_lite0", "efficientnet-lite0")
BACKBONES = (
    *((*VGG, layer, "none") for layer in ("conv3", "conv4", "conv5")),
    (*VGG, "conv4", "trained"),
    *((*LITE0, layer, "none") for layer in ("level3", "level4", "last")),
    *((*LITE0, layer, "trained") for layer in ("level3", "level4")),
)
LINEAR, PAPER = ", linear classifier", ", the paper's branch"
TABLES = {
    "Accuracy": ["baseline", INTERVAL, "abn", INTERVAL, "abn above baseline", INTERVAL],
    "What the trained tail adds": ["to the baseline", INTERVAL, "to abn", INTERVAL],
    "Branches and attention map of abn": ["perception branch", "attention branch", "energy", "deletion", "insertion"],
    "Cost": ["views/s", "baseline, s", "abn, s", "MB"],
}
TRAINED = ", trained tail"
ROWS: dict[Name, dict[str, object]] = {
    (f"{name} {layer}{TRAINED if tail == 'trained' else ''}",): {
        "backbone.name": name,
        "backbone.weights": weights,
        "backbone.layer": layer,
        "backbone.tail": tail,
    }
    for name, weights, layer, tail in BACKBONES
}
best = ROWS[(f"tf_efficientnet_lite0 level4{TRAINED}",)] | {"train.hidden": 0}
ROWS[(f"tf_efficientnet_lite0 level4{TRAINED}{LINEAR}",)] = best
ROWS[(f"tf_efficientnet_lite0 level4{TRAINED}{LINEAR}{PAPER}",)] = best | {"abn.branch": "paper"}
correct: dict[str, dict[str, np.ndarray]] = {}  # `correct_pictures` of the rows that have run, by name


def correct_pictures(predictions: pd.DataFrame) -> dict[str, np.ndarray]:
    """By model, whether each test picture is classified correctly: 1 or 0, in the same order for all backbones."""
    test = predictions[predictions["split"] == "test"]
    return {name: (rows["label"] == rows["predicted"]).to_numpy(int) for name, rows in test.groupby("model")}


def gain(trained: dict[str, np.ndarray], frozen: dict[str, np.ndarray] | None) -> list[str]:
    """What a trained tail adds to the baseline and to abn, each with its interval; empty without a frozen run."""
    if frozen is None:
        return [""] * 4
    gains = [metrics.difference(trained[name], frozen[name], stream(0, "bootstrap")) for name in ("baseline", "abn")]
    return [span(value) for g in gains for value in ([g["above_baseline"]], g["above_baseline_ci95"])]


def measure(row: Name, results: dict, clone: Clone, repro: Repro) -> list[str]:
    """The cells of a row: accuracy, what the tail adds, the attention map, and the costs.

    A time is empty if DVC took the outs of the stage from the row before.
    """
    baseline, abn = (results[model]["test"] for model in ("baseline", "abn"))
    accuracy = [span(value) for m in (baseline, abn) for value in ([m["accuracy"]], m["accuracy_ci95"])]
    above = [percent(abn["above_baseline"]), span(abn["above_baseline_ci95"])]
    correct[row[0]] = correct_pictures(pd.read_parquet(clone.root / artifacts.PREDICTIONS))
    frozen = correct.get(row[0].removesuffix(TRAINED)) if row[0].endswith(TRAINED) else None
    attention, seconds = experiments.attention(abn), repro.seconds()
    views = len(pd.read_parquet(clone.root / artifacts.VIEWS))
    size = sum(path.stat().st_size for path in (clone.root / artifacts.RELEASED / "abn").iterdir() if path.is_file())
    rate = f"{views / seconds['extract-features']:.1f}" if "extract-features" in seconds else ""
    times = [f"{seconds[name]:.0f}" if name in seconds else "" for name in ("train-baseline", "train-abn")]
    costs = [rate, *times, f"{size / 1e6:.0f}"]
    return [*accuracy, *above, *gain(correct[row[0]], frozen), *attention, *costs]


STUDY = Study(Path("docs/backbones.md"), ("backbone",), TABLES, ROWS, measure, timed=True)

if __name__ == "__main__":
    stage.run(lambda: experiments.main(STUDY))
