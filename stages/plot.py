"""plot: the figures, and the tables that DVC draws its own interactive plots from.

Reads   data/filtered/ (ranking, classes, pictures), data/augment.parquet, data/predictions.parquet, metrics/train/.
Writes  in plots/: class_histogram.png, training.png, collapse.png (if an ablation is called study), confusion.png,
        calibration.png and attention.png, with attention.csv (whose pictures these are: id, landmark_id, author,
        license, title) and confused.csv (actual, predicted, pictures: the classes most often taken for each other); and
        for `dvc plots` class_histogram.csv (rank, landmark_id, images, kept) and confusion.csv (actual, predicted).
"""

from pathlib import Path

from landmarks import augment, figures, images, metrics, params, stage

import numpy as np
import pandas as pd

FILTERED = Path("data/filtered")
INDEX = Path("data/augment.parquet")
PREDICTIONS = Path("data/predictions.parquet")
LOGS = Path("metrics/train")
OUT = Path("plots")
LARGEST = 50  # classes in the histogram
GALLERY = 6  # pictures in the attention gallery, half of them named wrongly
PAIRS = 20  # of classes that are taken for each other
ATTRIBUTION = ["id", "landmark_id", "author", "license", "title"]


def training_curves(names: list[str]) -> pd.DataFrame:
    """DVCLive's logs of all models as one table: model, split, epoch, accuracy, loss."""
    curves = []
    for name in names:
        for split in ("train", "val"):
            logs = [
                pd.read_csv(LOGS / name / "plots/metrics" / split / f"{metric}.tsv", sep="\t")
                for metric in ("accuracy", "loss")
            ]
            table = logs[0].merge(logs[1], on="step")
            curves.append(table.assign(model=name, split=split, epoch=table["step"] + 1))
    return pd.concat(curves, ignore_index=True)


def gallery(predictions: pd.DataFrame, landmarks: list[str], crop: int) -> tuple[list[dict], list[str]]:
    """Test pictures of different landmarks, half of them wrongly named by abn, with the maps of all models."""
    mapped = predictions[predictions["map"].notna()]
    names = list(mapped["model"].unique())
    chosen = figures.examples(mapped[mapped["model"] == "abn"], GALLERY)
    views = {view.id: view for view in augment.views(pd.read_parquet(INDEX)) if view.id in set(chosen["id"])}
    pictures = {
        picture.id: picture for group in images.read_groups(FILTERED) for picture in group if picture.id in views
    }
    rows = []
    for name, label in zip(chosen["id"], chosen["label"], strict=True):
        maps = {}
        for row in mapped[mapped["id"] == name].itertuples():
            side = int(len(row.map) ** 0.5)
            verdict = "right" if row.predicted == label else "wrong"
            branches = [f"{branch}: {landmarks[int(getattr(row, branch))]}" for branch in ("perception", "attention")]
            maps[row.model] = np.reshape(row.map, (side, side)), "\n".join([f"{row.model}: {verdict}", *branches])
        picture = pictures[name]
        image = augment.apply(images.decode(picture.picture), views[name], crop)
        rows.append({"source": picture, "image": image, "title": landmarks[label], "maps": maps})
    return rows, names


def main() -> str:
    p = params.load()
    ranking = pd.read_csv(FILTERED / "ranking.csv", dtype={"landmark_id": str}, keep_default_na=False).head(LARGEST)
    landmarks = pd.read_csv(FILTERED / "classes.csv", dtype={"landmark_id": str}, keep_default_na=False)[
        "landmark_id"
    ].tolist()
    predictions = pd.read_parquet(PREDICTIONS)
    test = predictions[predictions["split"] == "test"].assign(right=lambda rows: rows["label"] == rows["predicted"])
    models = dict(list(test.groupby("model", sort=False)))
    confidence = {name: (rows["confidence"].to_numpy(), rows["right"].to_numpy()) for name, rows in models.items()}
    calibration = {name: metrics.calibration(*pair, p.evaluate.calibration_bins) for name, pair in confidence.items()}
    named = models["abn"][["label", "predicted"]].map(landmarks.__getitem__).set_axis(["actual", "predicted"], axis=1)
    rows, mapped = gallery(test, landmarks, p.augment.crop)
    drawn = {
        "class_histogram": figures.class_histogram(ranking),
        "training": figures.training_curves(training_curves(list(models))),
        "confusion": figures.confusion(models["abn"], landmarks, "abn on test pictures"),
        "calibration": figures.reliability(calibration),
        "attention": figures.attention_gallery(rows, mapped),
    }
    if "study" in p.ablations:
        pair = {"study": p.ablations["study"], "abn": p.abn}
        losses = pd.concat(pd.read_csv(LOGS / name / "steps.csv").assign(model=name) for name in pair)
        truth = {name: models[name]["truth"].to_numpy() for name in pair}
        drawn["collapse"] = figures.collapse(losses, truth, pair, len(landmarks))
    tables = {
        "attention": pd.DataFrame([row["source"]._asdict() for row in rows])[ATTRIBUTION],
        "class_histogram": ranking,
        "confused": metrics.confused(named).head(PAIRS),
        "confusion": named,
    }
    with stage.atomic_output(OUT) as out:
        out.mkdir()
        for name, figure in drawn.items():
            figures.save(figure, out / f"{name}.png")
        for name, table in tables.items():
            table.to_csv(out / f"{name}.csv", index=False, lineterminator="\n")
    return f"{len(drawn)} figures and {len(tables)} tables in {OUT}/"


if __name__ == "__main__":
    stage.run(main)
