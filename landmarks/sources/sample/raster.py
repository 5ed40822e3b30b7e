"""The renderer of the sample: `render` draws a picture of a landmark, with a mask of where the landmark is visible.

`render` is a pure function: the bytes of a picture depend only on the seed, its id and its landmark. Every random
number comes from a named stream. Where IEEE 754 does not fix a result to the bit (sine, cosine), it is rounded first.

A picture is drawn at twice its size with a depth buffer, a shadow map and procedural masonry, and then reduced.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from landmarks.determinism import stream
from landmarks.sources.sample.buildings import FAMILIES, Array, Colour, Family, Paint, Traits
from landmarks.sources.sample.scene import (
    RIVER,
    Camera,
    Scene,
    build_scene,
    dot,
    dot_components,
    place_camera,
    surroundings,
    unit,
)

import numpy as np
from PIL import Image, ImageFilter


@dataclass(frozen=True)
class Light:
    """A time of day; strengths of lights are linear, colours of the sky sRGB."""

    elevation: tuple[float, float]  # of the sun, degrees
    sun: Colour
    ambient: Colour
    zenith: Colour
    horizon: Colour
    clouds: float  # share of the sky
    sight: float  # metres to where haze takes a quarter of the light
    odds: float


LIGHTS = (
    Light((40, 65), (1.05, 1.0, 0.9), (0.30, 0.35, 0.44), (72, 124, 196), (182, 208, 230), 0.35, 1500, 0.3),
    Light((22, 40), (1.10, 0.98, 0.8), (0.27, 0.32, 0.42), (88, 138, 204), (200, 218, 232), 0.5, 900, 0.27),
    Light((9, 18), (1.25, 0.82, 0.45), (0.26, 0.27, 0.36), (98, 124, 172), (246, 208, 158), 0.4, 700, 0.15),
    Light((50, 70), (0.20, 0.20, 0.2), (0.60, 0.63, 0.68), (164, 174, 186), (208, 212, 216), 0.8, 450, 0.18),
    Light((5, 9), (0.75, 0.40, 0.28), (0.26, 0.27, 0.4), (62, 72, 122), (226, 164, 140), 0.45, 600, 0.1),
)
GROUNDS = (Paint((176, 166, 150), 1.6, 0.1, 0.16), Paint((150, 148, 146), 0.9, 0.12, 0.16), Paint((196, 178, 144)))
GRASSES = ((96, 124, 58), (118, 132, 70), (150, 138, 92))
FAR = 1e-4  # inverse of the metres to the end of the ground
NAME_BITS, NEARNESS_ONE = 20, 2.0**42  # a depth buffer holds nearness and name as one integer, so the largest is seen


def _rasterize(points: Array, names: Array, buffer: Array) -> None:
    """Draw convex quadrilaterals, corners (column, row, nearness from 0 to 1), into a (rows, columns) depth buffer."""
    height, width = buffer.shape
    normal = np.cross(points[:, 2] - points[:, 0], points[:, 3] - points[:, 1])
    x_slope, y_slope = (-normal[:, i] / np.where(normal[:, 2] == 0, 1, normal[:, 2]) for i in (0, 1))
    first, last = points.min(axis=1), points.max(axis=1)
    top, bottom = (np.clip(np.ceil(ends[:, 1] - 0.5), 0, height).astype(int) for ends in (first, last))
    inside = (np.abs(normal[:, 2]) > 1e-3) & (last[:, 0] > 0) & (first[:, 0] < width)
    count = np.where(inside, bottom - top, 0)
    quad = np.repeat(np.arange(len(points)), count)  # from here on, one entry for each row of each quadrilateral
    row = np.arange(len(quad)) - np.repeat(np.cumsum(count) - count - top, count)
    y = row + 0.5
    left, right = np.full(len(quad), np.inf), np.full(len(quad), -np.inf)
    for i in range(4):
        (x0, y0), (x1, y1) = (points[quad, k, :2].T for k in (i, (i + 1) % 4))
        crosses = (y0 <= y) != (y1 <= y)
        x = x0 + (y - y0) * ((x1 - x0) / np.where(crosses, y1 - y0, 1))
        left, right = np.where(crosses, np.minimum(left, x), left), np.where(crosses, np.maximum(right, x), right)
    start, stop = (np.clip(np.ceil(edge - 0.5), 0, width).astype(int) for edge in (left, right))
    length = np.maximum(stop - start, 0)
    nearness = points[quad, 0, 2] + (start + 0.5 - points[quad, 0, 0]) * x_slope[quad]
    nearness += (y - points[quad, 0, 1]) * y_slope[quad]
    step = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)  # and one for each pixel
    nearness = np.repeat(nearness, length) + step * np.repeat(x_slope[quad], length)
    keys = (np.clip(nearness, FAR, 1) * NEARNESS_ONE).astype(int) << NAME_BITS | np.repeat(names[quad], length)
    np.maximum.at(buffer.reshape(-1), np.repeat(row * width + start, length) + step, keys)


def _noise(rng: np.random.Generator, size: int = 256) -> Array:
    """A seamless map of soft noise from 0 to 1."""
    total = np.zeros((size, size), np.float32)
    for level in range(2, 8):
        cells = np.pad(rng.random((2**level, 2**level), dtype=np.float32), 2, mode="wrap")
        edge = 2 * size // 2**level
        wide = Image.fromarray(cells).resize((size + 2 * edge, size + 2 * edge), Image.Resampling.BICUBIC)
        total += np.asarray(wide)[edge:-edge, edge:-edge] * np.float32(0.55**level)
    return (total - total.min()) / (total.max() - total.min())


def _lookup(noise: Array, x: Array, y: Array) -> Array:
    """The noise at positions in units of its cells, repeated endlessly."""
    row, column = (np.floor(c).astype(np.int32) & (len(noise) - 1) for c in (y, x))
    return noise.reshape(-1).take(row * len(noise) + column)


def _mix(a: Array, b: Array, share: Array | float) -> Array:
    return a + (b - a) * share


def _linear(colour: Colour) -> Array:
    """sRGB to linear light as a column, with the gamma of 2 that square roots undo exactly."""
    return ((np.array(colour) / 255) ** 2).astype(np.float32)[:, None]


def _sky(rng: np.random.Generator, rays: Array, light: Light, noise: Array) -> Array:
    """(3, rows, columns) of linear light: a gradient, clouds and far hills or roofs."""
    x, y, z = rays[:, ::4, ::4]
    level = np.sqrt(x * x + y * y)
    climb = np.clip(z / level, 0, 1)
    share = np.minimum(climb * 1.6, 1)
    horizon = _linear(light.horizon)[..., None]
    sky = _mix(horizon, _linear(light.zenith)[..., None], share * (2 - share))
    flat, at = float(rng.uniform(40, 100)) / (climb + np.float32(0.12)) / level, rng.uniform(0, 256, 2).tolist()
    bare = 0.85 - 0.6 * light.clouds * float(rng.uniform(0.3, 1.4))
    clouds = np.clip(3.5 * (_lookup(noise, x * flat + at[0], y * flat + at[1]) - bare), 0, 1) * np.minimum(climb * 9, 1)
    sky = _mix(sky, np.minimum(horizon * 1.25, 1), clouds * 0.85)
    size = rays.shape[2], rays.shape[1]
    sky = np.stack([np.asarray(Image.fromarray(c).resize(size, Image.Resampling.BILINEAR)) for c in sky])
    posts = rng.uniform(0.2, 1, rng.integers(5, 60)) * rng.uniform(0.02, 0.16)
    where = np.linspace(0, len(posts) - 1, size[0])
    ridge = posts[np.rint(where).astype(int)] if rng.random() < 0.4 else np.interp(where, range(len(posts)), posts)
    ridge = (ridge + rng.random(size[0]) * 0.006).astype(np.float32)
    far = rays[2] < ridge * np.sqrt(rays[0] * rays[0] + rays[1] * rays[1])
    return np.where(far, _mix(_linear((84, 98, 92))[..., None], horizon, float(rng.uniform(0.55, 0.85))), sky)


def _masonry(paints: Array, u: Array, v: Array, pixel: Array, noise: Array) -> Array:
    """Brightness of blocks and joints at wall coordinates in metres, fading where blocks are no larger than pixels."""
    course = np.maximum(paints[3], np.float32(0.01))
    high = v / course
    row = np.floor(high)
    along = u / (course * 2.1) + row * 0.5
    column = np.floor(along)
    code = row.astype(np.int32) * np.int32(-1640531535) ^ column.astype(np.int32) * np.int32(-2048144777)
    code = (code ^ (code >> 15)) * np.int32(-1640531527)
    block = ((code >> 24) & 255).astype(np.float32) / 255 - np.float32(0.5)
    joint = (high - row < 0.1) | (along - column < 0.05)
    fade = np.clip(1.6 - 2.2 * pixel / course, 0, 1) * (paints[3] > 0)
    return 1 + fade * (block * paints[4] - joint * paints[5]) + 0.22 * (_lookup(noise, u * 9, v * 9 + u) - 0.5)


def _sunlit(scene: Scene, sun: Array, reach: float, points: Sequence[Array], size: int = 512) -> Array:
    """1 where the sun reaches a place and 0 where something within `reach` metres of the landmark stands in its way."""
    right = unit(-sun[1], sun[0], 0)
    up = np.cross(sun, right)
    scale, sight = size / (2 * reach), 4000.0
    facing = np.flatnonzero(dot(scene.normals, sun) > 0)[1:]  # without the ground
    corners = scene.corners[facing]
    plane = [dot(corners, axis) * scale + size / 2 for axis in (right, up)]
    buffer = np.zeros((size, size), int)
    _rasterize(np.stack([*plane, dot(corners, sun) / sight + 0.5], -1), facing, buffer)
    nearest = ((buffer >> NAME_BITS) / NEARNESS_ONE - 0.5) * sight
    column, row = (dot_components(axis, points) * scale + size / 2 for axis in (right, up))
    column, row = (np.clip(position, 0, size - 1).astype(np.int32) for position in (column, row))
    return nearest.astype(np.float32).reshape(-1).take(row * size + column) < dot_components(sun, points) + (
        0.3 + 0.5 / scale
    )


def _water(light: Light, noise: Array, x: Array, y: Array, slope: Array, lit: Array) -> Array:
    """Linear light from rippled water that mirrors the sky the more, the flatter it is looked at."""
    ripple = _lookup(noise, x * 2.5, y * 6) + _lookup(noise, x * 0.7, y * 1.7) - 1
    glance = np.clip(0.9 + 2.5 * slope + 0.5 * ripple, 0.1, 0.9)
    mirrored = _mix(_linear(light.zenith), _linear(light.horizon), glance)
    return _mix(_linear((30, 62, 74)) * (0.4 + 0.6 * lit), mirrored, 0.2 + 0.6 * glance)


def _shade(
    rng: np.random.Generator, scene: Scene, camera: Camera, rays: Array, family: Family, radius: float, buffer: Array
) -> Array:
    """(3, rows, columns) of linear light for a drawn depth buffer."""
    light = LIGHTS[rng.choice(len(LIGHTS), p=[light.odds for light in LIGHTS])]
    behind = math.atan2(-camera.forward[1], -camera.forward[0])
    elevation, turn = math.radians(rng.uniform(*light.elevation)), behind + math.radians(rng.uniform(-130, 130))
    sun = unit(math.cos(turn) * math.cos(elevation), math.sin(turn) * math.cos(elevation), math.sin(elevation))
    noise = _noise(rng)
    picture = _sky(rng, rays, light, noise).reshape(3, -1)

    hits = np.flatnonzero(buffer)  # from here on, one entry for each pixel below the sky
    keys = buffer.reshape(-1)[hits]
    name, depth = keys & (2**NAME_BITS - 1), (NEARNESS_ONE / (keys >> NAME_BITS)).astype(np.float32)
    ray = rays.reshape(3, -1)[:, hits]
    x, y, z = point = [r * depth + c for r, c in zip(ray, camera.position.tolist(), strict=True)]
    normal = [component.astype(np.float32).take(name) for component in scene.normals.T]
    paints = scene.paints.take(name, axis=1)
    level = np.abs(normal[2]) > 0.8
    u, v = np.where(level, x, normal[0] * y - normal[1] * x), np.where(level, y, z)
    albedo = paints[:3] * _masonry(paints, u, v, depth / camera.focal, noise)
    sunlit = _sunlit(scene, sun, 2.2 * radius + 10, [c + n * 0.3 for c, n in zip(point, normal, strict=True)])
    lit = np.maximum(dot_components(sun, normal), 0) * sunlit
    ground = name == 0
    open_sky = np.where(ground, 1, (0.7 + 0.3 * np.minimum(z / 6, 1)) * (0.62 + 0.38 * normal[2]))

    lawn = float(rng.uniform(0.8, 2.2) * radius) + 20
    green = ground & (60 * _lookup(noise, x * 0.6, y * 0.6) + np.sqrt(x * x + y * y) > lawn)
    turf = 0.55 + 0.5 * _lookup(noise, x * 8, y * 8) + 0.4 * _lookup(noise, x * 0.9, y * 0.9)
    albedo = np.where(green, _linear(GRASSES[rng.integers(len(GRASSES))]) * turf, albedo)
    strength = rng.uniform(0.85, 1.15)
    sun_light, sky_light = (np.array(c, np.float32)[:, None] * np.float32(strength) for c in (light.sun, light.ambient))
    colour = albedo * (sun_light * lit + sky_light * open_sky)
    if family.river or family.shore < math.inf:
        wet = ground & (np.abs(x) < RIVER * radius if family.river else y > family.shore + 6 * _lookup(noise, x, x))
        water = _water(light, noise, x, y, ray[2], lit)
        colour = np.where(wet, water, colour)
    haze = depth / (depth + float(light.sight * rng.uniform(0.7, 1.5)))
    picture[:, hits] = _mix(colour, _linear(light.horizon), haze * haze)
    return picture.reshape(3, *buffer.shape)


# --- Pictures ------------------------------------------------------------------------------------------------------

SIZES = ((341, 256), (341, 256), (341, 256), (256, 341), (288, 256), (256, 288))  # pixels


def render(seed: int, picture_id: str, landmark_id: str) -> tuple[bytes, bytes]:
    """A picture of `index` as JPEG, and its mask as PNG of the same size: 255 where the landmark is seen, 0 elsewhere.

    The shorter side has 256 pixels.
    """
    name, number = landmark_id.split("-")
    family = FAMILIES[name]
    landmark = family.build(Traits(stream(seed, "sample", "family", name), int(number) - 1))
    rng = stream(seed, "sample", "picture", picture_id)
    radius, tall = landmark.extent()
    width, height = SIZES[rng.integers(len(SIZES))]
    if width < height and 2 * radius > 1.5 * tall:  # nobody takes an upright picture of something wide
        width, height = height, width
    camera = place_camera(rng, family, landmark, (2 * width, 2 * height))
    others = surroundings(rng, family, landmark, camera)
    scene = build_scene(landmark, others, GROUNDS[rng.integers(len(GROUNDS))])

    rays = camera.rays()
    ground = np.minimum(-rays[2].astype(float) / camera.position[2], 1)
    buffer = np.where(ground > FAR, ground * NEARNESS_ONE, 0).astype(int) << NAME_BITS
    points = camera.project(scene.corners)
    facing = dot(scene.normals, camera.position - scene.corners[:, 0]) > 0
    facing[0] = False  # the ground is in the buffer already
    seen = np.flatnonzero(facing & (points[..., 2] > 0).all(axis=1))
    _rasterize(points[seen], seen, buffer)
    light = _shade(rng, scene, camera, rays, family, radius, buffer)

    light = (light[:, ::2, ::2] + light[:, 1::2, ::2] + light[:, ::2, 1::2] + light[:, 1::2, 1::2]) / 4
    pixels = np.rint(255 * np.sqrt(np.clip(light, 0, 1))).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    picture = picture.filter(ImageFilter.GaussianBlur(float(np.clip(rng.normal(0.1, 0.35), 0, 0.8))))
    grain = rng.standard_normal((height, width, 3), dtype=np.float32) * np.float32(rng.uniform(0.5, 4))
    picture = Image.fromarray(np.clip(np.rint(picture + grain), 0, 255).astype(np.uint8))
    mask = Image.fromarray(scene.landmark[buffer & (2**NAME_BITS - 1)].astype(np.uint8) * 255).reduce(2)
    jpeg, png = io.BytesIO(), io.BytesIO()
    picture.save(jpeg, "JPEG", quality=int(rng.integers(72, 95)))
    mask.point(lambda value: 255 * (value > 127)).save(png, "PNG")
    return jpeg.getvalue(), png.getvalue()
