"""Suspect labels, outliers, the map and the learning curve, on drawn features and on the sample."""

import json
import shutil
from pathlib import Path

from landmarks import artifacts, images, inspection, params
from stages import inspect

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, pictures

CLASSES, EACH, CHANNELS = 4, 30, 12


def blobs(spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of classes that are Gaussian, with their labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), EACH)
    return rng.normal(size=(CLASSES, CHANNELS))[labels] * 2 + rng.normal(size=(len(labels), CHANNELS)) * spread, labels


def swap(labels: np.ndarray, candidates: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gives a share of the candidates another label at random. Returns all labels and the positions."""
    rng, classes = np.random.default_rng(seed), labels.max() + 1
    chosen = rng.choice(candidates, round(share * len(candidates)), replace=False)
    swapped = labels.copy()
    swapped[chosen] = (labels[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return swapped, chosen


def found(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, chosen: np.ndarray, share: float) -> float:
    """The share of `chosen` that is in this share of the list of suspects."""
    order = np.argsort(inspection.suspects(x, labels, groups, labels.max() + 1, 0)["score"], kind="stable")
    return float(np.isin(chosen, order[: int(share * len(order))]).mean())


def test_pooled_features_are_means_over_views_and_positions() -> None:
    features = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float16)
    features[:, 2] = 1
    views = pd.DataFrame({"id": list("aabcc"), "row": range(5)})
    means = features.astype(float).mean((2, 3))
    means = np.stack([means[:2].mean(0), means[2], means[3:].mean(0)])[:, :2]
    x = inspection.pool(features, views)
    assert x[:, :2] == pytest.approx((means - means.mean(0)) / means.std(0))
    assert (x[:, 2] == 0).all(), "a constant channel"


def test_classes_are_told_apart_as_by_scikit_learn() -> None:
    from sklearn.covariance import ledoit_wolf
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, labels = blobs(1.5)
    half = np.where(np.arange(len(x)) % 2, -1, labels)
    ours = inspection.fit(x, half, CLASSES)(x[1::2])
    assert inspection.fit(x[::2], labels[::2], CLASSES)(x[1::2]) == pytest.approx(ours)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.0).fit(x[::2], labels[::2])
    theirs = model.predict(x[1::2])
    assert (ours.argmax(1) == theirs).mean() > 0.9
    means = np.stack([x[labels == label].mean(0) for label in range(CLASSES)])
    covariance, _ = ledoit_wolf(x - means[labels], assume_centered=True)
    assert inspection.shrunk_covariance(x, labels, means) == pytest.approx(covariance)
    missing = inspection.fit(x[labels > 0], labels[labels > 0], CLASSES)(x)
    assert np.isfinite(missing).all() and (missing.argmax(1) > 0).all(), "a class without pictures is improbable"


def test_a_single_group_of_near_duplicates_is_divided_into_folds() -> None:
    x, labels = blobs()
    assert (inspection.suspects(x, labels, np.zeros(len(x)), CLASSES, 0)["score"] > 0.5).mean() > 0.9


def test_a_class_of_near_duplicates_is_not_suspect() -> None:
    """No classifier lacks the class, also if one wrong picture belongs to no group."""
    x, labels = blobs(2.0)
    groups = np.arange(len(x))
    groups[labels == 3] = groups[-1]
    labels[0] = 3
    scores = inspection.suspects(x, labels, groups, CLASSES, 0)["score"]
    assert scores.argmin() == 0 and scores[labels == 3].median() > 0.9


def test_swapped_labels_come_first_and_are_corrected() -> None:
    x, labels = blobs()
    swapped, chosen = swap(labels, np.arange(len(labels)), 0.05, 1)
    assert found(x, swapped, np.arange(len(x)), chosen, 0.07) == 1
    table = inspection.suspects(x, swapped, np.arange(len(x)), CLASSES, 0)
    assert table["score"].between(0, 1).all() and (table["suggested"] != swapped).all()
    assert (table["suggested"][chosen] == labels[chosen]).all()


def test_the_number_of_pictures_in_memory_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = blobs(2.0)
    trains = np.arange(len(x)) % 2 == 0
    whole = inspection.suspects(x, labels, np.arange(len(x)), CLASSES, 0)
    curve = inspection.learning_curve(x, labels, trains, CLASSES, 0)
    monkeypatch.setattr(inspection, "BLOCK", 50)  # fewer pictures choose the temperature, too
    parts = inspection.suspects(x, labels, np.arange(len(x)), CLASSES, 0)
    assert (parts["suggested"] == whole["suggested"]).all()
    assert parts["score"].to_numpy() == pytest.approx(whole["score"].to_numpy(), abs=0.1)
    pd.testing.assert_frame_equal(inspection.learning_curve(x, labels, trains, CLASSES, 0), curve)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / artifacts.FEATURES).exists(), reason="needs the outs of make reproduce")
def test_swapped_labels_of_the_sample_come_first() -> None:
    """Of 5 % of the training labels that are swapped, at least 80 % are in the first 7 % of the list."""
    if params.load(ROOT / "params.yaml").data.source != "sample":
        pytest.skip("the outs are not of the sample")
    table = pd.read_parquet(ROOT / artifacts.SPLIT)
    x = inspection.pool(artifacts.read_features(ROOT), artifacts.read_views(ROOT))
    training, labels = np.flatnonzero(table["split"] == "train"), table["label"].to_numpy()
    shares = []
    for seed in range(5):
        swapped, chosen = swap(labels, training, 0.05, seed)
        shares.append(found(x, swapped, table["group"].to_numpy(), chosen, 0.07))
    print("found:", shares)
    assert min(shares) >= 0.8


def test_an_outlier_is_far_and_one_is_usual() -> None:
    x, labels = blobs()
    x[3] += 30
    trains = np.arange(len(x)) % 3 > 0
    x[trains] *= 0.9
    distances = inspection.outlier_distances(x, labels, trains)
    assert distances.argmax() == 3 and distances[3] > 5
    assert np.median(distances[trains]) == pytest.approx(1) and np.median(distances[~trains]) == pytest.approx(1)
    alone = inspection.outlier_distances(x[:3], np.array([0, 0, 1]), np.array([True, True, False]))
    assert alone.tolist() == [1, 1, 1]


def test_the_map_keeps_classes_together_and_repeats() -> None:
    x, labels = blobs(0.3)
    points = inspection.embed(x)
    nearest = np.argsort(((points[:, None] - points) ** 2).sum(2), axis=1)[:, 1]
    assert (labels[nearest] == labels).mean() > 0.95
    assert (inspection.embed(x + 1e-12) == points).all()
    assert inspection.embed(x[:4]).shape == (4, 2)


def test_the_learning_curve_rises_and_predicts() -> None:
    x, labels = blobs(3.0)
    trains = np.arange(len(x)) % 2 == 0
    curve = inspection.learning_curve(x, labels, trains, CLASSES, 0)
    assert curve["share"].tolist() == [0.1, 0.2, 0.4, 0.7, 1, 2]
    assert curve["pictures"].tolist() == [8, 12, 24, 44, 60, 120]
    answers = inspection.fit(x[trains], labels[trains], CLASSES)(x[~trains]).argmax(1)
    assert curve["accuracy"][4] == pytest.approx((answers == labels[~trains]).mean(), abs=1e-6)
    measured = curve[:-1]
    assert (measured["low"] <= measured["accuracy"]).all() and (measured["accuracy"] <= measured["high"]).all()
    assert curve["accuracy"][0] < curve["accuracy"][4] < curve["trend"][5] < 1
    slopes = np.diff(np.log(1 - curve["trend"])) / np.diff(np.log(curve["pictures"]))
    assert slopes == pytest.approx(np.full(5, slopes[0])), "a power law"


def test_one_training_picture_per_class_has_no_trend() -> None:
    x, labels = blobs(3.0)
    trains = np.zeros(len(x), bool)
    trains[np.unique(labels, return_index=True)[1]] = True
    curve = inspection.learning_curve(x, labels, trains, CLASSES, 0)
    assert curve["trend"].nunique() == 1 and curve["trend"][5] == pytest.approx(curve["accuracy"][4])


def test_a_suggestion_is_the_most_probable_other_class() -> None:
    """Also beside a label that is certain. The classes lie on a line."""
    labels = np.arange(200) % CLASSES
    x = labels[:, None] * 100 + np.random.default_rng(0).normal(size=(200, 8))
    found = inspection.suspects(x, labels, np.arange(200), CLASSES, 0)
    assert (found["score"] == 1).mean() > 0.9 and (abs(found["suggested"] - labels) == 1).all()


def small_project(folder: Path) -> None:
    """What the stage reads, for 15 pictures of three landmarks; 3 and 4 are copies with different labels."""
    shown = [picture._replace(landmark_id=f"landmark-{n % 3}") for n, picture in enumerate(pictures(15))]
    shown[4] = shown[4]._replace(picture=shown[3].picture)
    images.write_shards(folder / artifacts.FILTERED, shown, len(shown))
    hashes = [images.perceptual_hash(images.decode(picture.picture)) for picture in shown]
    table = pd.DataFrame({"id": [picture.id for picture in shown]})
    table["landmark_id"] = [picture.landmark_id for picture in shown]
    (table.assign(hash=np.array(hashes, dtype=np.uint64))).to_parquet(folder / artifacts.FILTERED / "hashes.parquet")
    split = ["train", "train", "train", "val", "test"] * 3
    labels = np.arange(15) % 3
    table.assign(label=labels, group=range(15), split=split).to_parquet(folder / artifacts.SPLIT)
    table[["id"]].assign(view=0).to_parquet(folder / artifacts.VIEWS)
    (folder / artifacts.FEATURES).parent.mkdir()
    values = np.random.default_rng(0).normal(size=(15, 6, 2, 2)) + labels[:, None, None, None]
    np.save(folder / artifacts.FEATURES, values.astype(np.float16))
    (folder / artifacts.DOWNLOADED).mkdir()
    rows = "".join(f"landmark-{k},{name}\n" for k, name in enumerate(["", "Tower $5", ""]))
    (folder / artifacts.DOWNLOADED / "names.csv").write_text("landmark_id,name\n" + rows, encoding="utf-8")
    rows = "".join(f"{k},landmark-{k},5\n" for k in range(3))
    (folder / artifacts.FILTERED / "classes.csv").write_text("label,landmark_id,pictures\n" + rows, encoding="utf-8")
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")


def test_the_stage_lists_every_picture_and_the_copy_across_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    artifacts.INSPECTION.mkdir(parents=True)
    notes = artifacts.INSPECTION / "notes.txt"  # of the user
    notes.touch()
    summary = inspect.main()
    notes.unlink()  # it was kept
    made = {path.name: path.read_bytes() for path in artifacts.INSPECTION.iterdir()}
    names = ("suspects", "outliers", "duplicates", "learning_curve")
    tables = {f"{name}.{ending}" for name in names for ending in ("csv", "png")}
    assert set(made) == {"embedding.png", "counts.json", *tables}
    suspects = pd.read_csv(artifacts.INSPECTION / "suspects.csv")
    assert len(suspects) == 15 and suspects["score"].is_monotonic_increasing
    assert (suspects["given"] != suspects["suggested"]).all()
    outliers = pd.read_csv(artifacts.INSPECTION / "outliers.csv")
    assert len(outliers) == 15 and outliers["distance"].is_monotonic_decreasing
    copies = pd.read_csv(artifacts.INSPECTION / "duplicates.csv")
    assert copies.iloc[0].tolist() == ["id-0003", "id-0004", 0, "landmark-0", "landmark-1", "val", "test"]
    counts = json.loads(made["counts.json"])
    low = int((suspects["score"] < inspection.suspect_score(3)).sum())
    assert counts == {"suspects": low, "duplicates": 1, "across_classes": 1, "across_splits": 1}
    assert f"{low} suspect labels" in summary
    assert "near-duplicates: 1 pairs, 1 of them across classes" in summary
    inspect.main()
    assert made == {path.name: path.read_bytes() for path in artifacts.INSPECTION.iterdir()}


def test_with_many_classes_a_label_as_improbable_as_all_others_is_not_suspect() -> None:
    assert [inspection.suspect_score(classes) for classes in (2, 20, 200)] == [0.01, 0.01, 0.001]
