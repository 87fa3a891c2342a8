"""Paired scenes without files: a land-cover map becomes an optical picture and a SAR image of the same ground.

Pair ``index`` of a split is a pure function of (seed, split, index, size, looks). One pixel is 10 m. The radar looks
from the left (range grows with the column) at an incidence angle of 39 degrees, as Sentinel-1 in the middle of its
swath; the sun stands in the upper left.

Backscatter sigma0 by class at C band is of the order that Ulaby & Dobson (Handbook of Radar Scattering Statistics for
Terrain, 1989) list for 40 degrees: smooth surfaces (water, roads) reflect away from the radar, rough soil scatters at
its surface, crowns in their volume, house and street form corner reflectors. The classes are set a little further apart
than nature has them. Speckle of an intensity with L looks is gamma distributed with mean 1 and variance 1/L (Goodman
1976).

With ``changes``, things happened between the two acquisitions: houses, clearings and ships that one image shows and the
other does not. The rest of the pair keeps its bits.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from .. import draws

WATER, ROAD, SOIL, GRASS, RIPE, CROP, FOREST, ROOF = range(8)
# sigma0 in dB: VV, VH; a resolved roof without its corner
BACKSCATTER = {
    WATER: (-22.0, -28.0), ROAD: (-18.0, -25.0), SOIL: (-15.0, -23.0), GRASS: (-12.5, -19.5),
    RIPE: (-10.5, -17.0), CROP: (-8.5, -15.0), FOREST: (-6.5, -12.5), ROOF: (-8.0, -15.0),
}  # fmt: skip
COLOUR = {  # sRGB, 0..255, as a Sentinel-2 true-colour picture stretched for display
    WATER: (24, 52, 84), ROAD: (128, 126, 124), SOIL: (150, 116, 84), GRASS: (126, 146, 84),
    RIPE: (198, 178, 108), CROP: (80, 132, 54), FOREST: (34, 72, 42), ROOF: (188, 148, 130),
}  # fmt: skip
WALL = (-5.0, -12.0)  # dB: of the part of a house that lies over the ground in front of it
CORNER = (4.0, -3.0)  # dB: double bounce between wall and street
NOISE_FLOOR = -25.0  # dB: noise-equivalent sigma0; Sentinel-1 promises less than -22
INCIDENCE = np.deg2rad(39.0)
PIXEL = 10.0  # m
HEIGHTS = (8.0, 40.0)  # m, of houses
POLARISATIONS = ("VV", "VH")
RANGE = (-25.0, 0.0)  # dB that become 0..255 in the 8-bit form
TABLE = 256  # parcels draw their crop from a table


class Ground(NamedTuple):
    """What a sensor looks at, [S,S] each: class; height of houses in m; wetness, with the tone of the parcel; relief;
    and the grain of the texture."""

    cover: np.ndarray
    height: np.ndarray
    wetness: np.ndarray
    relief: np.ndarray
    grain: np.ndarray


class GeneratedPairs:
    """``count`` pairs of one split: SAR in ``scale`` uint8 or db [b,S,S], optical uint8 [3,S,S]."""

    def __init__(
        self, split: str, count: int, size: int, seed: int, looks: float, bands: tuple[str, ...], scale: str,
        changes: int = 0,
    ):  # fmt: skip
        self.split, self.size, self.seed, self.looks, self.bands, self.scale = split, size, seed, looks, bands, scale
        self.changes = changes
        self.ids = [f"{split}-{seed}-{i:06d}" for i in range(count)]

    def pixels(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Pair ``i`` in stored values."""
        sar, opt = scene(self.seed, self.split, i, self.size, self.looks, self.changes)
        sar = sar[[POLARISATIONS.index(band) for band in self.bands]]
        return (stretched(sar) if self.scale == "uint8" else sar), opt

    def sides(self, i: int) -> np.ndarray:
        """Where the changes of pair ``i`` show, in SAR and in the optical image: bool [2,S,S]."""
        return changed(self.seed, self.split, i, self.size, self.changes)

    def mask(self, i: int) -> np.ndarray:
        """Where the changes show in either image of pair ``i``: bool [S,S]."""
        return np.logical_or(*self.sides(i))


def scene(
    seed: int, split: str, index: int, size: int, looks: float, changes: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """SAR sigma0 in dB, VV and VH, float32 [2,size,size]; optical uint8 [3,size,size]."""
    rng = draws.rng(seed, f"generated/{split}", index)
    under_sar, under_opt = with_changes(seed, split, index, terrain(rng, size), changes)
    sar = backscatter(under_sar)
    sar = decibel(sar * speckle(rng, looks, sar.shape) + 10 ** (NOISE_FLOOR / 10))
    picture = reflectance(under_opt)
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * 2
    return sar, np.rint(np.clip(blurred(picture), 0, 255)).astype(np.uint8)


def changed(seed: int, split: str, index: int, size: int, changes: int) -> np.ndarray:
    """Where ``scene`` with ``changes`` may differ from ``scene`` without them, noise aside, in SAR and in the optical
    image: bool [2,size,size]. The shadows of new houses belong to it, and the pixel to which the optics blur."""
    before = terrain(draws.rng(seed, f"generated/{split}", index), size)
    under_sar, under_opt = with_changes(seed, split, index, before, changes)
    sar = (backscatter(under_sar) != backscatter(before)).any(0)
    opt = (reflectance(under_opt) != reflectance(before)).any(0)
    return np.stack([sar, blurred(opt.astype(np.float32)) > 0])


def speckle(rng: np.random.Generator, looks: float, shape: tuple[int, ...]) -> np.ndarray:
    """Multiplicative noise of an intensity: gamma with mean 1 and variance 1/looks."""
    return rng.standard_gamma(looks, shape, dtype=np.float32) / np.float32(looks)


def stretched(decibels: np.ndarray) -> np.ndarray:
    """dB -> uint8 as published 8-bit sets have it: RANGE onto 0..255, half to even."""
    low, high = RANGE
    return np.rint((np.clip(decibels, low, high) - low) / (high - low) * 255).astype(np.uint8)


def decibel(power: np.ndarray) -> np.ndarray:
    return (10 * np.log10(power)).astype(np.float32)


def field(rng: np.random.Generator, size: int, cell: int) -> np.ndarray:
    """A smooth random surface with features of about ``cell`` px, mean 0, standard deviation near 1: [size,size]."""
    nodes = size // cell + 4
    coarse = Image.fromarray(rng.standard_normal((nodes, nodes), dtype=np.float32) * 1.4)
    y, x = rng.uniform(0, 1, 2)
    box = (x + 1, y + 1, x + 1 + size / cell, y + 1 + size / cell)
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC, box=box))


# the map --------------------------------------------------------------------------------------------------------------


def terrain(rng: np.random.Generator, size: int) -> Ground:
    """The ground that both sensors see."""
    relief, wetness = field(rng, size, 40), field(rng, size, 24)
    cover, parcel_tone, height = land_cover(rng, size, relief)
    grain = rng.standard_normal((size, size), dtype=np.float32)
    return Ground(cover, height, wetness + parcel_tone, relief, grain)


def land_cover(rng: np.random.Generator, size: int, relief: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class [S,S], tone of each parcel [S,S], and height of houses in m [S,S]."""
    moist, use = field(rng, size, 32), field(rng, size, 48)
    cover = np.where(moist + 0.5 * relief > 0.25, FOREST, GRASS).astype(np.uint8)
    tone = np.zeros((size, size), np.float32)
    height = np.zeros((size, size), np.float32)
    centre = rng.uniform(-0.6, 0.6)
    farmed, built = use < centre - 0.15, use > centre + 0.55
    kinds, tones = parcels(rng, size)
    cover[farmed], tone[farmed] = kinds[farmed], tones[farmed]
    streets, houses = town(rng, size)
    cover[built & streets] = ROAD
    roofs = built & (houses > 0)
    cover[roofs], height[roofs] = ROOF, houses[roofs]
    water = (relief < rng.uniform(-2.6, -0.8)) | river(rng, size)
    cover[water], tone[water], height[water] = WATER, 0, 0
    return cover, tone, height


def rotated(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in px along two random perpendicular axes with a random origin: 2 x [S,S]."""
    angle, (u, v) = rng.uniform(0, np.pi / 2), rng.uniform(0, 500, 2)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return np.cos(angle) * x + np.sin(angle) * y + u, np.cos(angle) * y - np.sin(angle) * x + v + 500


def parcels(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Fields in rows of equal depth and different length: their crop, and their tone (wet and dark, dry and light)."""
    u, v = rotated(rng, size)
    depth = rng.uniform(10, 18)
    row = (v // depth).astype(np.int64) % TABLE
    length, shift = rng.uniform(8, 28, TABLE), rng.uniform(0, 28, TABLE)
    column = ((u + shift[row]) // length[row]).astype(np.int64)
    number = (row * 31 + column * 17) % TABLE
    kinds = rng.choice(np.array([SOIL, CROP, RIPE, GRASS], np.uint8), TABLE, p=[0.3, 0.35, 0.25, 0.1])
    return kinds[number], rng.normal(0, 0.6, TABLE).astype(np.float32)[number]


def town(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Streets as a grid, and on each plot of the blocks a house or none: streets bool, height of houses in m."""
    u, v = rotated(rng, size)
    block, plot = rng.uniform(18, 26), rng.uniform(8, 11)
    in_u, in_v = u % block, v % block
    streets = (in_u < 2.5) | (in_v < 2.5)
    inside_u, inside_v = (in_u - 2.5) % plot, (in_v - 2.5) % plot
    number = ((u // block) * 7 + (in_u - 2.5) // plot * 3 + (v // block) * 13 + (in_v - 2.5) // plot * 5) % TABLE
    number = number.astype(np.int64)
    built = rng.random(TABLE) < 0.75
    height = np.where(built, rng.uniform(*HEIGHTS, TABLE), 0).astype(np.float32)
    house = (inside_u < plot - 3) & (inside_v < plot - 3) & ~streets
    return streets, np.where(house, height[number], 0)


def river(rng: np.random.Generator, size: int) -> np.ndarray:
    """A winding band, in one of three scenes: bool [S,S]."""
    present, width = rng.random() < 0.35, rng.uniform(2, 5)
    u, v = rotated(rng, size)
    bend, phase = rng.uniform(4, 14), rng.uniform(0, 2 * np.pi)
    line = v.mean() + bend * np.sin(u / rng.uniform(14, 30) + phase)
    return (np.abs(v - line) < width) & present


# between the acquisitions ---------------------------------------------------------------------------------------------


def with_changes(seed: int, split: str, index: int, ground: Ground, changes: int) -> tuple[Ground, Ground]:
    """The ground under the radar and under the camera: every other one of ``changes`` objects is on each. They have
    their own random stream, so that the scene around them is the one without them."""
    rng = draws.rng(seed, f"generated/{split}/changes", index)
    seen, first = [ground, ground], int(rng.integers(2))
    for k in range(changes):
        side = (first + k) % 2
        seen[side] = change(rng, ground, seen[side])
    return seen[0], seen[1]


def change(rng: np.random.Generator, ground: Ground, seen: Ground) -> Ground:
    """One object more in ``seen``, by what is at the place drawn: a ship on water, bare soil where there was forest or
    town, a block of houses on open land."""
    size = len(ground.cover)
    y, x = (int(n) for n in rng.integers(size, size=2))
    angle, (length, width), height = rng.uniform(0, np.pi), rng.uniform(7, 12, 2), rng.uniform(*HEIGHTS)
    row, column = np.mgrid[:size, :size].astype(np.float32) - np.array([y, x], np.float32)[:, None, None]
    u, v = np.cos(angle) * column + np.sin(angle) * row, np.cos(angle) * row - np.sin(angle) * column
    cover, heights, here = seen.cover.copy(), seen.height.copy(), ground.cover[y, x]
    if here == WATER:
        place = (np.abs(u) < length / 2) & (np.abs(v) < 1.5) & (ground.cover == WATER)
        cover[place], heights[place] = ROOF, HEIGHTS[0]
        return seen._replace(cover=cover, height=heights)
    place = (np.abs(u) < length) & (np.abs(v) < width) & (ground.cover != WATER)
    cleared = here in (FOREST, ROAD, ROOF)
    cover[place], heights[place] = SOIL if cleared else ROAD, 0
    if not cleared:
        place &= (u % 7 < 5) & (v % 7 < 5)
        cover[place], heights[place] = ROOF, height
    return seen._replace(cover=cover, height=heights)


# the two sensors ------------------------------------------------------------------------------------------------------


def backscatter(ground: Ground) -> np.ndarray:
    """sigma0 without speckle, as power: [2,S,S].

    Wet soil and crops scatter more (dielectric constant), slopes towards the radar as well; then the houses.
    """
    cover, height, wetness, relief, grain = ground
    slope = np.gradient(relief, axis=1).astype(np.float32)
    table = np.array([BACKSCATTER[c] for c in range(len(BACKSCATTER))], np.float32).T
    local = np.where(np.isin(cover, (WATER, ROAD, ROOF)), 0, 0.8 * wetness + 10 * slope)
    local = local + np.where(cover == FOREST, 0.8 * grain, 0)
    power = np.float32(10) ** ((table[:, cover] + local) / 10).astype(np.float32)
    shadow, overlaid, corner = house_geometry(height)
    power[:, shadow] = 10 ** (NOISE_FLOOR / 10 - 1)  # nothing returns; the receiver's noise comes later
    wall = np.float32(10) ** (np.array(WALL, np.float32) / 10)
    bounce = np.float32(10) ** (np.array(CORNER, np.float32) / 10)
    return power + overlaid * wall[:, None, None] + corner * bounce[:, None, None]


def house_geometry(height: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the radar sees no ground [S,S] bool; how much of roof and wall lies over the ground in front of a house
    (layover, h / tan(incidence) towards the radar); and the line where wall meets street: float [S,S]."""
    front = np.zeros_like(height)  # height of a wall that faces the radar, at its first pixel
    front[:, 1:] = np.where((height[:, 1:] > 0) & (height[:, :-1] == 0), height[:, 1:], 0)
    shadow, overlaid = np.zeros(height.shape, bool), np.zeros_like(height)
    for k in range(1, int(np.ceil(HEIGHTS[1] / PIXEL / min(np.tan(INCIDENCE), 1 / np.tan(INCIDENCE)))) + 1):
        behind = height[:, :-k] - k * PIXEL / np.tan(INCIDENCE)  # what of the house blocks the ray, k pixels on
        shadow[:, k:] |= (behind > 0) & (height[:, k:] < behind)
        reached = front[:, k:] / np.tan(INCIDENCE) / PIXEL  # px of layover
        overlaid[:, :-k] += np.clip(reached - k + 1, 0, 1)
    corner = np.zeros_like(height)
    corner[:, :-1] = (front[:, 1:] > 0) * 1.0
    return shadow, overlaid, corner


def reflectance(ground: Ground) -> np.ndarray:
    """[3,S,S] about 0..255: colour by class, darker where wet, texture of crowns, light of the sun, shadows of houses;
    before noise and blur."""
    cover, height, wetness, relief, grain = ground
    table = np.array([COLOUR[c] for c in range(len(COLOUR))], np.float32).T
    texture = np.array([2, 6, 8, 7, 8, 8, 12, 14], np.float32)[cover]
    light = 1 + 0.5 * (np.gradient(relief, axis=1) + np.gradient(relief, axis=0)).astype(np.float32)
    light *= np.where(np.isin(cover, (WATER, ROAD, ROOF)), 1, 1 - 0.06 * wetness)
    light *= np.where(sun_shadow(height), 0.55, 1).astype(np.float32)
    return table[:, cover] * light + texture * grain


def sun_shadow(height: np.ndarray) -> np.ndarray:
    """Ground that houses to its upper left hide from a sun at 45 degrees: bool [S,S]."""
    shadow = np.zeros(height.shape, bool)
    for k in range(1, int(HEIGHTS[1] / PIXEL / np.sqrt(2)) + 1):
        shadow[k:, k:] |= (height[:-k, :-k] > k * PIXEL * np.sqrt(2)) & (height[k:, k:] == 0)
    return shadow


def blurred(x: np.ndarray) -> np.ndarray:
    """Binomial 1-6-1 along both axes, the point spread of an optical sensor: [...,H,W]."""
    for axis in (-1, -2):
        ahead, back = np.roll(x, 1, axis), np.roll(x, -1, axis)
        x = (ahead + 6 * x + back) / 8
    return x
