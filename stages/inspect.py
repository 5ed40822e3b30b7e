"""inspect: what may be wrong with the pictures and their labels, from the cached features.

Writes tables, and figures that show the first rows. Nothing is trained but a linear classifier.
"""

from collections.abc import Iterable

from landmarks import artifacts, duplicates, figures, images, inspection, params, stage
from landmarks.determinism import stream

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

SHOWN = 24  # rows on a contact sheet
MAX_ROWS = 10_000  # of a table
MAX_DOTS = 3000  # pictures on the map


def sheet(rows: Iterable[tuple[tuple[str, str], tuple[str, str]]], title: str) -> Figure:
    """A contact sheet of pairs of pictures, each an id and a caption."""
    pairs = list(rows)
    names = {name for pair in pairs for name, _ in pair}
    pictures = {p.id: images.decode(p.picture) for p in images.read_pictures(artifacts.FILTERED, names)}
    return figures.contact_sheet([[(pictures[name], text) for name, text in pair] for pair in pairs], title)


def main() -> str:
    p = params.load()
    table = pd.read_parquet(artifacts.SPLIT)
    names = artifacts.read_named_classes()
    shown = names["name"].where(names["name"] != "", names["landmark_id"]).to_numpy()
    ids, labels, splits = (table[column].to_numpy() for column in ("id", "label", "split"))
    landmark = names["landmark_id"].to_numpy()
    x = inspection.pool(artifacts.read_features(), artifacts.read_views())
    chances = inspection.probabilities(x, labels, table["group"].to_numpy(), len(names), p.seed)
    found = inspection.suspects(chances, labels)
    distances = inspection.outlier_distances(x, labels, splits == "train").round(4)
    usual = table.assign(distance=distances).sort_values(["distance", "id"]).groupby("label")["id"].first()
    typical = (
        table.assign(chance=chances[np.arange(len(table)), labels].round(4))
        .sort_values(["chance", "id"], ascending=[False, True])
        .groupby("label")["id"]
        .first()
    )

    suspects = table[["id", "split"]].assign(
        given=landmark[labels], suggested=landmark[found["suggested"]], score=found["score"]
    )
    suspects = suspects.sort_values(["score", "id"]).head(MAX_ROWS)
    outliers = table[["id", "split", "landmark_id"]].assign(distance=distances)
    outliers = outliers.sort_values(["distance", "id"], ascending=[False, True]).head(MAX_ROWS)
    hashes = pd.read_parquet(artifacts.FILTERED / "hashes.parquet", columns=["hash"])["hash"].to_numpy()
    pairs = duplicates.worst_pairs(hashes, labels, splits)[:MAX_ROWS]
    left, right, bits = pairs.T
    doubles = pd.DataFrame(
        {
            "id": ids[left],
            "other": ids[right],
            "bits": bits,
            **{"landmark_id": landmark[labels[left]], "other_landmark_id": landmark[labels[right]]},
            **{"split": splits[left], "other_split": splits[right]},
        }
    )
    curve = inspection.learning_curve(x, labels, splits == "train", len(names), p.seed)
    dots = np.sort(stream(p.seed, "map").permutation(len(x))[:MAX_DOTS])

    drawn = {
        "suspects": sheet(
            (
                (
                    (ids[row], f"{ids[row]}\ngiven: {shown[labels[row]]}"),
                    (typical[suggested], f"score {score:.4f}\nlike: {shown[suggested]}"),
                )
                for row, suggested, score in found.loc[suspects.index].head(SHOWN).itertuples()
            ),
            "The most suspect labels (left), and a picture of the suggested class (right)",
        ),
        "outliers": sheet(
            (
                (
                    (ids[row], f"{ids[row]}\n{shown[labels[row]]}"),
                    (usual[labels[row]], f"distance {distances[row]:.2f}\nusual picture"),
                )
                for row in outliers.index[:SHOWN]
            ),
            "Pictures unlike the rest of their class (left), and a usual picture of the class (right)",
        ),
        "duplicates": sheet(
            (
                (
                    (ids[one], f"{ids[one]}\n{shown[labels[one]]}, {splits[one]}"),
                    (ids[other], f"{ids[other]}, {distance} bits\n{shown[labels[other]]}, {splits[other]}"),
                )
                for one, other, distance in pairs[:SHOWN]
            ),
            "Near-duplicates: across classes first, then across splits, then by distance",
        ),
        "embedding": figures.embedding(inspection.embed(x[dots]), labels[dots], list(shown)),
        "learning_curve": figures.learning_curve(curve),
    }
    tables = {"suspects": suspects, "outliers": outliers, "duplicates": doubles, "learning_curve": curve.round(4)}
    with stage.atomic_output(artifacts.INSPECTION) as out:
        out.mkdir()
        for name, figure in drawn.items():
            figures.save(figure, out / f"{name}.png", colours=256)
        for name, rows in tables.items():
            rows.to_csv(out / f"{name}.csv", index=False, lineterminator="\n")
    across = int((labels[left] != labels[right]).sum())
    accuracy = (chances.round(6).argmax(1) == labels).mean()
    return (
        f"{(found['score'] < 0.01).sum()} suspect labels (score below 0.01), {len(pairs)} near-duplicates ({across} "
        f"across classes); the linear classifier names {accuracy:.1%} of pictures that it has not seen"
    )


if __name__ == "__main__":
    stage.run(main)
