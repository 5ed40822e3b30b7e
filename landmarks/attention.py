"""Measures of maps [N, H, W] with values 0..1: ABN's attention map and its rivals. All measures are in 0..1.

Energy and pointing compare a map with the landmark's mask. Deletion and insertion (landmarks/answers.py) need no mask:
they measure how the prediction changes when cells of the features are removed or restored in the order of the map.
"""

import numpy as np
import pandas as pd

MAPS = ("map", "cam", "grad_cam", "grad_cam_pp")  # columns of answers


def centre_prior(height: int, width: int) -> np.ndarray:
    """The map to beat, [H, W]: it falls from the centre, where photographers put landmarks, to 0 in the corners."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2)
    return 1 - distance / max(distance.max(), 1)


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


def summary(answers: pd.DataFrame, masks: np.ndarray) -> dict:
    """The entry `attention` of results.json, for the answers of a model about pictures with `masks` [N, H, W].

    energy and pointing, by map, and area (the landmark's share of the picture): means over pictures with a mask; None
    if there are none. deletion and insertion, by order of the cells: means of the areas under the curves. A good map
    has a small deletion and a large insertion.
    """
    maps = {name: np.stack(answers[name].tolist()).reshape(masks.shape) for name in MAPS if name in answers}
    maps["centre"] = np.broadcast_to(centre_prior(*masks.shape[1:]), masks.shape)
    known = masks.any((1, 2)) & ~np.isnan(masks).any((1, 2))
    entry: dict = {"area": masks[known].mean() if known.any() else None}
    for score in (energy, pointing):
        entry[score.__name__] = {
            name: score(values[known], masks[known]).mean() if known.any() else None for name, values in maps.items()
        }
    for curve in ("deletion", "insertion"):
        columns = [column for column in answers if column.startswith(f"{curve}_")]
        entry[curve] = {column.removeprefix(f"{curve}_"): answers[column].astype(float).mean() for column in columns}
    return entry
