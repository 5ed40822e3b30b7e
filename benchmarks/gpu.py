"""The pipeline on a GPU: benchmarks/gpu.md.

    python -m benchmarks.gpu                         about 6 minutes with 16 cores and an H100-class GPU; no network
    python -m benchmarks.gpu --dry-run --out FILE    the same on the CPU with 200 small pictures, to test this script

Draws its own pictures (benchmarks/generated.py) and runs the stages as they are, in a temporary directory, with the
study's settings: VGG-16 conv5 at 224 pixels, hidden layers of 4096 units, batches of 32, three epochs. The weights are
random, which costs the same time. Then it measures extraction against its two limits, compares the GPU's numbers with
the CPU's and with its own, and says what the study's 176,358 pictures would take.
"""

import argparse
import copy
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks import generated
from benchmarks.speed import process
from landmarks import answers, artifacts, determinism, features, models, networks, params, stage, training
from landmarks.networks import Trunk
from landmarks.params import Abn, Params, Train
from landmarks.serving.cli import number

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks/gpu.md"
STUDY = 176_358  # pictures of the study
COMPARED = {"train": 2000, "val": 1000}  # pictures of the comparison with the CPU, about


def settings(dry: bool) -> dict:
    """params.yaml of the run: the study's settings, or for a dry run much smaller ones."""
    values = params.read_yaml((ROOT / "params.yaml").read_bytes())
    values["filter"] |= {"skip_top": 0, "min_images": 3}
    values["augment"] |= {"crop": 32, "views": 1} if dry else {"crop": 224, "views": 3}
    values["backbone"] |= {"name": "vgg16", "tail": "none", "weights": "random.safetensors", "layer": "conv5"}
    values["train"] |= {"learning_rate": 1e-4, "dropout": 0.5}
    values["train"] |= (
        {"hidden": 64, "batch_size": 128, "epochs": 1} if dry else {"hidden": 4096, "batch_size": 32, "epochs": 3}
    )
    values["compute"]["device"] = "cpu" if dry else "cuda"
    if dry:
        values["ablations"] = {}
    return values


def random_weights(path: Path) -> None:
    """VGG-16 whose layers keep the size of what passes through them (He et al., arXiv 1502.01852)."""
    determinism.seed_torch(0, "gpu")
    model = networks.network("vgg16").model
    for name, weights in model.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(weights, nonlinearity="relu")
        else:
            torch.nn.init.zeros_(weights)
    save_file(model.state_dict(), path)


def rate(stream: Iterable[Tensor | np.ndarray], rows: int) -> float:
    """Rows per second of the last four fifths of about `rows` rows of a stream."""
    seen, start, before = 0, 0.0, 0
    for part in stream:
        seen += len(part)
        if not before and seen >= rows / 5:
            start, before = time.perf_counter(), seen
        if seen >= rows:
            break
    return (seen - before) / (time.perf_counter() - start)


class Run:
    """A directory in which the stages have run, and what is measured on their outputs."""

    def __init__(self, directory: Path, p: Params) -> None:
        self.directory, self.p, self.device = directory, p, determinism.pick_device(p.compute.device)
        self.filtered = directory / artifacts.FILTERED
        self.index = artifacts.read_labelled_views(directory)
        self.array = artifacts.read_features(directory)
        self.trunk = Trunk(load_file(directory / artifacts.BACKBONE), p.backbone).to(self.device)

    def inputs(self) -> features.Inputs:
        return features.Inputs(self.filtered, self.index, self.p.augment.crop)

    def extract(self, precision: str) -> Iterator[np.ndarray]:
        return features.extract(self.trunk, self.filtered, self.index, self.p.augment.crop, precision)

    def trunk_alone(self, precision: str) -> Iterator[Tensor]:
        """Features of a batch that is on the device already, again and again."""
        shape = (features.batch_size(self.device), self.p.augment.crop, self.p.augment.crop, 3)
        batch = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        while True:
            yield features.forward(self.trunk, batch, precision)
            if self.device.type == "cuda":
                torch.cuda.synchronize()

    def extraction(self, rows: int) -> pd.DataFrame:
        """Views per second of the trunk alone, of decoding alone, and of both together, for each precision."""
        table = []
        decoding = rate(features.decode(self.inputs(), self.device), rows)
        for precision in ("float32", "bfloat16"):
            alone, together = rate(self.trunk_alone(precision), rows), rate(self.extract(precision), rows)
            table.append([precision, alone, decoding, together, together / min(alone, decoding)])
        return pd.DataFrame(
            table, columns=["precision", "trunk alone", "decoding alone", "extraction", "of the slower"]
        )

    def train(
        self, abn: Abn | None, train: Train, device: torch.device, training_rows: list[pd.DataFrame], val: pd.DataFrame
    ) -> Iterator[training.Epoch]:
        """The epochs of one model, as the stages train it."""
        views = [training.Features(self.array, part) for part in training_rows]
        landmarks = sorted({str(label) for label in self.index["label"]})
        layers = train.model_dump(include={"hidden", "dropout"})
        shape = self.array.shape[1:]
        design = models.Design(landmarks=landmarks, shape=shape, abn=abn, seed=self.p.seed, **layers)
        model = models.build(design)
        model.mean, model.std = views[0].statistics()
        return training.fit(
            model.to(device), views, training.Features(self.array, val), train, self.p.seed, lambda: None
        )

    def split(self, name: str, most: int | None = None) -> list[pd.DataFrame]:
        """The rows of a split by view, about `most` of each."""
        parts = [part for _, part in self.index[self.index["split"] == name].groupby("view")]
        return [part.iloc[:: max(1, len(part) // (most or len(part)))] for part in parts]

    def epoch_seconds(self, name: str) -> float:
        """Seconds of the second of two epochs, with its validation."""
        train = self.p.train.model_copy(update={"epochs": 2})
        epochs = self.train(self.p.models[name], train, self.device, self.split("train"), self.split("val")[0])
        next(epochs)
        start = time.perf_counter()
        next(epochs)
        return time.perf_counter() - start

    def answer_seconds(self, name: str) -> float:
        """Seconds of the trained model's answers for validation and test pictures, with all maps.

        More pictures cost less than in proportion, because at most `answers.CURVES` have curves.
        """
        model = models.load(self.directory / artifacts.MODELS / name).to(self.device)
        start = time.perf_counter()
        for split in ("val", "test"):
            answers.answers(model, self.array, self.index[self.index["split"] == split], self.p.seed)
        return time.perf_counter() - start

    def accuracy(self, name: str, device: torch.device) -> float:
        """Validation accuracy after two epochs of a smaller training."""
        train = self.p.train.model_copy(update={"hidden": min(512, self.p.train.hidden), "dropout": 0.1, "epochs": 2})
        rows, val = (self.split(split, most) for split, most in COMPARED.items())
        *_, last = self.train(self.p.models[name], train, device, rows[:1], val[0])
        return last.metrics["val/accuracy"]

    def feature_difference(self) -> float:
        """How the device's features of 64 views differ from the CPU's: the norm of the difference over the norm."""
        views = next(features.decode(self.inputs(), torch.device("cpu")))[:64]
        there, here = (
            torch.cat([features.forward(trunk, part.to(trunk.mean.device)).cpu() for part in views.split(8)]).double()
            for trunk in (self.trunk, copy.deepcopy(self.trunk).cpu())
        )
        return ((there - here).norm() / here.norm()).item()


def run_stage(stage: str, directory: Path, *arguments: str) -> float:
    """Seconds of one stage, as a process of its own."""
    seconds = process(sys.executable, "-m", f"stages.{stage}", *arguments, cwd=directory, path=ROOT).seconds
    print(f"{' '.join((stage, *arguments))}: {seconds:.1f} s", flush=True)
    return seconds


def start_up(stage: str, directory: Path) -> float:
    """Seconds that a stage takes to start: Python, its modules and, if it uses one, the GPU."""
    gpu = "import torch; torch.zeros(1, device='cuda')" if stage == "train" and torch.cuda.is_available() else ""
    return process(sys.executable, "-c", f"import stages.{stage}; {gpu}", cwd=directory, path=ROOT).seconds


def at_study_size(
    seconds: dict[str, float], trainings: dict[str, float], idle: dict[str, float], scale: float
) -> pd.DataFrame:
    """The stages' seconds, what of them is work, and what they would be for `scale` times as many pictures.

    `trainings` has the work of each model, because a training also waits for the GPU's libraries to load.
    """
    table = pd.DataFrame({"stage": list(seconds), "seconds": list(seconds.values())})
    table["work"] = (table["seconds"] - [idle.get(name, idle["train"]) for name in table["stage"]]).clip(lower=0)
    for name, work in trainings.items():
        table.loc[table["stage"] == f"train {name}", "work"] = work
    table[f"at {STUDY:,} pictures"] = table["seconds"] + table["work"] * (scale - 1)
    return table


def report(directory: Path, pictures: int, dry: bool) -> str:
    """Runs everything in `directory`; returns the page."""
    (directory / "params.yaml").write_text(yaml.safe_dump(settings(dry)), encoding="utf-8")
    random_weights(directory / "random.safetensors")
    p = params.load(directory / "params.yaml")
    count = generated.write(directory / artifacts.DOWNLOADED, pictures)
    stages = ("filter", "split", "augment_index", "fetch_backbone", "extract_features")
    seconds = {stage: run_stage(stage, directory) for stage in stages}
    run = Run(directory, p)
    seconds |= {f"train {name}": run_stage("train", directory, name) for name in p.models}
    seconds["evaluate"] = run_stage("evaluate", directory)
    results = artifacts.read_results(directory)
    once = (directory / "models/trained/abn/model.safetensors").read_bytes()
    run_stage("train", directory, "abn")
    repeated = "the same" if once == (directory / "models/trained/abn/model.safetensors").read_bytes() else "OTHER"

    idle = {stage: start_up(stage, directory) for stage in ("filter", "split", "augment_index", "train", "evaluate")}
    epochs = {name: run.epoch_seconds(name) for name in p.models}
    rates = run.extraction(min(25_000, len(run.index)))
    trainings = {name: epochs[name] * p.train.epochs + run.answer_seconds(name) for name in p.models}
    table = at_study_size(seconds, trainings, idle, STUDY / count)
    total = table.iloc[:, -1].sum()
    extract = table.loc[table["stage"] == "extract_features"].iloc[0, -1]
    faster = total - extract + idle["train"] + len(run.index) * STUDY / count / rates["extraction"].iloc[-1]
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    said = subprocess.run(test, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    tests = (said.strip().splitlines() or ["no output"])[-1]
    devices = {"CPU": torch.device("cpu"), "GPU": run.device}
    compared = [
        f"{m} on the {d} {100 * run.accuracy(m, devices[d]):.2f} %" for m in ("baseline", "abn") for d in devices
    ]
    card = torch.cuda.get_device_name() if run.device.type == "cuda" else "no GPU"
    return f"""# The pipeline on a GPU

`python -m benchmarks.gpu`, {card}, {os.cpu_count()} cores, torch {torch.__version__}: {count} generated pictures,
{len(run.index)} views of {p.augment.crop} pixels, VGG-16 {p.backbone.layer} with random weights, hidden layers of
{p.train.hidden} units, batches of {p.train.batch_size}, {p.train.epochs} epochs.

## Stages, in seconds

{table.to_markdown(index=False, floatfmt=",.1f")}

`work` is without the start of Python, PyTorch and the GPU. The last column scales the work with the number of pictures.
The study's whole table, from filter to evaluate, takes **{total / 60:.1f} minutes** with features in float32,
{faster / 60:.1f} in bfloat16.

## Extraction, in views per second

{rates.to_markdown(index=False, floatfmt=",.2f")}

## Training, in seconds per epoch

{pd.DataFrame([epochs]).to_markdown(index=False, floatfmt=".2f")}

## Agreement

- Test accuracy: {", ".join(f"{name} {100 * results[name]['test']['accuracy']:.2f} %" for name in p.models)}.
- Features differ from the CPU's by {run.feature_difference():.1e} of their norm (float32).
- Validation accuracy of a smaller training: {", ".join(compared)}.
- Training abn twice gives {repeated} weights.
- `pytest tests/test_gpu.py`: {tests}.
"""


def main() -> str:
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=number(200), default=20_000)
    parser.add_argument("--out", type=Path, help=f"default: {OUT}; nothing for other runs than the full one")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with 200 small pictures")
    arguments = parser.parse_args()
    full = not arguments.dry_run and arguments.pictures == parser.get_default("pictures")
    out = arguments.out or (OUT if full else None)
    if arguments.out and arguments.out.exists():
        parser.error(f"--out: {arguments.out} exists; name another file")
    determinism.pick_device("cpu" if arguments.dry_run else "cuda")  # an error if there is no GPU
    start = time.perf_counter()
    training.prepare_training()
    with tempfile.TemporaryDirectory() as name:
        page = report(Path(name), 200 if arguments.dry_run else arguments.pictures, arguments.dry_run)
    page += f"\nThe whole script took {time.perf_counter() - start:.0f} s.\n"
    print(page)
    if out:
        with stage.atomic_output(out) as part:
            part.write_text(page, encoding="utf-8")
    return str(out or "no page written")


if __name__ == "__main__":
    stage.run(main)
