"""download: the index of all pictures, and the pictures of the classes that the filter will keep.

The outputs have the same bytes for any number of workers and interruptions: pictures are in id order. Fetched pictures
stay in the scratch folder, and another choice of classes uses them again.
"""

from landmarks import artifacts, classes, images, params, sources, stage

import pandas as pd


def main() -> str:
    p = params.load()
    scratch = stage.repository() / artifacts.DOWNLOADS
    with sources.open_source(
        p.data, p.download, seed=p.seed, workers=p.compute.workers, scratch=scratch, cluster=p.compute.cluster
    ) as source:
        index, absent = sources.restrict(source.index(), p.data.only)
        ranking = classes.rank(index, skip_top=p.filter.skip_top, top_k=p.filter.top_k, min_images=p.filter.min_images)
        kept = sorted(ranking.loc[ranking["kept"], "landmark_id"])
        wanted = index[index["landmark_id"].isin(kept)]
        known = source.names()
        names = pd.DataFrame([(landmark, known.get(landmark, "")) for landmark in kept])

        failures = wanted.assign(reason=wanted["id"].map(source.fetch(wanted))).dropna(subset="reason")
        found = wanted[~wanted["id"].isin(failures["id"])]
        skipped = source.skipped()
        reasons, others = stage.count_reasons(failures["reason"]), stage.count_reasons(skipped["reason"])
        if len(found) < p.download.min_success * len(wanted):
            raise stage.UserError(
                f"download.min_success: only {len(found)} of {len(wanted)} pictures were fetched, less than "
                f"{p.download.min_success:.0%} ({reasons}); run it again to retry temporary failures, or lower it"
            )
        if p.filter.top_k != "all":  # the filter leaves out classes that are too small
            classes.check_sizes(found["landmark_id"].value_counts().reindex(kept, fill_value=0), p.filter.min_images)

        with stage.atomic_output(artifacts.DOWNLOADED) as out:
            pictures = stage.progress(len(found), "pictures", items=source.pictures(found))
            images.write_shards(out, pictures, len(found))
            columns = [column for column in ("id", "landmark_id", "split") if column in index]
            index[columns].to_parquet(out / "index.parquet", index=False)
            names.to_csv(out / "names.csv", header=["landmark_id", "name"], index=False, lineterminator="\n")
            unused = pd.concat([failures[skipped.columns], skipped]).sort_values("id", kind="stable")
            unused.to_csv(out / "failures.csv", index=False, lineterminator="\n")
    return (
        f"{len(found)} pictures of {len(kept)} classes, {len(failures)} failed{reasons and f' ({reasons})'}, "
        f"{others and f'{len(skipped)} skipped ({others}), '}from an index of {len(index)} in {len(ranking)} classes"
        f"{f'; ids of data.only that are not in it: {absent}' if absent else ''}"
    )


if __name__ == "__main__":
    stage.run(main)
