"""The attention map over the photo."""

from landmarks.serving.recognizer import Box

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageEnhance

SHORT_SIDE = 512  # pixels of the drawing, at least; the map has few cells, but the photo under it should be seen
OUTSIDE = 0.5  # brightness of what the network did not see


def draw(image: Image.Image, attention_map: np.ndarray | None, box: Box, opacity: float = 0.6) -> Image.Image:
    """`image` (RGB, upright) with the map `attention_map` [H, W] in colours, dark 0 to bright 1, over its part `box`.

    The colours are those of plots/attention.png; the more `opacity` (0..1) they have, the less colour the photo keeps.
    What the network did not see is darker. Without a map that is all.
    """
    scale = max(1, SHORT_SIDE / min(image.size))
    photo = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top, right, bottom = (round(edge * side) for edge, side in zip(box, photo.size * 2, strict=True))
    seen = photo.crop((left, top, right, bottom))
    if attention_map is not None:
        smooth = np.asarray(
            Image.fromarray(attention_map.astype(np.float32)).resize(seen.size, Image.Resampling.BICUBIC)
        )
        colours = Image.fromarray(colormaps["inferno"](smooth.clip(0, 1), bytes=True)[..., :3])
        seen = Image.blend(ImageEnhance.Color(seen).enhance(1 - opacity), colours, opacity)
    drawing = ImageEnhance.Brightness(photo).enhance(OUTSIDE)
    drawing.paste(seen, (left, top))
    return drawing
