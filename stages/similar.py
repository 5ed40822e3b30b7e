"""similar: what model folders contain of training pictures, so that `landmarks predict --similar` finds similar ones.

Writes an empty table if `package.similar` is none.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from landmarks import artifacts, augment, images, params, similar, stage

import numpy as np
import pandas as pd
from PIL import Image


def prepare(picture: images.Picture, crop: int) -> tuple[Image.Image, np.ndarray]:
    """The decoded picture and the network's input: its centre, like that of a photo, uint8 [crop, crop, 3]."""
    image = images.decode(picture.picture)
    centre = augment.centre_view((picture.id, *image.size))
    return image, np.asarray(augment.apply(image, centre, crop))


def groups(p: params.Params, ids: set[str]) -> Iterator[list[similar.Row]]:
    """The rows of the pictures with these ids, in id order, a row group of pictures at a time."""
    from landmarks import determinism, features, networks  # PyTorch takes long to load

    import torch
    from safetensors.torch import load_file

    determinism.prepare_inference()
    device = determinism.pick_device(p.compute.device)
    trunk = networks.Trunk(load_file(artifacts.TRUNK), p.backbone).to(device)
    with ThreadPoolExecutor() as pool:
        for group in images.row_groups(artifacts.FILTERED):
            pictures = [picture for picture in group.read() if picture.id in ids]
            if not pictures:
                continue
            drawn, views = zip(*pool.map(partial(prepare, crop=p.augment.crop), pictures), strict=True)
            inputs = torch.from_numpy(np.stack(views)).to(device).split(features.batch_size(device))
            vectors = np.concatenate([similar.pool(features.forward(trunk, part).cpu().numpy()) for part in inputs])
            shown = p.package.similar == "pictures"
            thumbnails = pool.map(images.thumbnail, drawn) if shown else [None] * len(pictures)
            rows = zip(pictures, vectors, thumbnails, strict=True)
            yield [similar.Row(picture.id, picture.landmark_id, *values) for picture, *values in rows]


def main() -> str:
    p = params.load()
    split = pd.read_parquet(artifacts.SPLIT, columns=["id", "split"])
    ids = set() if p.package.similar == "none" else set(split.loc[split["split"] == "train", "id"])
    with (
        stage.atomic_output(artifacts.SIMILAR) as out,
        similar.writer(out) as write,
        stage.progress(len(ids), "pictures") as bar,
    ):
        for rows in groups(p, ids) if ids else ():
            write(rows)
            bar.update(len(rows))
    return f"{len(ids)} training pictures" + (f", {p.package.similar}" if ids else ": package.similar is none")


if __name__ == "__main__":
    stage.run(main)
