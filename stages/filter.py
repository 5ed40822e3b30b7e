"""filter: the kept classes, and their pictures that can be used.

Every wanted picture ends up either in the shards or in dropped.csv.
"""

from collections.abc import Iterator

from landmarks import artifacts, classes, duplicates, images, params, stage

import pandas as pd
from joblib import delayed


def check(group: list[images.Picture], short_side: int) -> list[tuple[images.Picture, dict]]:
    """Shrinks and hashes pictures. Returns each with its row of hashes.parquet, or of dropped.csv if it is unfit."""
    checked = []
    for picture in group:
        row: dict[str, str | int] = {"id": picture.id, "landmark_id": picture.landmark_id}
        try:
            picture, image = images.shrink(picture, short_side)
            row |= {"width": image.width, "height": image.height, "hash": images.perceptual_hash(image)}
        except images.Unfit as unfit:
            row["reason"] = str(unfit)
        checked.append((picture, row))
    return checked


def main() -> str:
    p = params.load()
    index = pd.read_parquet(artifacts.DOWNLOADED / "index.parquet")
    ranking = classes.rank(index, skip_top=p.filter.skip_top, top_k=p.filter.top_k, min_images=p.filter.min_images)
    total = sum(1 for _ in images.read_columns(artifacts.DOWNLOADED, "id"))
    kept, dropped = [], []

    def fit_pictures() -> Iterator[images.Picture]:
        jobs = (delayed(check)(group.read(), p.filter.short_side) for group in images.row_groups(artifacts.DOWNLOADED))
        with stage.progress(total, "pictures") as bar:
            for checked in stage.run_in_processes(p.compute.workers, jobs):
                bar.update(len(checked))
                for picture, row in checked:
                    if "reason" in row:
                        dropped.append(row)
                    else:
                        kept.append(row)
                        yield picture

    with stage.atomic_output(artifacts.FILTERED) as out:
        images.write_shards(out, fit_pictures(), total)
        table = pd.DataFrame(kept, columns=["id", "landmark_id", "width", "height", "hash"]).astype({"hash": "uint64"})
        if "split" in index:
            table = table.merge(index[["id", "split"]], on="id", how="left", validate="one_to_one")
        copies = duplicates.placeholders(table["hash"].to_numpy(), table["landmark_id"].to_numpy())
        reasons = pd.Series("", table.index).mask(copies, "placeholder")
        wanted = ranking.loc[ranking["kept"], "landmark_id"]
        usable = table["landmark_id"][~copies].value_counts().reindex(sorted(wanted), fill_value=0)
        pictures = usable
        failures = artifacts.read_csv(artifacts.DOWNLOADED / "failures.csv")
        lost = failures["reason"][failures["id"].isin(index["id"])]
        unusable = stage.count_reasons([*(row["reason"] for row in dropped), *reasons[copies], *lost])
        if p.filter.top_k == "all":
            pictures = usable[usable >= p.filter.min_images]
            classes.check_number(len(pictures), p.filter.min_images, unusable)
            reasons = reasons.mask(~copies & ~table["landmark_id"].isin(pictures.index), "class too small")
            ranking["kept"] &= ranking["landmark_id"].isin(pictures.index)
        classes.check_sizes(pictures, p.filter.min_images, unusable)
        if (unused := reasons != "").any():
            dropped += table[unused].assign(reason=reasons).to_dict("records")
            table = table[~unused].reset_index(drop=True)
            with stage.atomic_output(out) as rewritten:
                images.write_shards(rewritten, images.read_pictures(out, table["id"]), total)
        dropped = pd.concat([pd.DataFrame(dropped, columns=failures.columns), failures]).sort_values("id")
        table.to_parquet(out / "hashes.parquet", index=False)
        labels = pictures.rename_axis("landmark_id").reset_index(name="pictures").rename_axis("label").reset_index()
        for name, rows in {"classes": labels, "ranking": ranking, "dropped": dropped}.items():
            rows.to_csv(out / f"{name}.csv", index=False, lineterminator="\n")

    why = stage.count_reasons(dropped["reason"])
    small = ""
    if p.filter.top_k == "all":
        sizes = ranking.set_index("landmark_id")["images"][p.filter.skip_top :]
        small = classes.too_small(usable.reindex(sizes.index).fillna(sizes).astype(int), p.filter.min_images)
    others = (~index["landmark_id"].isin(wanted)).sum()
    return (
        f"kept {len(table)} pictures of {len(labels)} classes, dropped {len(dropped)}{why and f' ({why})'}, "
        f"other classes left out: {len(ranking) - len(wanted)} (pictures: {others}){small}"
    )


if __name__ == "__main__":
    stage.run(main)
