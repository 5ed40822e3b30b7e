"""Measures of attention maps [N, H, W] with values 0..1. All measures are in 0..1.

Energy and pointing compare a map with the landmark's mask. Deletion and insertion need no mask: they measure how the
prediction changes when cells of the features are removed or restored in the order of the map.
"""

import math

from landmarks.models import AttentionBranchNetwork
from landmarks.training import Features

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CURVES = 1000  # maximum number of pictures, evenly spread, for deletion and insertion
TAIL_CURVES, TAIL_STEPS = 50, 7  # pictures and steps if each step is a pass through a part of the backbone
BATCH = 64


def energy(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The share of each map's sum that lies on the landmark (Wang et al., arXiv 1910.01279, sec. 4.3), [N].

    `masks` [N, H, W] is the share of each cell that the landmark covers. An uninformative map scores the landmark's
    share of the area.
    """
    return (maps * masks).sum((1, 2)) / maps.sum((1, 2))


def pointing(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """How much of each map's maximum lies on the landmark (pointing game, Zhang et al., arXiv 1608.00507), [N].

    The maximum is a cell; it scores its value in `masks` [N, H, W]. Several equal maxima score their mean. An
    uninformative map scores the landmark's share of the area.
    """
    maxima = maps == maps.max((1, 2), keepdims=True)
    return (maxima * masks).sum((1, 2)) / maxima.sum((1, 2))


def rank_cells(scores: np.ndarray) -> np.ndarray:
    """The cells of each of `scores` [N, H, W], highest first, ties in row order: indices [N, H * W]."""
    return np.argsort(-scores.reshape(len(scores), -1), axis=1, kind="stable")


def centre_prior(height: int, width: int) -> np.ndarray:
    """A map that is highest in the centre, where photographers put landmarks: the map to beat, [H, W]."""
    rows, columns = np.mgrid[:height, :width]
    return -np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2)


def step_sizes(model: AttentionBranchNetwork, cells: int) -> np.ndarray:
    """The number of cells, from 0 to `cells`, that are removed or restored after each step of a curve: [steps + 1]."""
    steps = cells if model.tail is None else min(cells, TAIL_STEPS)
    return np.linspace(0, cells, steps + 1).round()


@torch.inference_mode()
def curves(
    model: AttentionBranchNetwork,
    features: Tensor,
    attention_map: Tensor,
    labels: Tensor,
    orders: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Deletion and insertion (Petsiuk et al., arXiv 1806.07421) on the features' cells: [2, N, steps + 1] by order.

    The probability that the perception branch gives to the true class after each step of removing (deletion) or
    restoring (insertion) cells of `features` [N, C, H, W], in each of `orders` (named, [N, H * W]). A removed cell has
    the mean of the training features. `attention_map` [N, 1, H, W] stays that of the whole picture; `labels` is [N].
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
    model: AttentionBranchNetwork, features: Tensor, attention_map: Tensor, orders: dict[str, np.ndarray]
) -> Pairs:
    """`curves` with a step per cell: the classifier's first layer is linear, so one pass gives all sums."""
    first, *rest = model.classifier[1:]  # the layers after flattening
    assert isinstance(first, nn.Linear)
    seen = model.weighted_input(features, attention_map).flatten(2)  # [N, C, P]; the mean is 0 after standardisation
    shares = torch.einsum("ncp,hcp->nph", seen, first.weight.view(first.out_features, *seen.shape[1:]))
    found = {}
    for name, order in orders.items():
        ordered = shares.gather(1, torch.from_numpy(order).to(shares.device)[..., None].expand_as(shares))
        sums = ordered.cpu().cumsum(1).to(shares.device)  # not reproducible on a GPU
        present = F.pad(sums, (0, 0, 1, 0))  # [N, P + 1, hidden]
        found[name] = tuple(
            nn.Sequential(*rest)(hidden + first.bias) for hidden in (present[:, -1:] - present, present)
        )
    return found


def curves_through_tail(
    model: AttentionBranchNetwork, features: Tensor, attention_map: Tensor, orders: dict[str, np.ndarray]
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


def summary(
    model: AttentionBranchNetwork, data: Features, maps: np.ndarray, masks: np.ndarray, rng: np.random.Generator
) -> dict:
    """The entry `attention` of results.json: means over the pictures of `data`, with their maps and masks [N, H, W].

    energy, pointing and area (the landmark's share of the picture): over pictures with a mask; None if there are none.
    deletion and insertion: areas under the curves of at most `CURVES` pictures (`TAIL_CURVES` with a tail), with cells
    in the order of the map, from the centre outwards and at random (drawn from `rng`). A good map has a small deletion
    and a large insertion.
    """
    known = masks.any((1, 2)) & ~np.isnan(masks).any((1, 2))
    scores = {"energy": energy, "pointing": pointing, "area": lambda _, masks: masks.mean((1, 2))}
    entry = {name: score(maps[known], masks[known]).mean() if known.any() else None for name, score in scores.items()}

    count = CURVES if model.tail is None else TAIL_CURVES
    chosen = np.unique(np.linspace(0, len(data) - 1, count).astype(int))
    cells = np.arange(maps[0].size)
    orders = {
        "map": rank_cells(maps[chosen]),
        "centre": np.tile(rank_cells(centre_prior(*maps.shape[1:])[None]), (len(chosen), 1)),
        "random": rng.permuted(np.tile(cells, (len(chosen), 1)), axis=1),
    }
    areas: dict[str, list[np.ndarray]] = {name: [] for name in orders}
    widths = (np.diff(step_sizes(model, len(cells))) / len(cells)).astype(np.float32)
    device = next(model.parameters()).device
    for rows in np.array_split(np.arange(len(chosen)), math.ceil(len(chosen) / BATCH)):
        ((features, labels),) = data.batches(chosen[rows], len(rows), device)
        attention_map = torch.from_numpy(maps[chosen[rows], None]).to(device)
        drawn = curves(model, features, attention_map, labels, {name: order[rows] for name, order in orders.items()})
        for name, pair in drawn.items():
            areas[name].append((widths * (pair[..., 1:] + pair[..., :-1]) / 2).sum(2))  # trapezoids, [2, N]
    means = {name: np.concatenate(parts, axis=1).mean(1) for name, parts in areas.items()}
    for number, curve in enumerate(("deletion", "insertion")):
        entry[curve] = {name: mean[number] for name, mean in means.items()}
    return entry
