"""What a trained model answers about pictures: everything that its evaluation needs from the model itself.

Deletion and insertion curves show how a prediction changes when cells of the features are removed or restored in the
order of a map; landmarks/attention.py has the other measures of maps.
"""

import math
from typing import cast

from landmarks import saliency
from landmarks.attention import centre_prior
from landmarks.determinism import stream
from landmarks.models import Baseline
from landmarks.training import Features, join, predict

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CURVES = 1000  # maximum number of pictures, evenly spread, for deletion and insertion
TAIL_CURVES, TAIL_STEPS = 50, 7  # pictures and steps if each step is a pass through a part of the backbone
BATCH = 64


def answers(model: Baseline, array: np.ndarray, views: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One row for each of `views` (`split`, `id`, `label`, and `row` in the features `array`), in their order.

    scores: the probability of each class, float32 [K]; truth: that of the true class in the perception branch;
    perception, attention: the label that each branch names; map: the attention map, float32 [H * W]; the maps of
    `saliency.maps`, likewise; the columns of `areas`. Models without attention lack attention and map. `model` cannot
    be trained afterwards.
    """
    model.eval().requires_grad_(False)  # only features need a gradient
    data, device = Features(array, views), next(model.parameters()).device
    parts = [saliency.maps(model, features) for features, _ in data.batches(np.arange(len(data)), BATCH, device)]
    output = join([part for part, _ in parts])
    table = views[["split", "id", "label"]].assign(
        scores=list(model.probabilities(output).numpy()),
        truth=output.perception.double().softmax(1).numpy()[np.arange(len(views)), data.labels],
        perception=output.perception.argmax(1).numpy(),
    )
    maps: dict[str, np.ndarray] = {}
    if output.attention is not None and output.map is not None:
        table["attention"] = output.attention.argmax(1).numpy()
        maps["map"] = output.map[:, 0].numpy()
    maps |= {name: torch.cat([found[name] for _, found in parts]).cpu().numpy() for name in parts[0][1]}
    columns = {name: list(values.reshape(len(values), -1)) for name, values in maps.items()}
    return table.assign(**columns, **areas(model, data, maps, stream(seed, "cells")))


def predictions(model: Baseline, array: np.ndarray, views: pd.DataFrame) -> pd.DataFrame:
    """The label that the model predicts for each of `views`, in their order: `split`, `id`, `label`, `predicted`."""
    probabilities = model.probabilities(predict(model, Features(array, views)))
    return views[["split", "id", "label"]].assign(predicted=probabilities.numpy().argmax(1))


def rank_cells(scores: np.ndarray) -> np.ndarray:
    """The cells of each of `scores` [N, H, W], highest first, ties in row order: indices [N, H * W]."""
    return np.argsort(-scores.reshape(len(scores), -1), axis=1, kind="stable")


def step_sizes(model: Baseline, cells: int) -> np.ndarray:
    """The number of cells, from 0 to `cells`, that are removed or restored after each step of a curve: [steps + 1]."""
    steps = cells if model.tail is None else min(cells, TAIL_STEPS)
    return np.linspace(0, cells, steps + 1).round()


@torch.inference_mode()
def curves(
    model: Baseline,
    features: Tensor,
    attention_map: Tensor | None,
    labels: Tensor,
    orders: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Deletion and insertion (Petsiuk et al., arXiv 1806.07421) on the features' cells: [2, N, steps + 1] by order.

    The probability that the perception branch gives to the true class after each step of removing (deletion) or
    restoring (insertion) cells of `features` [N, C, H, W], in each of `orders` (named, [N, H * W]). A removed cell has
    the mean of the training features. `attention_map` [N, 1, H, W] stays that of the whole picture; it is None without
    attention. `labels` is [N].
    """
    compute = curves_linear if model.tail is None else curves_through_tail
    true_class = torch.arange(len(labels), device=labels.device), slice(None), labels
    found = compute(model, features, attention_map, orders)
    return {
        name: torch.stack([logits.softmax(-1)[true_class] for logits in pair]).cpu().numpy()
        for name, pair in found.items()
    }


Pairs = dict[str, tuple[Tensor, ...]]  # logits [N, steps + 1, K] of deletion and insertion, by order


def curves_linear(
    model: Baseline, features: Tensor, attention_map: Tensor | None, orders: dict[str, np.ndarray]
) -> Pairs:
    """`curves` with a step per cell: the classifier's first weights are linear, so one pass gives all sums."""
    layers = list(model.classifier)
    start = next(number for number, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    first, rest = cast(nn.Linear, layers[start]), layers[start + 1 :]
    seen = model.weighted_input(features, attention_map).flatten(2)  # [N, C, P]; the mean is 0 after standardisation
    weight = first.weight.view(first.out_features, seen.shape[1], -1)  # [H, C, P], or [H, C, 1] after an average
    shares = torch.einsum(
        "ncp,hcp->nph", seen, weight.expand(-1, -1, seen.shape[2]) * (weight.shape[2] / seen.shape[2])
    )
    found = {}
    for name, order in orders.items():
        ordered = shares.gather(1, torch.from_numpy(order).to(shares.device)[..., None].expand_as(shares))
        sums = ordered.cpu().cumsum(1).to(shares.device)  # cumsum on a GPU is not reproducible
        present = F.pad(sums, (0, 0, 1, 0))  # [N, P + 1, hidden]
        found[name] = tuple(
            nn.Sequential(*rest)(hidden + first.bias) for hidden in (present[:, -1:] - present, present)
        )
    return found


def curves_through_tail(
    model: Baseline, features: Tensor, attention_map: Tensor | None, orders: dict[str, np.ndarray]
) -> Pairs:
    """`curves` with `TAIL_STEPS` steps, each of which is a pass through the tail."""
    mean = model.mean.expand_as(features)
    found = {}
    for name, order in orders.items():
        rank = torch.from_numpy(order.argsort(1)).to(features.device).view(len(features), 1, *features.shape[2:])
        steps = []
        for count in step_sizes(model, order.shape[1]):
            changed = rank < count
            pair = (torch.where(changed, mean, features), torch.where(changed, features, mean))
            steps.append([model.classify(model.weighted_input(cells, attention_map)) for cells in pair])
        found[name] = tuple(torch.stack(logits, 1) for logits in zip(*steps, strict=True))
    return found


def areas(
    model: Baseline, data: Features, maps: dict[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The areas under the deletion and the insertion curve of each picture of `data`, float32 [N] by curve and order.

    Cells are ordered by each of `maps` [N, H, W], from the centre outwards and at random: deletion_map,
    deletion_centre, deletion_random, insertion_map... Only at most `CURVES` pictures have them (`TAIL_CURVES` with a
    tail), others NaN. `map` is the attention map that weights the features.
    """
    count = CURVES if model.tail is None else TAIL_CURVES
    chosen = np.unique(np.linspace(0, len(data) - 1, count).astype(int))
    grid = next(iter(maps.values())).shape[1:]
    cells = np.arange(math.prod(grid))
    orders = {name: rank_cells(values[chosen]) for name, values in maps.items()} | {
        "centre": np.tile(rank_cells(centre_prior(*grid)[None]), (len(chosen), 1)),
        "random": rng.permuted(np.tile(cells, (len(chosen), 1)), axis=1),
    }
    names = [f"{curve}_{order}" for curve in ("deletion", "insertion") for order in orders]
    found = {name: np.full(len(data), np.nan, dtype=np.float32) for name in names}
    widths = (np.diff(step_sizes(model, len(cells))) / len(cells)).astype(np.float32)
    device = next(model.parameters()).device
    for rows in np.array_split(np.arange(len(chosen)), math.ceil(len(chosen) / BATCH)):
        ((features, labels),) = data.batches(chosen[rows], len(rows), device)
        attention_map = torch.from_numpy(maps["map"][chosen[rows], None]).to(device) if "map" in maps else None
        drawn = curves(model, features, attention_map, labels, {name: order[rows] for name, order in orders.items()})
        for order, pair in drawn.items():
            sums = (widths * (pair[..., 1:] + pair[..., :-1]) / 2).sum(2)  # trapezoids, [2, N]
            found[f"deletion_{order}"][chosen[rows]], found[f"insertion_{order}"][chosen[rows]] = sums
    return found
