"""Generated pictures for measurements: quick to draw (500 a second and core), learnable and all different.

A class is a colourful pattern. A picture shows a random part of the pattern at a random size and position on a random
background. So its coarse layout says nothing about its class, and no two pictures of a class are near-duplicates.
"""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from landmarks import images
from landmarks.determinism import stream
from landmarks.images import Picture
from landmarks.sources.sample import GOOGLE_COUNTS

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from PIL import Image

SIZE = (340, 256)  # width and height in pixels; the filter stage keeps this short side
STUDY_COUNTS = GOOGLE_COUNTS[3:30]  # pictures of the study's classes: ranks 4 to 30


def study_sizes(total: int) -> dict[str, int]:
    """Pictures of each class, of about `total`: the study's proportions, but at least 10."""
    return {f"g-{k:02d}": max(10, round(total * n / sum(STUDY_COUNTS))) for k, n in enumerate(STUDY_COUNTS)}


@functools.lru_cache(64)  # 786 KB each
def pattern(landmark_id: str) -> Image.Image:
    """The pattern of a class: 512 x 512 pixels, tiles of the same few colours."""
    rng = stream(0, "generated", landmark_id)
    tile = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.NEAREST)
    return Image.fromarray(np.tile(np.asarray(tile), (8, 8, 1)))


def draw(name: str, landmark_id: str) -> Picture:
    """The picture called `name`, a JPEG of 20 to 40 KB."""
    rng = stream(0, "generated", name)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    side = int(rng.integers(100, 200))
    left, top = (int(rng.integers(0, 512 - side)) for _ in range(2))
    shown = int(rng.integers(110, 190))
    part = pattern(landmark_id).crop((left, top, left + side, top + side)).resize((shown, shown))
    corner = int(rng.integers(0, SIZE[0] - shown)), int(rng.integers(0, SIZE[1] - shown))
    image.paste(part.rotate(rng.uniform(-20, 20)), corner)
    grain = Image.fromarray(rng.integers(0, 256, SIZE[::-1], dtype=np.uint8)).convert("RGB")
    return Picture(name, landmark_id, images.encode(Image.blend(image, grain, 0.2), "JPEG", quality=80))


def names(sizes: dict[str, int]) -> list[tuple[str, str]]:
    """Ids and classes of the pictures of classes with these sizes, in id order."""
    return sorted(
        (hashlib.sha256(f"{landmark_id}/{number}".encode()).hexdigest()[:16], landmark_id)
        for landmark_id, count in sizes.items()
        for number in range(count)
    )


def write(directory: Path, total: int) -> int:
    """Writes what the download stage would write; returns the number of pictures."""
    rows = names(study_sizes(total))
    index = pd.DataFrame(rows, columns=["id", "landmark_id"])
    drawn: Iterator[Picture] = Parallel(-1, return_as="generator", batch_size=64)(delayed(draw)(*row) for row in rows)
    images.write_shards(directory, drawn, len(rows))
    index.to_parquet(directory / "index.parquet", index=False)
    table = pd.DataFrame({"landmark_id": sorted(set(index["landmark_id"])), "name": ""})
    table.to_csv(directory / "names.csv", index=False, lineterminator="\n")
    (directory / "failures.csv").write_text("id,landmark_id,reason\n", encoding="utf-8")
    return len(rows)
