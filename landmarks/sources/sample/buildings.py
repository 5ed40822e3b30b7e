"""The buildings of the sample: meshes of flat quadrilaterals, and ten families of landmarks made of them.

Lengths are metres; x points right, y away and z up, and a landmark's front looks towards -y. A family builds a landmark
of traits that stay the same in all its pictures; its landmarks share out the range of each trait among themselves.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

VARIETY = 1.0  # how far apart the landmarks of a family are: 1 is all of each trait's range, 0 makes them all alike

Array = np.ndarray
Colour = tuple[float, ...]  # red, green, blue; sRGB from 0 to 255
Point = tuple[float, float, float]
Size = Sequence[float]  # metres or shares along x, y and, where there is a height, z
Profile = Sequence[tuple[float, float]] | Array  # distances of the sides from the axis, and heights


# --- Shapes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paint:
    """A surface: its colour and the pattern of blocks (`course` metres high, 0 for none) that it is made of."""

    colour: Colour
    course: float = 0.0
    grain: float = 0.0  # how much the blocks differ in brightness
    joint: float = 0.0  # how much darker the lines between them are


GLASS, DARK = Paint((52, 58, 70)), Paint((46, 40, 38))

# Openings in the unit square of a wall, as quadrilaterals, anticlockwise as seen from outside.
RECTANGLE = (((0, 0), (1, 0), (1, 1), (0, 1)),)
ARCHED = (
    ((0, 0), (1, 0), (1, 0.7), (0, 0.7)),
    ((0, 0.7), (1, 0.7), (0.87, 0.88), (0.13, 0.88)),
    ((0.13, 0.88), (0.87, 0.88), (0.5, 1), (0.5, 1)),
)
DISC = (((0.25, 0.07), (0.75, 0.07), (1, 0.5), (0, 0.5)), ((0, 0.5), (1, 0.5), (0.75, 0.93), (0.25, 0.93)))


@dataclass(frozen=True)
class Panes:
    """A grid of windows or other panels on each of a storey's walls (0 to 3 of a box: right, back, left, front)."""

    paint: Paint
    columns: int = 1
    rows: int = 1
    wide: float = 0.4  # share of the width of a cell of the grid
    tall: float = 0.6  # share of its height
    shape: tuple = ARCHED
    walls: tuple[int, int] = (0, 1)  # the first wall with panes, and from there every how many-th
    lift: float = 0.09  # metres in front of the wall


def _section(sides: int) -> tuple[Array, Array]:
    """The corners of a regular polygon around the unit circle, anticlockwise from the one before the side facing +x."""
    angles = math.pi * (2 * np.arange(sides) - 1) / sides
    return np.cos(angles) / math.cos(math.pi / sides), np.sin(angles) / math.cos(math.pi / sides)


def _dome(radius: float, height: float, bulge: float = 0.0) -> list[tuple[float, float]]:
    """The profile of a dome; a bulge makes it an onion, a negative one a spire."""
    steps = np.linspace(0, 1, 9)
    widths = np.cos(steps * math.pi / 2) + bulge * np.sin(2 * math.pi * np.minimum(steps * 1.3, 1))
    return list(zip(radius * np.maximum(widths, 0.02), height * np.sin(steps * math.pi / 2), strict=True))


@dataclass
class Mesh:
    """Painted quadrilaterals, (n, 4, 3) corners, anticlockwise as seen from outside; a triangle repeats a corner."""

    parts: list[tuple[Array, Paint]] = field(default_factory=list)

    def corners(self) -> Array:
        """All corners, (n, 3)."""
        return np.concatenate([quads.reshape(-1, 3) for quads, _ in self.parts])

    def extent(self) -> tuple[float, float]:
        """The radius of the mesh about its axis and its height, in metres."""
        corners = self.corners()
        return round(math.sqrt((corners[:, 0] ** 2 + corners[:, 1] ** 2).max()), 3), round(corners[:, 2].max(), 3)

    def moved(self, x: float, y: float, turn: float = 0.0, size: float = 1.0) -> "Mesh":
        """A copy turned about its own axis (radians), scaled and moved along the ground."""
        cos, sin = size * math.cos(turn), size * math.sin(turn)
        copies = []
        for quads, paint in self.parts:
            copy = quads * size
            copy[..., 0] = cos * quads[..., 0] - sin * quads[..., 1] + x
            copy[..., 1] = sin * quads[..., 0] + cos * quads[..., 1] + y
            copies.append((copy, paint))
        return Mesh(copies)

    def turned(self, paint: Paint, profile: Profile, sides: int, at: Point = (0, 0, 0), stretch: Size = (1, 1)) -> None:
        """Add a closed upright body with polygonal sections, turned about the axis through `at`."""
        rings = np.array(profile, float)
        rings = np.concatenate([rings[:1] * (0, 1), rings, rings[-1:] * (0, 1)])
        x, y = (np.outer(rings[:, 0], c * s) + a for c, s, a in zip(_section(sides), stretch, at, strict=False))
        ring = np.stack([x, y, np.broadcast_to(rings[:, 1:] + at[2], x.shape)], -1)
        after = np.roll(ring, -1, axis=1)
        quads = np.stack([ring[:-1], after[:-1], after[1:], ring[1:]], 2).reshape(-1, 4, 3)
        self.parts.append((quads, paint))

    def many(
        self, paint: Paint, positions: Sequence[Point], profile: Profile, sides: int, stretch: Size = (1, 1)
    ) -> None:
        """Add equal turned bodies, such as columns, at many positions."""
        one = Mesh()
        one.turned(paint, profile, sides, stretch=stretch)
        self.parts.append(((one.parts[0][0] + np.array(positions)[:, None, None]).reshape(-1, 4, 3), paint))

    def storey(
        self, paint: Paint, at: Point, size: Size, panes: Panes | None = None, sides: int = 4, taper: float = 1
    ) -> None:
        """Add a box or prism of this width, depth and height on `at`, with windows; its top is `taper` as wide."""
        self.turned(paint, [(0.5, 0), (0.5 * taper, size[2])], sides, at, size)
        if panes is None:
            return
        shape, (first, every) = np.array(panes.shape, float), panes.walls
        corner = np.stack(_section(sides), -1) * size[:2] / 2
        edge = np.roll(corner, -1, axis=0) - corner
        outward = np.stack([edge[:, 1], -edge[:, 0]], -1) / np.sqrt(edge[:, :1] ** 2 + edge[:, 1:] ** 2)
        corner, edge, outward = (a[first::every, None, None, None, None] for a in (corner, edge, outward))
        column, row = np.arange(panes.columns)[:, None, None, None], np.arange(panes.rows)[:, None, None]
        s = (column + 0.5 + (shape[..., 0] - 0.5) * panes.wide) / panes.columns
        t = (row + 0.5 + (shape[..., 1] - 0.5) * panes.tall) / panes.rows
        s, t = (a[..., None] for a in np.broadcast_arrays(s, t))
        ground = (corner + edge * s) * (1 - (1 - taper) * t) + outward * panes.lift
        quads = np.concatenate([ground + at[:2], np.broadcast_to(at[2] + size[2] * t, (*ground.shape[:-1], 1))], -1)
        self.parts.append((quads.reshape(-1, 4, 3), panes.paint))

    def gable(self, roof: Paint, wall: Paint, at: Point, size: Size) -> None:
        """Add a gable roof with its ridge along y."""
        (x, y, z), (w, d, h) = at, (size[0] / 2, size[1] / 2, size[2])
        a, b, c, e = (x - w, y - d, z), (x + w, y - d, z), (x + w, y + d, z), (x - w, y + d, z)
        front, back = (x, y - d, z + h), (x, y + d, z + h)
        self.parts.append((np.array([(b, c, back, front), (e, a, front, back)], float), roof))
        self.parts.append((np.array([(a, b, front, front), (c, e, back, back), (a, e, c, b)], float), wall))

    def arcade(
        self, paint: Paint, arches: Sequence[Point], half: float, top: float, depth: float, rise: float = 1
    ) -> None:
        """Add a wall from -half to half along x pierced by arches: centre, half width, height of the springing."""
        line = [(-half, 0.0)]
        for centre, reach, spring in arches:
            angles = np.linspace(math.pi, 0, 13)
            bow = zip(centre + reach * np.cos(angles), spring + rise * reach * np.sin(angles), strict=True)
            line += [(centre - reach, 0.0), *bow, (centre + reach, 0.0)]
        line.append((half, 0.0))
        x, z = np.array([*line, (half, top), (-half, top), (-half, 0)]).T
        near, far = (np.stack([x, np.full_like(x, y), z], -1) for y in (-depth / 2, depth / 2))
        self.parts.append((np.stack([near[:-1], far[:-1], far[1:], near[1:]], 1), paint))  # soffits, jambs, ends, top
        for edge in (near[: len(line)], far[len(line) - 1 :: -1]):
            crown = edge * (1, 1, 0) + (0, 0, top)
            self.parts.append((np.stack([edge[:-1], edge[1:], crown[1:], crown[:-1]], 1), paint))

    def battlements(self, paint: Paint, at: Point, size: Size, merlon: float) -> None:
        """Add merlons, `merlon` metres wide, around the top of a box."""
        half = [(s - merlon) / 2 for s in size[:2]]
        xs, ys = (np.linspace(-h, h, max(2, round(h / merlon) + 1)) for h in half)
        positions = [(x, y, 0) for x in xs for y in (-half[1], half[1])]
        positions += [(x, y, 0) for y in ys for x in (-half[0], half[0])]
        self.many(paint, np.array(positions) + at, [(merlon / 2, 0), (merlon / 2, 1.3 * merlon)], 4)

    def cable(self, paint: Paint, start: tuple[float, float], end: tuple[float, float], aside: float) -> None:
        """Add two cables between points (x, z), one on each side of the plane of x and z."""
        (x0, z0), (x1, z1) = start, end
        strip = np.array([(x0 - 0.15, z0), (x1 - 0.15, z1), (x1 + 0.15, z1), (x0 + 0.15, z0)])
        for y in (-aside, aside):
            front = np.stack([strip[:, 0], np.full(4, y), strip[:, 1]], -1)
            self.parts.append((np.stack([front, front[::-1]]), paint))  # seen from both sides

    def figure(self, paint: Paint, at: Point, height: float) -> None:
        """Add a draped figure with one arm raised."""
        robe = ((0.13, 0), (0.1, 0.35), (0.085, 0.55), (0.13, 0.76), (0.1, 0.81), (0.03, 0.84))
        head = ((0.02, 0.83), (0.055, 0.88), (0.055, 0.94), (0.02, 1.0))
        for profile in (robe, head):
            self.turned(paint, [(r * height, z * height) for r, z in profile], 8, at, (1.0, 0.8))
        arm = (at[0] + 0.15 * height, at[1], at[2] + 0.72 * height)
        self.storey(paint, arm, (0.05 * height, 0.05 * height, 0.4 * height))


# --- Families of landmarks -----------------------------------------------------------------------------------------


def _palette(colours: str) -> list[Colour]:
    return [tuple(bytes.fromhex(colour)) for colour in colours.split()]


STONES = _palette("d6c7a8 ba8c62 9e5442 e4e0d8 949496 deb278 cc988a 7a6e64 e8d6b2 b0aa8c")
ROOFS = _palette("a85236 545c6a 6a9e8a cea442 6e3e32 42628e 3e4042 8e806e")
BRIGHTS = _palette("b22e2a 224884 e2ded2 282c32 d4a83c 2c6e5a")


@dataclass
class Traits:
    """What tells the buildings of a family apart: draws whose ranges its six `slots` share out among themselves."""

    rng: np.random.Generator  # all slots of a family start it from the same state
    slot: int
    slots: int = 6

    def span(self, low: float, high: float) -> float:
        """A number in the range, in a sixth of it that no other slot has."""
        share = (self.rng.permutation(self.slots)[self.slot] + self.rng.random()) / self.slots
        return low + (0.5 + VARIETY * (share - 0.5)) * (high - low)

    def count(self, low: int, high: int) -> int:
        """A whole number in the range, both ends included."""
        return min(high, int(self.span(low, high + 1)))

    def side(self) -> int:
        """Left (-1) or right (1)."""
        return 2 * self.count(0, 1) - 1

    def colour(self, palette: Sequence[Colour]) -> Colour:
        """A colour near one of the palette; at full variety another one for each slot, while they last."""
        order, tint = self.rng.permutation(len(palette)), self.rng.uniform(0.9, 1.06, 3)
        return tuple(palette[order[int(VARIETY * self.slot) % len(palette)]] * tint)

    def stone(self) -> Paint:
        """Masonry."""
        return Paint(self.colour(STONES), self.span(0.35, 1.1), self.span(0.1, 0.35), self.span(0.1, 0.35))

    def roof(self) -> Paint:
        """Tiles or metal sheet."""
        return Paint(self.colour(ROOFS), 0.5, 0.18, 0.25)

    def bright(self) -> Paint:
        """A coat of paint."""
        return Paint(self.colour(BRIGHTS), 1.5, 0.06, 0.04)


def _tower(t: Traits) -> Mesh:
    """A clock tower or campanile beside a hall."""
    m, stone, trim, roof = Mesh(), t.stone(), t.stone(), t.roof()
    wide, height, sides, stages = t.span(7, 13), t.span(34, 62), (4, 4, 8)[t.count(0, 2)], t.count(2, 4)
    style, peak, columns, clock = t.count(0, 4), height * t.span(0.16, 0.5), t.count(1, 3), t.span(0.4, 0.6) * wide
    m.turned(trim, [(0.58 * wide, 0), (0.58 * wide, 2.5), (0.5 * wide, 3.5)], sides)
    for stage in range(stages):
        low, high = height * stage / stages, height * (stage + 1) / stages
        belfry = stage == stages - 1
        panes = Panes(DARK, columns, wide=0.62 if belfry else 0.3, tall=0.7 if belfry else 0.45)
        m.storey(stone, (0, 0, low), (wide, wide, high - low), panes, sides)
        m.turned(trim, [(0.5 * wide, high - 1), (0.55 * wide, high - 0.6), (0.55 * wide, high)], sides)
    low = height * (1 - 1 / stages) - 1.5 - clock
    face = Panes(Paint(t.colour(BRIGHTS[2:5])), 1, 1, clock / wide, 1, DISC, lift=0.2)
    hand = Panes(DARK, 1, 1, 0.04, 1, RECTANGLE, lift=0.3)
    m.storey(stone, (0, 0, low), (wide, wide, clock), face, sides)
    m.storey(stone, (0, 0, low + clock / 2), (wide, wide, clock * 0.4), hand, sides)
    if style == 0:
        m.battlements(trim, (0, 0, height), (1.1 * wide, 1.1 * wide), 0.14 * wide)
        m.turned(roof, [(0.3 * wide, height), (0.3 * wide, height + 0.3 * peak), (0.1, height + peak)], 8)
    elif style == 1:
        m.turned(roof, [(0.58 * wide, height), (0.1, height + peak)], sides)
    elif style == 2:
        m.storey(stone, (0, 0, height), (0.7 * wide, 0.7 * wide, 0.4 * peak), Panes(DARK, wide=0.6, tall=0.8), 8)
        m.turned(roof, _dome(0.4 * wide, 0.6 * peak), 12, (0, 0, height + 0.4 * peak))
    elif style == 3:
        m.turned(roof, _dome(0.5 * wide, 0.7 * peak, 0.25), 12, (0, 0, height))
        m.turned(trim, [(0.3, 0.6 * peak), (0.15, peak)], 6, (0, 0, height))
    else:
        m.turned(roof, [(0.55 * wide, height), (0.27 * wide, height + 0.3 * peak), (0.1, height + peak)], 8)
        corners = [(x, y, height) for x in (-0.43 * wide, 0.43 * wide) for y in (-0.43 * wide, 0.43 * wide)]
        m.many(trim, corners, [(0.08 * wide, 0), (0.08 * wide, peak * 0.25), (0.05, peak * 0.5)], 6)
    long, tall, side = t.span(12, 30), t.span(7, 16), t.side()
    at, panes = (side * (wide + long) / 2, 0.2 * wide, 0), Panes(GLASS, round(long / 4), t.count(1, 3))
    m.storey(stone, at, (long, wide, tall), panes)
    m.turned(t.roof(), [(0.54, tall), (0.2, tall + t.span(2, 6))], 4, at, (long, wide))
    return m


def _dome_church(t: Traits) -> Mesh:
    """A domed basilica with a portico and, at one side, a bell tower."""
    m, stone, trim, roof = Mesh(), t.stone(), t.stone(), t.roof()
    wide, deep, tall, rise, bulge = t.span(24, 44), t.span(24, 40), t.span(10, 17), t.span(4, 11), t.span(-0.06, 0.16)
    drum, base = t.span(0.52, 0.84) * min(wide, deep), tall + rise
    m.storey(stone, (0, 0, 0), (wide, deep, tall), Panes(GLASS, t.count(4, 8), t.count(1, 2), tall=0.7))
    m.storey(trim, (0, 0, tall), (wide + 1.4, deep + 1.4, 1.0))
    m.storey(stone, (0, 0, tall), (drum, drum, rise), Panes(DARK, wide=0.5, tall=0.65), 16)
    m.turned(trim, [(drum * 0.53, base), (drum * 0.53, base + 0.8)], 16)
    peak = base + 0.8 + drum * t.span(0.4, 0.75)
    m.turned(roof, _dome(0.5 * drum, peak - base, bulge), 24, (0, 0, base))
    m.turned(trim, [(drum * 0.08, peak - 0.5), (drum * 0.08, peak + drum * 0.2)], 8)
    m.turned(roof, [(drum * 0.1, peak + drum * 0.2), (0.1, peak + drum * 0.45)], 8)
    turrets, reach, small = t.count(0, 2), t.span(0.33, 0.42), t.span(0.3, 0.5) * drum
    for x, y in [(-1, -1), (1, -1), (-1, 1), (1, 1)][: 2 * turrets]:
        at = x * wide * reach, y * deep * reach, tall
        m.storey(stone, at, (small, small, rise * 0.8), None, 8)
        m.turned(roof, _dome(0.55 * small, 0.65 * small, bulge), 12, (*at[:2], base - rise * 0.2))
    porch, columns, high, y = t.span(0.35, 0.7) * wide, t.count(2, 4) * 2, tall * t.span(0.65, 0.95), -deep / 2 - 3
    m.storey(trim, (0, y, 0), (porch + 2, 8, 0.8))
    positions = [(x, y - 2, 0.8) for x in np.linspace(-0.5, 0.5, columns) * (porch - 2)]
    m.many(trim, positions, [(0.75, 0), (0.6, high - 0.8)], 8)
    m.storey(trim, (0, y, high), (porch, 6, 1.2))
    m.gable(roof, stone, (0, y + 0.2, high + 1.2), (porch + 0.6, 6.6, porch * t.span(0.12, 0.24)))
    bell, thick = t.span(0.9, 1.5) * (base + 2), t.span(4.8, 7.2)
    at = t.side() * (wide + thick) / 2, deep * t.span(-0.4, 0.4), 0
    m.storey(stone, at, (thick, thick, bell), Panes(DARK, 1, 5, 0.3, 0.5))
    m.turned(trim, [(thick * 0.56, bell), (thick * 0.56, bell + 0.8)], 4, at)
    m.turned(t.roof(), [(thick * 0.55, bell + 0.8), (0.1, bell + thick * t.span(0.8, 2))], 4, at)
    return m


def _arch(t: Traits) -> Mesh:
    """A triumphal arch or city gate with a lodge at one side."""
    m, stone, trim, accent = Mesh(), t.stone(), t.stone(), t.bright()
    wide, top, deep, triple = t.span(20, 36), t.span(14, 26), t.span(6, 11), t.count(0, 2) > 0
    middle, spring = t.span(0.13, 0.2) * wide * (0.75 if triple else 1.0), top * t.span(0.42, 0.56)
    small, off = middle * t.span(0.5, 0.65), wide * 0.335
    arches = [(-off, small, spring * 0.72), (0, middle, spring), (off, small, spring * 0.72)]
    m.arcade(stone, arches if triple else arches[1:2], wide / 2, top, deep)
    m.storey(trim, (0, 0, top), (wide + 1.6, deep + 1.6, 1.0))
    attic, inset = t.span(2.5, 6), t.span(0.75, 1.0) * wide
    signs = Panes(accent, t.count(1, 5), 1, 0.75, 0.5, RECTANGLE)
    m.storey(stone, (0, 0, top + 1), (inset, deep * 0.9, attic), signs)
    xs = [wide / 2 - 0.9, middle + 1.1][: t.count(1, 2)]
    positions = [(s * x, y, 0) for x in xs for s in (-1, 1) for y in (-deep / 2 - 0.9, deep / 2 + 0.9)]
    m.many(trim, positions, [(0.8, 0), (0.8, 2), (0.55, 2), (0.5, top - 1), (0.8, top)], 8)
    crown, top = t.count(0, 3), top + 1 + attic
    if crown == 0:
        m.battlements(trim, (0, 0, top), (inset, deep * 0.9), 1.2)
    elif crown == 1:
        m.gable(t.roof(), trim, (0, 0, top), (inset, deep, wide * 0.16))
    elif crown == 2:
        for x in np.linspace(-0.4, 0.4, 4) * inset:
            m.figure(accent, (x, -deep * 0.3, top), top * 0.2)
    else:
        m.storey(trim, (0, 0, top), (5, deep * 0.7, 1.5))
        m.figure(accent, (0, 0, top + 1.5), top * 0.35)
    long, tall = t.span(6, 14), spring * t.span(0.7, 1.3)
    at = t.side() * (wide + long) / 2, 0, 0
    m.storey(stone, at, (long, deep * 0.8, tall), Panes(GLASS, t.count(2, 4), 2, 0.4, 0.5, RECTANGLE))
    m.turned(t.roof(), [(0.54, tall), (0.15, tall + 3)], 4, at, (long, deep * 0.8))
    return m


def _temple(t: Traits) -> Mesh:
    """A colonnaded temple, sometimes in ruins at one end."""
    m, stone, cella, roof = Mesh(), t.stone(), t.stone(), t.roof()
    wide, deep, high, steps, state = t.span(16, 27), t.span(22, 44), t.span(8, 14), t.count(2, 6), t.count(0, 2)
    across, along, floor = t.count(2, 4) * 2, t.count(6, 11), steps * 0.6
    for step in range(steps):
        m.storey(stone, (0, 0, step * 0.6), (wide + 2 * (steps - step), deep + 2 * (steps - step), 0.6))
    thick, slim = t.span(0.3, 0.42) * wide / across, t.span(0.7, 0.95)
    xs, ys = np.linspace(-0.5, 0.5, across) * (wide - 2), np.linspace(-0.5, 0.5, along) * (deep - 2)
    positions = [(x, y, floor) for x in xs for y in (ys[0], ys[-1])] + [
        (x, y, floor) for y in ys for x in (xs[0], xs[-1])
    ]
    ruined, whole = state == 2, 0.55 if state == 2 else 1.0
    standing = [p for p in positions if not (ruined and p[0] > 0 and p[1] > 0.1 * deep)]
    m.many(stone, standing, [(thick, 0), (thick * slim, high - 1), (thick * 1.3, high - 0.5), (thick * 1.3, high)], 10)
    m.many(stone, positions, [(thick, 0), (thick * 0.95, high * 0.3)], 10)
    door = Panes(DARK, 1, 1, 0.3, 0.8, RECTANGLE, (1, 2))
    m.storey(cella, (0, 0, floor), (wide * 0.6, deep * 0.66, high), door)
    y, top, long = -(1 - whole) * deep / 2, floor + high, deep * whole
    for paint, grow, rise in ((stone, 0, 0.9), (t.bright(), -0.3, t.span(0.5, 1.3)), (stone, 1, 0.5)):
        m.storey(paint, (0, y, top), (wide + grow, long + grow, rise))
        top += rise
    if state == 1:
        m.storey(cella, (0, deep * 0.2, top), (wide * 0.6, deep * 0.3, t.span(2, 5)))
    else:
        pitch = t.span(0.12, 0.26) * wide
        m.gable(roof, stone, (0, y, top), (wide + 1, long + 1, pitch))
        m.figure(t.bright(), (0, -deep / 2 + 0.5, top - 0.2 + pitch), t.span(2, 4))
    at, block = (t.side() * (wide / 2 + steps + 3), -deep * 0.4, 0), t.span(2, 5)
    m.storey(cella, at, (3, 3, block))
    m.figure(t.bright(), (*at[:2], block), t.span(3, 6))
    return m


def _pyramid(t: Traits) -> Mesh:
    """A stepped pyramid with stairs, a shrine on top and another at its foot."""
    m, stone, trim, stairs = Mesh(), t.stone(), t.stone(), t.stone()
    base, height, tiers, squash = t.span(44, 68), t.span(18, 36), t.count(3, 9), t.span(0.75, 1.25)
    peak, slope, flight, flights = t.span(0.2, 0.42) * base, t.span(0, 0.5), t.span(0.1, 0.24) * base, t.count(1, 3)
    rise, run = height / tiers, (base - peak) / tiers
    for tier in range(tiers):
        wide, low = base - run * tier, rise * tier
        shelf = wide - slope * run
        m.storey(stone, (0, 0, low), (wide, wide * squash, rise), taper=shelf / wide)
        m.storey(trim, (0, 0, low + 0.75 * rise), (shelf + 0.5, shelf * squash + 0.5, 0.25 * rise))
    for step in range(5 * tiers):
        share = step / (5 * tiers)
        reach, high = base / 2 + 2.5 - (base / 2 - peak / 2 + 2) * share, height * share + rise / 5
        if flights < 3:
            m.storey(stairs, (0, -squash * reach / 2, 0), (flight, squash * reach, high))
        if flights > 1:
            m.storey(stairs, (reach / 2, 0, 0), (reach, flight, high))
    wide, high = peak * t.span(0.5, 0.8), t.span(4, 9)
    m.storey(trim, (0, 0, height), (wide, wide * squash, high), Panes(DARK, t.count(1, 3), 1, 0.4, 0.8, RECTANGLE))
    crest = [(wide * 0.53, high), (wide * t.span(0.05, 0.45), high * t.span(1.4, 2.2))]
    m.turned(t.bright(), crest, 4, (0, 0, height), (1, squash))
    for side in (-1, 1):
        m.storey(trim, (side * (flight / 2 + 1), -squash * (base / 2 + 1.5), 0), (2.2, 3, t.span(2, 6)))
    small, tall = t.span(6, 12), t.span(4, 10)
    at = t.side() * base * 0.4, -squash * base / 2 - small / 2 - 2, 0
    m.storey(stone, at, (small, small, tall), Panes(DARK, 1, 1, 0.3, 0.6, RECTANGLE), taper=0.8)
    m.turned(t.roof(), [(small / 2, tall), (0.2, tall + t.span(1, 5))], 4, at)
    return m


def _bridge(t: Traits) -> Mesh:
    """A bridge along x, of stone arches with gate towers or hung from pylons."""
    m, stone, trim, accent = Mesh(), t.stone(), t.stone(), t.bright()
    half, deck, deep, hung, arches = t.span(32, 50), t.span(8, 13), t.span(7, 11), t.count(0, 2) == 2, t.count(3, 7)
    tower, thick = t.span(14, 30), t.span(3, 5)
    for x in (-half, half)[: t.count(1, 2)] if not hung else (-half / 2, half / 2):
        if hung:
            legs = [(x, -deep / 2, 0), (x, deep / 2, 0)]
            m.many(accent, legs, [(0.5, 0), (0.5, deck + tower)], 4, (thick, thick / 2))
            for share in (0.35, 0.7, 0.97):
                m.storey(accent, (x, 0, deck + tower * share), (thick / 2, deep, tower * 0.06))
            for reach in np.linspace(0.1, 0.5, 6) * half:
                m.cable(accent, (x, deck + tower), (x + reach, deck), deep / 2)
                m.cable(accent, (x, deck + tower), (x - reach, deck), deep / 2)
        else:
            gate = thick * 1.3, deep + 2, tower * 0.6
            m.storey(trim, (x, 0, 0), (*gate[:2], deck))
            m.storey(trim, (x, 0, deck), gate, Panes(DARK, 2, 2))
            m.turned(t.roof(), [(0.55, 0), (0.02, tower * 0.45)], 4, (x, 0, deck + gate[2]), gate)
    if hung:
        m.storey(stone, (0, 0, deck - 1.5), (2 * half, deep, 1.5))
    else:
        pitch = 2 * half / arches
        spans = [(pitch * (i + 0.5) - half, pitch * 0.41, deck * 0.25) for i in range(arches)]
        m.arcade(stone, spans, half, deck, deep, rise=min(1.0, deck * 0.62 / (pitch * 0.41)))
        piers = [(pitch * i - half, 0, 0) for i in range(1, arches)]
        m.many(trim, piers, [(1, 0), (1, deck * 0.7), (0.3, deck * 0.95)], 6, (pitch * 0.08, deep * 0.62))
    m.many(trim, [(0, -deep / 2, deck), (0, deep / 2, deck)], [(0.5, 0), (0.5, 1.2)], 4, (2 * half, 0.6))
    xs = np.linspace(-half, half, 2 * t.count(6, 12))
    m.many(accent, [(x, y, deck) for x in xs for y in (-deep / 2, deep / 2)], [(0.25, 0), (0.25, 3.2)], 4)
    at = t.span(-0.3, 0.3) * half, -deep / 2 - 0.5, 0
    m.storey(trim, at, (4, 4, deck + 2))
    m.figure(accent, (*at[:2], deck + 2), t.span(4, 8))
    m.many(stone, [(-half - 6, 0, 0), (half + 6, 0, 0)], [(0.5, 0), (0.5, deck)], 4, (14, deep + 5))
    return m


def _monument(t: Traits) -> Mesh:
    """An obelisk, a column or a colossal statue on a pedestal."""
    m, stone, trim, accent = Mesh(), t.stone(), t.stone(), t.bright()
    kind, steps, plinth, sides = t.count(0, 2), t.count(2, 5), t.span(10, 20), (4, 8)[t.count(0, 1)]
    for step in range(steps):
        m.storey(stone, (0, 0, step * 0.6), (plinth - step * 1.6, plinth - step * 1.6, 0.6), None, 8 if kind else 4)
    wide, block, low = plinth * t.span(0.36, 0.5), t.span(3, 9), steps * 0.6
    m.turned(trim, [(0.6 * wide, low), (0.6 * wide, low + 0.8)], sides)
    m.storey(trim, (0, 0, low + 0.8), (wide, wide, block), Panes(accent, 1, 1, 0.6, 0.6, RECTANGLE), sides)
    m.turned(trim, [(0.5 * wide, low + block), (0.62 * wide, low + block + 0.5), (0.62 * wide, low + block + 1)], sides)
    top, tall, thick = low + block + 1, t.span(12, 28), wide * t.span(0.2, 0.32)
    if kind == 0:
        m.turned(stone, [(thick, 0), (thick * 0.65, tall), (0.05, tall * 1.1)], 4, (0, 0, top))
        for share in np.linspace(0, 0.9, t.count(2, 5))[1:]:
            width = 2 * thick * (1.02 - 0.35 * share)
            m.storey(accent, (0, 0, top + tall * share), (width, width, 0.9))
    elif kind == 1:
        shaft = [(1.2, 0), (1, 1), (0.85, tall), (1.5, tall + 1), (1.5, tall + 1.6)]
        m.turned(stone, [(r * thick, z) for r, z in shaft], 16, (0, 0, top))
        m.figure(accent, (0, 0, top + tall + 1.6), t.span(4, 8))
    else:
        m.figure(accent, (0, 0, top), tall * 0.85)
    at = t.side() * plinth * t.span(0.45, 0.65), -plinth * 0.15, 0
    m.storey(trim, at, (3, 3, 2.4))
    m.figure(t.bright(), (*at[:2], 2.4), t.span(3, 5))
    posts, ring = t.count(4, 9) * 2, plinth / 2 + t.span(1.5, 4)
    positions = [(ring * x, ring * y, 0) for x, y in zip(*_section(posts), strict=True)]
    m.many(accent, positions, [(0.3, 0), (0.25, 1.4), (0.4, 1.7)], 6)
    return m


def _castle(t: Traits) -> Mesh:
    """A castle: a curtain wall with unlike corner towers around a keep."""
    m, stone, trim, roof = Mesh(), t.stone(), t.stone(), t.roof()
    wide, deep, wall, merlon = t.span(36, 58), t.span(30, 46), t.span(7, 13), t.span(0.9, 1.6)
    m.storey(stone, (0, 0, 0), (wide, deep, wall), Panes(DARK, t.count(5, 11), 1, 0.12, 0.25, RECTANGLE))
    m.battlements(stone, (0, 0, wall), (wide, deep), merlon)
    keep = t.span(14, 24), t.span(12, 20), t.span(10, 20)
    at = wide * t.span(-0.25, 0.25), deep * t.span(-0.1, 0.25), wall
    m.storey(trim, at, keep, Panes(GLASS, t.count(2, 4), t.count(2, 4), 0.3, 0.5))
    if t.count(0, 1):
        m.gable(roof, trim, (*at[:2], wall + keep[2]), (keep[0] + 1, keep[1] + 1, keep[0] * t.span(0.35, 0.7)))
    else:
        m.battlements(trim, (*at[:2], wall + keep[2]), keep, merlon * 1.2)
    sides, cones = (16, 4, 16)[t.count(0, 2)], t.count(0, 4)
    for corner, (x, y) in enumerate(((-1, -1), (1, -1), (1, 1), (-1, 1))):
        thick, tall, at = t.span(6, 11), wall + t.span(2, 14), (x * wide / 2, y * deep / 2, 0)
        slits = Panes(DARK, 1, 3, 0.25, 0.3, walls=(0, sides // 4))
        m.storey(stone, at, (thick, thick, tall), slits, sides)
        m.turned(stone, [(0.5 * thick, tall), (0.58 * thick, tall + 1), (0.58 * thick, tall + 2)], sides, at)
        if corner < cones:
            m.turned(roof, [(0.65 * thick, tall + 2), (0.1, tall + 2 + thick * t.span(0.7, 1.5))], sides, at)
        else:
            m.battlements(stone, (*at[:2], tall + 2), (thick, thick), merlon)
    gate, at = (t.span(10, 16), 5, wall * 1.35), (t.span(-0.2, 0.2) * wide, -deep / 2 - 1, 0)
    m.storey(trim, at, gate, Panes(DARK, 1, 1, 0.4, 1.25, walls=(3, 4)))
    m.battlements(trim, (*at[:2], gate[2]), gate, merlon)
    banners = Panes(t.bright(), 2, 1, 0.18, 1, RECTANGLE, lift=0.2)
    m.storey(trim, (*at[:2], wall * 0.5), (*gate[:2], wall * 0.7), banners)
    return m


def _pagoda(t: Traits) -> Mesh:
    """A pagoda with flared roofs and a hall at one side."""
    m, stone, walls, roof, posts = Mesh(), t.stone(), t.bright(), t.roof(), t.bright()
    tiers, sides, wide, storey = t.count(3, 7), (4, 4, 8, 6)[t.count(0, 3)], t.span(11, 20), t.span(4, 6.5)
    shrink, eaves, flare, low = t.span(0.5, 0.85), t.span(0.66, 0.88), t.span(0.5, 1.6), t.span(1, 4)
    columns = t.count(1, 4)
    doors = Panes(DARK, columns, 1, 0.55, 0.6, RECTANGLE)
    beams = Panes(posts, columns + 1, 1, 0.12, 1, RECTANGLE, lift=0.15)
    m.storey(stone, (0, 0, 0), (wide * 1.7, wide * 1.7, low), None, sides, 0.95)
    m.storey(stone, (0, -wide * 0.85, 0), (wide * 0.35, 5, low * 0.5))
    for tier in range(tiers):
        width, tall = wide * (1 - (1 - shrink) * tier / (tiers - 1)), storey * (1 - 0.25 * tier / tiers)
        for panes in (doors, beams):
            m.storey(walls, (0, 0, low), (width, width, tall), panes, sides)
        edge = width * eaves
        profile = [(0.45 * width, 0.4), (edge, 0), (edge, 0.4), (0.58 * width, flare), (0.42 * width, 1.5 + flare)]
        m.turned(roof, profile, sides, (0, 0, low + tall - 0.4))
        low += tall + 0.8 + flare
    spire = t.span(4, 12)
    m.turned(roof, [(0.5 * width, low), (0.2 * width, low + 1.4), (0.2, low + 3)], sides)
    rings = [(r, low + 2 + spire * z / 5) for z in range(5) for r in (0.25, 0.55)]
    m.turned(t.bright(), [*rings, (0.05, low + 2 + spire)], 8)
    hall, tall, side = t.span(8, 14), t.span(3.5, 6), t.side()
    at = side * (wide * 0.85 + hall * 0.6), wide * t.span(-0.25, 0.25), 0
    m.storey(walls, at, (hall, 9, tall), Panes(posts, 4, 1, 0.15, 1, RECTANGLE))
    m.turned(t.roof(), [(0.67, tall), (0.5, tall + 1), (0.2, tall + 3.5)], 4, at, (hall, 9))
    return m


def _lighthouse(t: Traits) -> Mesh:
    """A banded lighthouse with its keeper's house."""
    m, coat, bands, roof, stone = Mesh(), t.bright(), t.bright(), t.roof(), t.stone()
    foot, height, taper, sides = t.span(7, 13), t.span(22, 44), t.span(0.5, 0.8), (24, 8, 24, 4)[t.count(0, 3)]
    stripes, share = t.count(2, 7), t.span(0.3, 0.6)
    m.turned(stone, [(foot * 0.9, 0), (foot * 0.8, t.span(0.8, 3))], sides)
    ports = Panes(DARK, 1, t.count(3, 6), 0.9 if sides > 8 else 0.25, 0.25, walls=(0, sides // 4), lift=0.2)
    m.storey(coat, (0, 0, 0), (foot, foot, height), ports, sides, taper)
    for low in np.arange(stripes) * height / stripes + 1.5:
        ends = [(low, 0.06), (low + height * share / stripes, 0.06)]
        m.turned(bands, [(0.5 * foot * (1 - (1 - taper) * z / height) + out, z) for z, out in ends], sides)
    top, lamp = foot * taper / 2, foot * taper * t.span(0.5, 0.75)
    m.turned(stone, [(top, height - 0.5), (top * 1.45, height + 0.4), (top * 1.45, height + 0.8)], sides)
    rail = [(1.35 * top * x, 1.35 * top * y, height) for x, y in zip(*_section(16), strict=True)]
    m.many(DARK, rail, [(0.1, 0), (0.1, 2.4)], 4)
    glazing = Panes(DARK, 1, 1, 0.15, 1, RECTANGLE)
    m.storey(Paint((246, 232, 170)), (0, 0, height), (lamp, lamp, 4.4), glazing, 8)
    m.turned(roof, _dome(lamp * 0.65, t.span(1.5, 4), 0.05), 12, (0, 0, height + 4.4))
    size, house = (t.span(9, 16), t.span(7, 10), t.span(3.5, 7)), t.stone()
    at = t.side() * (foot * 0.75 + size[0] / 2), t.span(-3, 3), 0
    m.storey(house, at, size, Panes(GLASS, t.count(3, 5), t.count(1, 2), 0.35, 0.5, RECTANGLE))
    m.gable(t.roof(), house, (*at[:2], size[2]), (size[0] + 1, size[1] + 1, t.span(2.5, 5)))
    m.storey(stone, (at[0] + size[0] * 0.25, at[1] + 1, size[2]), (1.2, 1.2, 5))
    return m


@dataclass(frozen=True)
class Family:
    """How to build the landmarks of a family, and how they lie."""

    build: Callable[[Traits], Mesh]
    river: bool = False  # lies across a river and is seen from both banks; else it has one front
    shore: float = math.inf  # metres behind the landmark at which the sea begins


FAMILIES = {
    "tower": Family(_tower),
    "dome": Family(_dome_church),
    "arch": Family(_arch),
    "temple": Family(_temple),
    "pyramid": Family(_pyramid),
    "bridge": Family(_bridge, river=True),
    "monument": Family(_monument),
    "castle": Family(_castle),
    "pagoda": Family(_pagoda),
    "lighthouse": Family(_lighthouse, shore=22),
}
