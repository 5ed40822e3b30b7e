"""Is attention where it should be? Numbers 0..1 for maps [N, H, W] of 0..1.

On pictures whose landmark is known: how much of the map lies on it. On any pictures: how the answer changes when cells
of the features are taken away or brought back in the order of the map.
"""

import math

from landmarks.models import AttentionBranchNetwork
from landmarks.training import Features

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CURVES = 1000  # pictures at most, evenly spread, whose deletion and insertion are measured
TAIL_CURVES, TAIL_STEPS = 50, 7  # pictures and steps where each step is a pass through a part of the backbone
BATCH = 64


def energy(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The share of each map's sum that lies on the landmark (Wang et al., arXiv 1910.01279, sec. 4.3), [N].

    `masks` [N, H, W] is the share of each cell that the landmark covers. A map that knows nothing scores the landmark's
    share of the area.
    """
    return (maps * masks).sum((1, 2)) / maps.sum((1, 2))


def pointing(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Does the map's maximum lie on the landmark (the pointing game, Zhang et al., arXiv 1608.00507)? 0..1, [N].

    The maximum is a whole cell here, and counts by the share of it that the landmark covers; several equal ones count
    by their mean. A map that knows nothing scores the landmark's share of the area.
    """
    maxima = maps == maps.max((1, 2), keepdims=True)
    return (maxima * masks).sum((1, 2)) / maxima.sum((1, 2))


def rank_cells(scores: np.ndarray) -> np.ndarray:
    """The cells of each of `scores` [N, H, W] from the highest to the lowest, equal ones as they come, [N, H * W]."""
    return np.argsort(-scores.reshape(len(scores), -1), axis=1, kind="stable")


def centre_prior(height: int, width: int) -> np.ndarray:
    """A map that is highest in the middle, [H, W]: what to beat, for photographers put landmarks there."""
    rows, columns = np.mgrid[:height, :width]
    return -np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2)


def step_sizes(model: AttentionBranchNetwork, cells: int) -> np.ndarray:
    """How many of so many cells are taken away or brought back after each step, from none to all: [steps + 1]."""
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

    The probability that the perception branch gives to the true class, after a growing share of the cells of `features`
    [N, C, H, W] was taken away (deletion) or brought back (insertion) in each of `orders` [N, H * W]. A cell that is
    away has the mean of the training features; `attention_map` [N, 1, H, W] stays that of the whole picture.
    """
    compute = curves_linear if model.tail is None else curves_through_tail
    true_class = torch.arange(len(labels), device=labels.device), slice(None), labels
    found = compute(model, features, attention_map, orders)
    return {
        name: torch.stack([logits.softmax(-1)[true_class] for logits in pair]).cpu().numpy()
        for name, pair in found.items()
    }


Pairs = dict[str, tuple[Tensor, ...]]  # by order, logits [N, steps + 1, K] of deletion and insertion


def curves_linear(
    model: AttentionBranchNetwork, features: Tensor, attention_map: Tensor, orders: dict[str, np.ndarray]
) -> Pairs:
    """A step for every cell: the classifier's first layer is linear, so that one pass over the cells has every sum."""
    first, *rest = model.classifier[1:]  # after the flattening
    assert isinstance(first, nn.Linear)
    seen = model.weighted_input(features, attention_map).flatten(2)  # [N, C, P]; a mean is 0 here
    shares = torch.einsum("ncp,hcp->nph", seen, first.weight.view(first.out_features, *seen.shape[1:]))
    found = {}
    for name, order in orders.items():
        ordered = shares.gather(1, torch.from_numpy(order).to(shares.device)[..., None].expand_as(shares))
        sums = ordered.cpu().cumsum(1).to(shares.device)  # on a GPU a cumulative sum is not reproducible
        present = F.pad(sums, (0, 0, 1, 0))  # [N, P + 1, hidden]
        found[name] = tuple(
            nn.Sequential(*rest)(hidden + first.bias) for hidden in (present[:, -1:] - present, present)
        )
    return found


def curves_through_tail(
    model: AttentionBranchNetwork, features: Tensor, attention_map: Tensor, orders: dict[str, np.ndarray]
) -> Pairs:
    """`TAIL_STEPS` steps, for each is a pass through the tail."""
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
    """The entry `attention` of results.json, means over the pictures of `data`, whose maps and masks are [N, H, W].

    energy, pointing, and area, the landmark's share of it, over the pictures whose landmark is known, None where none
    is; deletion and insertion: areas under the curves of at most `CURVES` pictures (or `TAIL_CURVES`), with cells in
    the order of the map, from the centre outwards, and at random (drawn from `rng`). A good map has a small deletion, a
    large insertion.
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
