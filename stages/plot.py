"""plot: the figures, and the tables that DVC draws its own interactive plots from.

Reads   data/filtered/ (ranking, classes, pictures), data/augment.parquet, data/predictions.parquet, metrics/train/.
Writes  in plots/: class_histogram.png, training.png, confusion.png, calibration.png and attention.png, with
        attention.csv (whose pictures these are: id, landmark_id, author, license, title); and for `dvc plots`
        class_histogram.csv (rank, landmark_id, images, kept) and confusion.csv (actual, predicted).
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
    """Test pictures of different landmarks, with the map of every model that has one: some that abn names rightly, then
    some that it does not."""
    mapped = predictions[predictions["map"].notna()]
    names = list(mapped["model"].unique())
    abn = mapped[mapped["model"] == "abn"].sort_values(["label", "id"])
    right = abn["predicted"] == abn["label"]
    halves = [rows.drop_duplicates("label") for rows in (abn[right], abn[~right])]
    spread = [np.linspace(0, len(rows) - 1, min(GALLERY // 2, len(rows))).astype(int) for rows in halves]
    chosen = pd.concat([rows.iloc[places] for rows, places in zip(halves, spread, strict=True)])
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
    test = predictions[predictions["split"] == "test"]
    models = list(predictions["model"].unique())
    calibration = {
        name: metrics.calibration(
            rows["confidence"].to_numpy(),
            (rows["label"] == rows["predicted"]).to_numpy(),
            p.evaluate.calibration_bins,
        )
        for name, rows in test.groupby("model", sort=False)
    }
    by_name = dict(list(test.groupby("model")))
    abn = by_name["abn"]
    wrong = metrics.confused(abn["label"].to_numpy(), abn["predicted"].to_numpy())
    with stage.whole(OUT) as out:
        out.mkdir()
        figures.save(figures.class_histogram(ranking), out / "class_histogram.png")
        figures.save(figures.training_curves(training_curves(models)), out / "training.png")
        figures.save(figures.confusion(abn, landmarks, "abn on test pictures"), out / "confusion.png")
        if "study" in p.ablations:
            steps = [pd.read_csv(LOGS / name / "steps.csv").assign(model=name) for name in ("study", "abn")]
            truth = {name: by_name[name]["truth"].to_numpy() for name in ("study", "abn")}
            study = p.ablations["study"]
            figure = figures.collapse(pd.concat(steps), truth, study, p.abn, len(landmarks))
            figures.save(figure, out / "collapse.png")
        figures.save(figures.reliability(calibration), out / "calibration.png")
        rows, mapped = gallery(test, landmarks, p.augment.crop)
        figures.save(figures.attention_gallery(rows, mapped), out / "attention.png")
        shown = pd.DataFrame([row["source"]._asdict() for row in rows])
        shown[ATTRIBUTION].to_csv(out / "attention.csv", index=False, lineterminator="\n")
        ranking.to_csv(out / "class_histogram.csv", index=False, lineterminator="\n")
        actual = pd.DataFrame({"actual": abn["label"], "predicted": abn["predicted"]}).map(landmarks.__getitem__)
        actual.to_csv(out / "confusion.csv", index=False, lineterminator="\n")
        pairs = wrong.head(PAIRS)
        pairs = pairs.assign(**{key: pairs[key].map(landmarks.__getitem__) for key in ("actual", "predicted")})
        pairs.to_csv(out / "confused.csv", index=False, lineterminator="\n")
        count = len(list(out.iterdir()))
    return f"{count} files in {OUT}/"


if __name__ == "__main__":
    stage.run(main)
