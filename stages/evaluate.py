"""evaluate: the metrics and predictions of every model on validation and test pictures, from the recorded answers."""

import json

from landmarks import artifacts, attention, augment, images, metrics, params, report, stage
from landmarks.determinism import stream

import numpy as np
import pandas as pd


def judge(answers: pd.DataFrame, masks: np.ndarray, bins: int, seed: int) -> tuple[dict, pd.DataFrame]:
    """The entry of results.json for the answers of one model on one split, and its rows of predictions.parquet."""
    scores, labels = np.stack(answers["scores"].tolist(), dtype=np.float64), answers["label"].to_numpy()
    entry = metrics.summary(scores, labels, answers["id"].to_numpy(), bins, stream(seed, "bootstrap"))
    table = answers[["split", "id", "label"]].assign(
        predicted=scores.argmax(1),
        confidence=scores.max(1).round(artifacts.DIGITS),
        truth=answers["truth"].round(artifacts.DIGITS),
    )
    for branch in ("perception", "attention"):
        if branch in answers:
            table[branch] = answers[branch]
        entry[f"{branch}_accuracy"] = (answers[branch] == labels).mean() if branch in answers else None
    if "map" in answers:
        table["map"] = [values.round(4) for values in answers["map"]]
    entry["attention"] = attention.summary(answers, masks)
    return entry, table


def class_table(views: pd.DataFrame, test: pd.DataFrame, classes: pd.DataFrame) -> pd.DataFrame:
    """classes.csv: the pictures of each class by split, and how well a model recognises it on the `test` pictures."""
    pictures = views.drop_duplicates("id").groupby(["label", "split"]).size().unstack(fill_value=0)
    table = metrics.per_class(test["label"].to_numpy(), test["predicted"].to_numpy(), len(classes))
    ids = dict(classes["landmark_id"])
    table["confused_with"] = table["confused_with"].map(lambda label: ids.get(label, ""))
    return pd.concat([classes[["landmark_id", "name"]], pictures[["train", "val", "test"]], table], axis=1)


def wrong_table(answers: pd.DataFrame, classes: pd.DataFrame) -> pd.DataFrame:
    """wrong.csv: the pictures that a model misclassifies, the most confident answers first, with the rank (2, 3...)
    of the right answer."""
    scores, labels = np.stack(answers["scores"].tolist(), dtype=np.float64), answers["label"].to_numpy()
    ids = classes["landmark_id"].to_numpy()
    table = answers[["id", "split"]].assign(
        given=ids[labels],
        predicted=ids[scores.argmax(1)],
        confidence=scores.max(1).round(artifacts.DIGITS),
        rank=metrics.true_rank(scores, labels),
    )
    return table[table["rank"] > 1].sort_values(["confidence", "id"], ascending=[False, True])


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
    p = params.load()
    stale = {path.name for path in artifacts.LOGS.glob("[!.]*") if path.is_dir()} - set(p.models)
    if stale:
        folders = " and ".join(f"{folder}/{min(stale)}" for folder in (artifacts.LOGS, artifacts.MODELS))
        raise stage.UserError(f"{folders}: no such ablation in params.yaml; remove the folders")

    views, classes = artifacts.read_labelled_views(), artifacts.read_named_classes()
    maps = pd.read_parquet(artifacts.LOGS / "abn" / artifacts.ANSWERS, columns=["map"])["map"]
    side = round(len(maps.iloc[0]) ** 0.5)
    masks = {split: read_masks(views[views["split"] == split], (side, side)) for split in ("val", "test")}
    largest = views.loc[views["split"] == "train", "label"].mode()[0]
    share = (views.loc[views["split"] == "test", "label"] == largest).mean()
    results: dict = {"majority_class": round(float(share), artifacts.DIGITS)}
    tables, right = [], {}  # `right`: by model and split, whether each picture is classified correctly with each seed
    for name in p.models:
        results[name] = {}
        answers = pd.read_parquet(artifacts.LOGS / name / artifacts.ANSWERS)  # of one model, because they may be large
        seeds = range(p.seed + 1, p.seed + p.train.repeats)
        repeats = [pd.read_parquet(artifacts.REPEATS / name / str(seed) / artifacts.ANSWERS) for seed in seeds]
        for split, rows in answers.groupby("split", sort=False):
            entry, table = judge(rows, masks[split], p.evaluate.calibration_bins, p.seed)
            runs = [table, *(run[run["split"] == split] for run in repeats)]
            right[name, split] = np.array([run["predicted"] == run["label"] for run in runs], dtype=int)
            pair = right[name, split], right["baseline", split]
            entry |= metrics.difference(pair[0][0], pair[1][0], stream(p.seed, "bootstrap"))
            if repeats:
                entry["repeats"] = metrics.repeats(*pair, stream(p.seed, "bootstrap"))
            results[name][split] = metrics.rounded(entry)
            tables.append(table.assign(model=name))
        del answers, rows

    predictions = pd.concat(tables, ignore_index=True)
    best = report.best(predictions)
    test = predictions[(predictions["model"] == best) & (predictions["split"] == "test")]
    columns = ["id", "split", "label", "scores"]
    wrong = wrong_table(pd.read_parquet(artifacts.LOGS / best / artifacts.ANSWERS, columns=columns), classes)
    for path, rows in ((artifacts.CLASSES, class_table(views, test, classes)), (artifacts.WRONG, wrong)):
        with stage.atomic_output(path) as out:
            rows.round(artifacts.DIGITS).to_csv(out, index=False, lineterminator="\n")
    with stage.atomic_output(artifacts.PREDICTIONS) as out:
        predictions.to_parquet(out, index=False)
    with stage.atomic_output(artifacts.RESULTS) as out:
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    with stage.atomic_output(artifacts.RESULTS.with_suffix(".md")) as out:
        out.write_text(report.table(results, p.data.source), encoding="utf-8")
    accuracies = ", ".join(f"{name} {results[name]['test']['accuracy']:.4f}" for name in p.models)
    return f"{accuracies} (test accuracy); best on validation pictures: {best}"


if __name__ == "__main__":
    stage.run(main)
