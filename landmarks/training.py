"""Training: one loop for every model, on features that were computed once."""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from landmarks import networks
from landmarks.determinism import seed_torch, send, stream
from landmarks.models import Baseline, Design, Output, build
from landmarks.objectives import loss, probabilities
from landmarks.params import Abn, Backbone, Train

import numpy as np
import pandas as pd
import torch
from dvclive import Live
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from tqdm import tqdm

CHECKPOINT_SECONDS = 30  # of training at least between two checkpoints, each of which takes up to half a second


def labelled(index: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """The augmentation index, in its order, with the `label` and the `split` of each row's picture."""
    return index.merge(split[["id", "label", "split"]], on="id", how="left")


class Features:
    """Features and labels of some rows of the index, read from the memory-mapped array when they are asked for."""

    def __init__(self, array: np.ndarray, rows: pd.DataFrame) -> None:
        """`array` is [rows of the index, C, H, W]; `rows` is a selection of the index with a `label`."""
        self.array, self.rows, self.labels = array, rows.index.to_numpy(), rows["label"].to_numpy(copy=True)

    def __len__(self) -> int:
        return len(self.rows)

    def steps(self, batch_size: int) -> int:
        """How many batches they make; the last one may be smaller."""
        return math.ceil(len(self) / batch_size)

    def batch(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Features float32 [N, C, H, W] and labels int64 [N] at `positions` of this selection."""
        return torch.from_numpy(self.array[self.rows[positions]]).float(), torch.from_numpy(self.labels[positions])

    def statistics(self, sample: int = 1024) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over about `sample` of the rows, [C, 1, 1].

        Summed in one order and rounded, so that they are the same on every machine.
        """
        rows = self.rows[:: max(1, len(self) // sample)]
        mean = square = 0.0
        for row in rows:
            picture = self.array[row].astype(np.float64)
            mean, square = mean + picture.mean((1, 2)), square + np.square(picture).mean((1, 2))
        mean, square = mean / len(rows), square / len(rows)
        std = np.sqrt(np.maximum(square - mean**2, 1e-6))
        return tuple(torch.from_numpy(value.round(3)).float().view(-1, 1, 1) for value in (mean, std + 0.001))


def read_tail(block: Backbone, path: Path) -> tuple[Backbone, dict[str, Tensor]] | None:
    """`train_model`'s `tail`: the block, and the weights in fetch-backbone's file; None if no tail is to be trained."""
    return (block.portable, load_file(path)) if block.tail == "trained" else None


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

    `index` is the augmentation index with each row's `label` and `split`, `array` has the features of its rows. Metrics
    of every epoch go to the directory `log`, as DVCLive writes them, and the loss of every step to `steps.csv` there
    (epoch, with a fraction; loss). Where the file `checkpoint` is there, training goes on from it. `tail` is the
    backbone whose rest is trained along, if there is one, with its weights as `weight_files.fetch` returns them.
    """
    training = index[index["split"] == "train"]
    views = [Features(array, rows) for _, rows in training.groupby("view")]
    val = Features(array, index[index["split"] == "val"])
    model = build(Design(landmarks, array.shape[1:], train.hidden, train.dropout, abn, seed, tail and tail[0]))
    if tail:
        networks.load(model.tail[0], tail[1])
    model.mean, model.std = views[0].statistics()
    model.to(device)
    steps = train.epochs * views[0].steps(train.batch_size)
    with (
        Live(str(log), dvcyaml=False, save_dvc_exp=False, report=None) as live,
        tqdm(total=steps, unit=" steps", dynamic_ncols=True, mininterval=1) as bar,
    ):
        losses: list[float] = []

        def tick(value: float) -> None:
            losses.append(value)
            bar.update()

        for metrics in fit(model, views, val, train, seed, tick, checkpoint):
            metrics = {name: round(value, 6) for name, value in metrics.items()}
            for name, value in metrics.items():
                live.log_metric(name, value)
            live.next_step()
            bar.set_postfix(metrics)
    epochs = np.arange(1, len(losses) + 1) * train.epochs / len(losses)
    pd.DataFrame({"epoch": epochs, "loss": losses}).round(6).to_csv(log / "steps.csv", index=False, lineterminator="\n")
    return model.cpu(), metrics


def fit(
    model: Baseline,
    views: list[Features],
    val: Features,
    train: Train,
    seed: int,
    tick: Callable[[float], object],
    checkpoint: Path | None = None,
    every: float = CHECKPOINT_SECONDS,
) -> Iterator[dict[str, float]]:
    """Trains `model` in place; yields the metrics of each epoch, and calls `tick` with the loss of each step.

    Epoch e reads `views[e % len(views)]`: the same pictures, seen anew. Only the order of pictures and dropout are
    drawn here, from streams that are the same for every model, so that models differ by their design alone.

    After an epoch, if `every` seconds have passed, what there is goes to the file `checkpoint`. Where that is there at
    the start, so does what it tells of earlier epochs, to the caller and to `tick`, and the next one follows.
    """
    device, abn = next(model.parameters()).device, model.design.abn
    optimizer, schedule = optimization(model, train, train.epochs * views[0].steps(train.batch_size))
    history: list[dict[str, float]] = []
    losses: list[float] = []
    if checkpoint and checkpoint.exists():
        history, losses = load_checkpoint(checkpoint, model, optimizer, schedule)
        for value in losses:
            tick(value)
        yield from history
    saved = time.monotonic()
    for epoch in range(len(history), train.epochs):
        data = views[epoch % len(views)]
        order = stream(seed, "order", epoch).permutation(len(data))
        seed_torch(seed, "dropout", epoch)
        model.train()
        total, correct = 0.0, 0
        for start in range(0, len(order), train.batch_size):
            features, labels = (send(t, device) for t in data.batch(order[start : start + train.batch_size]))
            output = model(features)
            value = loss(output, labels, abn)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            correct += (probabilities(output, abn).argmax(1) == labels).sum().item()
            losses.append(value.item())
            total += losses[-1] * len(labels)
            tick(losses[-1])
        history.append(
            {
                "train/loss": total / len(data),
                "train/accuracy": correct / len(data),
                **{f"val/{name}": value for name, value in validate(model, val).items()},
            }
        )
        if checkpoint and len(history) < train.epochs and time.monotonic() - saved >= every:
            save_checkpoint(checkpoint, model, optimizer, history, losses)
            saved = time.monotonic()
        yield history[-1]


def save_checkpoint(
    path: Path, model: Baseline, optimizer: Optimizer, history: list[dict[str, float]], losses: list[float]
) -> None:
    """Writes weights, the optimiser's state, the metrics of each epoch and the losses of each step, all or nothing."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": value for name, value in state.items() if value is not None}
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, {"history": json.dumps(history), "losses": json.dumps(losses)})
    part.replace(path)


def load_checkpoint(
    path: Path, model: Baseline, optimizer: Optimizer, schedule: LRScheduler
) -> tuple[list[dict[str, float]], list[float]]:
    """Puts model, optimiser and schedule back as they were at `save_checkpoint`; returns its history and losses."""
    weights, states = {}, {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118  it is no dictionary
            part, _, name = key.partition("/")
            if part == "model":
                weights[name] = file.get_tensor(key)
            else:
                number, _, name = name.partition("/")
                states.setdefault(int(number), {})[name] = file.get_tensor(key)
        history, losses = (json.loads(file.metadata()[name]) for name in ("history", "losses"))
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimiser took no steps of its own before
        for _ in losses:
            schedule.step()
    return history, losses


def optimization(model: Baseline, train: Train, steps: int) -> tuple[Optimizer, LRScheduler]:
    """adamw: AdamW, whose rate rises for a fifth of the steps and falls for the rest (one cycle). sgd: the study's,
    with momentum 0.9 and one rate throughout. A tail of the backbone has the same rate as what is new: with a tenth or
    a third of it, which spoil less, validation accuracy is lower."""
    settings = {"lr": train.learning_rate, "weight_decay": train.weight_decay, "fused": True}
    if train.optimizer == "sgd":
        sgd = torch.optim.SGD(model.parameters(), momentum=0.9, **settings)
        return sgd, ConstantLR(sgd, factor=1.0)
    adamw = torch.optim.AdamW(model.parameters(), **settings)
    # At least six steps: a fifth of five is one, in which the rate cannot rise.
    return adamw, OneCycleLR(adamw, train.learning_rate, total_steps=max(steps, 6), pct_start=0.2)


def validate(model: Baseline, data: Features) -> dict[str, float]:
    """Loss and accuracy on `data`."""
    output, labels, abn = predict(model, data), torch.from_numpy(data.labels), model.design.abn
    right = probabilities(output, abn).argmax(1) == labels
    return {"loss": loss(output, labels, abn).item(), "accuracy": right.double().mean().item()}


@torch.inference_mode()
def predict(model: Baseline, data: Features, batch_size: int = 64) -> Output:
    """The model's output for all of `data`, in order, on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    positions = np.arange(len(data))
    outputs = [
        model(data.batch(positions[start : start + batch_size])[0].to(device))
        for start in range(0, len(data), batch_size)
    ]
    return Output(*(None if parts[0] is None else torch.cat(parts).cpu() for parts in zip(*outputs, strict=True)))
