"""Distances between two sets of images, and intervals for means over a set.

Everything here is a function of the sets alone: not of the number of processes, of batches, or of the order of files.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES, COVERAGE = 1000, (2.5, 97.5)  # of the bootstrap: 95 %
KID_SUBSETS, KID_SUBSET = 100, 500
PATCHES, PATCH, DIRECTIONS, REPEATS = 128, 7, 128, 4  # of swd: arXiv 1710.10196, section 5
SMALLEST_LEVEL = 16  # px of the short side
BLOCK = 1 << 22  # numbers that a block of work may hold at once
PROJECTIONS = 1 << 24  # as many of swd: each block reads all patches


def mean(values: Iterable[float]) -> float:
    """Exactly rounded, whatever the order."""
    values = list(values)
    return math.fsum(values) / len(values)


# Bootstrap ------------------------------------------------------------------------------------------------------------


def bootstrap(values: np.ndarray, weights: np.ndarray | None = None, scenes: Sequence[str] = ()) -> list[list[float]]:
    """95 % percentile intervals of the columns' means, [n,k] -> k pairs, from 1,000 resamples of the rows.

    ``weights`` [n]: of ratios sum(values) / sum(weights); default 1. ``scenes``: of every row; then whole scenes are
    resampled, because neighbouring tiles are not independent.
    """
    weights = np.ones(len(values)) if weights is None else weights
    table = np.column_stack([values, weights])
    if scenes:
        names = sorted(set(scenes))
        index = np.searchsorted(names, scenes)
        table = np.stack([table[index == i].sum(0) for i in range(len(names))])
    random, n = np.random.RandomState(0), len(table)
    rows = max(1, BLOCK // (n * table.shape[1]))  # a stream of integers does not depend on its cuts
    ratios = []
    for start in range(0, RESAMPLES, rows):
        sums = table[random.randint(0, n, (min(rows, RESAMPLES - start), n))].sum(1)
        ratios.append(sums[:, :-1] / np.where(sums[:, -1:] > 0, sums[:, -1:], 1))
    return np.percentile(np.concatenate(ratios), COVERAGE, axis=0).T.tolist()


# Features: Frechet distance and KID -----------------------------------------------------------------------------------


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^1/2) of [n,d] and [m,d], covariances with n - 1, in float64.

    With centred X, Y: tr (S_x S_y)^1/2 = |X Y^T|_* / sqrt((n-1)(m-1)), the nuclear norm: real, without a regulariser,
    and small where there are fewer samples than dimensions.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, m = len(x) - 1, len(y) - 1
    shift = x.mean(0) - y.mean(0)
    x, y = x - x.mean(0), y - y.mean(0)
    if min(len(x), len(y)) < x.shape[1]:
        cross = float(np.linalg.svd(x @ y.T, compute_uv=False).sum()) / math.sqrt(n * m)
    else:
        values, vectors = np.linalg.eigh(x.T @ x / n)
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        cross = float(np.sqrt(np.maximum(np.linalg.eigvalsh(root @ (y.T @ y / m) @ root), 0)).sum())
    return float(shift @ shift + (x * x).sum() / n + (y * y).sum() / m - 2 * cross)


def kid(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 of [n,d] and [m,d] with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018), in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, m = len(x), len(y)
    within = (_kernel_sum(x, x) - _diagonal_sum(x)) / (n * (n - 1)) + (_kernel_sum(y, y) - _diagonal_sum(y)) / (
        m * (m - 1)
    )
    return within - 2 * _kernel_sum(x, y) / (n * m)


def kid_std(target: np.ndarray, output: np.ndarray) -> float | None:
    """Standard deviation of ``kid`` over 100 pairs of subsets of min(500, n // 2); None below 4 images."""
    size = min(KID_SUBSET, min(len(target), len(output)) // 2)
    if size < 2:
        return None
    random = np.random.RandomState(0)
    values = []
    for _ in range(KID_SUBSETS):
        a = target[random.choice(len(target), size, replace=False)]
        values.append(kid(a, output[random.choice(len(output), size, replace=False)]))
    return float(np.std(values))


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    rows = max(1, BLOCK // len(y))
    return math.fsum(float(((x[i : i + rows] @ y.T / x.shape[1] + 1) ** 3).sum()) for i in range(0, len(x), rows))


def _diagonal_sum(x: np.ndarray) -> float:
    return float((((x * x).sum(1) / x.shape[1] + 1) ** 3).sum())


# Power spectrum -------------------------------------------------------------------------------------------------------


def spectrum(target: np.ndarray, output: np.ndarray) -> float:
    """Root mean square over rings of 10 log10((P_output + 1) / (P_target + 1)), in dB; mean powers of the rings."""
    return float(np.sqrt(np.mean((10 * np.log10((output + 1) / (target + 1))) ** 2)))


def high_frequencies(rings: np.ndarray) -> np.ndarray:
    """Sums of the powers [...,k] of ``metrics.ring_power`` above a quarter cycle per px, which is half of Nyquist."""
    return rings[..., rings.shape[-1] // 2 :].sum(-1)  # ring i lies at (i + 1) / side, and k = side // 2


# Sliced Wasserstein distance of Laplacian-pyramid patches -------------------------------------------------------------


class Plan(NamedTuple):
    """The random numbers of one level: corners of patches, int16 [n,128], and directions [4,147,128]."""

    y: np.ndarray
    x: np.ndarray
    directions: np.ndarray


class Moments(NamedTuple):
    """Mean and standard deviation of the patches of a set, per channel: [3]."""

    mean: np.ndarray
    std: np.ndarray


def laplacian(image: np.ndarray) -> list[np.ndarray]:
    """[H,W,3] -> its band-pass levels, full resolution first, and the low-pass rest; float64, exact on integers.

    A level is the image minus its blurred self; the next image has every second pixel, while its short side has 16.
    """
    levels, current = [], np.ascontiguousarray(image.transpose(2, 0, 1), np.float64)
    while (min(current.shape[1:]) + 1) // 2 >= SMALLEST_LEVEL:
        small = _halved(_halved(current, 1), 2)
        levels.append(current - _doubled(_doubled(small, 1, current.shape[1]), 2, current.shape[2]))
        current = small
    return [level.transpose(1, 2, 0) for level in (*levels, current)]


def _halved(x: np.ndarray, axis: int) -> np.ndarray:
    """The filter (1 4 6 4 1)/16 along an axis, mirrored without the edge pixel, at every second pixel."""
    x = np.moveaxis(x, axis, 0)
    x = np.concatenate([x[2:0:-1], x, x[-2:-4:-1]])
    even, odd, n = x[::2], x[1::2], (len(x) - 3) // 2
    found = (even[:n] + even[2 : n + 2] + 6 * even[1 : n + 1] + 4 * (odd[:n] + odd[1 : n + 1])) / 16
    return np.moveaxis(found, 0, axis)


def _doubled(x: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Twice the same filter along an axis of ``x`` with zeros between its pixels, ``length`` in all."""
    out = np.empty([*x.shape[:axis], length, *x.shape[axis + 1 :]])
    x, found = np.moveaxis(x, axis, 0), np.moveaxis(out, axis, 0)
    # the mirror of what has zeros: the second one before; behind, by parity, the last one or the one before it
    x = np.concatenate([x[1:2], x, x[-1:] if length % 2 == 0 else x[-2:-1]])
    found[::2] = (x[:-2] + 6 * x[1:-1] + x[2:]) / 8
    found[1::2] = ((x[1:-1] + x[2:]) / 2)[: length // 2]
    return out


def plans(n: int, height: int, width: int) -> list[Plan]:
    """One plan per level for sets of ``n`` images, from one stream of RandomState(0)."""
    random, made = np.random.RandomState(0), []
    for level in laplacian(np.zeros((height, width, 1))):
        y, x = (random.randint(3, side - 3, (n, PATCHES)).astype(np.int16) - 3 for side in level.shape[:2])
        directions = np.stack([random.standard_normal((PATCH * PATCH * 3, DIRECTIONS)) for _ in range(REPEATS)])
        made.append(Plan(y, x, directions / np.linalg.norm(directions, axis=1, keepdims=True)))
    return made


def patches(level: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The 7 x 7 patches with corners ``y``, ``x`` [128]: float32 [128,147], component order row, column, channel."""
    offsets = np.arange(PATCH)
    rows, columns = y[:, None, None] + offsets[:, None], x[:, None, None] + offsets
    return level[rows, columns].reshape(len(y), -1).astype(np.float32)


def patch_sums(found: np.ndarray) -> np.ndarray:
    """Sum and sum of squares per channel of [...,147] patches of one image: [2,3]."""
    values = found.astype(np.float64).reshape(-1, PATCH**2 * 3)
    return np.stack([x.sum(0).reshape(-1, 3).sum(0) for x in (values, values * values)])


def moments(sums: np.ndarray) -> Moments:
    """Of a set from the ``patch_sums`` of its images: [n,2,3]."""
    count = len(sums) * PATCHES * PATCH**2
    first, second = (np.array([math.fsum(sums[:, i, c]) / count for c in range(3)]) for i in range(2))
    std = np.sqrt(np.maximum(second - first**2, 0))
    return Moments(first, np.where(std > 0, std, 1))


def sliced_distance(
    target: Sequence[np.ndarray], output: Sequence[np.ndarray], norms: tuple[Moments, Moments], directions: np.ndarray
) -> list[float]:
    """Per direction, the mean absolute difference of the sorted projections of two sets of normalised patches.

    ``target``, ``output``: parts [n_i,128,147] of the sets, in any order; ``directions``: [147,k].
    """
    a, b = (_projections(parts, norm, directions) for parts, norm in zip((target, output), norms, strict=True))
    return [float(np.abs(p - q).mean(dtype=np.float64)) for p, q in zip(a, b, strict=True)]


def _projections(parts: Sequence[np.ndarray], norm: Moments, directions: np.ndarray) -> np.ndarray:
    """Sorted along each direction: [k, patches]. (p - mean)/std . d = p . d/std - (mean/std) . d"""
    std, centre = np.tile(norm.std, PATCH**2), np.tile(norm.mean, PATCH**2)
    scaled = directions / std[:, None]
    offset = (centre @ scaled)[:, None]
    values = np.empty((directions.shape[1], sum(map(len, parts)) * PATCHES), np.float32)  # sorts twice as fast
    start = 0
    for part in parts:
        for image in part:
            values[:, start : start + PATCHES] = (image.astype(np.float64) @ scaled).T - offset
            start += PATCHES
    values.sort(axis=1)
    return values


def swd(target: np.ndarray, output: np.ndarray, own_norm: bool = False) -> list[float]:
    """Sets [n,H,W,3] in memory -> 1e3 x the sliced Wasserstein distance of every level, full resolution first.

    Patches are normalised by the mean and standard deviation of the target's; with ``own_norm`` each set by its own,
    which is the published recipe and blind to a colour cast.
    """
    values = []
    pyramids = [[laplacian(image) for image in images] for images in (target, output)]
    for level, plan in enumerate(plans(len(target), *target.shape[1:3])):
        a, b = (
            np.stack([patches(p[level], plan.y[i], plan.x[i]) for i, p in enumerate(pyramid)]) for pyramid in pyramids
        )
        first, second = (moments(np.stack([patch_sums(found) for found in side])) for side in (a, b))
        norms = (first, second if own_norm else first)
        distances = [d for directions in plan.directions for d in sliced_distance([a], [b], norms, directions)]
        values.append(1e3 * mean(distances))
    return values
