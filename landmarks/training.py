"""Training: one loop for all models, on precomputed features."""

import io
import math
import mmap
import os
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from landmarks import artifacts, kernels, stage
from landmarks.artifacts import DIGITS
from landmarks.determinism import keep_memory, seed_torch, send, stream
from landmarks.models import Baseline, Design, Output, build
from landmarks.params import Abn, Backbone, Train
from landmarks.stage.errors import is_memory_error

import numpy as np
import pandas as pd
import torch
from dvclive import Live
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

AHEAD = 2  # batches read in advance
THREADS = 2  # the same on every machine, because some sums are split between threads
CHECKPOINT_SECONDS = 30  # minimum time between checkpoints, which take up to half a second each


def prepare_training() -> None:
    """Makes training bit-reproducible. Call it before the first step.

    Verified on a Zen 5: a training gives the same weights with and without ONEDNN_MAX_CPU_ISA=AVX2, and with
    OMP_NUM_THREADS 1 and 2.
    """
    kernels.install()
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.set_num_threads(THREADS)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms would import a compiler for two seconds
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it is never read
    torch.backends.cudnn.benchmark = False
    keep_memory()


def take(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`array[rows]`. If `array` is a mapped file, reads the rows from the file instead.

    If a mapped file does not fit into memory, an access to a row also reads what is around it, up to the system's
    read-ahead: at 8 MB, 56 times as much as is used.
    """
    if not isinstance(array.base, mmap.mmap):
        return array[rows]
    assert isinstance(array, np.memmap)
    found = np.empty((len(rows), *array.shape[1:]), array.dtype)
    with open(array.filename, "rb") as file:
        for target, row in zip(found, rows, strict=True):
            if os.preadv(file.fileno(), [target], array.offset + int(row) * target.nbytes) < target.nbytes:
                raise stage.UserError(f"{array.filename}: ends too early; run `dvc checkout`")
    return found


class Features:
    """Features and labels of some views. Reads the features only when they are used."""

    def __init__(self, array: np.ndarray, views: pd.DataFrame) -> None:
        """`array` is [rows, C, H, W], possibly a mapped file; `views` has the `row` and the `label` of each view."""
        self.array, self.rows, self.labels = array, views["row"].to_numpy(), views["label"].to_numpy(copy=True)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, order: np.ndarray, batch_size: int, device: torch.device | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Streams batches on `device`: features float32 [N, C, H, W] and labels int64 [N].

        `order` has the positions in `views`. The next batches are read from disk while the caller uses one.
        """
        device = device or torch.device("cpu")

        def read(positions: np.ndarray) -> tuple[Tensor, ...]:
            pair = torch.from_numpy(take(self.array, self.rows[positions])), torch.from_numpy(self.labels[positions])
            return tuple(tensor.pin_memory() if device.type == "cuda" else tensor for tensor in pair)

        def move(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            return send(features, device).float(), send(labels, device)  # float16 halves the time of the copy

        with ThreadPoolExecutor(1) as reader:
            waiting: deque[Future[tuple[Tensor, ...]]] = deque()
            for start in range(0, len(order), batch_size):
                waiting.append(reader.submit(read, order[start : start + batch_size]))
                if len(waiting) > AHEAD:
                    yield move(*waiting.popleft().result())
            while waiting:
                yield move(*waiting.popleft().result())

    def statistics(self, sample: int = 1024) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over `sample` to 2 * `sample` views, float32 [C, 1, 1] each.

        They are summed in a fixed order and rounded, so that they are the same on every machine.
        """
        rows = self.rows[:: max(1, len(self) // sample)]
        mean = square = np.zeros(self.array.shape[1])
        for row in rows:
            picture = take(self.array, row[None])[0].astype(np.float64)
            mean, square = mean + picture.mean((1, 2)), square + np.square(picture).mean((1, 2))
        mean, square = mean / len(rows), square / len(rows)
        std = np.sqrt(np.maximum(square - mean**2, 1e-6))
        first, second = (torch.from_numpy(value.round(3)).float().view(-1, 1, 1) for value in (mean, std + 0.001))
        return first, second


def trainer(backbone: Backbone, train: Train, device: torch.device) -> "partial[tuple[Baseline, dict[str, float]]]":
    """`train_model` with the arguments that the outs of earlier stages give.

    The caller adds `abn`, `seed`, `log` and `checkpoint`, and may replace the others by name.
    """
    return partial(
        train_model,
        array=artifacts.read_features(),
        index=artifacts.read_labelled_views(),
        landmarks=artifacts.read_classes()["landmark_id"].tolist(),
        train=train,
        device=device,
        tail=(backbone.portable, load_file(artifacts.BACKBONE)) if backbone.tail == "trained" else None,
    )


def train_model(
    array: np.ndarray,
    index: pd.DataFrame,
    *,
    landmarks: list[str],
    abn: Abn | None,
    train: Train,
    seed: int,
    device: torch.device,
    log: Path,
    checkpoint: Path | None = None,
    tail: tuple[Backbone, dict[str, Tensor]] | None = None,
) -> tuple[Baseline, dict[str, float]]:
    """Trains the baseline (`abn` is None) or an attention branch network; returns it and its last epoch's metrics.

    `array` and `index` are what `artifacts.read_features` and `read_labelled_views` return. `log` is a directory for
    DVCLive's metrics of every epoch and for `steps.csv`, the loss of every step (`epoch`, a fraction; `loss`). Training
    resumes from the file `checkpoint` if it exists. With `tail`, a backbone and its weights as `weight_files.fetch`
    returns them, the layers of the backbone after the features are trained too.
    """
    training = index[index["split"] == "train"]
    views = [Features(array, rows) for _, rows in training.groupby("view")]
    val = Features(array, index[index["split"] == "val"])
    layers = train.model_dump(include={"hidden", "dropout"})
    design = Design(landmarks=landmarks, shape=array.shape[1:], abn=abn, seed=seed, tail=tail and tail[0], **layers)
    model = build(design)
    if tail:
        model.load_backbone(tail[1])
    model.mean, model.std = views[0].statistics()
    model.to(device)
    steps = train.epochs * math.ceil(len(views[0]) / train.batch_size)
    with (
        Live(str(log), dvcyaml=False, save_dvc_exp=False, report=None) as live,
        stage.progress(steps, "steps") as bar,
    ):
        losses: list[float] = []
        for epoch in fit(model, views, val, train, seed, bar.update, checkpoint):
            losses += epoch.losses
            metrics = {name: round(value, DIGITS) for name, value in epoch.metrics.items()}
            for name, value in metrics.items():
                live.log_metric(name, value)
            live.next_step()
            bar.set_postfix(metrics)
    epochs = np.arange(1, len(losses) + 1) * train.epochs / len(losses)
    pd.DataFrame({"epoch": epochs, "loss": losses}).round(DIGITS).to_csv(
        log / "steps.csv", index=False, lineterminator="\n"
    )
    return model.cpu(), metrics


class Epoch(NamedTuple):
    """The results of an epoch of training."""

    metrics: dict[str, float]  # loss and accuracy on training and on validation pictures
    losses: list[float]  # one per step


def fit(
    model: Baseline,
    views: list[Features],
    val: Features,
    train: Train,
    seed: int,
    tick: Callable[[], object],
    checkpoint: Path | None = None,
    every: float = CHECKPOINT_SECONDS,
) -> Iterator[Epoch]:
    """Trains `model` in place on its device. Yields each epoch, and calls `tick` after each step.

    Epoch e uses `views[e % len(views)]`, other views of the same pictures. The order of pictures and dropout use random
    streams that are the same for all models, so that only the design of the models differs.

    Losses stay on the GPU until the end of an epoch, because reading one would stop the step until the GPU is done.

    After an epoch, if `every` seconds have passed since the last time, the training state is written to the file
    `checkpoint`. If that file exists at the start, its epochs are yielded first, and training continues after them.
    """
    device = next(model.parameters()).device
    optimizer, schedule = optimization(model, train, train.epochs * math.ceil(len(views[0]) / train.batch_size))
    parts: Parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    history: list[Epoch] = []
    if checkpoint and checkpoint.exists():
        history = load_checkpoint(checkpoint, parts)
        for epoch in history:
            for _ in epoch.losses:
                tick()
            yield epoch
    saved = time.monotonic()
    for number in range(len(history), train.epochs):
        data = views[number % len(views)]
        order = stream(seed, "order", number).permutation(len(data))
        seed_torch(seed, "dropout", number)
        model.train()
        values, correct = [], torch.zeros((), dtype=torch.long, device=device)
        for features, labels in data.batches(order, train.batch_size, device):
            try:
                output = model(features)
            except ValueError:  # of batch normalisation, if a channel has a single value
                if len(labels) > 1:
                    raise
                raise stage.UserError("train.batch_size: leaves one picture for the last batch; change it") from None
            value = model.loss(output, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            values.append(value.detach())
            correct += (model.probabilities(output).argmax(1) == labels).sum()
            tick()
        losses = torch.stack(values).tolist()
        sizes = [min(train.batch_size, len(data) - n * train.batch_size) for n in range(len(losses))]
        metrics = {
            "train/loss": sum(value * size for value, size in zip(losses, sizes, strict=True)) / len(data),
            "train/accuracy": correct.item() / len(data),
            **{f"val/{name}": value for name, value in validate(model, val).items()},
        }
        if not all(map(math.isfinite, metrics.values())):
            text = f"{train.learning_rate:g} gives no finite loss in epoch {number + 1}"
            raise stage.UserError(f"train.learning_rate: {text}; lower it, or train.weight_decay")
        history.append(Epoch(metrics, losses))
        if checkpoint and len(history) < train.epochs and time.monotonic() - saved >= every:
            save_checkpoint(checkpoint, parts, history)
            saved = time.monotonic()
        yield history[-1]


Parts = dict[str, Baseline | Optimizer | LRScheduler]  # what has a state in a training, by name


def save_checkpoint(path: Path, parts: Parts, history: list[Epoch]) -> None:
    """Writes the state of the training and all epochs so far to `path`, atomically."""
    state = {name: part.state_dict() for name, part in parts.items()}
    content = io.BytesIO()  # torch.save reports a full disk as a RuntimeError
    torch.save(state | {"history": list(map(tuple, history))}, content)
    with stage.atomic_output(path) as part:
        part.write_bytes(content.getbuffer())


def load_checkpoint(path: Path, parts: Parts) -> list[Epoch]:
    """Restores the state that `save_checkpoint` wrote; returns the epochs so far.

    If the file is damaged, as a power cut may leave it, restores nothing and returns no epochs.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        if zipfile.ZipFile(content).testzip():  # PyTorch does not check the sums
            return []
        content.seek(0)
        state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # damage raises many types
        if is_memory_error(error):
            raise
        return []
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return [Epoch(*epoch) for epoch in state["history"]]


def optimization(model: Baseline, train: Train, steps: int) -> tuple[Optimizer, LRScheduler]:
    """The optimiser and its learning rate schedule for training with `steps` steps.

    adamw: AdamW with a one-cycle schedule; the rate rises for a fifth of the steps. sgd: as in the study, with momentum
    0.9 and a constant rate. A trained tail has the same rate: at a tenth or a third, validation accuracy is lower.
    """
    settings: dict[str, Any] = {"lr": train.learning_rate, "weight_decay": train.weight_decay, "fused": True}
    if train.optimizer == "sgd":
        sgd = torch.optim.SGD(model.parameters(), momentum=0.9, **settings)
        return sgd, ConstantLR(sgd, factor=1.0)
    adamw = torch.optim.AdamW(model.parameters(), **settings)
    # At least six steps: OneCycleLR divides by pct_start * total_steps - 1, which is 0 for five.
    return adamw, OneCycleLR(adamw, train.learning_rate, total_steps=max(steps, 6), pct_start=0.2)


def validate(model: Baseline, data: Features) -> dict[str, float]:
    """Loss and accuracy (0..1) on `data`."""
    output, labels = predict(model, data), torch.from_numpy(data.labels)
    right = model.probabilities(output).argmax(1) == labels
    return {"loss": model.loss(output, labels).item(), "accuracy": right.double().mean().item()}


@torch.inference_mode()
def predict(model: Baseline, data: Features, batch_size: int = 64) -> Output:
    """The output for all of `data`, in order: computed on the model's device, returned on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    outputs = [model(features) for features, _ in data.batches(np.arange(len(data)), batch_size, device)]
    return join(outputs)


def join(outputs: list[Output]) -> Output:
    """One output, on the CPU, for the pictures of all `outputs`."""
    parts = [None if part[0] is None else torch.cat(part).cpu() for part in zip(*outputs, strict=True)]
    return Output(*parts)  # type: ignore[arg-type]
