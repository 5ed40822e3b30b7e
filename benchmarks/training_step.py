"""A training step of the attention branch network, against the same step in torch's fastest kernels."""

import os
import statistics
import subprocess
import sys
import time

from landmarks import determinism, models, training
from landmarks.params import Abn

import torch

BATCH, SHAPE, CLASSES, HIDDEN, STEPS, ROUNDS = 64, (512, 7, 7), 60, 512, 7, 3
# Libraries that are loaded and used before the package is imported ignore the settings that it makes.
FREE = "import torch; torch.ones(64, 64) @ torch.ones(64, 64).exp(); "
WAYS = {"ours": "", "channels_last": FREE, "contiguous_format": FREE}


def step(memory_format: str) -> None:
    """Prints the median seconds of a step, in the pipeline's way ("ours") or in torch's own."""
    if memory_format == "ours":
        training.prepare_training()
    determinism.keep_memory()
    abn = Abn(alpha=1.0, beta=1.0, branch="study", attention="residual", objective="branches")
    names = [str(number) for number in range(CLASSES)]
    model = models.build(models.Design(landmarks=names, shape=SHAPE, hidden=HIDDEN, dropout=0.1, abn=abn, seed=0))
    features, labels = torch.rand(BATCH, *SHAPE), torch.arange(BATCH) % CLASSES
    if memory_format != "ours":
        kept = getattr(torch, memory_format)
        model, features = model.to(memory_format=kept), features.contiguous(memory_format=kept)
    optimizer, seconds = torch.optim.AdamW(model.parameters(), fused=True), []
    for _ in range(STEPS):
        start = time.perf_counter()
        optimizer.zero_grad()
        model.loss(model(features), labels).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    print(statistics.median(seconds[1:]))


def ratio() -> float:
    """Seconds of a step in torch's fastest kernels (the faster of two formats), as a fraction of those of ours."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    free = {name: value for name, value in os.environ.items() if name not in ("ATEN_CPU_CAPABILITY", "MKL_CBWR")}
    for _ in range(ROUNDS):
        for name, start in WAYS.items():
            code = f"{start}from benchmarks import training_step; training_step.step({name!r})"
            seconds[name].append(float(subprocess.check_output([sys.executable, "-c", code], env=free, text=True)))
    ours, *others = (statistics.median(values) for values in seconds.values())
    return min(others) / ours
