"""filter: the classes that count, and the pictures of them that can be used.

Reads   data/raw/.
Writes  in data/filtered/: pictures-NNN.parquet (same columns, shrunk to filter.short_side),
        hashes.parquet (id, landmark_id, width, height, perceptual hash of each),
        classes.csv (label, landmark_id, pictures; labels in sorted order of landmark_id),
        ranking.csv (every class of the index by size, and whether it is kept), dropped.csv (id, landmark_id, reason).
Holds   every wanted picture is either kept or in dropped.csv.
"""

from collections.abc import Iterator
from pathlib import Path

from landmarks import classes, images, params, stage

import pandas as pd
from joblib import delayed

RAW = Path("data/raw")
OUT = Path("data/filtered")


def check(group: list[images.Picture], short_side: int) -> list[tuple[images.Picture, dict]]:
    """Shrinks and hashes pictures. Each comes back with what is known of it: its `reason` if it is unfit."""
    checked = []
    for picture in group:
        facts = {"id": picture.id, "landmark_id": picture.landmark_id}
        try:
            picture, image = images.shrink(picture, short_side)
            facts |= {"width": image.width, "height": image.height, "hash": images.perceptual_hash(image)}
        except images.Unfit as unfit:
            facts["reason"] = str(unfit)
        checked.append((picture, facts))
    return checked


def main() -> str:
    p = params.load()
    index = pd.read_parquet(RAW / "index.parquet")
    ranking = classes.rank(index, skip_top=p.filter.skip_top, top_k=p.filter.top_k, min_images=p.filter.min_images)
    total = len(images.read_index(RAW))
    kept, dropped = [], []

    def fit_pictures() -> Iterator[images.Picture]:
        jobs = (delayed(check)(group, p.filter.short_side) for group in images.read_groups(RAW))
        with stage.progress(total, "pictures") as bar:
            for checked in stage.run_in_processes(p.compute.workers, jobs):
                bar.update(len(checked))
                for picture, facts in checked:
                    if "reason" in facts:
                        dropped.append(facts)
                    else:
                        kept.append(facts)
                        yield picture

    with stage.atomic_output(OUT) as out:
        images.write_shards(out, fit_pictures(), total)
        failures = pd.read_csv(RAW / "failures.csv", dtype=str, keep_default_na=False)
        dropped = pd.concat([pd.DataFrame(dropped, columns=failures.columns), failures]).sort_values("id")
        table = pd.DataFrame(kept, columns=["id", "landmark_id", "width", "height", "hash"]).astype({"hash": "uint64"})
        wanted = ranking.loc[ranking["kept"], "landmark_id"]
        pictures = table["landmark_id"].value_counts().reindex(sorted(wanted), fill_value=0)
        classes.check_sizes(pictures, p.filter.min_images)
        table.to_parquet(out / "hashes.parquet", index=False)
        labels = pictures.rename_axis("landmark_id").reset_index(name="pictures").rename_axis("label").reset_index()
        labels.to_csv(out / "classes.csv", index=False, lineterminator="\n")
        ranking.to_csv(out / "ranking.csv", index=False, lineterminator="\n")
        dropped.to_csv(out / "dropped.csv", index=False, lineterminator="\n")

    reasons = stage.count_reasons(dropped["reason"])
    return f"kept {len(table)} pictures of {len(labels)} classes, dropped {len(dropped)}{reasons and f' ({reasons})'}"


if __name__ == "__main__":
    stage.run(main)
