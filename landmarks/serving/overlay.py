"""The attention map drawn over the photo."""

from landmarks import images
from landmarks.serving.recognizer import Box

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageEnhance

SHORT_SIDE = 512  # pixels; a smaller photo is enlarged to it, so that it can be seen under the map
OUTSIDE = 0.5  # brightness of what the network did not see


def decode(data: bytes) -> Image.Image:
    """A photo to draw on: at most four times `SHORT_SIDE`, because more costs memory. Raises `Unfit`."""
    image = images.decode(data, SHORT_SIDE)
    factor = min(image.size) // (2 * SHORT_SIDE)
    return image.reduce(factor) if factor > 1 else image


def draw(image: Image.Image, attention_map: np.ndarray | None, box: Box, opacity: float = 0.6) -> Image.Image:
    """`image` (RGB, upright) with the map [H, W] in 0..1 drawn over its part `box`; the rest is darkened.

    The colours are those of plots/attention.png, from dark (0) to bright (1). A higher `opacity` (0..1) shows more of
    them and less of the photo's own colour. Without a map, the part stays as it is.
    """
    scale = max(1, SHORT_SIDE / min(image.size))
    photo = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top, right, bottom = (round(edge * side) for edge, side in zip(box, photo.size * 2, strict=True))
    seen = photo.crop((left, top, right, bottom))
    if attention_map is not None:
        cells = Image.fromarray(attention_map.astype(np.float32))
        smooth = np.asarray(cells.resize(seen.size, Image.Resampling.BICUBIC)).clip(0, 1)
        colours = Image.fromarray(colormaps["inferno"](smooth, bytes=True)[..., :3])
        seen = Image.blend(ImageEnhance.Color(seen).enhance(1 - opacity), colours, opacity)
    drawing = ImageEnhance.Brightness(photo).enhance(OUTSIDE)
    drawing.paste(seen, (left, top))
    return drawing
