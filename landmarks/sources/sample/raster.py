"""Draws the pictures of the sample, with masks that show where the landmark is visible.

The bytes of a picture depend only on the seed, its id and its landmark: every random number comes from a named stream,
and results that IEEE 754 does not fix to the bit (sine, cosine) are rounded first. A picture is drawn with a depth
buffer, a shadow map and procedural masonry. Each of its pixels is the mean of two samples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

from landmarks.determinism import keep_memory, stream
from landmarks.images import Picture, encode
from landmarks.sources.sample.buildings import Array, Colour, Mesh, Paint, Rng, build
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
NUMBER = 2**NUMBER_BITS - 1
# Quantiles of the normal distribution.
GRAIN = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)]).round(4).astype(np.float32)


def _rasterize(points: Array, numbers: Array, buffer: Array, offsets: Array) -> None:
    """Draws convex quadrilaterals, corners (column, row, nearness from 0 to 1), into a (rows, columns) depth buffer.

    `points` are (3, 4, n). `offsets` say where the samples of each row are in their cells: 0 is left, 1 is right.
    """
    height, width = buffer.shape
    x, y, nearness = points
    a, b = points[:, 2] - points[:, 0], points[:, 3] - points[:, 1]
    area = a[0] * b[1] - a[1] * b[0]
    inside = (np.abs(area) > 1e-3) & (x.max(axis=0) > 0) & (x.min(axis=0) < width)
    area = np.where(inside, area, 1)
    x_slope, y_slope = (a[2] * b[1] - a[1] * b[2]) / area, (a[0] * b[2] - a[2] * b[0]) / area
    plane = np.stack([nearness[0] - x[0] * x_slope - y[0] * y_slope, x_slope, y_slope])
    run, rise = np.roll(points[:2], -1, axis=1) - points[:2]  # along each edge
    slope, side = run / np.where(np.abs(rise) < 1e-6, np.inf, rise), rise * np.sign(area)
    edges = np.stack([x - y * slope, slope, side])
    top, bottom = (np.clip(np.ceil(ends - 0.5), 0, height).astype(int) for ends in (y.min(axis=0), y.max(axis=0)))
    count = np.where(inside, bottom - top, 0)

    quad = np.repeat(np.arange(len(count)), count)  # from here on, one entry per row of each quadrilateral
    row = np.arange(len(quad)) - (np.cumsum(count) - count - top)[quad]
    offset = offsets[row]
    x, slope, side = edges.take(quad, axis=2)
    x += slope * (row + 0.5)
    ends = np.where(side < -1e-6, x, -np.inf).max(axis=0), np.where(side > 1e-6, x, np.inf).min(axis=0)
    start, stop = (np.clip(np.ceil(end - offset), 0, width).astype(int) for end in ends)
    length = np.maximum(stop - start, 0)
    level, x_slope, y_slope = plane.take(quad, axis=1)
    level += (row + 0.5) * y_slope + offset * x_slope
    near, far = (np.clip(level + column * x_slope, FAR, 1) for column in (start, stop - 1))
    slope = ((far - near) / np.maximum(length - 1, 1) * NEARNESS_ONE).astype(int) << NUMBER_BITS
    keys = (near * NEARNESS_ONE).astype(int) << NUMBER_BITS | numbers[quad]
    first = np.cumsum(length) - length  # products with it may overflow; the keys, modulo 2**64, do not
    sample = np.arange(length.sum())  # from here on, one entry per sample
    keys = np.repeat(keys - first * slope, length) + sample * np.repeat(slope, length)
    np.maximum.at(buffer.reshape(-1), sample + np.repeat(row * width + start - first, length), keys)


@cache
def _noise(seed: int, size: int = 256) -> Array:
    """A seamless map of smooth noise from 0 to 1."""
    rng = stream(seed, "sample", "noise")
    total = np.zeros((size, size), np.float32)
    for level in range(2, 8):
        cells = rng.random((2**level, 2**level), dtype=np.float32).take(np.arange(-2, 2**level + 2), 0, mode="wrap")
        wide = Image.fromarray(cells.take(np.arange(-2, 2**level + 2), 1, mode="wrap"))
        box = 2, 2, 2 + 2**level, 2 + 2**level
        total += np.asarray(wide.resize((size, size), Image.Resampling.BICUBIC, box)) * np.float32(0.55**level)
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


def _sky(rng: Rng, rays: Array, light: Light, noise: Array) -> Array:
    """Linear light of the sky, (3, samples): a gradient, clouds, and distant hills or roofs."""
    x, y, z = rays[:, ::4, ::2]
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
    size = columns, _ = rays.shape[2], rays.shape[1] // 2
    sky = np.stack([np.asarray(Image.fromarray(c).resize(size, Image.Resampling.BILINEAR)) for c in sky])
    sky = np.repeat(sky, 2, axis=1).reshape(3, -1)
    peaks = rng.uniform(0.2, 1, rng.integers(5, 60)) * rng.uniform(0.02, 0.16)
    at = np.linspace(0, len(peaks) - 1, columns)
    ridge = peaks[np.rint(at).astype(int)] if rng.random() < 0.4 else np.interp(at, range(len(peaks)), peaks)
    ridge = (ridge + rng.random(columns) * 0.006).astype(np.float32)
    hidden = (rays[2] < ridge * np.sqrt(rays[0] * rays[0] + rays[1] * rays[1])).reshape(-1)
    return np.where(hidden, _mix(_linear((84, 98, 92)), _linear(light.horizon), rng.uniform(0.55, 0.85)), sky)


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


def _shadows(scene: Scene, sun: Sequence[float], reach: float, size: int = 512) -> Callable[[Sequence[Array]], Array]:
    """A function of points: whether the sun reaches them. It is right within `reach` metres of the landmark's axis."""
    right = unit(-sun[1], sun[0], 0)
    axes = right.tolist(), np.cross(sun, right).tolist()
    scale, sight = size / (2 * reach), 4000.0
    facing = np.flatnonzero(dot(sun, scene.normals) > 0)[1:]  # without the ground
    corners = scene.corners[..., facing]
    plane = [dot(axis, corners) * scale + size / 2 for axis in axes]
    buffer = np.zeros((size, size), int)
    _rasterize(np.stack([*plane, dot(sun, corners) / sight + 0.5]), facing, buffer, np.full(size, 0.5))
    nearest = (((buffer >> NUMBER_BITS) / NEARNESS_ONE - 0.5) * sight).astype(np.float32).reshape(-1)

    def sunlit(points: Sequence[Array]) -> Array:
        plane = [dot(axis, points) * scale + size / 2 for axis in axes]
        column, row = (np.clip(position, 0, size - 1).astype(np.int32) for position in plane)
        return nearest.take(row * size + column) < dot(sun, points) + (0.3 + 0.5 / scale)

    return sunlit


def _water(light: Light, noise: Array, x: Array, y: Array, slope: Array, lit: Array) -> Array:
    """Linear light from rippled water, which reflects more of the sky at flatter angles."""
    ripple = _lookup(noise, x * 2.5, y * 6) + _lookup(noise, x * 0.7, y * 1.7) - 1
    flatness = np.clip(0.9 + 2.5 * slope + 0.5 * ripple, 0.1, 0.9)
    reflected = _mix(_linear(light.zenith), _linear(light.horizon), flatness)
    return _mix(_linear((30, 62, 74)) * (0.4 + 0.6 * lit), reflected, 0.2 + 0.6 * flatness)


def _shade(rng: Rng, scene: Scene, camera: Camera, rays: Array, landmark: Mesh, buffer: Array, noise: Array) -> Array:
    """Linear light of the picture, (3, samples), for a filled depth buffer."""
    radius, _ = landmark.extent
    light = LIGHTS[rng.choice(len(LIGHTS), p=[light.probability for light in LIGHTS])]
    behind = math.atan2(-camera.forward[1], -camera.forward[0])
    elevation, turn = math.radians(rng.uniform(*light.elevation)), behind + math.radians(rng.uniform(-130, 130))
    sun = unit(math.cos(turn) * math.cos(elevation), math.sin(turn) * math.cos(elevation), math.sin(elevation)).tolist()
    noise = np.roll(noise, rng.integers(len(noise), size=2), (0, 1))
    picture = _sky(rng, rays, light, noise)

    sunlit = _shadows(scene, sun, 2.2 * radius + 10)
    lawn = float(rng.uniform(0.8, 2.2) * radius) + 20
    grass = _linear(GRASSES[rng.integers(len(GRASSES))])
    strength = rng.uniform(0.85, 1.15)
    sun_light, sky_light = (np.array(c, np.float32)[:, None] * np.float32(strength) for c in (light.sun, light.ambient))
    sight = float(light.sight * rng.uniform(0.7, 1.5))
    normals = scene.normals.astype(np.float32)
    buffer, rays = buffer.reshape(-1), rays.reshape(3, -1)

    walls = (buffer & NUMBER) > 0
    for ground in (True, False):
        hits = np.flatnonzero((buffer > 0) & ~walls if ground else walls)
        keys = buffer[hits]
        number = np.zeros(1, int) if ground else keys & NUMBER
        depth = (NEARNESS_ONE / (keys >> NUMBER_BITS)).astype(np.float32)
        ray = rays.take(hits, axis=1)
        x, y, z = point = [r * depth + c for r, c in zip(ray, camera.position.tolist(), strict=True)]
        normal, paints = normals.take(number, axis=1), scene.paints.take(number, axis=1)
        flat = np.abs(normal[2]) > 0.8
        u, v = np.where(flat, x, normal[0] * y - normal[1] * x), np.where(flat, y, z)
        albedo = paints[:3] * _masonry(paints, u, v, depth / camera.focal, noise)
        lit = np.maximum(dot(sun, normal), 0) * sunlit([p + n * 0.3 for p, n in zip(point, normal, strict=True)])
        open_sky = 1 if ground else (0.7 + 0.3 * np.minimum(z / 6, 1)) * (0.62 + 0.38 * normal[2])
        if ground:
            green = 60 * _lookup(noise, x * 0.6, y * 0.6) + np.sqrt(x * x + y * y) > lawn
            turf = 0.55 + 0.5 * _lookup(noise, x * 8, y * 8) + 0.4 * _lookup(noise, x * 0.9, y * 0.9)
            albedo = np.where(green, grass * turf, albedo)
        colour = albedo * (sun_light * lit + sky_light * open_sky)
        if ground and (landmark.river or landmark.shore < math.inf):
            bank = RIVER * radius if landmark.river else landmark.shore + 6 * _lookup(noise, x, x)
            wet = np.abs(x) < bank if landmark.river else y > bank
            colour = np.where(wet, _water(light, noise, x, y, ray[2], lit), colour)
        haze = depth / (depth + sight)
        for channel, values in zip(picture, _mix(colour, _linear(light.horizon), haze * haze), strict=True):
            channel[hits] = values
    return picture


@cache
def _landmark(seed: int, landmark_id: str) -> Mesh:
    family, number = landmark_id.split("-")
    return build(family, stream(seed, "sample", "family", family), int(number) - 1)


def render(seed: int, picture_id: str, landmark_id: str) -> Picture:
    """Draws a picture of the index: a JPEG, and a PNG mask of its size that is 255 where the landmark is visible.

    The shorter side has 256 pixels.
    """
    keep_memory()
    landmark = _landmark(seed, landmark_id)
    rng = stream(seed, "sample", "picture", picture_id)
    radius, tall = landmark.extent
    width, height = SIZES[rng.integers(len(SIZES))]
    if width < height and 2 * radius > 1.5 * tall:  # nobody takes a portrait picture of something wide
        width, height = height, width
    camera = place_camera(rng, landmark, (width, height))
    others = surroundings(rng, landmark_id.split("-")[0], landmark, camera)
    scene = build_scene(landmark, others, GROUNDS[rng.integers(len(GROUNDS))])

    # The upper and the lower sample of a pixel are half a pixel apart in both directions.
    offsets = np.resize((0.25, 0.75, 0.75, 0.25), 2 * height)
    rays = camera.rays(offsets)
    ground = np.minimum(-rays[2] / float(camera.position[2]), 1)
    buffer = np.where(ground > FAR, ground * NEARNESS_ONE, 0).astype(int) << NUMBER_BITS
    points = camera.project(scene.corners)
    facing = dot(scene.normals, camera.position[:, None] - scene.corners[:, 0]) > 0
    facing[0] = False  # the ground is in the buffer already
    seen = np.flatnonzero(facing & (points[2] > 0).all(axis=0))
    _rasterize(points[..., seen] * np.reshape((1, 2, 1), (3, 1, 1)), seen, buffer, offsets)
    light = _shade(rng, scene, camera, rays, landmark, buffer, _noise(seed)).reshape(3, height, 2, width)

    light = (light[:, :, 0] + light[:, :, 1]) / 2
    pixels = np.rint(255 * np.sqrt(np.clip(light, 0, 1))).astype(np.uint8)
    picture = Image.merge("RGB", [Image.fromarray(channel) for channel in pixels])
    spread = float(np.clip(rng.normal(0.1, 0.35), 0, 0.8)) ** 2  # variance of the blur, in pixels
    picture = picture.filter(ImageFilter.BoxBlur(spread / (2 - 2 * spread)))
    strength = rng.uniform(0.5, 4)
    grain = GRAIN.take(np.frombuffer(rng.bytes(3 * width * height), np.uint8)).reshape(height, width, 3)
    noisy = np.asarray(picture) + grain * np.float32(strength)
    picture = Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    mask = scene.landmark[(buffer & NUMBER).reshape(height, 2, width)].any(axis=1)
    jpeg = encode(picture, "JPEG", quality=int(rng.integers(72, 95)))
    return Picture(picture_id, landmark_id, jpeg, encode(Image.fromarray(mask.astype(np.uint8) * 255), "PNG"))
