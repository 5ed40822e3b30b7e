"""evaluate: every model on validation and test.

Reads   models/*/, data/features/, data/augment.parquet, data/split.parquet, data/filtered/ (classes, masks).
Writes  metrics/results.json (see landmarks/metrics.py), metrics/results.md (the same as a table, beside the numbers
        that the study published) and data/predictions.parquet (a row per model, split and picture: label, predicted
        label, confidence, each branch's label, attention map).
Holds   one row for the baseline, one for abn, one for each ablation in params.yaml.
"""

import json
from pathlib import Path

from landmarks import augment, images, metrics, models, params, stage
from landmarks.objectives import probabilities
from landmarks.training import Features, labelled, predict

import numpy as np
import pandas as pd
import torch

FEATURES = Path("data/features/features.npy")
INDEX = Path("data/augment.parquet")
SPLIT = Path("data/split.parquet")
FILTERED = Path("data/filtered")
MODELS = Path("models")
PREDICTIONS = Path("data/predictions.parquet")
RESULTS = Path("metrics")


def predictions(model: models.Baseline, array: np.ndarray, rows: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """A row of data/predictions.parquet for each of `rows`, and the probabilities [N, K]."""
    outputs = [output for output, _ in predict(model, Features(array, rows))]
    scores = torch.cat([probabilities(output, model.design.abn) for output in outputs]).double().numpy()
    table = rows[["split", "id", "label"]].assign(predicted=scores.argmax(1), confidence=scores.max(1).round(6))
    table["perception"] = torch.cat([output.perception.argmax(1) for output in outputs]).numpy()
    if model.design.abn:
        table["attention"] = torch.cat([output.attention.argmax(1) for output in outputs]).numpy()
        table["map"] = list(torch.cat([output.map.flatten(1) for output in outputs]).numpy().round(4))
    return table, scores


def summary(table: pd.DataFrame, scores: np.ndarray, masks: np.ndarray, bins: int) -> dict:
    """The entry of results.json for one model and split."""
    entry = metrics.summary(scores, table["label"].to_numpy(), bins)
    entry["perception_accuracy"] = (table["perception"] == table["label"]).mean()
    entry["attention_accuracy"] = (table["attention"] == table["label"]).mean() if "attention" in table else None
    maps = np.stack(table["map"]).reshape(masks.shape) if "map" in table else None
    entry["attention_auc"] = None if maps is None else metrics.attention_auc(maps, masks)
    return metrics.rounded(entry)


def masks(rows: pd.DataFrame, grid: tuple[int, int]) -> np.ndarray:
    """The share of each cell of `grid` that the landmark covers, [N, H, W], in the order of `rows`; NaN unknown."""
    views = {view.id: view for view in augment.views(rows)}
    cells = {
        name: augment.mask_cells(images.decode_mask(mask), views[name], grid)
        for name, mask in images.read_masks(FILTERED)
        if name in views
    }
    return np.stack([cells[name] for name in rows["id"]])


def main() -> str:
    p = params.load()
    names = ["baseline", "abn", *sorted(p.ablations)]
    stale = {path.name for path in MODELS.iterdir() if path.is_dir()} - set(names)
    if stale:
        raise stage.UserError(f"models/{min(stale)}: no such ablation in params.yaml; remove the folder")

    array = np.load(FEATURES, mmap_mode="r")
    index = labelled(pd.read_parquet(INDEX), pd.read_parquet(SPLIT))
    splits = {name: index[index["split"] == name] for name in ("val", "test")}
    grids = {name: masks(rows, array.shape[2:]) for name, rows in splits.items()}
    largest = index.loc[index["split"] == "train", "label"].mode()[0]
    results: dict = {"majority_class": round(float((splits["test"]["label"] == largest).mean()), metrics.DIGITS)}
    tables = []
    with stage.progress(len(names), "models") as bar:
        for name in names:
            model = models.load(MODELS / name)
            results[name] = {}
            for split, rows in splits.items():
                table, scores = predictions(model, array, rows)
                results[name][split] = summary(table, scores, grids[split], p.evaluate.calibration_bins)
                tables.append(table.assign(model=name))
            bar.update()

    with stage.whole(PREDICTIONS) as out:
        pd.concat(tables, ignore_index=True).to_parquet(out, index=False)
    with stage.whole(RESULTS / "results.json") as out:
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    with stage.whole(RESULTS / "results.md") as out:
        out.write_text(metrics.table(results, p.data.source), encoding="utf-8")
    return ", ".join(f"{name} {results[name]['test']['accuracy']:.4f}" for name in names) + " (test accuracy)"


if __name__ == "__main__":
    stage.run(main)
