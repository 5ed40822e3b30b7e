"""evaluate: the metrics and predictions of every model on validation and test."""

import json

from landmarks import artifacts, attention, augment, determinism, images, metrics, models, params, report, stage
from landmarks.determinism import stream
from landmarks.params import Params
from landmarks.training import Features, predict

import numpy as np
import pandas as pd


def judge(
    model: models.Baseline, data: Features, views: pd.DataFrame, masks: np.ndarray, p: Params
) -> tuple[dict, pd.DataFrame]:
    """The entry of results.json for one model and split, and the rows of predictions.parquet for its `views`."""
    output = predict(model, data)
    scores = model.probabilities(output).double().numpy()
    truth = output.perception.double().softmax(1).numpy()[np.arange(len(views)), data.labels]
    table = views[["split", "id", "label"]].assign(
        predicted=scores.argmax(1),
        confidence=scores.max(1).round(artifacts.DIGITS),
        truth=truth.round(artifacts.DIGITS),
    )
    bins, rng = p.evaluate.calibration_bins, stream(p.seed, "bootstrap")
    entry = metrics.summary(scores, data.labels, views["id"].to_numpy(), bins, rng)
    for branch in ("perception", "attention"):
        logits = getattr(output, branch)
        if logits is not None:
            table[branch] = logits.argmax(1).numpy()
        entry[f"{branch}_accuracy"] = None if logits is None else (table[branch] == data.labels).mean()
    entry["attention"] = None
    if isinstance(model, models.AttentionBranchNetwork) and output.map is not None:
        maps = output.map[:, 0].numpy()
        table["map"] = list(maps.reshape(len(maps), -1).round(4))
        entry["attention"] = attention.summary(model, data, maps, masks, stream(p.seed, "cells"))
    return entry, table


def read_masks(rows: pd.DataFrame, grid: tuple[int, int]) -> np.ndarray:
    """The share of each cell of `grid` that the landmark covers, [N, H, W], in the order of `rows`; NaN: unknown."""
    views = {view.id: view for view in augment.views(rows)}
    cells = {
        name: augment.mask_cells(images.decode_mask(mask), views[name], grid)
        for name, mask in images.read_columns(artifacts.FILTERED, "id", "mask")
        if name in views
    }
    return np.stack([cells[name] for name in rows["id"]])


def main() -> str:
    determinism.prepare_training()
    p = params.load()
    device = determinism.pick_device(p.compute.device)
    names = list(p.models)
    stale = {path.name for path in artifacts.MODELS.iterdir() if path.is_dir()} - set(names)
    if stale:
        raise stage.UserError(f"models/trained/{min(stale)}: no such ablation in params.yaml; remove the folder")

    array, views = artifacts.read_features(), artifacts.read_labelled_views()
    splits = {name: views[views["split"] == name] for name in ("val", "test")}
    masks = {name: read_masks(rows, array.shape[2:]) for name, rows in splits.items()}
    largest = views.loc[views["split"] == "train", "label"].mode()[0]
    results: dict = {"majority_class": round(float((splits["test"]["label"] == largest).mean()), artifacts.DIGITS)}
    tables, right = [], {}  # by model and split, which pictures are classified correctly
    with stage.progress(len(names), "models") as bar:
        for name in names:
            model = models.load(artifacts.MODELS / name).to(device)
            results[name] = {}
            for split, rows in splits.items():
                entry, table = judge(model, Features(array, rows), rows, masks[split], p)
                right[name, split] = (table["predicted"] == table["label"]).to_numpy(dtype=int)
                pair = right[name, split], right["baseline", split]
                entry |= metrics.difference(*pair, stream(p.seed, "bootstrap"))
                results[name][split] = metrics.rounded(entry)
                tables.append(table.assign(model=name))
            bar.update()

    with stage.atomic_output(artifacts.PREDICTIONS) as out:
        pd.concat(tables, ignore_index=True).to_parquet(out, index=False)
    with stage.atomic_output(artifacts.RESULTS) as out:
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    with stage.atomic_output(artifacts.RESULTS.with_suffix(".md")) as out:
        out.write_text(report.table(results, p.data.source), encoding="utf-8")
    return ", ".join(f"{name} {results[name]['test']['accuracy']:.4f}" for name in names) + " (test accuracy)"


if __name__ == "__main__":
    stage.run(main)
