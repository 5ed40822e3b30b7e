"""download: the index of all pictures, and the pictures of the classes that the filter will keep.

Reads   the source that data.source names.
Writes  data/raw/index.parquet (id, landmark_id of every picture the source lists), data/raw/pictures-NNN.parquet (see
        landmarks/images.py) and data/raw/missing.csv (wanted pictures that the source lists but does not hold).
Holds   the same bytes for any number of workers: pictures are in id order.
"""

import hashlib
from pathlib import Path

from landmarks import classes, images, params, sources, stage

import pandas as pd
from joblib import Parallel, delayed

OUT = Path("data/raw")
SCRATCH = Path(".scratch/download")


def fetch(source: sources.Source, part: str, rows: pd.DataFrame, path: Path) -> int:
    """Writes the wanted pictures of one part to `path`, unless an earlier run did; returns how many they are."""
    if not path.exists():
        pictures = sorted(source.fetch(part, rows))
        with stage.whole(path) as whole:
            images.write_shards(whole, pictures, len(pictures))
    return len(images.read_index(path))


def scratch(source: sources.Source, part: str, rows: pd.DataFrame) -> Path:
    """Where a part lies until all are there; another place once anything that it is made from has changed."""
    key = hashlib.sha256(f"{source!r} {part} {source.version(part, rows)}".encode())
    key.update(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
    for code in sorted(Path(sources.__file__).parent.glob("*.py")):
        key.update(code.read_bytes())
    return SCRATCH / key.hexdigest()[:16]


def main() -> str:
    p = params.load()
    source = sources.open_source(p.data.source, p.data.root, p.seed)
    index = source.index()
    ranking = classes.rank(index, skip_top=p.filter.skip_top, top_k=p.filter.top_k, min_images=p.filter.min_images)
    kept = ranking.loc[ranking["kept"], "landmark_id"]
    wanted = index[index["landmark_id"].isin(kept)]

    parts = {scratch(source, part, rows): (part, rows) for part, rows in sorted(source.parts(wanted).items())}
    jobs = (delayed(fetch)(source, part, rows, path) for path, (part, rows) in parts.items())
    with stage.progress(len(wanted), "pictures") as bar:
        for fetched in Parallel(p.compute.workers or -1, return_as="generator_unordered")(jobs):
            bar.update(fetched)

    with stage.whole(OUT) as out:
        images.merge_shards(out, list(parts))
        index.to_parquet(out / "index.parquet", index=False)
        found = images.read_index(out)["id"]
        if found.duplicated().any():
            raise stage.UserError(f"data.root: picture {found[found.duplicated()].iloc[0]} is there more than once")
        missing = wanted[~wanted["id"].isin(found)]
        missing.to_csv(out / "missing.csv", index=False, lineterminator="\n")
    stage.remove(SCRATCH)
    return (
        f"{len(wanted) - len(missing)} pictures of {len(kept)} classes, {len(missing)} missing, "
        f"from an index of {len(index)} in {len(ranking)} classes"
    )


if __name__ == "__main__":
    stage.run(main)
