"""Draws the pictures of the sample, with masks that show where the landmark is visible.

The bytes of a picture depend only on the seed, its id and its landmark: every random number comes from a named stream,
and results that IEEE 754 does not fix to the bit (sine, cosine) are rounded first. A picture is drawn at twice its size
with a depth buffer, a shadow map and procedural masonry, and then reduced.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from landmarks.determinism import stream
from landmarks.images import Picture
from landmarks.sources.sample.buildings import Array, Colour, Mesh, Paint, build
from landmarks.sources.sample.scene import RIVER, Camera, Scene, build_scene, dot, place_camera, surroundings, unit

import numpy as np
from PIL import Image, ImageFilter


@dataclass(frozen=True)
class Light:
    """A time of day. The strengths of the lights are linear, the colours of the sky sRGB."""

    elevation: tuple[float, float]  # of the sun, degrees
    sun: Colour
    ambient: Colour
    zenith: Colour
    horizon: Colour
    clouds: float  # share of the sky
    sight: float  # metres at which haze replaces a quarter of the light
    probability: float


LIGHTS = (
    Light((40, 65), (1.05, 1.0, 0.9), (0.30, 0.35, 0.44), (72, 124, 196), (182, 208, 230), 0.35, 1500, 0.3),
    Light((22, 40), (1.10, 0.98, 0.8), (0.27, 0.32, 0.42), (88, 138, 204), (200, 218, 232), 0.5, 900, 0.27),
    Light((9, 18), (1.25, 0.82, 0.45), (0.26, 0.27, 0.36), (98, 124, 172), (246, 208, 158), 0.4, 700, 0.15),
    Light((50, 70), (0.20, 0.20, 0.2), (0.60, 0.63, 0.68), (164, 174, 186), (208, 212, 216), 0.8, 450, 0.18),
    Light((5, 9), (0.75, 0.40, 0.28), (0.26, 0.27, 0.4), (62, 72, 122), (226, 164, 140), 0.45, 600, 0.1),
)
GROUNDS = (Paint((176, 166, 150), 1.6, 0.1, 0.16), Paint((150, 148, 146), 0.9, 0.12, 0.16), Paint((196, 178, 144)))
GRASSES = ((96, 124, 58), (118, 132, 70), (150, 138, 92))
SIZES = ((341, 256), (341, 256), (341, 256), (256, 341), (288, 256), (256, 288))  # pixels
FAR = 1e-4  # 1 / metres; the ground ends at this distance
# A depth buffer packs the nearness and the number of a quadrilateral into one integer: the largest one is visible.
NUMBER_BITS, NEARNESS_ONE = 20, 2.0**42


def _rasterize(points: Array, numbers: Array, buffer: Array) -> None:
    """Draws convex quadrilaterals, corners (column, row, nearness from 0 to 1), into a (rows, columns) depth buffer."""
    height, width = buffer.shape
    normal = np.cross(points[:, 2] - points[:, 0], points[:, 3] - points[:, 1])
    x_slope, y_slope = (-normal[:, i] / np.where(normal[:, 2] == 0, 1, normal[:, 2]) for i in (0, 1))
    first, last = points.min(axis=1), points.max(axis=1)
    top, bottom = (np.clip(np.ceil(ends[:, 1] - 0.5), 0, height).astype(int) for ends in (first, last))
    inside = (np.abs(normal[:, 2]) > 1e-3) & (last[:, 0] > 0) & (first[:, 0] < width)
    count = np.where(inside, bottom - top, 0)
    quad = np.repeat(np.arange(len(points)), count)  # from here on, one entry per row of each quadrilateral
    row = np.arange(len(quad)) - np.repeat(np.cumsum(count) - count - top, count)
    y = row + 0.5
    x0, y0, nearness = points.T.take(quad, axis=2)
    x1, y1 = (np.roll(ends, -1, axis=0) for ends in (x0, y0))
    crosses = (y0 <= y) != (y1 <= y)
    x = x0 + (y - y0) * ((x1 - x0) / np.where(crosses, y1 - y0, 1))
    edges = np.where(crosses, x, np.inf).min(axis=0), np.where(crosses, x, -np.inf).max(axis=0)
    start, stop = (np.clip(np.ceil(edge - 0.5), 0, width).astype(int) for edge in edges)
    length = np.maximum(stop - start, 0)
    nearness = nearness[0] + (start + 0.5 - x0[0]) * x_slope[quad] + (y - y0[0]) * y_slope[quad]
    step = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)  # from here on, one entry per pixel
    nearness = np.repeat(nearness, length) + step * np.repeat(x_slope[quad], length)
    keys = (np.clip(nearness, FAR, 1) * NEARNESS_ONE).astype(int) << NUMBER_BITS | np.repeat(numbers[quad], length)
    np.maximum.at(buffer.reshape(-1), np.repeat(row * width + start, length) + step, keys)


def _noise(rng: np.random.Generator, size: int = 256) -> Array:
    """A seamless map of smooth noise from 0 to 1."""
    total = np.zeros((size, size), np.float32)
    for level in range(2, 8):
        cells = np.pad(rng.random((2**level, 2**level), dtype=np.float32), 2, mode="wrap")
        edge = 2 * size // 2**level
        wide = Image.fromarray(cells).resize((size + 2 * edge, size + 2 * edge), Image.Resampling.BICUBIC)
        total += np.asarray(wide)[edge:-edge, edge:-edge] * np.float32(0.55**level)
    return (total - total.min()) / (total.max() - total.min())


def _lookup(noise: Array, x: Array, y: Array) -> Array:
    """The noise at positions in units of its cells; the map repeats in both directions."""
    row, column = (np.floor(c).astype(np.int32) & (len(noise) - 1) for c in (y, x))
    return noise.reshape(-1).take(row * len(noise) + column)


def _mix(a: Array, b: Array, share: Array | float) -> Array:
    return a + (b - a) * share


def _linear(colour: Colour) -> Array:
    """Converts sRGB to a column of linear light, with a gamma of 2 that a square root undoes."""
    return ((np.array(colour) / 255) ** 2).astype(np.float32)[:, None]


def _sky(rng: np.random.Generator, rays: Array, light: Light, noise: Array) -> Array:
    """Linear light of the sky, (3, rows, columns): a gradient, clouds, and distant hills or roofs."""
    x, y, z = rays[:, ::4, ::4]
    across = np.sqrt(x * x + y * y)
    slope = np.clip(z / across, 0, 1)
    share = np.minimum(slope * 1.6, 1)
    horizon = _linear(light.horizon)[..., None]
    sky = _mix(horizon, _linear(light.zenith)[..., None], share * (2 - share))
    stretch, start = float(rng.uniform(40, 100)) / (slope + np.float32(0.12)) / across, rng.uniform(0, 256, 2).tolist()
    threshold = 0.85 - 0.6 * light.clouds * float(rng.uniform(0.3, 1.4))
    excess = _lookup(noise, x * stretch + start[0], y * stretch + start[1]) - threshold
    clouds = np.clip(3.5 * excess, 0, 1) * np.minimum(slope * 9, 1)
    sky = _mix(sky, np.minimum(horizon * 1.25, 1), clouds * 0.85)
    size = rays.shape[2], rays.shape[1]
    sky = np.stack([np.asarray(Image.fromarray(c).resize(size, Image.Resampling.BILINEAR)) for c in sky])
    peaks = rng.uniform(0.2, 1, rng.integers(5, 60)) * rng.uniform(0.02, 0.16)
    at = np.linspace(0, len(peaks) - 1, size[0])
    ridge = peaks[np.rint(at).astype(int)] if rng.random() < 0.4 else np.interp(at, range(len(peaks)), peaks)
    ridge = (ridge + rng.random(size[0]) * 0.006).astype(np.float32)
    hidden = rays[2] < ridge * np.sqrt(rays[0] * rays[0] + rays[1] * rays[1])
    return np.where(hidden, _mix(_linear((84, 98, 92))[..., None], horizon, float(rng.uniform(0.55, 0.85))), sky)


def _masonry(paints: Array, u: Array, v: Array, pixel: Array, noise: Array) -> Array:
    """Brightness of blocks and joints at wall coordinates in metres; blocks about as small as a pixel fade out."""
    course = np.maximum(paints[3], np.float32(0.01))
    level = v / course
    row = np.floor(level)
    along = u / (course * 2.1) + row * 0.5
    column = np.floor(along)
    code = row.astype(np.int32) * np.int32(-1640531535) ^ column.astype(np.int32) * np.int32(-2048144777)
    code = (code ^ (code >> 15)) * np.int32(-1640531527)
    block = ((code >> 24) & 255).astype(np.float32) / 255 - np.float32(0.5)
    joint = (level - row < 0.1) | (along - column < 0.05)
    fade = np.clip(1.6 - 2.2 * pixel / course, 0, 1) * (paints[3] > 0)
    return 1 + fade * (block * paints[4] - joint * paints[5]) + 0.22 * (_lookup(noise, u * 9, v * 9 + u) - 0.5)


def _sunlit(scene: Scene, sun: Sequence[float], reach: float, points: Sequence[Array], size: int = 512) -> Array:
    """Whether the sun reaches each point: nothing within `reach` metres of the landmark is in its way."""
    right = unit(-sun[1], sun[0], 0)
    axes = right.tolist(), np.cross(sun, right).tolist()
    scale, sight = size / (2 * reach), 4000.0
    facing = np.flatnonzero(dot(sun, scene.normals) > 0)[1:]  # without the ground
    corners = scene.corners[:, facing]
    plane = [dot(axis, corners) * scale + size / 2 for axis in axes]
    buffer = np.zeros((size, size), int)
    _rasterize(np.stack([*plane, dot(sun, corners) / sight + 0.5], -1), facing, buffer)
    nearest = (((buffer >> NUMBER_BITS) / NEARNESS_ONE - 0.5) * sight).astype(np.float32).reshape(-1)
    plane = [dot(axis, points) * scale + size / 2 for axis in axes]
    column, row = (np.clip(position, 0, size - 1).astype(np.int32) for position in plane)
    return nearest.take(row * size + column) < dot(sun, points) + (0.3 + 0.5 / scale)


def _water(light: Light, noise: Array, x: Array, y: Array, slope: Array, lit: Array) -> Array:
    """Linear light from rippled water, which reflects more of the sky at flatter angles."""
    ripple = _lookup(noise, x * 2.5, y * 6) + _lookup(noise, x * 0.7, y * 1.7) - 1
    flatness = np.clip(0.9 + 2.5 * slope + 0.5 * ripple, 0.1, 0.9)
    reflected = _mix(_linear(light.zenith), _linear(light.horizon), flatness)
    return _mix(_linear((30, 62, 74)) * (0.4 + 0.6 * lit), reflected, 0.2 + 0.6 * flatness)


def _shade(rng: np.random.Generator, scene: Scene, camera: Camera, rays: Array, landmark: Mesh, buffer: Array) -> Array:
    """Linear light of the picture, (3, rows, columns), for a filled depth buffer."""
    radius, _ = landmark.extent()
    light = LIGHTS[rng.choice(len(LIGHTS), p=[light.probability for light in LIGHTS])]
    behind = math.atan2(-camera.forward[1], -camera.forward[0])
    elevation, turn = math.radians(rng.uniform(*light.elevation)), behind + math.radians(rng.uniform(-130, 130))
    sun = unit(math.cos(turn) * math.cos(elevation), math.sin(turn) * math.cos(elevation), math.sin(elevation)).tolist()
    noise = _noise(rng)
    picture = _sky(rng, rays, light, noise).reshape(3, -1)

    hits = np.flatnonzero(buffer)  # from here on, one entry per pixel that is not sky
    keys = buffer.reshape(-1)[hits]
    number, depth = keys & (2**NUMBER_BITS - 1), (NEARNESS_ONE / (keys >> NUMBER_BITS)).astype(np.float32)
    ray = rays.reshape(3, -1)[:, hits]
    x, y, z = point = [r * depth + c for r, c in zip(ray, camera.position.tolist(), strict=True)]
    normal = [component.astype(np.float32).take(number) for component in scene.normals]
    paints = scene.paints.take(number, axis=1)
    flat = np.abs(normal[2]) > 0.8
    u, v = np.where(flat, x, normal[0] * y - normal[1] * x), np.where(flat, y, z)
    albedo = paints[:3] * _masonry(paints, u, v, depth / camera.focal, noise)
    sunlit = _sunlit(scene, sun, 2.2 * radius + 10, [p + n * 0.3 for p, n in zip(point, normal, strict=True)])
    lit = np.maximum(dot(sun, normal), 0) * sunlit
    ground = number == 0
    open_sky = np.where(ground, 1, (0.7 + 0.3 * np.minimum(z / 6, 1)) * (0.62 + 0.38 * normal[2]))

    lawn = float(rng.uniform(0.8, 2.2) * radius) + 20
    green = ground & (60 * _lookup(noise, x * 0.6, y * 0.6) + np.sqrt(x * x + y * y) > lawn)
    turf = 0.55 + 0.5 * _lookup(noise, x * 8, y * 8) + 0.4 * _lookup(noise, x * 0.9, y * 0.9)
    albedo = np.where(green, _linear(GRASSES[rng.integers(len(GRASSES))]) * turf, albedo)
    strength = rng.uniform(0.85, 1.15)
    sun_light, sky_light = (np.array(c, np.float32)[:, None] * np.float32(strength) for c in (light.sun, light.ambient))
    colour = albedo * (sun_light * lit + sky_light * open_sky)
    if landmark.river or landmark.shore < math.inf:
        wet = ground & (np.abs(x) < RIVER * radius if landmark.river else y > landmark.shore + 6 * _lookup(noise, x, x))
        water = _water(light, noise, x, y, ray[2], lit)
        colour = np.where(wet, water, colour)
    haze = depth / (depth + float(light.sight * rng.uniform(0.7, 1.5)))
    picture[:, hits] = _mix(colour, _linear(light.horizon), haze * haze)
    return picture.reshape(3, *buffer.shape)


def render(seed: int, picture_id: str, landmark_id: str) -> Picture:
    """Draws a picture of the index: a JPEG, and a PNG mask of its size that is 255 where the landmark is visible.

    The shorter side has 256 pixels.
    """
    family, number = landmark_id.split("-")
    landmark = build(family, stream(seed, "sample", "family", family), int(number) - 1)
    rng = stream(seed, "sample", "picture", picture_id)
    radius, tall = landmark.extent()
    width, height = SIZES[rng.integers(len(SIZES))]
    if width < height and 2 * radius > 1.5 * tall:  # nobody takes a portrait picture of something wide
        width, height = height, width
    camera = place_camera(rng, landmark, (2 * width, 2 * height))
    others = surroundings(rng, family, landmark, camera)
    scene = build_scene(landmark, others, GROUNDS[rng.integers(len(GROUNDS))])

    rays = camera.rays()
    ground = np.minimum(-rays[2].astype(float) / camera.position[2], 1)
    buffer = np.where(ground > FAR, ground * NEARNESS_ONE, 0).astype(int) << NUMBER_BITS
    points = camera.project(scene.corners)
    facing = dot(scene.normals, camera.position[:, None] - scene.corners[:, :, 0]) > 0
    facing[0] = False  # the ground is in the buffer already
    seen = np.flatnonzero(facing & (points[..., 2] > 0).all(axis=1))
    _rasterize(points[seen], seen, buffer)
    light = _shade(rng, scene, camera, rays, landmark, buffer)

    light = (light[:, ::2, ::2] + light[:, 1::2, ::2] + light[:, ::2, 1::2] + light[:, 1::2, 1::2]) / 4
    pixels = np.rint(255 * np.sqrt(np.clip(light, 0, 1))).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    picture = picture.filter(ImageFilter.GaussianBlur(float(np.clip(rng.normal(0.1, 0.35), 0, 0.8))))
    grain = rng.standard_normal((height, width, 3), dtype=np.float32) * np.float32(rng.uniform(0.5, 4))
    picture = Image.fromarray(np.clip(np.rint(np.asarray(picture) + grain), 0, 255).astype(np.uint8))
    mask = Image.fromarray(scene.landmark[buffer & (2**NUMBER_BITS - 1)].astype(np.uint8) * 255).reduce(2)
    jpeg, png = io.BytesIO(), io.BytesIO()
    picture.save(jpeg, "JPEG", quality=int(rng.integers(72, 95)))
    mask.point([0] * 128 + [255] * 128).save(png, "PNG")
    return Picture(picture_id, landmark_id, jpeg.getvalue(), png.getvalue())
