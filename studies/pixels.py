"""Deletion and insertion on pixels, as papers report them (Petsiuk et al., arXiv 1806.07421, sec. 3.2).

    .venv/bin/python -m studies.pixels [MODEL]      after `make reproduce`; MODEL is abn unless given

Takes 100 test pictures. In seven steps, in the order of the map's cells, pixels are replaced by grey (deletion; the
mean of the trunk's training pictures) or restored in a blurred picture (insertion). After each step the whole network,
with its trunk, gives the probability of the true class. Prints the areas under the mean curves, also for cells in the
order from the centre outwards and in random order.
"""

import argparse

from landmarks import artifacts, augment, features, images, models, params, stage
from landmarks.answers import rank_cells
from landmarks.attention import centre_prior
from landmarks.determinism import stream
from landmarks.networks import Trunk

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file

PICTURES = 100
STEPS = 7
BLUR = 11 / 224  # radius as a share of the picture's side; the paper's is 5 to 11 pixels of 224


def present(order: np.ndarray, count: int, grid: tuple[int, int], crop: int) -> np.ndarray:
    """The pixels of the first `count` cells of `order`: bool [crop, crop, 1]."""
    cells = np.zeros(len(order), dtype=np.uint8)
    cells[order[:count]] = 255
    pixels = Image.fromarray(cells.reshape(grid)).resize((crop, crop), Image.Resampling.NEAREST)
    return np.asarray(pixels)[..., None] > 0


def versions(image: Image.Image, grey: np.ndarray, order: np.ndarray, grid: tuple[int, int]) -> list[np.ndarray]:
    """The picture after 0, 1... `STEPS` steps of deletion, then of insertion: uint8 [crop, crop, 3] each."""
    pixels, blurred = np.asarray(image), np.asarray(image.filter(ImageFilter.GaussianBlur(BLUR * image.width)))
    counts = np.linspace(0, len(order), STEPS + 1).astype(int)
    masks = [present(order, count, grid, image.width) for count in counts]
    return [np.where(mask, grey, pixels) for mask in masks] + [np.where(mask, pixels, blurred) for mask in masks]


def main() -> str:
    parser = argparse.ArgumentParser(prog="pixels")
    parser.add_argument("model", metavar="MODEL", nargs="?", default="abn")
    name, p = parser.parse_args().model, params.load()
    p.model(name)  # an error if there is no such model
    model = models.load(artifacts.MODELS / name).eval()
    if model.design.abn is None:
        raise stage.UserError(f"models/trained/{name}: has no attention map; name another model")
    state = load_file(artifacts.BACKBONE)
    trunk = Trunk(state, p.backbone)
    grey = (state["mean"] * 255).round().to(torch.uint8).numpy()
    index = artifacts.read_labelled_views()
    test = index[index["split"] == "test"]
    chosen = test.iloc[np.unique(np.linspace(0, len(test) - 1, PICTURES).astype(int))]
    views = {view.id: view for view in augment.views(chosen)}
    labels = dict(zip(chosen["id"], chosen["label"], strict=True))

    def answers(batch: list[np.ndarray]) -> models.Output:
        parts = torch.from_numpy(np.stack(batch)).split(features.CPU_BATCH)
        return model(torch.cat([features.forward(trunk, part) for part in parts]).float())

    areas = []
    pictures = images.read_pictures(artifacts.FILTERED, views)
    with torch.inference_mode():
        for picture in stage.progress(len(chosen), "pictures", items=pictures):
            image = augment.apply(images.decode(picture.picture), views[picture.id], p.augment.crop)
            output = answers([np.asarray(image)])
            assert output.map is not None
            attention_map = output.map[0].numpy()
            grid = attention_map.shape[1:]
            maps = (attention_map, centre_prior(*grid)[None])
            random = stream(p.seed, "pixels", picture.id).permutation(attention_map.size)
            orders = [*(rank_cells(values)[0] for values in maps), random]
            altered = [version for order in orders for version in versions(image, grey, order, grid)]
            truth = model.probabilities(answers(altered))[:, labels[picture.id]].numpy()
            areas.append(np.trapezoid(truth.reshape(len(orders), 2, STEPS + 1), dx=1 / STEPS))
    means = 100 * np.mean(areas, axis=0).T
    columns = ["by map", "from the centre", "at random"]
    print(pd.DataFrame(means, index=["deletion", "insertion"], columns=columns).to_markdown(floatfmt=".2f"))
    return f"{name}, {len(areas)} test pictures of {p.augment.crop} pixels, areas in percent"


if __name__ == "__main__":
    stage.run(main)
