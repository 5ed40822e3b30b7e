"""The pipeline at the study's size: seconds, memory and disk of every stage, and how they grow. benchmarks/scale.md.

    .venv/bin/python -m benchmarks.scale         about an hour on two idle cores, and 35 GB of disk in TMPDIR
    .venv/bin/python -m benchmarks.scale --percent 1 5 --out FILE        smaller data sets
    .venv/bin/python -m benchmarks.scale --classes 1000 --out FILE       300,000 pictures of 1,000 classes

Draws data sets in the layout of Google Landmarks v2, with the study's class sizes and index. Runs the whole pipeline
of HEAD on each, stage by stage, in a temporary clone. To end within an hour, it has no ablations and one epoch of
training. Inputs have 32 pixels. Features come from conv3: 25 KB per view, half of conv4's, with which the attention
branch takes four times as long.
"""

import argparse
import hashlib
import os
import shutil
import tarfile
import tempfile
import textwrap
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks import generated, speed
from landmarks import artifacts, determinism, params, stage
from landmarks.networks import Trunk
from landmarks.serving.cli import number
from landmarks.sources.sample import GOOGLE_COUNTS
from tools.clone import Clone, Repro, temporary_folder

import numpy as np
import pandas as pd
import psutil
import yaml
from joblib import Parallel, delayed
from pyarrow import parquet
from safetensors.torch import load_file

OUT = Path("benchmarks/scale.md")
INDEX_ROWS, INDEX_CLASSES = 1_193_208, 14_952  # of version 1, as the study found it
PER_CLASS = 300  # pictures, on average, with --classes
EXPONENT = -0.8  # of the rank-size law of classes whose real size is not listed
TARS = 20
DISK = 200_000  # bytes per picture: four times 33 KB for the picture, and 2.4 views of 25 KB
SETTINGS = {
    "data.source": "gldv2",
    "augment.crop": 32,
    "backbone.layer": "conv3",
    "train.epochs": 1,
    "ablations": {},
    "compute.device": "cpu",
}
INTERVAL = 0.2  # seconds between looks at the memory


class Result(NamedTuple):
    """What was measured at one size."""

    pictures: int
    views: int
    costs: pd.DataFrame  # by stage: seconds, memory (peak, MB), disk (MB)
    digest: str  # of all outs
    accuracy: float  # of abn on test pictures, 0..1
    majority: float  # the same of naming the largest class
    trunk: float  # views of 224 pixels per second, up to the committed backbone.layer


def class_sizes(classes: int | None, share: float) -> tuple[dict[str, int], int]:
    """The rows of the index by landmark id, largest class first, and how many classes the filter skips.

    None: the study's classes. Otherwise the first `classes` classes have `PER_CLASS` pictures on average. `share` of
    all rows is drawn, but at least 10 of each kept class.
    """
    sizes = np.arange(1, INDEX_CLASSES + 1) ** EXPONENT
    skipped, kept = (0, classes) if classes else (3, len(generated.STUDY_COUNTS))
    largest = skipped + kept
    if classes:
        sizes *= classes * PER_CLASS / sizes[:classes].sum()
    else:
        sizes[largest:] *= (INDEX_ROWS - sum(GOOGLE_COUNTS[:largest])) / sizes[largest:].sum()
        sizes[:largest] = GOOGLE_COUNTS[:largest]
    rows = np.diff(np.round(np.cumsum(sizes * share)), prepend=0).astype(int)
    rows = -np.sort(-rows)  # rounding may give a smaller class one more row
    rows[:largest] = np.maximum(rows[:largest], 10)
    return {str(INDEX_CLASSES + rank): int(count) for rank, count in enumerate(rows) if count}, skipped


def write_data_set(root: Path, sizes: dict[str, int], kept: Sequence[str]) -> int:
    """Writes a data set in version 2's layout; its tars hold only the pictures of the classes `kept`.

    Returns the number of pictures.
    """
    index = pd.DataFrame(generated.names(sizes), columns=["id", "landmark_id"])
    index.insert(1, "url", "https://example.invalid/" + index["id"] + ".jpg")
    credit = index[["id", "url"]].assign(author="Somebody", license="CC BY 4.0", title="File:" + index["id"] + ".jpg")
    category = pd.DataFrame({"landmark_id": list(sizes)}).assign(
        category=lambda rows: "Category:" + rows["landmark_id"]
    )
    for folder in ("metadata", "train", "md5sum/train"):
        (root / folder).mkdir(parents=True)
    tables = {"train": index, "train_attribution": credit, "train_label_to_category": category}
    for name, table in tables.items():
        table.to_csv(root / f"metadata/{name}.csv", index=False, lineterminator="\n")
    wanted = index.loc[index["landmark_id"].isin(kept), ["id", "landmark_id"]].to_numpy()
    parts = np.array_split(wanted, TARS)
    Parallel(-1)(delayed(write_tar)(root, f"images_{number:03d}", part) for number, part in enumerate(parts))
    return len(wanted)


def write_tar(root: Path, name: str, rows: np.ndarray) -> None:
    """Draws the pictures of `rows` (id, landmark id) into a tar, and writes its MD5 file."""
    path = root / f"train/{name}.tar"
    with tarfile.open(path, "w") as tar:
        for key, landmark_id in rows:
            picture = generated.draw(key, landmark_id).picture
            member = tarfile.TarInfo("/".join([*key[:3], f"{key}.jpg"]))
            member.size = len(picture)
            tar.addfile(member, BytesIO(picture))
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    (root / f"md5sum/train/md5.{name}.txt").write_text(f"{md5}  {path.name}\n", encoding="ascii")


def watch(repro: Repro) -> dict[str, float]:
    """Waits for the end of a run. Returns the peak memory of each stage: of all its processes and DVC's, in MB.

    Pages of files do not count, because the system reclaims them when it needs room.
    """
    peaks: dict[str, float] = defaultdict(float)
    while repro.process.poll() is None:
        name, total = repro.begun[-1][0], 0
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(repro.process.pid)
            for process in (first, *first.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    memory = process.memory_info()
                    total += memory.rss - memory.shared
        peaks[name] = max(peaks[name], total / 1e6)
        time.sleep(INTERVAL)
    repro.finish()
    return peaks


def run_stages(clone: Clone) -> pd.DataFrame:
    """Runs all stages one by one. Returns the seconds and the peak memory (MB) of each, in order.

    A stage ends when its files are on the disk. Otherwise the next one would wait for them.
    """
    costs = []
    for name in yaml.safe_load((clone.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]:
        with Repro(clone, "--single-item", name) as repro:
            memory = watch(repro)
        os.sync()
        costs.append(pd.DataFrame({"seconds": repro.seconds(), "memory": memory}))
    return pd.concat(costs).groupby(level=0, sort=False).agg({"seconds": "sum", "memory": "max"})


def measure(classes: int | None, share: float) -> Result:
    """Draws a data set, runs the pipeline on it in a clone, and measures the run."""
    sizes, skipped = class_sizes(classes, share)
    kept = list(sizes)[skipped : skipped + (classes or len(generated.STUDY_COUNTS))]
    needed = DISK * sum(sizes[name] for name in kept)
    parent = tempfile.gettempdir()
    free = shutil.disk_usage(parent).free
    if free < needed:
        text = f"{needed / 1e9:.0f} GB are needed in {parent}, {free / 1e9:.0f} GB are free"
        raise stage.UserError(f"TMPDIR: {text}; set TMPDIR, or a smaller --percent")
    with temporary_folder() as folder:
        start = time.monotonic()
        pictures = write_data_set(folder / "data", sizes, kept)
        os.sync()  # otherwise the first stage waits until the disk has all of it
        print(f"{pictures} pictures drawn in {time.monotonic() - start:.0f} s", flush=True)
        clone = Clone(Path.cwd(), folder)
        backbone = params.load(clone.root / "params.yaml").backbone
        settings = {"data.root": str(folder / "data"), "filter.skip_top": skipped, "filter.top_k": len(kept)}
        for key, value in (SETTINGS | settings).items():
            clone.set(key, value)
        clone.remove_results()
        costs = run_stages(clone)
        lock = yaml.safe_load((clone.root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
        costs["disk"] = pd.Series({name: sum(out["size"] for out in lock[name]["outs"]) / 1e6 for name in lock})
        fetched = [path.stat().st_size for path in (clone.root / artifacts.DOWNLOADS).rglob("*") if path.is_file()]
        costs.loc["download", "disk"] += sum(fetched) / 1e6
        outs = sorted((out["path"], out["md5"]) for entry in lock.values() for out in entry["outs"])
        results = artifacts.read_results(clone.root)
        trunk = Trunk(load_file(clone.root / artifacts.BACKBONE), backbone)
        return Result(
            pictures,
            parquet.read_metadata(clone.root / artifacts.VIEWS).num_rows,
            costs.fillna(0).round(1),
            hashlib.sha256(repr(outs).encode()).hexdigest()[:16],
            results["abn"]["test"]["accuracy"],
            results["majority_class"],
            speed.limit(trunk, 224),
        )


def growth(seconds: pd.DataFrame, pictures: Sequence[int]) -> pd.DataFrame:
    """How often the cost per picture at a size is that at the size before it. `seconds` is stages x sizes.

    The last column leaves out the start of each stage. It divides the cost of a picture added from the second-last to
    the last size by that of a picture added in the step before.
    """
    each = seconds / list(pictures)
    found = pd.DataFrame({f"{b} / {a}": each[b] / each[a] for a, b in pairwise(seconds)})
    if len(pictures) > 2:
        more = seconds.diff(axis=1)
        additional = (more / np.diff(pictures, prepend=0))[more.iloc[:, -2] > 1]  # a smaller difference is noise
        found["additional"] = additional.iloc[:, -1] / additional.iloc[:, -2]
    return found


def page(results: dict[str, Result], classes: int) -> str:
    """The page for what was measured at each size, by its name."""
    tables = {
        what: pd.DataFrame({name: r.costs[what] for name, r in results.items()})
        for what in ("seconds", "memory", "disk")
    }
    tables["seconds"].loc["all"], tables["disk"].loc["all"] = tables["seconds"].sum(), tables["disk"].sum()
    last = list(results.values())[-1]
    grown = growth(tables["seconds"], [r.pictures for r in results.values()])
    facts = pd.DataFrame(
        {
            name: [
                f"{r.pictures:,}",
                f"{r.views:,}",
                f"{100 * r.accuracy:.1f} %",
                f"{100 * r.majority:.1f} %",
                r.digest,
            ]
            for name, r in results.items()
        },
        index=["pictures", "views", "test accuracy of abn", "always naming the largest class", "digest of all outs"],
    )
    made = f"""Made by `make scale` on {speed.machine()}: generated pictures of {classes} classes in the layout of
Google Landmarks v2, three views of {SETTINGS["augment.crop"]} pixels, features of {SETTINGS["backbone.layer"]},
{SETTINGS["train.epochs"]} epoch, no ablations: each would cost as much as train-abn."""
    return f"""# The pipeline at the study's size

{textwrap.fill(" ".join(made.split()), 120)}

{facts.to_markdown()}

Equal digests mean equal outs, bit by bit.

## Seconds

{tables["seconds"].to_markdown(floatfmt=",.1f")}

A stage includes what DVC does for it: hashing, and linking into the cache. It ends when its files are on the disk.
`dvc itself` is the sum of the starts of DVC, once per stage. At 224 pixels, the trunk alone would take
{last.views / last.trunk / 3600:.1f} hours for the {last.views:,} views with the committed `backbone.layer`: it reaches
{last.trunk:.1f} per second here.

## Growth

The cost per picture, relative to that at the smaller size. The target is at most 1.2. `additional` compares only the
pictures that each size adds, so the start of a stage does not count. It is empty where they cost less than a second.

{grown.astype(object).where(grown.notna(), None).to_markdown(floatfmt=".2f")}

## Memory

The most that all processes of a stage and DVC hold at a time, in MB, without pages of files. The target is 2,000.

{tables["memory"].to_markdown(floatfmt=",.0f")}

## Disk

The outs, in MB; for download with `.scratch/download`. DVC's cache links to them. The data set itself comes on top.

{tables["disk"].to_markdown(floatfmt=",.1f")}
"""


def main() -> str:
    parser = argparse.ArgumentParser(prog="scale", description=__doc__.split("\n")[0])
    parser.add_argument("--percent", type=float, nargs="+", default=[1.0, 10.0, 100.0], help="sizes, ascending")
    parser.add_argument("--classes", type=number(2), help=f"instead of the study's; {PER_CLASS} pictures each")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    full = not given.classes and given.percent == parser.get_default("percent")
    if given.out.exists() and not (full and given.out == OUT):
        parser.error(f"--out: {given.out} exists; name another file")
    if given.percent[0] <= 0 or given.percent != sorted(set(given.percent)):
        parser.error(f"--percent: {given.percent} are not ascending numbers above 0")
    determinism.prepare_inference()
    results = {}
    for percent in given.percent:
        results[f"{percent:g} %"] = measure(given.classes, percent / 100)
        print(results[f"{percent:g} %"].costs.to_markdown(), flush=True)
    text = page(results, given.classes or len(generated.STUDY_COUNTS))
    with stage.atomic_output(given.out) as out:
        out.write_text(text, encoding="utf-8")
    return str(given.out)


if __name__ == "__main__":
    stage.run(main)
