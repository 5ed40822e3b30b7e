"""inspect: what may be wrong with the pictures and their labels, from the cached features.

Writes tables, and figures that show their first rows. Trains nothing but linear classifiers, in seconds.
"""

import json

from landmarks import artifacts, duplicates, figures, images, inspection, params, stage
from landmarks.determinism import stream

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

SHOWN = 24  # rows on a contact sheet
MAX_ROWS = 10_000  # the most rows that a table has
MAX_DOTS = 3000  # pictures on the map


def sheet(title: str, pairs: list[tuple[str, str, str, str]]) -> Figure:
    """A contact sheet of pairs of pictures: the ids of both, then their captions."""
    names = {name for pair in pairs for name in pair[:2]}
    pictures = {row.id: images.decode(row.picture) for row in images.read_pictures(artifacts.FILTERED, names)}
    tiles = [[(pictures[one], text), (pictures[other], caption)] for one, other, text, caption in pairs]
    return figures.contact_sheet(tiles, title)


def file_name(picture_id: str) -> str:
    """The id without the folder, which the caption names anyway."""
    return picture_id.rpartition("/")[2]


def examples(table: pd.DataFrame, values: np.ndarray) -> pd.Series:
    """By label, the id of the picture with the lowest value; of equals, the first. `values` are [N]."""
    return table.assign(value=values).sort_values(["value", "id"]).groupby("label")["id"].first()


def suspect_labels(table: pd.DataFrame, found: pd.DataFrame, names: np.ndarray) -> tuple[pd.DataFrame, Figure]:
    """suspects.csv and its contact sheet. `found` is the result of `inspection.suspects`."""
    rows = pd.concat([table, found], axis=1).sort_values(["score", "id"])
    clear = examples(table, -found["score"].to_numpy())
    pairs = []
    for row in rows.head(SHOWN).itertuples():
        text = f"{file_name(row.id)}\ngiven: {names[row.label]}"
        pairs.append((row.id, clear[row.suggested], text, f"score {row.score:.2g}\nlike: {names[row.suggested]}"))
    ids = table.drop_duplicates("label").set_index("label")["landmark_id"]
    rows = rows.assign(given=rows["landmark_id"], suggested=ids[rows["suggested"]].to_numpy())
    title = "The most suspect labels (left) and a picture of the suggested class (right)"
    return rows[["id", "split", "given", "suggested", "score"]], sheet(title, pairs)


def outliers(table: pd.DataFrame, x: np.ndarray, names: np.ndarray) -> tuple[pd.DataFrame, Figure]:
    """outliers.csv and its contact sheet. `x` are the pooled features."""
    trains = (table["split"] == "train").to_numpy()
    distances = inspection.outlier_distances(x, table["label"].to_numpy(), trains).round(4)
    rows = table.assign(distance=distances).sort_values(["distance", "id"], ascending=[False, True])
    usual = examples(table, distances)
    pairs = []
    for row in rows.head(SHOWN).itertuples():
        text = f"{file_name(row.id)}\n{names[row.label]}"
        pairs.append((row.id, usual[row.label], text, f"distance {row.distance:.2f}\nusual picture"))
    title = "Pictures unlike the rest of their class (left) and a usual picture of the class (right)"
    return rows[["id", "split", "landmark_id", "distance"]], sheet(title, pairs)


def near_duplicates(table: pd.DataFrame, hashes: np.ndarray, names: np.ndarray) -> tuple[pd.DataFrame, Figure]:
    """duplicates.csv and its contact sheet. `hashes` are the perceptual hashes, [N]."""
    left, right, bits = duplicates.worst_pairs(hashes, table["label"].to_numpy(), table["split"].to_numpy()).T
    columns = ["id", "landmark_id", "label", "split"]
    one, other = (table[columns].iloc[rows].reset_index(drop=True) for rows in (left, right))
    rows = one.join(other.add_prefix("other_")).assign(bits=bits)
    pairs = []
    for row in rows.head(SHOWN).itertuples():
        text = f"{file_name(row.id)}\n{names[row.label]}, {row.split}"
        other_text = f"{file_name(row.other_id)}\n{names[row.other_label]}, {row.other_split}"
        pairs.append((row.id, row.other_id, text, other_text))
    title = "Near-duplicates, those across classes first, then those across splits"
    shown = rows[["id", "other_id", "bits", "landmark_id", "other_landmark_id", "split", "other_split"]]
    return shown, sheet(title, pairs)


def main() -> str:
    p = params.load()
    table, classes = pd.read_parquet(artifacts.SPLIT), artifacts.read_named_classes()
    names = np.array(list(artifacts.shown_names(classes).values()))
    labels, trains = table["label"].to_numpy(), (table["split"] == "train").to_numpy()
    hashes = pd.read_parquet(artifacts.FILTERED / "hashes.parquet", columns=["hash"])["hash"].to_numpy()
    x = inspection.pool(artifacts.read_features(), artifacts.read_views())
    found = inspection.suspects(x, labels, table["group"].to_numpy(), len(classes), p.seed)
    curve = inspection.learning_curve(x, labels, trains, len(classes), p.seed)
    dots = np.sort(stream(p.seed, "map").permutation(len(x))[:MAX_DOTS])
    made = {
        "suspects": suspect_labels(table, found, names),
        "outliers": outliers(table, x, names),
        "duplicates": near_duplicates(table, hashes, names),
        "learning_curve": (curve.round(4), figures.learning_curve(curve)),
    }
    drawn = {name: figure for name, (_, figure) in made.items()}
    drawn["embedding"] = figures.embedding(inspection.embed(x[dots]), labels[dots], list(names))
    for name, (rows, _) in made.items():  # one by one, so that other files in the folder stay
        with stage.atomic_output(artifacts.INSPECTION / f"{name}.csv") as out:
            rows.head(MAX_ROWS).to_csv(out, index=False, lineterminator="\n")
    for name, figure in drawn.items():
        with stage.atomic_output(artifacts.INSPECTION / f"{name}.png") as out:
            figures.save(figure, out, colours=256)
    suspects, pairs, limit = made["suspects"][0], made["duplicates"][0], inspection.suspect_score(len(classes))
    counts = {
        "suspects": int((suspects["score"] < limit).sum()),
        "duplicates": len(pairs),
        "across_classes": int((pairs["landmark_id"] != pairs["other_landmark_id"]).sum()),
        "across_splits": int((pairs["split"] != pairs["other_split"]).sum()),
    }
    with stage.atomic_output(artifacts.INSPECTION / "counts.json") as out:
        out.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return (
        f"{counts['suspects']} suspect labels (score below {limit:.2g}), "
        f"near-duplicates: {counts['duplicates']} pairs, {counts['across_classes']} of them across classes"
    )


if __name__ == "__main__":
    stage.run(main)
