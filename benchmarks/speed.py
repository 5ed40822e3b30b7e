"""How fast the pipeline is, against the machine's limit and against the usual way: benchmarks/results.md.

    .venv/bin/python -m benchmarks.speed         after `make reproduce`, on an idle machine; 20 to 40 minutes

One run measures everything on the same pictures and weights, because ratios are less noisy than times. It works in a
temporary clone of HEAD and changes nothing in the repository but the page.
"""

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks import training_step
from landmarks import artifacts, determinism, features, images, params, stage, training
from landmarks.networks import Trunk
from tools.clone import Clone, Repro

import numpy as np
import pandas as pd
import psutil
import torch
import yaml
from safetensors.torch import load_file

OUT = Path("benchmarks/results.md")
ROOT = Path.cwd()
PYTHON = (sys.executable, "-m")
ABLATION = "abn.alpha=0.7"
ONCE = {"download", "filter", "split", "augment-index", "fetch-backbone"}  # the usual way is spared them, too


class Cost(NamedTuple):
    seconds: float
    output: str


class Size(NamedTuple):
    """A size of the input: eighths of the views to extract, epochs of the usual way to run, targets."""

    crop: int
    shares: tuple[int, int]
    epochs: int
    targets: tuple[float, float, float]  # table, ablation, additional view


def process(*command: str, cwd: Path, path: Path | None = None, variables: dict[str, str] | None = None) -> Cost:
    """Runs a command to its end, with further environment variables. Raises `UserError` if it fails."""
    # Importing landmarks has set these here. A process that imports landmarks sets them again.
    ours = {"ATEN_CPU_CAPABILITY", "MKL_CBWR", "NPY_DISABLE_CPU_FEATURES", "ONEDNN_DEFAULT_FPMATH_MODE"}
    ours |= {"OPENBLAS_CORETYPE", "THP_MEM_ALLOC_ENABLE"}
    environment = {name: value for name, value in os.environ.items() if name not in ours} | (variables or {})
    environment["PYTHONPATH"] = os.pathsep.join([str(path or cwd), *filter(None, [os.environ.get("PYTHONPATH")])])
    start = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise stage.UserError(f"{' '.join(command)}: failed; see above")
    return Cost(time.perf_counter() - start, done.stdout)


def call(expression: str, cwd: Path) -> float:
    """The value of an expression, in a process of its own."""
    code = f"from benchmarks import speed; print({expression})"
    return float(process(sys.executable, "-c", code, cwd=cwd, path=ROOT).output.split()[-1])


def part(directory: Path, share: int, crop: int) -> int:
    """What extract-features reads, with `share` eighths of the views; returns their number."""
    index = pd.read_parquet(artifacts.VIEWS)
    index = index.tail(len(index) * share // 8)  # as if an earlier run had processed the first ones
    for path in (artifacts.FILTERED, artifacts.BACKBONE):
        (directory / path).parent.mkdir()
        (directory / path).symlink_to(ROOT / path)
    index.to_parquet(directory / artifacts.VIEWS, index=False)
    settings = params.read_yaml(Path("params.yaml").read_bytes())
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
        seconds = timeit.repeat(lambda: trunk(batch), number=1, repeat=12 if crop < 200 else 5)
    return features.CPU_BATCH / statistics.median(seconds)


def extraction(trunk: Trunk, crop: int, shares: tuple[int, int]) -> tuple[float, float]:
    """The limit in views per second, and the share of it that an additional view reaches.

    From extract-features for two numbers of pictures, each between two measurements of the limit.
    """
    views, seconds, limits = [], [], [limit(trunk, crop)]
    for share in shares:
        with tempfile.TemporaryDirectory() as name:
            views.append(part(Path(name), share, crop))
            seconds.append(process(*PYTHON, "stages.extract_features", cwd=Path(name), path=ROOT).seconds)
        limits.append(limit(trunk, crop))
    most = statistics.mean(limits[-2:])
    print(crop, views, seconds, limits, flush=True)
    return most, (views[1] - views[0]) / (seconds[1] - seconds[0]) / most


def folders(directory: Path) -> None:
    """The pictures as files, which is what the usual way reads: SPLIT/LABEL/NUMBER.jpg."""
    table = pd.read_parquet(artifacts.SPLIT).set_index("id")
    for number, picture in enumerate(images.read_pictures(artifacts.FILTERED, table.index)):
        row = table.loc[picture.id]
        path = directory / row["split"] / f"{row['label']:04}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.picture)


def usual(copy: Path, pictures: Path, row: str, epochs: int, all_epochs: int) -> float:
    """Seconds of the usual way for a row and `all_epochs`, extrapolated from `epochs`."""
    cost = process(*PYTHON, "benchmarks.usual", str(pictures), row, str(epochs), cwd=copy)
    return cost.seconds + (all_epochs - epochs) * float(cost.output.split()[-1])


def fit_seconds(name: str) -> float:
    """Seconds of training a model, without start-up and without its answers for test pictures."""
    p = params.load()
    training.prepare_training()
    train = training.trainer(p.backbone, p.train, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as log:
        return timeit.timeit(partial(train, abn=p.models[name], seed=p.seed, log=Path(log)), number=1)


def measure(p: params.Params, trunk: Trunk, sizes: Sequence[Size]) -> list[dict[str, float]]:
    """What `summary` needs, for each size of the input; all times are in seconds."""
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        clone, pictures = Clone(ROOT, Path(folder)), Path(folder) / "pictures"
        clone.set("compute.device", "cpu")  # as the usual way
        clone.remove_results()
        folders(pictures)
        for crop, shares, epochs, _ in sizes:
            limit, additional = extraction(trunk, crop, shares)
            clone.set("augment.crop", crop)
            with Repro(clone) as repro:
                repro.finish()
            seconds = repro.seconds()
            clone.commit()
            table = sum(seconds[name] for name in seconds.keys() - ONCE)
            command = (*PYTHON, "dvc", "exp", "run", "-S", ABLATION)
            ablation = process(*command, cwd=clone.root, variables=clone.environment).seconds
            baseline, abn = (usual(clone.root, pictures, name, epochs, p.train.epochs) for name in ("baseline", "abn"))
            fits = [call(f"speed.fit_seconds('{name}')", clone.root) for name in ("baseline", "abn")]
            clone.git("checkout", "--quiet", ".")
            entry = {"additional": additional, "first run": sum(seconds.values()), "fit": fits[1]}
            entry |= {"table": table, "ablation": ablation, "usual ablation": abn}
            entry["usual table"] = baseline + abn * (len(p.models) - 1)
            entry["arithmetic"] = len(artifacts.read_views()) / limit + fits[0] + fits[1] * (len(p.models) - 1)
            found.append(entry)
            print(entry, flush=True)
    return found


def machine(gpu: str = "no GPU used") -> str:
    """The processor, its cores, memory, the GPU, and the versions that matter, in one line."""
    name, cpuinfo = platform.processor(), Path("/proc/cpuinfo")
    facts = dict(re.findall(r"^(.+?)\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)) if cpuinfo.exists() else {}
    if "model name" in facts:  # ambiguous in clouds: "AMD EPYC" may be one of five generations
        vectors = "AVX-512" if "avx512f" in facts["flags"].split() else "no AVX-512"
        name = f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')}, {vectors})"
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GB"
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "pillow", "dvc"))
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores of {name}, {memory}, {gpu}, {system}, {packages}"


def table(columns: list[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines: list[Sequence[object]] = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def summary(step: float, found: list[dict[str, float]], sizes: Sequence[Size]) -> list[list[str]]:
    """Rows of the page: what was measured, its value, the target, and the limit."""
    first = found[0]
    rows = [
        ["ABN training step, relative to the fastest kernels", f"{step:.2f}", ">= 0.85", "1"],
        ["one ablation, s", f"{first['ablation']:.0f}", "<= 30 with AVX-512", f"{first['fit']:.0f}"],
        ["one ablation without its training, s", f"{first['ablation'] - first['fit']:.0f}", "<= 15", ""],
        ["first run without installation, s", f"{first['first run']:.0f}", "<= 110", f"{first['arithmetic']:.0f}"],
    ]
    for s, (crop, _, _, goals) in zip(found, sizes, strict=True):
        for what, goal, limit in (("table", goals[0], s["arithmetic"]), ("ablation", goals[1], s["fit"])):
            one, two = s[f"usual {what}"], s[what]
            text = f"{what} against the usual way, {crop} pixels ({one:.0f} s / {two:.0f} s)"
            rows.append([text, f"{one / two:.1f}", f">= {goal} with AVX-512", f"{one / limit:.1f}"])
        text = f"an additional view, relative to the trunk's limit, {crop} pixels"
        rows.append([text, f"{s['additional']:.2f}", f">= {goals[2]}", "1"])
    return rows


def main() -> str:
    p = params.load()
    if p.compute.precision != "float32" or p.backbone.tail == "trained":
        raise stage.UserError("compute.precision and backbone.tail: set float32 and none, as in the usual way")
    step = training_step.ratio()
    trunk = Trunk(load_file(artifacts.BACKBONE), p.backbone)
    determinism.prepare_inference()
    small, large = p.augment.crop, 2 * p.augment.crop
    sizes = (Size(small, (2, 8), p.train.epochs, (5, 5, 0.96)), Size(large, (1, 3), 1, (11, 15, 0.98)))
    rows = summary(step, measure(p, trunk, sizes), sizes)
    text = f"""# How fast

Made by `make benchmark` in one run on {machine()}. Times are noisy, ratios less so.

## Targets

The limit is what the arithmetic alone allows: the trunk's forward pass on batches that are ready, and training.

{table(["", "measured", "target", "limit"], rows)}

- An ablation is `dvc exp run -S {ABLATION}`, with DVC and all start-ups.
- The table of {len(p.models)} rows is made from the filtered pictures. The first run also draws and filters them.
- The usual way (`benchmarks/usual.py`) sends every picture through the trunk in every epoch of every row, without the
  settings for equal bits, and without our settings of the memory allocator. Start-up, evaluation and plots count on our
  side. Of the rows with attention, which cost the usual way the same, one was run; at {large} pixels one epoch of each
  row, counted {p.train.epochs} times.
"""
    with stage.atomic_output(OUT) as out:
        out.write_text(text, encoding="utf-8")
    return str(OUT)


if __name__ == "__main__":
    stage.run(main)
