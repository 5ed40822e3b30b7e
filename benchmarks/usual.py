"""The usual way, to compare with: transfer learning as in torchvision's tutorials, one run for each row of the table.

    python -m benchmarks.usual FOLDER ROW EPOCHS        ROW is baseline, abn or an ablation of params.yaml

FOLDER has a directory of pictures per landmark below each of train, val and test. Every picture is decoded, augmented
and sent through VGG-16 again in every epoch. In good faith: channels_last, no gradient in the frozen trunk, a worker
per core, the same layers (our trunk) and optimiser as ours, and similar views. The memory allocator is left as it is.
Prints test accuracy and the seconds of an epoch. `benchmarks.speed` calls it.
"""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

if TYPE_CHECKING:
    from landmarks.params import Params


def data(folder: str, split: str, p: "Params", mean: torch.Tensor, std: torch.Tensor) -> DataLoader:
    """Batches of a split: random views for train, the centre for the others."""
    from landmarks.augment import CENTRE_SCALE

    a = p.augment
    if split == "train":
        geometry = [v2.RandomRotation(a.rotation, v2.InterpolationMode.BILINEAR)]
        geometry += [v2.RandomResizedCrop(a.crop, [side**2 for side in a.scale], (1, 1)), v2.RandomHorizontalFlip()]
        geometry += [v2.ColorJitter(brightness=a.brightness)]
    else:
        geometry = [v2.Resize(round(a.crop / CENTRE_SCALE)), v2.CenterCrop(a.crop)]
    arrays = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean.tolist(), std.tolist())]
    pictures = ImageFolder(os.path.join(folder, split), v2.Compose([*geometry, *arrays]))
    workers = os.cpu_count() or 1
    return DataLoader(pictures, p.train.batch_size, shuffle=split == "train", num_workers=workers, prefetch_factor=4)


def main() -> str:
    from landmarks import features, models, params, training
    from landmarks.networks import Trunk

    from safetensors.torch import load_file

    parser = argparse.ArgumentParser(prog="usual")
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("row", metavar="ROW")
    parser.add_argument("epochs", metavar="EPOCHS", type=int)
    given = parser.parse_args()
    folder, epochs, p = given.folder, given.epochs, params.load()
    abn = p.model(given.row)
    state = load_file("models/backbone.safetensors")
    trunk = Trunk(state, p.backbone).eval()
    loaders = {split: data(folder, split, p, state["mean"], state["std"]) for split in ("train", "val", "test")}
    trunk.mean.zero_(), trunk.std.fill_(1)  # the transforms normalise already
    landmarks = loaders["train"].dataset.classes  # type: ignore[attr-defined]
    shape = features.shape(trunk, 1, p.augment.crop)[1:]
    design = models.Design(
        landmarks=landmarks, shape=shape, hidden=p.train.hidden, dropout=p.train.dropout, abn=abn, seed=p.seed
    )
    model = models.build(design)
    optimizer, schedule = training.optimization(model, p.train, epochs * len(loaders["train"]))

    def output(pictures: torch.Tensor) -> models.Output:
        with torch.no_grad():
            seen = trunk(pictures.contiguous(memory_format=torch.channels_last))
        return model(seen.float().contiguous())

    @torch.no_grad()
    def accuracy(split: str) -> float:
        model.eval()
        right = [model.probabilities(output(x)).argmax(1) == labels for x, labels in loaders[split]]
        return torch.cat(right).double().mean().item()

    start = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        for pictures, labels in loaders["train"]:
            loss = model.loss(output(pictures), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: val {accuracy('val'):.4f}", file=sys.stderr, flush=True)
    seconds = (time.perf_counter() - start) / epochs
    return f"test accuracy {accuracy('test'):.4f}, seconds per epoch: {seconds:.2f}"


if __name__ == "__main__":
    torch.rand(64, 64) @ torch.rand(64, 64)  # MKL starts here, without the settings that landmarks makes for equal bits
    from landmarks import stage

    stage.run(main)
