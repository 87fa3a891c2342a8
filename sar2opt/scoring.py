"""One image after the other, in worker processes: its numbers, and what distances between sets need of it.

Memory is flat in the number of images: patches for the sliced Wasserstein distance go to files.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import distances, metrics, partners
from .data import SarRadiometry
from .distances import DIRECTIONS, PATCH, PATCHES, Moments
from .partners import Item, Size

SIDES = ("target", "output", "half")  # half: the target again, at the positions of its two halves
VALUES = PATCHES * PATCH**2 * 3  # of one image at one level


class Images(NamedTuple):
    """uint8 [H,W,3], and float64 [H,W] if there is SAR."""

    target: np.ndarray
    output: np.ndarray
    sar: np.ndarray | None

    @property
    def radar(self) -> np.ndarray:
        assert self.sar is not None
        return self.sar


# name of a column -> its value
SINGLE: dict[str, Callable[[Images], float]] = {
    "psnr": lambda i: metrics.psnr(i.target, i.output),
    "ssim": lambda i: metrics.ssim(i.target, i.output),
    "scc": lambda i: metrics.scc(i.target, i.output),
    "ssim_uniform7": lambda i: metrics.ssim_uniform7(i.target, i.output),
    "ssim_torchmetrics": lambda i: metrics.ssim_torchmetrics(i.target, i.output),
    "sam": lambda i: metrics.sam(i.target, i.output),
    "ergas": lambda i: metrics.ergas(i.target, i.output),
    "mae": lambda i: metrics.mae(i.target, i.output),
}
# name of a group -> its columns and their values
GROUPS: dict[str, tuple[tuple[str, ...], Callable[[Images], tuple[float, ...]]]] = {
    "rgb_shift": (("rgb_r", "rgb_g", "rgb_b"), lambda i: tuple(metrics.rgb_shift(i.target, i.output))),
    "edges": (("edge_sar", "edge_sar_target"), lambda i: metrics.edge_correlations(i.target, i.output, i.radar)),
    "copy_ratio": (("to_sar", "to_target"), lambda i: metrics.absolute_errors(i.target, i.output, i.radar)),
    "cdiffset": (
        ("psnr_cdiffset", "ssim_cdiffset", "scc_cdiffset"),
        lambda i: metrics.legacy_cdiffset(i.target, i.output),
    ),
}


class Spool(NamedTuple):
    """Patches on disk, 226 kB per image and level, one file per process, side and level; image ``k`` of process
    ``rank`` is image ``rank + k world`` of the set."""

    folder: Path
    n: int
    world: int
    levels: int

    def write(self, i: int, side: str, level: int, found: np.ndarray) -> None:
        """The patches float32 [128,147] of image ``i``."""
        descriptor = os.open(self._file(i % self.world, side, level), os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(descriptor, found.tobytes(), i // self.world * VALUES * 4)
        finally:
            os.close(descriptor)

    def parts(self, side: str, level: int, first: int, last: int) -> list[np.ndarray]:
        """The patches of images ``first`` to ``last`` - 1: [n_i,128,147]."""
        found = []
        for rank in range(min(self.world, self.n)):
            low, high = (max(0, -(-(bound - rank) // self.world)) for bound in (first, last))
            if high > low:
                whole = np.memmap(self._file(rank, side, level), np.float32, "r")
                found.append(whole.reshape(-1, PATCHES, VALUES // PATCHES)[low:high])
        return found

    def _file(self, rank: int, side: str, level: int) -> Path:
        return self.folder / f"{side}-{level}-{rank}.f32"


class Work(NamedTuple):
    """What to do with every image. ``corners``: files of the positions of patches [levels,2,n,128], of the whole set
    and of its halves; none without swd."""

    columns: tuple[str, ...]  # keys of SINGLE
    groups: tuple[str, ...]  # keys of GROUPS
    rings: bool
    radiometry: SarRadiometry | None
    spool: Spool | None = None
    corners: tuple[Path, ...] = ()


class Scored(NamedTuple):
    """``rings``: power [2,k] of target and output; ``sums``: [levels,3 sides,2,3] of the patches."""

    values: list[float]  # of the columns, then of the groups
    rings: np.ndarray
    sums: np.ndarray


class Task(NamedTuple):
    """An item, its place in the set, and its size."""

    place: int
    item: Item
    size: Size


def names(work: Work) -> list[str]:
    """The columns of ``Scored.values``."""
    return [*work.columns, *(name for group in work.groups for name in GROUPS[group][0])]


def read(item: Item, size: Size, radiometry: SarRadiometry | None) -> Images:
    """The pixels of one item."""
    sar = None if item.sar is None else partners.read_sar(item.sar, size, radiometry)
    return Images(partners.read_rgb(item.target, size), partners.read_rgb(item.pred, size), sar)


def score(work: Work, tasks: list[Task]) -> list[Scored]:
    """All numbers of some images."""
    return [_score(work, task) for task in tasks]


def _score(work: Work, task: Task) -> Scored:
    images = read(task.item, task.size, work.radiometry)
    values = [SINGLE[name](images) for name in work.columns]
    for group in work.groups:
        values += map(float, GROUPS[group][1](images))
    rings = np.stack([metrics.ring_power(x) for x in images[:2]]) if work.rings else np.empty(0)
    return Scored(values, rings, _spool(work, task.place, images) if work.spool else np.empty(0))


def _spool(work: Work, i: int, images: Images) -> np.ndarray:
    """Write the patches of one image; their sums."""
    assert work.spool is not None
    pyramids = [distances.laplacian(x) for x in images[:2]]
    positions = [np.load(path, mmap_mode="r", allow_pickle=False) for path in work.corners]
    sums = np.zeros((work.spool.levels, len(SIDES), 2, 3))
    for s, side in enumerate(SIDES[: 1 + len(positions)]):
        chosen = positions[side == "half"]
        for level in range(work.spool.levels):
            y, x = chosen[level, :, i % chosen.shape[2]]
            found = distances.patches(pyramids[side == "output"][level], y, x)
            work.spool.write(i, side, level, found)
            sums[level, s] = distances.patch_sums(found)
    return sums


class Slice(NamedTuple):
    """A share of the sliced Wasserstein distance of one level; ``ranges``: side, first and last image of both sets."""

    spool: Spool
    level: int
    ranges: tuple[tuple[str, int, int], tuple[str, int, int]]
    norms: tuple[Moments, Moments]
    directions: np.ndarray


def slice_distances(work: Slice) -> list[float]:
    """One distance per direction."""
    target, output = (work.spool.parts(side, work.level, first, last) for side, first, last in work.ranges)
    return distances.sliced_distance(target, output, work.norms, work.directions)


def blocks(directions: np.ndarray, n: int) -> list[np.ndarray]:
    """[4,147,128] in shares [147,k] whose projections of ``n`` images fit in one block of work."""
    width = min(DIRECTIONS, max(1, distances.PROJECTIONS // (n * PATCHES)))
    return [d[:, start : start + width] for d in directions for start in range(0, DIRECTIONS, width)]
