"""How fast the pipeline is, against the machine's limit and against the usual way: benchmarks/results.md.

    .venv/bin/python -m benchmarks.speed         after `make reproduce`, on an idle machine; takes 20 to 35 minutes

All in one run, on the same pictures and weights, so that ratios count where times are noisy. Works in a temporary
clone of HEAD and leaves the repository alone but for the table.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from landmarks import artifacts, determinism, features, images, params, stage
from landmarks.networks import Trunk
from tools.clone import Clone

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.torch import load_file

OUT = Path("benchmarks/results.md")
ROOT = Path.cwd()
SHARES = (1, 2, 4, 8)  # eighths of the pictures
STAGES = sorted(path.stem for path in Path("stages").glob("[a-z]*.py"))
DVC = (sys.executable, "-m", "dvc")


class Cost(NamedTuple):
    seconds: float
    megabytes: float  # resident at most
    said: str = ""


def process(*command: str, cwd: Path, path: Path | None = None) -> Cost:
    """Runs a command to its end. Raises `UserError` if it fails."""
    places = [str(path or cwd), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    for name in ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "NPY_DISABLE_CPU_FEATURES", "THP_MEM_ALLOC_ENABLE"):
        environment.pop(name, None)  # which importing landmarks has set here; who wants them sets them anew
    start = time.perf_counter()
    running = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)
    assert running.stdout
    said = running.stdout.read()  # until it ends
    _, status, used = os.wait4(running.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise stage.UserError(f"{' '.join(command)}: failed; see above")
    return Cost(seconds, used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3), said)


def python(code: str) -> None:
    """Runs code in a Python of its own."""
    process(sys.executable, "-c", code, cwd=ROOT)


def median(work: Callable[[], object], times: int) -> float:
    """Seconds that `work` takes."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def part(directory: Path, share: int, crop: int) -> int:
    """A copy of what extract-features reads, with `share` eighths of the pictures; returns how many views they have."""
    index = pd.read_parquet(artifacts.VIEWS)
    ids = index["id"].unique()
    kept = ids[: len(ids) * share // 8]
    images.write_shards(directory / artifacts.FILTERED, images.read_pictures(artifacts.FILTERED, kept), len(kept))
    index = index[index["id"].isin(kept)]
    index.to_parquet(directory / artifacts.VIEWS, index=False)
    (directory / artifacts.MODELS).mkdir()
    (directory / artifacts.BACKBONE).symlink_to(ROOT / artifacts.BACKBONE)
    settings = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    settings["augment"]["crop"] = crop
    settings["compute"]["device"] = "cpu"  # as the limit
    (directory / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return len(index)


def limit(trunk: Trunk, crop: int) -> float:
    """Pictures per second of the trunk's forward pass alone, on a batch that is ready."""
    noise = determinism.stream(0, "speed").random((features.CPU_BATCH, crop, crop, 3), dtype=np.float32)
    batch = torch.from_numpy(noise).permute(0, 3, 1, 2)
    with torch.inference_mode():
        trunk(batch)
        return features.CPU_BATCH / median(lambda: trunk(batch), 12 if crop < 200 else 5)


def extraction(trunk: Trunk, crop: int, shares: tuple[int, ...]) -> list[list[object]]:
    """Rows of the table: extract-features for growing numbers of pictures, between two measurements of the limit."""
    rows, costs, limits = [], [], [limit(trunk, crop)]
    for share in shares:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            views = part(directory, share, crop)
            cost = process(sys.executable, "-m", "stages.extract_features", cwd=directory, path=ROOT)
            size = (directory / artifacts.FEATURES).stat().st_size
        limits.append(limit(trunk, crop))
        most = statistics.mean(limits[-2:])  # before and after
        costs.append((views, cost.seconds))
        further = ""
        if len(costs) > 1:
            (fewer, less), (more, longer) = costs[-2:]
            further = f"{(more - fewer) / (longer - less) / most:.2f}"
        rate = views / cost.seconds
        cells = [crop, views, f"{most:.1f}", f"{rate:.1f}", f"{rate / most:.2f}", further]
        cells += [f"{cost.megabytes:.0f}", f"{size / 1e6:.0f}"]
        rows.append(cells)
        print(*cells, flush=True)
    return rows


def folders(directory: Path) -> None:
    """The pictures as files, which is what the usual way reads: SPLIT/LANDMARK/ID.jpg."""
    split = pd.read_parquet(artifacts.SPLIT).set_index("id")["split"]
    for picture in images.read_pictures(artifacts.FILTERED, split.index):
        path = directory / split[picture.id] / picture.landmark_id / f"{picture.id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.picture)


def usual(copy: Path, pictures: Path, row: str, epochs: int, all_epochs: int) -> float:
    """Seconds of the usual way for a row, if it were run for `all_epochs`; so many of them are."""
    command = (sys.executable, "-m", "benchmarks.usual", str(pictures), row, str(epochs))
    cost = process(*command, cwd=copy)
    return cost.seconds + (all_epochs - epochs) * float(cost.said.split()[-1])


def against_the_usual_way(p: params.Params, sizes: dict[int, int]) -> list[list[object]]:
    """Rows of the table: the whole results table and one further ablation, for sizes of the input, for each of which
    so many epochs of the usual way are run."""
    rows, further = [], "abn.alpha=0.7"
    with tempfile.TemporaryDirectory() as name:
        clone = Clone(ROOT, Path(name))  # its cache is empty: ours may know that ablation, and spare DVC the work
        copy, pictures = clone.root, Path(name) / "pictures"
        folders(pictures)
        for crop, epochs in sizes.items():
            clone.git("checkout", "--quiet", "params.yaml")
            clone.set("augment.crop", crop)
            clone.set("compute.device", "cpu")  # as the usual way
            process(*DVC, "repro", "augment-index", "fetch-backbone", cwd=copy)
            table = process(*DVC, "repro", "--force", "--downstream", "extract-features", cwd=copy).seconds
            ablation = process(*DVC, "exp", "run", "-S", further, cwd=copy).seconds
            baseline, abn = (usual(copy, pictures, row, epochs, p.train.epochs) for row in ("baseline", "abn"))
            pairs = {
                f"the whole table, {2 + len(p.ablations)} rows": (baseline + abn * (1 + len(p.ablations)), table),
                f"one further ablation (`dvc exp run -S {further}`)": (abn, ablation),
            }
            for what, (one, two) in pairs.items():
                rows.append([what, crop, f"{one:.0f}", f"{two:.0f}", f"{one / two:.1f}"])
                print(*rows[-1], flush=True)
    return rows


def machine(gpu: str = "no GPU used") -> str:
    """The processor, its cores, memory, the GPU, and the versions that matter, in one line."""
    name, memory = platform.processor(), ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        pairs = (line.partition(":") for line in lines)
        facts = {key.strip(): value.strip() for key, _, value in pairs}
        if "model name" in facts:  # which clouds keep short: AMD EPYC may be one of five generations
            name = f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')})"
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB"
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "pillow", "dvc"))
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores of {name}{memory}, {gpu}, {system}, {packages}"


def table(columns: list[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines: list[Sequence[object]] = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> str:
    p = params.load()
    if p.compute.precision != "float32":
        raise stage.UserError("compute.precision: the limit and the usual way have float32; set that")
    if p.backbone.tail == "trained":
        raise stage.UserError("backbone.tail: the usual way is compared without one; set none")
    trunk = Trunk(load_file(artifacts.BACKBONE), p.backbone)
    determinism.prepare_inference()  # the limit is the best that we know
    noop = median(lambda: process(*DVC, "repro", cwd=ROOT), 3)
    starts = [[name, f"{median(partial(python, f'import stages.{name}'), 3):.1f}"] for name in STAGES]
    crops = p.augment.crop, 2 * p.augment.crop
    growth = extraction(trunk, crops[0], SHARES) + extraction(trunk, crops[1], SHARES[:2])
    compared = against_the_usual_way(p, {crops[0]: p.train.epochs, crops[1]: 1})
    columns = ["pixels", "views", "limit, views/s", "stage, views/s", "of the limit", "a further view, of the limit"]
    text = f"""# How fast

Made by `make benchmark` in one run on {machine()}. Times are noisy, ratios less so.

## Features, against the limit

The limit is the frozen trunk's forward pass alone, on a batch that is ready. "Of the limit" is the whole stage: start
of Python, reading, decoding, augmenting, the trunk, writing. "A further view" leaves out what is paid once: it
compares a row with the one above.

{table([*columns, "MB resident at most", "MB on disk"], growth)}

## The results table, against the usual way

The usual way (`benchmarks/usual.py`) sends every picture through the trunk in every epoch of every row, and has none of
our settings, neither those of memory, which are faster, nor those for equal bits, which are slower. Seconds; DVC,
start-up, evaluation and plots included on our side. Of the rows with attention, which cost the usual way the same, one
was run; at {crops[1]} pixels one epoch of each row, counted {p.train.epochs} times.

{table(["", "pixels", "the usual way", "ours", "times as fast"], compared)}

## Starting

A `dvc repro` that has nothing to do takes {noop:.1f} s. Seconds until Python has started and imported a stage:

{table(["stage", "seconds"], starts)}
"""
    with stage.atomic_output(OUT) as out:
        out.write_text(text, encoding="utf-8")
    return str(OUT)


if __name__ == "__main__":
    stage.run(main)
