"""The buildings of the sample: meshes of flat quadrilaterals, and ten families of landmarks made of them.

Lengths are in metres. x points right, y away and z up; the front of a landmark faces -y. The traits of a landmark are
the same in all its pictures. Each landmark of a family draws a trait from its own part of the trait's range, except for
traits that come after a choice that not all of them make.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
from numpy.typing import ArrayLike

VARIETY = 1.0  # how much the landmarks of a family differ: 1 uses the whole range of each trait, 0 makes them alike
SLOTS = 6  # landmarks in a family

Array = np.ndarray
Colour = tuple[float, ...]  # red, green, blue; sRGB from 0 to 255
Vector = Sequence[float]  # x, y and, where there is a height, z
Rings = Sequence[Vector] | Array  # (distance from the axis, height)
Rng = np.random.Generator


@dataclass(frozen=True)
class Paint:
    """A surface: its colour and its pattern of blocks."""

    colour: Colour
    course: float = 0.0  # height of a block in metres; 0: no blocks
    grain: float = 0.0  # how much the blocks differ in brightness
    joint: float = 0.0  # how much darker the lines between them are


GLASS, DARK = Paint((52, 58, 70)), Paint((46, 40, 38))

# Shapes of openings: quadrilaterals in the unit square, anticlockwise as seen from outside.
RECTANGLE = (((0, 0), (1, 0), (1, 1), (0, 1)),)
ARCHED = (
    ((0, 0), (1, 0), (1, 0.7), (0, 0.7)),
    ((0, 0.7), (1, 0.7), (0.87, 0.88), (0.13, 0.88)),
    ((0.13, 0.88), (0.87, 0.88), (0.5, 1), (0.5, 1)),
)
DISC = (((0.25, 0.07), (0.75, 0.07), (1, 0.5), (0, 0.5)), ((0, 0.5), (1, 0.5), (0.75, 0.93), (0.25, 0.93)))


@dataclass(frozen=True)
class Panes:
    """A grid of windows or other panels on walls of a prism. Those of a box are 0 right, 1 back, 2 left, 3 front."""

    paint: Paint
    columns: int = 1
    rows: int = 1
    wide: float = 0.4  # share of the width of a grid cell
    tall: float = 0.6  # share of its height
    shape: tuple = ARCHED
    walls: tuple[int, int] = (0, 1)  # the first wall with panes, and the step to the next
    lift: float = 0.09  # metres in front of the wall


@cache
def polygon(sides: int) -> Array:
    """Regular polygon around the unit circle at height 1, (sides, 3), anticlockwise; its second edge faces +x."""
    angles, outer = math.pi * (2 * np.arange(sides) - 1) / sides, math.cos(math.pi / sides)
    return np.stack([np.cos(angles) / outer, np.sin(angles) / outer, np.ones(sides)], -1)


def perimeter(xs: Array, ys: Array, z: float) -> list[Vector]:
    """The outermost points of the grid of `xs` and `ys`, at height z."""
    return [(x, y, z) for x in xs for y in (ys[0], ys[-1])] + [(x, y, z) for y in ys for x in (xs[0], xs[-1])]


def dome_rings(radius: float, height: float, bulge: float = 0.0) -> Array:
    """The rings of a dome; a positive bulge makes it an onion, a negative one a spire."""
    steps = np.linspace(0, 1, 9)
    widths = np.cos(steps * math.pi / 2) + bulge * np.sin(2 * math.pi * np.minimum(steps * 1.3, 1))
    return np.stack([radius * np.maximum(widths, 0.02), height * np.sin(steps * math.pi / 2)], -1)


@dataclass
class Mesh:
    """Painted quadrilaterals, and the ground that they need.

    Corners are (n, 4, 3), anticlockwise as seen from outside; a triangle repeats a corner.
    """

    quads: list[Array] = field(default_factory=list)
    paints: list[tuple[Paint, int]] = field(default_factory=list)  # with the number of quadrilaterals of each
    river: bool = False  # lies across a river and is seen from both banks; otherwise it has one front
    shore: float = math.inf  # metres from the axis to the sea behind it

    def add(self, paint: Paint, quads: ArrayLike) -> None:
        """Adds quadrilaterals of one paint."""
        self.quads.append(np.asarray(quads, float).reshape(-1, 4, 3))
        self.paints.append((paint, len(self.quads[-1])))

    @cached_property
    def points(self) -> Array:
        """All corners, (3, n)."""
        return np.concatenate(self.quads).reshape(-1, 3).T.copy()

    @cached_property
    def extent(self) -> tuple[float, float]:
        """The radius of the mesh about its axis and its height, in metres."""
        x, y, z = self.points
        return round(math.sqrt((x**2 + y**2).max()), 3), round(z.max(), 3)

    def moved(self, x: float, y: float, turn: float = 0.0, size: float = 1.0) -> "Mesh":
        """A copy turned about its own axis (radians), scaled and moved along the ground."""
        cos, sin = size * math.cos(turn), size * math.sin(turn)
        u, v, z = self.points
        quads = np.stack([cos * u - sin * v + x, sin * u + cos * v + y, z * size], -1)
        return Mesh([quads.reshape(-1, 4, 3)], self.paints)

    def lathe(self, paint: Paint, rings: Rings, sides: int, at: ArrayLike = 0, stretch: Vector = (1, 1)) -> None:
        """Adds a closed upright body, whose horizontal sections are regular polygons, at each position of `at`."""
        outline = np.array([(0, rings[0][1]), *rings, (0, rings[-1][1])]).take((0, 0, 1), 1)[:, None]
        points = (outline * (polygon(sides) * (*stretch[:2], 1))).reshape(-1, 3)
        point = np.arange(len(points) - sides)
        after = point - point % sides + (point + 1) % sides
        quads = points.take(np.stack([point, after, after + sides, point + sides], 1), 0)
        self.add(paint, quads + np.atleast_2d(at)[:, None, None])

    def prism(
        self, paint: Paint, at: Vector, size: Vector, panes: Panes | None = None, sides: int = 4, taper: float = 1
    ) -> None:
        """Adds a box or prism with panes; `size` is width, depth and height, and its top is `taper` times as wide."""
        self.lathe(paint, [(0.5, 0), (0.5 * taper, size[2])], sides, at, size)
        if panes is None:
            return
        corner = polygon(sides)[:, :2] * size[:2] / 2
        edge = np.roll(corner, -1, axis=0) - corner
        outward = edge[:, ::-1] * (1, -1) / np.sqrt(edge[:, :1] ** 2 + edge[:, 1:] ** 2)
        walls = (slice(panes.walls[0], None, panes.walls[1]), *[None] * 4)
        cells = np.moveaxis(np.indices((panes.columns, panes.rows)), 0, -1)[:, :, None, None]
        shares = (cells + 0.5 + (np.array(panes.shape) - 0.5) * (panes.wide, panes.tall)) / (panes.columns, panes.rows)
        along, up = shares[..., :1], shares[..., 1:]
        ground = (corner[walls] + edge[walls] * along) * (1 - (1 - taper) * up) + outward[walls] * panes.lift
        height = np.broadcast_to(size[2] * up, (*ground.shape[:-1], 1))
        self.add(panes.paint, np.concatenate([ground, height], -1) + at)

    def gable(self, roof: Paint, wall: Paint, at: Vector, size: Vector) -> None:
        """Adds a gable roof with its ridge along y."""
        corners = ((-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0), (0, -0.5, 1), (0, 0.5, 1))
        points = np.array(corners) * size + at
        self.add(roof, points[[(1, 2, 5, 4), (3, 0, 4, 5)]])
        self.add(wall, points[[(0, 1, 4, 4), (2, 3, 5, 5), (0, 3, 2, 1)]])

    def arcade(self, paint: Paint, arches: Sequence[Vector], size: Vector, rise: float = 1) -> None:
        """Adds a wall along x with `arches`: centre, half width, and the height where the curve starts."""
        half, depth, top = size
        angles, line = np.linspace(math.pi, 0, 13), [(-half, 0.0)]
        for centre, reach, spring in arches:
            bow = zip(centre + reach * np.cos(angles), spring + rise * reach * np.sin(angles), strict=True)
            line += [(centre - reach, 0.0), *bow, (centre + reach, 0.0)]
        line.append((half, 0.0))
        x, z = np.array([*line, (half, top), (-half, top), (-half, 0)]).T
        near, far = (np.stack([x, np.full_like(x, y), z], -1) for y in (-depth / 2, depth / 2))
        self.add(paint, np.stack([near[:-1], far[:-1], far[1:], near[1:]], 1))  # soffits, jambs, ends and top
        for edge in (near[: len(line)], far[len(line) - 1 :: -1]):
            crown = edge * (1, 1, 0) + (0, 0, top)
            self.add(paint, np.stack([edge[:-1], edge[1:], crown[1:], crown[:-1]], 1))

    def battlements(self, paint: Paint, at: Vector, size: Vector, merlon: float) -> None:
        """Adds merlons, `merlon` metres wide, around the top of a box."""
        half = [(s - merlon) / 2 for s in size[:2]]
        xs, ys = (np.linspace(-h, h, max(2, round(h / merlon) + 1)) for h in half)
        self.lathe(paint, [(merlon / 2, 0), (merlon / 2, 1.3 * merlon)], 4, np.array(perimeter(xs, ys, 0)) + at)

    def figure(self, paint: Paint, at: Vector, height: float) -> None:
        """Adds a draped figure with one arm raised."""
        robe = ((0.13, 0), (0.1, 0.35), (0.085, 0.55), (0.13, 0.76), (0.1, 0.81), (0.03, 0.84))
        head = ((0.02, 0.83), (0.055, 0.88), (0.055, 0.94), (0.02, 1.0))
        for rings in (robe, head):
            self.lathe(paint, np.array(rings) * height, 8, at, (1.0, 0.8))
        arm = (at[0] + 0.15 * height, at[1], at[2] + 0.72 * height)
        self.prism(paint, arm, (0.05 * height, 0.05 * height, 0.4 * height))


STONES = ["d6c7a8", "ba8c62", "9e5442", "e4e0d8", "949496", "deb278", "cc988a", "7a6e64", "e8d6b2", "b0aa8c"]
ROOFS = ["a85236", "545c6a", "6a9e8a", "cea442", "6e3e32", "42628e", "3e4042", "8e806e"]
BRIGHTS = ["b22e2a", "224884", "e2ded2", "282c32", "d4a83c", "2c6e5a"]


@dataclass
class Traits:
    """What tells the landmarks of a family apart: each of its six landmarks, the slots, has a sixth of every range."""

    rng: Rng  # starts in the same state for every slot of a family
    slot: int

    def span(self, low: float, high: float) -> float:
        """A number in the slot's own sixth of the range."""
        share = (self.rng.permutation(SLOTS)[self.slot] + self.rng.random()) / SLOTS
        return low + (0.5 + VARIETY * (share - 0.5)) * (high - low)

    def count(self, low: int, high: int) -> int:
        """A whole number in the range, both ends included."""
        return min(high, int(self.span(low, high + 1)))

    def side(self) -> int:
        """Left (-1) or right (1)."""
        return 2 * self.count(0, 1) - 1

    def colour(self, palette: Sequence[str]) -> Colour:
        """A tint of one of the colours; at full variety each slot takes another one, while they last."""
        order, tint = self.rng.permutation(len(palette)), self.rng.uniform(0.9, 1.06, 3)
        return tuple(list(bytes.fromhex(palette[order[int(VARIETY * self.slot) % len(palette)]])) * tint)

    def stone(self) -> Paint:
        """Masonry."""
        return Paint(self.colour(STONES), self.span(0.35, 1.1), self.span(0.1, 0.35), self.span(0.1, 0.35))

    def roof(self) -> Paint:
        """Tiles or metal sheet."""
        return Paint(self.colour(ROOFS), 0.5, 0.18, 0.25)

    def bright(self) -> Paint:
        """A coat of paint."""
        return Paint(self.colour(BRIGHTS), 1.5, 0.06, 0.04)


def tower(m: Mesh, t: Traits) -> None:
    """A clock tower or campanile beside a hall."""
    stone, trim, roof = t.stone(), t.stone(), t.roof()
    wide, height, sides, stages = t.span(7, 13), t.span(34, 62), (4, 4, 8)[t.count(0, 2)], t.count(2, 4)
    style, peak, columns, dial = t.count(0, 4), height * t.span(0.16, 0.5), t.count(1, 3), t.span(0.4, 0.6) * wide
    m.lathe(trim, [(0.58 * wide, 0), (0.58 * wide, 2.5), (0.5 * wide, 3.5)], sides)
    windows, belfry = Panes(DARK, columns, wide=0.3, tall=0.45), Panes(DARK, columns, wide=0.62, tall=0.7)
    for stage in range(stages):
        low, high = height * stage / stages, height * (stage + 1) / stages
        m.prism(stone, (0, 0, low), (wide, wide, high - low), belfry if stage == stages - 1 else windows, sides)
        m.lathe(trim, [(0.5 * wide, high - 1), (0.55 * wide, high - 0.6), (0.55 * wide, high)], sides)
    low, top = height * (1 - 1 / stages) - 1.5 - dial, (0, 0, height)
    face = Panes(Paint(t.colour(BRIGHTS[2:5])), 1, 1, dial / wide, 1, DISC, lift=0.2)
    m.prism(stone, (0, 0, low), (wide, wide, dial), face, sides)
    hand = Panes(DARK, 1, 1, 0.04, 1, RECTANGLE, lift=0.3)
    m.prism(stone, (0, 0, low + dial / 2), (wide, wide, dial * 0.4), hand, sides)
    if style == 0:
        m.battlements(trim, top, (1.1 * wide, 1.1 * wide), 0.14 * wide)
        m.lathe(roof, [(0.3 * wide, 0), (0.3 * wide, 0.3 * peak), (0.1, peak)], 8, top)
    elif style == 1:
        m.lathe(roof, [(0.58 * wide, 0), (0.1, peak)], sides, top)
    elif style == 2:
        m.prism(stone, top, (0.7 * wide, 0.7 * wide, 0.4 * peak), Panes(DARK, wide=0.6, tall=0.8), 8)
        m.lathe(roof, dome_rings(0.4 * wide, 0.6 * peak), 12, (0, 0, height + 0.4 * peak))
    elif style == 3:
        m.lathe(roof, dome_rings(0.5 * wide, 0.7 * peak, 0.25), 12, top)
        m.lathe(trim, [(0.3, 0.6 * peak), (0.15, peak)], 6, top)
    else:
        m.lathe(roof, [(0.55 * wide, 0), (0.27 * wide, 0.3 * peak), (0.1, peak)], 8, top)
        corners = [(x, y, height) for x in (-0.43 * wide, 0.43 * wide) for y in (-0.43 * wide, 0.43 * wide)]
        m.lathe(trim, [(0.08 * wide, 0), (0.08 * wide, peak * 0.25), (0.05, peak * 0.5)], 6, corners)
    long, tall = t.span(12, 30), t.span(7, 16)
    at = t.side() * (wide + long) / 2, 0.2 * wide, 0
    m.prism(stone, at, (long, wide, tall), Panes(GLASS, round(long / 4), t.count(1, 3)))
    m.lathe(t.roof(), [(0.54, tall), (0.2, tall + t.span(2, 6))], 4, at, (long, wide))


def dome(m: Mesh, t: Traits) -> None:
    """A domed basilica with a portico and, at one side, a bell tower."""
    stone, trim, roof = t.stone(), t.stone(), t.roof()
    wide, deep, tall, rise, bulge = t.span(24, 44), t.span(24, 40), t.span(10, 17), t.span(4, 11), t.span(-0.06, 0.16)
    drum, base = t.span(0.52, 0.84) * min(wide, deep), tall + rise
    m.prism(stone, (0, 0, 0), (wide, deep, tall), Panes(GLASS, t.count(4, 8), t.count(1, 2), tall=0.7))
    m.prism(trim, (0, 0, tall), (wide + 1.4, deep + 1.4, 1.0))
    m.prism(stone, (0, 0, tall), (drum, drum, rise), Panes(DARK, wide=0.5, tall=0.65), 16)
    m.lathe(trim, [(drum * 0.53, base), (drum * 0.53, base + 0.8)], 16)
    peak = base + 0.8 + drum * t.span(0.4, 0.75)
    m.lathe(roof, dome_rings(0.5 * drum, peak - base, bulge), 24, (0, 0, base))
    m.lathe(trim, [(drum * 0.08, peak - 0.5), (drum * 0.08, peak + drum * 0.2)], 8)
    m.lathe(roof, [(drum * 0.1, peak + drum * 0.2), (0.1, peak + drum * 0.45)], 8)
    turrets, reach, small = t.count(0, 2), t.span(0.33, 0.42), t.span(0.3, 0.5) * drum
    for x, y in ((-1, -1), (1, -1), (-1, 1), (1, 1))[: 2 * turrets]:
        at = x * wide * reach, y * deep * reach, tall
        m.prism(stone, at, (small, small, rise * 0.8), None, 8)
        m.lathe(roof, dome_rings(0.55 * small, 0.65 * small, bulge), 12, (*at[:2], base - rise * 0.2))
    porch, columns, high, front = t.span(0.35, 0.7) * wide, t.count(2, 4) * 2, tall * t.span(0.65, 0.95), -deep / 2 - 3
    m.prism(trim, (0, front, 0), (porch + 2, 8, 0.8))
    positions = [(x, front - 2, 0.8) for x in np.linspace(-0.5, 0.5, columns) * (porch - 2)]
    m.lathe(trim, [(0.75, 0), (0.6, high - 0.8)], 8, positions)
    m.prism(trim, (0, front, high), (porch, 6, 1.2))
    m.gable(roof, stone, (0, front + 0.2, high + 1.2), (porch + 0.6, 6.6, porch * t.span(0.12, 0.24)))
    bell, thick = t.span(0.9, 1.5) * (base + 2), t.span(4.8, 7.2)
    at = t.side() * (wide + thick) / 2, deep * t.span(-0.4, 0.4), 0
    m.prism(stone, at, (thick, thick, bell), Panes(DARK, 1, 5, 0.3, 0.5))
    m.lathe(trim, [(thick * 0.56, bell), (thick * 0.56, bell + 0.8)], 4, at)
    m.lathe(t.roof(), [(thick * 0.55, bell + 0.8), (0.1, bell + thick * t.span(0.8, 2))], 4, at)


def arch(m: Mesh, t: Traits) -> None:
    """A triumphal arch or city gate with a lodge at one side."""
    stone, trim, accent = t.stone(), t.stone(), t.bright()
    wide, top, deep, triple = t.span(20, 36), t.span(14, 26), t.span(6, 11), t.count(0, 2) > 0
    middle, spring = t.span(0.13, 0.2) * wide * (0.75 if triple else 1.0), top * t.span(0.42, 0.56)
    small, off = middle * t.span(0.5, 0.65), wide * 0.335
    arches = [(-off, small, spring * 0.72), (0, middle, spring), (off, small, spring * 0.72)]
    m.arcade(stone, arches if triple else arches[1:2], (wide / 2, deep, top))
    m.prism(trim, (0, 0, top), (wide + 1.6, deep + 1.6, 1.0))
    attic, inset = t.span(2.5, 6), t.span(0.75, 1.0) * wide
    m.prism(stone, (0, 0, top + 1), (inset, deep * 0.9, attic), Panes(accent, t.count(1, 5), 1, 0.75, 0.5, RECTANGLE))
    xs = [wide / 2 - 0.9, middle + 1.1][: t.count(1, 2)]
    positions = [(s * x, y, 0) for x in xs for s in (-1, 1) for y in (-deep / 2 - 0.9, deep / 2 + 0.9)]
    m.lathe(trim, [(0.8, 0), (0.8, 2), (0.55, 2), (0.5, top - 1), (0.8, top)], 8, positions)
    crown, top = t.count(0, 3), top + 1 + attic
    if crown == 0:
        m.battlements(trim, (0, 0, top), (inset, deep * 0.9), 1.2)
    elif crown == 1:
        m.gable(t.roof(), trim, (0, 0, top), (inset, deep, wide * 0.16))
    elif crown == 2:
        for x in np.linspace(-0.4, 0.4, 4) * inset:
            m.figure(accent, (x, -deep * 0.3, top), top * 0.2)
    else:
        m.prism(trim, (0, 0, top), (5, deep * 0.7, 1.5))
        m.figure(accent, (0, 0, top + 1.5), top * 0.35)
    long, tall = t.span(6, 14), spring * t.span(0.7, 1.3)
    at = t.side() * (wide + long) / 2, 0, 0
    m.prism(stone, at, (long, deep * 0.8, tall), Panes(GLASS, t.count(2, 4), 2, 0.4, 0.5, RECTANGLE))
    m.lathe(t.roof(), [(0.54, tall), (0.15, tall + 3)], 4, at, (long, deep * 0.8))


def temple(m: Mesh, t: Traits) -> None:
    """A colonnaded temple, sometimes in ruins at one end."""
    stone, cella, roof = t.stone(), t.stone(), t.roof()
    wide, deep, high, steps, state = t.span(16, 27), t.span(22, 44), t.span(8, 14), t.count(2, 6), t.count(0, 2)
    across, along, floor = t.count(2, 4) * 2, t.count(6, 11), steps * 0.6
    for step in range(steps):
        m.prism(stone, (0, 0, step * 0.6), (wide + 2 * (steps - step), deep + 2 * (steps - step), 0.6))
    thick, slim = t.span(0.3, 0.42) * wide / across, t.span(0.7, 0.95)
    xs, ys = np.linspace(-0.5, 0.5, across) * (wide - 2), np.linspace(-0.5, 0.5, along) * (deep - 2)
    positions = perimeter(xs, ys, floor)
    ruined, whole = state == 2, 0.55 if state == 2 else 1.0
    standing = [(x, y, z) for x, y, z in positions if not (ruined and x > 0 and y > 0.1 * deep)]
    column = [(thick, 0), (thick * slim, high - 1), (thick * 1.3, high - 0.5), (thick * 1.3, high)]
    m.lathe(stone, column, 10, standing)
    m.lathe(stone, [(thick, 0), (thick * 0.95, high * 0.3)], 10, positions)
    m.prism(cella, (0, 0, floor), (wide * 0.6, deep * 0.66, high), Panes(DARK, 1, 1, 0.3, 0.8, RECTANGLE, (1, 2)))
    y, top, long = -(1 - whole) * deep / 2, floor + high, deep * whole
    for paint, grow, rise in ((stone, 0, 0.9), (t.bright(), -0.3, t.span(0.5, 1.3)), (stone, 1, 0.5)):
        m.prism(paint, (0, y, top), (wide + grow, long + grow, rise))
        top += rise
    if state == 1:
        m.prism(cella, (0, deep * 0.2, top), (wide * 0.6, deep * 0.3, t.span(2, 5)))
    else:
        pitch = t.span(0.12, 0.26) * wide
        m.gable(roof, stone, (0, y, top), (wide + 1, long + 1, pitch))
        m.figure(t.bright(), (0, -deep / 2 + 0.5, top - 0.2 + pitch), t.span(2, 4))
    x, y, block = t.side() * (wide / 2 + steps + 3), -deep * 0.4, t.span(2, 5)
    m.prism(cella, (x, y, 0), (3, 3, block))
    m.figure(t.bright(), (x, y, block), t.span(3, 6))


def pyramid(m: Mesh, t: Traits) -> None:
    """A stepped pyramid with stairs, a shrine on top and another at its foot."""
    stone, trim, stairs = t.stone(), t.stone(), t.stone()
    base, height, tiers, squash = t.span(44, 68), t.span(18, 36), t.count(3, 9), t.span(0.75, 1.25)
    peak, slope, flight, flights = t.span(0.2, 0.42) * base, t.span(0, 0.5), t.span(0.1, 0.24) * base, t.count(1, 3)
    rise, run = height / tiers, (base - peak) / tiers
    for tier in range(tiers):
        wide, low = base - run * tier, rise * tier
        shelf = wide - slope * run
        m.prism(stone, (0, 0, low), (wide, wide * squash, rise), taper=shelf / wide)
        m.prism(trim, (0, 0, low + 0.75 * rise), (shelf + 0.5, shelf * squash + 0.5, 0.25 * rise))
    for step in range(5 * tiers):
        share = step / (5 * tiers)
        reach, high = base / 2 + 2.5 - (base / 2 - peak / 2 + 2) * share, height * share + rise / 5
        if flights < 3:
            m.prism(stairs, (0, -squash * reach / 2, 0), (flight, squash * reach, high))
        if flights > 1:
            m.prism(stairs, (reach / 2, 0, 0), (reach, flight, high))
    wide, high = peak * t.span(0.5, 0.8), t.span(4, 9)
    m.prism(trim, (0, 0, height), (wide, wide * squash, high), Panes(DARK, t.count(1, 3), 1, 0.4, 0.8, RECTANGLE))
    crest = [(wide * 0.53, high), (wide * t.span(0.05, 0.45), high * t.span(1.4, 2.2))]
    m.lathe(t.bright(), crest, 4, (0, 0, height), (1, squash))
    for side in (-1, 1):
        m.prism(trim, (side * (flight / 2 + 1), -squash * (base / 2 + 1.5), 0), (2.2, 3, t.span(2, 6)))
    small, tall = t.span(6, 12), t.span(4, 10)
    at = t.side() * base * 0.4, -squash * base / 2 - small / 2 - 2, 0
    m.prism(stone, at, (small, small, tall), Panes(DARK, 1, 1, 0.3, 0.6, RECTANGLE), taper=0.8)
    m.lathe(t.roof(), [(small / 2, tall), (0.2, tall + t.span(1, 5))], 4, at)


def bridge(m: Mesh, t: Traits) -> None:
    """A bridge along x, of stone arches with gate towers or hung from pylons."""
    m.river = True
    stone, trim, accent = t.stone(), t.stone(), t.bright()
    half, deck, deep, hung, arches = t.span(32, 50), t.span(8, 13), t.span(7, 11), t.count(0, 2) == 2, t.count(3, 7)
    tower, thick, sides = t.span(14, 30), t.span(3, 5), (-deep / 2, deep / 2)
    if hung:
        for x in (-half / 2, half / 2):
            m.lathe(accent, [(0.5, 0), (0.5, deck + tower)], 4, [(x, y, 0) for y in sides], (thick, thick / 2))
            for share in (0.35, 0.7, 0.97):
                m.prism(accent, (x, 0, deck + tower * share), (thick / 2, deep, tower * 0.06))
            for reach in np.linspace(0.1, 0.5, 6) * half:
                for end, y in itertools.product((x + reach, x - reach), sides):
                    high, low = (x, y, deck + tower), (end, y, deck)
                    cable = np.array([high, low, low, high]) + np.outer((-0.15, -0.15, 0.15, 0.15), (1, 0, 0))
                    m.add(accent, [cable, cable[::-1]])  # seen from both sides
        m.prism(stone, (0, 0, deck - 1.5), (2 * half, deep, 1.5))
    else:
        gate, pitch = (thick * 1.3, deep + 2, tower * 0.6), 2 * half / arches
        for x in (-half, half)[: t.count(1, 2)]:
            m.prism(trim, (x, 0, 0), (*gate[:2], deck))
            m.prism(trim, (x, 0, deck), gate, Panes(DARK, 2, 2))
            m.lathe(t.roof(), [(0.55, 0), (0.02, tower * 0.45)], 4, (x, 0, deck + gate[2]), gate)
        spans = [(pitch * (i + 0.5) - half, pitch * 0.41, deck * 0.25) for i in range(arches)]
        m.arcade(stone, spans, (half, deep, deck), rise=min(1.0, deck * 0.62 / (pitch * 0.41)))
        piers = [(pitch * i - half, 0, 0) for i in range(1, arches)]
        m.lathe(trim, [(1, 0), (1, deck * 0.7), (0.3, deck * 0.95)], 6, piers, (pitch * 0.08, deep * 0.62))
    m.lathe(trim, [(0.5, 0), (0.5, 1.2)], 4, [(0, y, deck) for y in sides], (2 * half, 0.6))
    lamps = [(x, y, deck) for x in np.linspace(-half, half, 2 * t.count(6, 12)) for y in sides]
    m.lathe(accent, [(0.25, 0), (0.25, 3.2)], 4, lamps)
    x, y = t.span(-0.3, 0.3) * half, -deep / 2 - 0.5
    m.prism(trim, (x, y, 0), (4, 4, deck + 2))
    m.figure(accent, (x, y, deck + 2), t.span(4, 8))
    m.lathe(stone, [(0.5, 0), (0.5, deck)], 4, [(-half - 6, 0, 0), (half + 6, 0, 0)], (14, deep + 5))


def monument(m: Mesh, t: Traits) -> None:
    """An obelisk, a column or a colossal statue on a pedestal."""
    stone, trim, accent = t.stone(), t.stone(), t.bright()
    style, steps, plinth, sides = t.count(0, 2), t.count(2, 5), t.span(10, 20), (4, 8)[t.count(0, 1)]
    for step in range(steps):
        wide = plinth - step * 1.6
        m.prism(stone, (0, 0, step * 0.6), (wide, wide, 0.6), None, 8 if style else 4)
    wide, block, low = plinth * t.span(0.36, 0.5), t.span(3, 9), steps * 0.6
    m.lathe(trim, [(0.6 * wide, low), (0.6 * wide, low + 0.8)], sides)
    m.prism(trim, (0, 0, low + 0.8), (wide, wide, block), Panes(accent, 1, 1, 0.6, 0.6, RECTANGLE), sides)
    m.lathe(trim, [(0.5 * wide, low + block), (0.62 * wide, low + block + 0.5), (0.62 * wide, low + block + 1)], sides)
    top, tall, thick = low + block + 1, t.span(12, 28), wide * t.span(0.2, 0.32)
    if style == 0:
        m.lathe(stone, [(thick, 0), (thick * 0.65, tall), (0.05, tall * 1.1)], 4, (0, 0, top))
        for share in np.linspace(0, 0.9, t.count(2, 5))[1:]:
            width = 2 * thick * (1.02 - 0.35 * share)
            m.prism(accent, (0, 0, top + tall * share), (width, width, 0.9))
    elif style == 1:
        shaft = np.array([(1.2, 0), (1, 1), (0.85, tall), (1.5, tall + 1), (1.5, tall + 1.6)])
        m.lathe(stone, shaft * (thick, 1), 16, (0, 0, top))
        m.figure(accent, (0, 0, top + tall + 1.6), t.span(4, 8))
    else:
        m.figure(accent, (0, 0, top), tall * 0.85)
    x, y = t.side() * plinth * t.span(0.45, 0.65), -plinth * 0.15
    m.prism(trim, (x, y, 0), (3, 3, 2.4))
    m.figure(t.bright(), (x, y, 2.4), t.span(3, 5))
    posts, ring = t.count(4, 9) * 2, plinth / 2 + t.span(1.5, 4)
    m.lathe(accent, [(0.3, 0), (0.25, 1.4), (0.4, 1.7)], 6, polygon(posts) * (ring, ring, 0))


def castle(m: Mesh, t: Traits) -> None:
    """A castle: a curtain wall with unlike corner towers around a keep."""
    stone, trim, roof = t.stone(), t.stone(), t.roof()
    wide, deep, wall, merlon = t.span(36, 58), t.span(30, 46), t.span(7, 13), t.span(0.9, 1.6)
    m.prism(stone, (0, 0, 0), (wide, deep, wall), Panes(DARK, t.count(5, 11), 1, 0.12, 0.25, RECTANGLE))
    m.battlements(stone, (0, 0, wall), (wide, deep), merlon)
    keep = t.span(14, 24), t.span(12, 20), t.span(10, 20)
    x, y = wide * t.span(-0.25, 0.25), deep * t.span(-0.1, 0.25)
    m.prism(trim, (x, y, wall), keep, Panes(GLASS, t.count(2, 4), t.count(2, 4), 0.3, 0.5))
    if t.count(0, 1):
        m.gable(roof, trim, (x, y, wall + keep[2]), (keep[0] + 1, keep[1] + 1, keep[0] * t.span(0.35, 0.7)))
    else:
        m.battlements(trim, (x, y, wall + keep[2]), keep, merlon * 1.2)
    sides, cones = (16, 4, 16)[t.count(0, 2)], t.count(0, 4)
    slits = Panes(DARK, 1, 3, 0.25, 0.3, walls=(0, sides // 4))
    for corner, (x, y) in enumerate(((-1, -1), (1, -1), (1, 1), (-1, 1))):
        thick, tall, at = t.span(6, 11), wall + t.span(2, 14), (x * wide / 2, y * deep / 2, 0)
        m.prism(stone, at, (thick, thick, tall), slits, sides)
        m.lathe(stone, [(0.5 * thick, tall), (0.58 * thick, tall + 1), (0.58 * thick, tall + 2)], sides, at)
        if corner < cones:
            m.lathe(roof, [(0.65 * thick, tall + 2), (0.1, tall + 2 + thick * t.span(0.7, 1.5))], sides, at)
        else:
            m.battlements(stone, (*at[:2], tall + 2), (thick, thick), merlon)
    gate, x, y = (t.span(10, 16), 5, wall * 1.35), t.span(-0.2, 0.2) * wide, -deep / 2 - 1
    m.prism(trim, (x, y, 0), gate, Panes(DARK, 1, 1, 0.4, 1.25, walls=(3, 4)))
    m.battlements(trim, (x, y, gate[2]), gate, merlon)
    m.prism(trim, (x, y, wall / 2), (*gate[:2], wall * 0.7), Panes(t.bright(), 2, 1, 0.18, 1, RECTANGLE, lift=0.2))


def pagoda(m: Mesh, t: Traits) -> None:
    """A pagoda with flared roofs and a hall at one side."""
    stone, walls, roof, posts = t.stone(), t.bright(), t.roof(), t.bright()
    tiers, sides, wide, storey = t.count(3, 7), (4, 4, 8, 6)[t.count(0, 3)], t.span(11, 20), t.span(4, 6.5)
    shrink, eaves, flare, low = t.span(0.5, 0.85), t.span(0.66, 0.88), t.span(0.5, 1.6), t.span(1, 4)
    columns = t.count(1, 4)
    doors = Panes(DARK, columns, 1, 0.55, 0.6, RECTANGLE)
    beams = Panes(posts, columns + 1, 1, 0.12, 1, RECTANGLE, lift=0.15)
    m.prism(stone, (0, 0, 0), (wide * 1.7, wide * 1.7, low), None, sides, 0.95)
    m.prism(stone, (0, -wide * 0.85, 0), (wide * 0.35, 5, low * 0.5))
    for tier in range(tiers):
        width, tall = wide * (1 - (1 - shrink) * tier / (tiers - 1)), storey * (1 - 0.25 * tier / tiers)
        for panes in (doors, beams):
            m.prism(walls, (0, 0, low), (width, width, tall), panes, sides)
        edge = width * eaves
        rings = [(0.45 * width, 0.4), (edge, 0), (edge, 0.4), (0.58 * width, flare), (0.42 * width, 1.5 + flare)]
        m.lathe(roof, rings, sides, (0, 0, low + tall - 0.4))
        low += tall + 0.8 + flare
    spire = t.span(4, 12)
    m.lathe(roof, [(0.5 * width, low), (0.2 * width, low + 1.4), (0.2, low + 3)], sides)
    rings = [(r, low + 2 + spire * z / 5) for z in range(5) for r in (0.25, 0.55)]
    m.lathe(t.bright(), [*rings, (0.05, low + 2 + spire)], 8)
    hall, tall = t.span(8, 14), t.span(3.5, 6)
    at = t.side() * (wide * 0.85 + hall * 0.6), wide * t.span(-0.25, 0.25), 0
    m.prism(walls, at, (hall, 9, tall), Panes(posts, 4, 1, 0.15, 1, RECTANGLE))
    m.lathe(t.roof(), [(0.67, tall), (0.5, tall + 1), (0.2, tall + 3.5)], 4, at, (hall, 9))


def lighthouse(m: Mesh, t: Traits) -> None:
    """A banded lighthouse with its keeper's house, by the sea."""
    m.shore = 22
    coat, bands, roof, stone = t.bright(), t.bright(), t.roof(), t.stone()
    foot, height, taper, sides = t.span(7, 13), t.span(22, 44), t.span(0.5, 0.8), (24, 8, 24, 4)[t.count(0, 3)]
    stripes, share = t.count(2, 7), t.span(0.3, 0.6)
    m.lathe(stone, [(foot * 0.9, 0), (foot * 0.8, t.span(0.8, 3))], sides)
    ports = Panes(DARK, 1, t.count(3, 6), 0.9 if sides > 8 else 0.25, 0.25, walls=(0, sides // 4), lift=0.2)
    m.prism(coat, (0, 0, 0), (foot, foot, height), ports, sides, taper)
    for low in np.arange(stripes) * height / stripes + 1.5:
        ends = [(low, 0.06), (low + height * share / stripes, 0.06)]
        m.lathe(bands, [(0.5 * foot * (1 - (1 - taper) * z / height) + out, z) for z, out in ends], sides)
    top, lamp = foot * taper / 2, foot * taper * t.span(0.5, 0.75)
    m.lathe(stone, [(top, height - 0.5), (top * 1.45, height + 0.4), (top * 1.45, height + 0.8)], sides)
    m.lathe(DARK, [(0.1, 0), (0.1, 2.4)], 4, polygon(16) * (1.35 * top, 1.35 * top, height))
    m.prism(Paint((246, 232, 170)), (0, 0, height), (lamp, lamp, 4.4), Panes(DARK, 1, 1, 0.15, 1, RECTANGLE), 8)
    m.lathe(roof, dome_rings(lamp * 0.65, t.span(1.5, 4), 0.05), 12, (0, 0, height + 4.4))
    size, house = (t.span(9, 16), t.span(7, 10), t.span(3.5, 7)), t.stone()
    x, y = t.side() * (foot * 0.75 + size[0] / 2), t.span(-3, 3)
    m.prism(house, (x, y, 0), size, Panes(GLASS, t.count(3, 5), t.count(1, 2), 0.35, 0.5, RECTANGLE))
    m.gable(t.roof(), house, (x, y, size[2]), (size[0] + 1, size[1] + 1, t.span(2.5, 5)))
    m.prism(stone, (x + size[0] * 0.25, y + 1, size[2]), (1.2, 1.2, 5))


FAMILIES = {f.__name__: f for f in (tower, dome, arch, temple, pyramid, bridge, monument, castle, pagoda, lighthouse)}


def build(family: str, rng: Rng, slot: int) -> Mesh:
    """The landmark in this slot of the family."""
    mesh = Mesh()
    FAMILIES[family](mesh, Traits(rng, slot))
    return mesh
