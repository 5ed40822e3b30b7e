"""The scene of a sample picture: a camera in front of a landmark, other buildings of its family, trees and people.

Results of functions such as sine and cosine are rounded before they are compared or drawn, so that the scene is the
same on every machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from landmarks.sources.sample.buildings import SLOTS, Array, Mesh, Paint, Rng, build

import numpy as np

# These constants, with VARIETY of the buildings, set how difficult the pictures are.
CLUTTER = 2  # mean number of other buildings of the family that a picture tries to place
IN_FRONT = 0.1  # share of the pictures in which one of them may stand in front of the landmark
SIDE = 18  # degrees to the left and right of a landmark's front from which most pictures are taken
FRONTAL = 0.9  # share of these pictures; the others are taken from any other direction
OFF_CENTRE = 0.04  # standard deviation of the landmark's position in the picture, as a share of the picture
FILL = (0.8, 0.95)  # range of the share of the picture's width or height that the landmark fills
NEAR = 1.0  # metres; nothing closer to the camera is drawn
RIVER = 0.75  # half the width of a river, in radii of its bridge


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with rays forward + x * right + y * up, where x and y are in units of the focal length."""

    position: Array  # metres
    forward: Array
    right: Array
    up: Array
    focal: float  # pixels
    size: tuple[int, int]  # width, height in pixels

    def project(self, points: Array) -> Array:
        """Maps (3, ...) points in metres to (3, ...) columns, rows and inverse depths, which are -1 if not visible."""
        offset = [component - start for component, start in zip(points, self.position, strict=True)]
        x, y, z = (dot(axis, offset) for axis in (self.right, self.up, self.forward))
        inverse = 1 / np.where(z > NEAR, z, -1.0)
        columns, rows = self.size[0] / 2 + self.focal * x * inverse, self.size[1] / 2 - self.focal * y * inverse
        return np.stack([columns, rows, inverse])

    def rays(self, offsets: Array) -> Array:
        """(3, 2 * rows, columns) directions of unit depth, two through each pixel, `offsets` from its left side."""
        x = (np.arange(self.size[0]) - self.size[0] / 2) / self.focal
        y = (self.size[1] / 2 - 0.25 - np.arange(2 * self.size[1]) / 2) / self.focal
        axes = zip(self.forward, self.right, self.up, strict=True)
        first = np.stack([f + offsets / self.focal * r + y * u for f, r, u in axes]).astype(np.float32)
        return first[..., None] + np.outer(self.right, x).astype(np.float32)[:, None]


def dot(a: Sequence[float] | Array, b: Sequence[Array] | Array) -> Array:
    """Inner products along the first axis in a fixed order of summation, which BLAS does not promise."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(x: float, y: float, z: float) -> Array:
    """The direction of a vector."""
    return np.round(np.array((x, y, z)) / math.sqrt(x * x + y * y + z * z), 9)


def place_camera(rng: Rng, landmark: Mesh, size: tuple[int, int]) -> Camera:
    """A camera that has most of the landmark in the frame, off the centre."""
    corners, (radius, height) = landmark.points, landmark.extent
    azimuth = rng.uniform(-SIDE, SIDE) if landmark.river or rng.random() < FRONTAL else rng.uniform(SIDE, 360 - SIDE)
    azimuth = math.radians(azimuth + (180 if landmark.river and rng.random() > FRONTAL else 0))
    focal = round(min(size) / 2 / math.tan(math.radians(rng.uniform(38, 62)) / 2), 6)
    eye = rng.uniform(1.6, 3.0) if rng.random() < 0.65 else rng.uniform(0.1, 0.7) * height
    off = np.clip(rng.normal(0, OFF_CENTRE, 2), -0.2, 0.2) * size / focal
    roll = math.radians(np.clip(rng.normal(0, 1.5), -4, 4))
    fill, closest, away = rng.uniform(*FILL), (0.6 if landmark.river else 1.1) * radius, 3 * radius + 2 * height
    for _ in range(4):  # approach in steps: the near parts grow faster than the distance shrinks
        x, y = away * math.sin(azimuth), -away * math.cos(azimuth)
        aim = off[0] * away * math.cos(azimuth), off[0] * away * math.sin(azimuth), 0.48 * height + 0.5 * off[1] * away
        forward = unit(aim[0] - x, aim[1] - y, aim[2] - eye)
        right = unit(forward[1], -forward[0], 0)
        up = np.cross(right, forward)
        right, up = right * math.cos(roll) + up * math.sin(roll), up * math.cos(roll) - right * math.sin(roll)
        camera = Camera(np.round((x, y, eye), 3), forward, np.round(right, 9), np.round(up, 9), focal, size)
        spread = np.ptp(camera.project(corners)[:2], axis=1) / size
        away = max(away * ((0.8 * spread.max() + 0.2 * spread.min()) / fill) ** 0.9, closest)
    return camera


def _tree(rng: Rng) -> Mesh:
    """A broad-leaved tree, a conifer or a poplar, about 8 metres tall."""
    mesh, shape = Mesh(), rng.integers(3)
    leaves = Paint(tuple(np.array((78, 100, 46)) * rng.uniform(0.75, 1.2, 3)), 0.4, 0.8)
    mesh.lathe(Paint((92, 72, 56)), [(0.25, 0), (0.16, 4)], 6)
    if shape == 0:
        ball = np.array([(0.5, -0.85), (0.9, -0.4), (1, 0.1), (0.75, 0.65), (0.3, 0.95)])
        for *at, size in rng.uniform((-1.4, -1.4, 4.2, 1.3), (1.4, 1.4, 6.4, 2.2), (5, 4)):
            mesh.lathe(leaves, ball * size, 10, at)
    elif shape == 1:
        for tier in range(4):
            mesh.lathe(leaves, [(2.3 - 0.5 * tier, 1.4 + 1.7 * tier), (0.1, 4.2 + 1.8 * tier)], 8 + 2 * (tier % 2))
    else:
        mesh.lathe(leaves, [(0.4, 1.2), (1.1, 2.6), (1.2, 5), (0.8, 8), (0.1, 10)], 10)
    return mesh


def _person(rng: Rng) -> Mesh:
    """Somebody 1.5 to 1.9 metres tall."""
    mesh, tall = Mesh(), rng.uniform(1.5, 1.9)
    legs, coat, skin = (Paint(tuple(rng.uniform(low, high, 3))) for low, high in ((30, 90), (50, 190), (120, 210)))
    mesh.lathe(legs, [(0.13, 0), (0.17, 0.5 * tall)], 6, stretch=(1, 0.7))
    mesh.lathe(coat, [(0.19, 0.45 * tall), (0.25, 0.8 * tall), (0.1, 0.86 * tall)], 6, stretch=(1, 0.65))
    mesh.lathe(skin, [(0.06, 0.84 * tall), (0.11, 0.92 * tall), (0.07, tall)], 6)
    return mesh


def surroundings(rng: Rng, family: str, landmark: Mesh, camera: Camera) -> list[Mesh]:
    """Other buildings of the family, trees and people, all on free dry ground."""
    radius, height = landmark.extent
    away = math.hypot(camera.position[0], camera.position[1])
    ahead, across = -camera.position[:2] / away, np.array((-camera.position[1], camera.position[0])) / away
    taken = [(0.0, 0.0, 0.8 * radius), (camera.position[0], camera.position[1], 0.08 * away)]
    meshes = []

    def place(mesh: Mesh, nearest: float, farthest: float, room: float, size: float = 1.0) -> None:
        """Adds the mesh if there is room between two distances from the camera, in units of the landmark's."""
        for _ in range(8):
            depth = rng.uniform(nearest, farthest) * away
            aside = rng.uniform(-0.55, 0.55) * depth * camera.size[0] / camera.focal
            x, y = camera.position[:2] + depth * ahead + aside * across
            dry = y < landmark.shore - room and not (landmark.river and abs(x) < RIVER * radius)
            if dry and all((x - a) ** 2 + (y - b) ** 2 > (room + r) ** 2 for a, b, r in taken):
                taken.append((x, y, room))
                meshes.append(mesh.moved(x, y, rng.uniform(0, 2 * math.pi), size))
                return

    for number in range(rng.integers(CLUTTER - 2, CLUTTER + 3)):
        other = build(family, rng, int(rng.integers(SLOTS)))
        if landmark.river:  # other bridges cross the same river, one behind the other
            y = math.copysign((number + 1) * rng.uniform(40, 80), ahead[1])
            meshes.append(other.moved(rng.uniform(-8, 8), y))
            continue
        wide, tall = other.extent
        size = rng.uniform(0.6, 1.0) * height / tall
        distances = (0.55, 0.85) if number == 0 and rng.random() < IN_FRONT else (0.95, 2.6)
        place(other, *distances, 0.8 * wide * size, size)
    trees = [_tree(rng) for _ in range(2)]
    for number in range(rng.integers(4, 16)):
        distances = (0.35, 0.8) if number < 2 else (0.9, 2.5)
        place(trees[number % 2], *distances, 2.5, rng.uniform(0.6, 1.5))
    for _ in range(rng.integers(0, 12)):
        place(_person(rng), 0.2, 1.0, 0.5)
    return meshes


@dataclass(frozen=True)
class Scene:
    """The quadrilaterals around a landmark; number 0 stands for the ground."""

    corners: Array  # (3, 4, n) metres
    normals: Array  # (3, n)
    paints: Array  # (6, n): red, green and blue in linear light, course, grain, joint
    landmark: Array  # (n,) whether it belongs to the landmark


def build_scene(landmark: Mesh, others: Sequence[Mesh], ground: Paint) -> Scene:
    """One list of the quadrilaterals of all meshes."""
    meshes = [Mesh([np.zeros((1, 4, 3))], [(ground, 1)]), landmark, *others]
    corners = np.concatenate([quads for mesh in meshes for quads in mesh.quads]).round(3).T.copy()
    normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1], axis=0)
    normals /= np.maximum(np.sqrt(dot(normals, normals)), 1e-9)
    normals[:, 0] = 0, 0, 1
    paints, counts = zip(*(paint for mesh in meshes for paint in mesh.paints), strict=True)
    table = np.array([(*paint.colour, paint.course, paint.grain, paint.joint) for paint in paints]).T
    table[:3] = (table[:3].round() / 255) ** 2
    table = np.repeat(table.astype(np.float32), counts, axis=1)
    number = np.arange(corners.shape[2])
    return Scene(corners, normals, table, (number > 0) & (number <= sum(map(len, landmark.quads))))
