"""The attention map over the photo."""

from landmarks.recognizer import Box

import numpy as np
from matplotlib import colormaps
from PIL import Image

SHORT_SIDE = 512  # pixels of the drawing, at least; the map has few cells, but the photo under it should be seen
OUTSIDE = 0.5  # brightness of what the network did not see


def draw(image: Image.Image, heed: np.ndarray, box: Box, opacity: float = 0.6) -> Image.Image:
    """`image` (RGB, upright) in grey, with the map `heed` [H, W] in colours, dark 0 to bright 1, over its part `box`.

    The colours are those of plots/attention.png. What the network did not see is darker and has none.
    """
    scale = max(1, SHORT_SIDE / min(image.size))
    grey = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC).convert("L")
    drawing = grey.point(lambda value: round(value * OUTSIDE)).convert("RGB")
    left, top, right, bottom = (round(edge * side) for edge, side in zip(box, grey.size * 2, strict=True))
    size = (right - left, bottom - top)
    smooth = np.asarray(Image.fromarray(heed.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    colours = Image.fromarray(colormaps["inferno"](smooth.clip(0, 1), bytes=True)[..., :3])
    seen = grey.crop((left, top, right, bottom)).convert("RGB")
    drawing.paste(Image.blend(seen, colours, opacity), (left, top))
    return drawing
