"""What several test files share: drawn pictures, tiny models' designs, and what to expect of a user's mistake."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from landmarks.images import Picture, encode
from landmarks.models import Design
from landmarks.params import Abn
from landmarks.stage import UserError

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


def shared(name: str) -> pytest.MarkDecorator:
    """Skips a test where the real data called `name` are not there."""
    return pytest.mark.skipif(not (SHARED / name).exists(), reason=f"needs {SHARED / name}, which is not here")


@contextmanager
def user_error(match: str) -> Iterator[None]:
    """Expects a `UserError` in one line in which the pattern `match` is found."""
    with pytest.raises(UserError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)


def drawing(seed: int = 0, width: int = 96, height: int = 80) -> Image.Image:
    """An RGB picture of soft random blots: other seeds give other pictures, other sizes the same one."""
    blots = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    return encode(image, "JPEG", quality=quality)


def pictures(count: int) -> list[Picture]:
    """Pictures of four landmarks, in id order; every second one has a mask."""
    return [
        Picture(f"id-{n:04d}", f"landmark-{n % 4}", jpeg(drawing(n)), encode(Image.new("L", (96, 80), n), "PNG"))
        if n % 2
        else Picture(f"id-{n:04d}", f"landmark-{n % 4}", jpeg(drawing(n)))
        for n in range(count)
    ]


def abn(**changes: float | str) -> Abn:
    """An attention block like the default one of params.yaml, but for `changes`."""
    return Abn(**{"alpha": 0.25, "beta": 1.0, "attention": "residual", "objective": "branches"} | changes)


def design(block: Abn | None = None, classes: int = 3, seed: int = 0, dropout: float = 0.0) -> Design:
    """The design of a model of tiny features, 8 channels of 2 x 2."""
    return Design([f"landmark-{k}" for k in range(classes)], (8, 2, 2), 64, dropout, block, seed)
