"""plot: the figures, and the tables behind them.

collapse.png is drawn only if an ablation has the objective summed_softmax; of several, the first by name is shown.
"""

from landmarks import artifacts, augment, figures, images, metrics, params, report, stage

import numpy as np
import pandas as pd

LARGEST = 50  # classes in the histogram
GALLERY = 6  # pictures in the attention gallery, half of them misclassified
PAIRS = 20  # the number of pairs of confused classes in confused.csv
MATRIX = 40  # classes of the confusion matrix; of more, those in most mistakes
RIVALS = ("cam", "grad_cam", "grad_cam_pp")  # of abn's attention map; the gallery shows the best
ATTRIBUTION = ["id", "landmark_id", "author", "license", "title"]


def training_curves(names: list[str]) -> pd.DataFrame:
    """DVCLive's logs of all models as one table: model, split, epoch (from 1), accuracy, loss."""
    curves = []
    for name in names:
        for split in ("train", "val"):
            logs = artifacts.LOGS / name / "plots/metrics" / split
            accuracy, loss = (pd.read_csv(logs / f"{metric}.tsv", sep="\t") for metric in ("accuracy", "loss"))
            table = accuracy.merge(loss, on="step")
            curves.append(table.assign(model=name, split=split, epoch=table["step"] + 1))
    return pd.concat(curves, ignore_index=True)[["model", "split", "epoch", "accuracy", "loss"]]


def best_rival(answers: pd.DataFrame) -> str:
    """The key of the rival map with the highest mean of insertion minus deletion. `answers` is of answers.parquet."""
    found = {key: answers[f"insertion_{key}"] - answers[f"deletion_{key}"] for key in RIVALS if key in answers}
    return max(found, key=lambda key: found[key].mean())


def gallery(test: pd.DataFrame, landmarks: list[str], crop: int) -> tuple[list[dict], list[str]]:
    """Rows of `figures.attention_gallery`: test pictures of different landmarks, half of them misclassified by abn.
    Also returns the names of the maps: the models with attention, and the best rival of abn's map."""
    mapped = test[test["map"].notna()]
    chosen = figures.examples(mapped[mapped["model"] == "abn"], GALLERY).set_index("id")["label"]
    index = artifacts.read_views()
    views = {view.id: view for view in augment.views(index[index["id"].isin(chosen.index)])}
    pictures = {picture.id: picture for picture in images.read_pictures(artifacts.FILTERED, chosen.index)}
    answers = pd.read_parquet(artifacts.LOGS / "abn" / artifacts.ANSWERS).set_index("id")
    rival = best_rival(answers.query("split == 'val'"))  # test pictures choose nothing
    title = f"abn: {report.MAPS[rival]}"
    rows = []
    for name, label in chosen.items():
        maps = {}
        for row in mapped[mapped["id"] == name].itertuples():
            side = int(len(row.map) ** 0.5)
            verdict = "right" if row.predicted == label else "wrong"
            branches = [f"{branch}: {landmarks[int(getattr(row, branch))]}" for branch in ("perception", "attention")]
            maps[row.model] = np.reshape(row.map, (side, side)), "\n".join([f"{row.model}: {verdict}", *branches])
        maps[title] = answers.loc[name, rival].reshape(side, side), title
        image = augment.apply(images.decode(pictures[name].picture), views[name], crop)
        rows.append({"source": pictures[name], "image": image, "title": landmarks[label], "maps": maps})
    return rows, [*mapped["model"].unique(), title]


def main() -> str:
    p = params.load()
    ranking = artifacts.read_csv(artifacts.FILTERED / "ranking.csv").head(LARGEST)
    landmarks = artifacts.read_classes()["landmark_id"].tolist()
    predictions = pd.read_parquet(artifacts.PREDICTIONS)
    test = predictions[predictions["split"] == "test"].assign(right=lambda rows: rows["label"] == rows["predicted"])
    by_model = dict(list(test.groupby("model", sort=False)))
    calibration = {
        name: metrics.calibration(rows["confidence"].to_numpy(), rows["right"].to_numpy(), p.evaluate.calibration_bins)
        for name, rows in by_model.items()
    }
    abn = by_model["abn"]
    named = abn[["label", "predicted"]].map(landmarks.__getitem__).set_axis(["actual", "predicted"], axis=1)
    shown = metrics.often_confused(abn["label"].to_numpy(), abn["predicted"].to_numpy(), len(landmarks), MATRIX)
    in_matrix = abn[["label", "predicted"]].isin(shown).all(axis=1)
    title = "abn on test pictures" + f", the {MATRIX} classes in most mistakes" * (len(landmarks) > MATRIX)
    classes = artifacts.read_csv(artifacts.CLASSES)
    classes["precision"] = pd.to_numeric(classes["precision"])  # empty for a class that is never predicted
    curves = training_curves(list(p.models))
    rows, mapped = gallery(test, landmarks, p.augment.crop)
    drawn = {
        "class_histogram": figures.class_histogram(ranking),
        "training": figures.training_curves(curves),
        "classes": figures.class_accuracy(classes, report.best(predictions)),
        "confusion": figures.confusion(abn, landmarks, shown, title),
        "calibration": figures.reliability(calibration),
        "attention": figures.attention_gallery(rows, mapped),
    }
    summed = sorted(name for name, block in p.ablations.items() if block.objective == "summed_softmax")
    if summed:
        pair = {summed[0]: p.ablations[summed[0]], "abn": p.abn}
        losses = pd.concat(pd.read_csv(artifacts.LOGS / name / "steps.csv").assign(model=name) for name in pair)
        truth = {name: by_model[name]["truth"].to_numpy() for name in pair}
        drawn["collapse"] = figures.collapse(losses, truth, pair, len(landmarks))
    tables = {
        "attention": pd.DataFrame([row["source"]._asdict() for row in rows])[ATTRIBUTION],
        "class_histogram": ranking,
        "confused": metrics.confused(named).head(PAIRS),
        "confusion": named[in_matrix],
        "training": curves,
    }
    for name, figure in drawn.items():  # one by one, so that other files in the folder stay
        with stage.atomic_output(artifacts.PLOTS / f"{name}.png") as out:
            figures.save(figure, out)
    for name, table in tables.items():
        with stage.atomic_output(artifacts.PLOTS / f"{name}.csv") as out:
            table.to_csv(out, index=False, lineterminator="\n")
    if not summed:
        (artifacts.PLOTS / "collapse.png").unlink(missing_ok=True)
    return f"{len(drawn)} figures and {len(tables)} tables in {artifacts.PLOTS}/"


if __name__ == "__main__":
    stage.run(main)
