"""What any model must beat: images made from the training set without learning, or with five weights a channel."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from . import partners
from .data import SarRadiometry
from .partners import Item, Pair, Size

BOXES = (5, 15, 31)  # px
STRIDE = 4  # of the pixels that the regression is fitted on
THUMBNAIL = 16  # px
CHUNK = 16  # pairs whose sums are taken at once: fixed, so that rounding does not depend on the processes


class Sums(NamedTuple):
    """Of some training pairs. ``image``: sum of the targets of the evaluated size, or empty; ``colour``: [3] and the
    number of its pixels; ``gram`` [5,5] and ``moment`` [5,3] of the regression; ``thumbnails`` [n,16,16] of the SAR."""

    image: np.ndarray
    colour: np.ndarray
    pixels: int
    gram: np.ndarray
    moment: np.ndarray
    thumbnails: np.ndarray


class Fit(NamedTuple):
    """The training set as the baselines see it; ``mean_image`` is empty where sizes differ."""

    mean_image: np.ndarray
    colour: np.ndarray
    weights: np.ndarray
    thumbnails: np.ndarray
    pairs: list[Pair]


class Baseline(NamedTuple):
    """``paint`` makes the output for the SAR, float64 [H,W], of an image of the given size."""

    recipe: str
    paint: Callable[[np.ndarray, Size], np.ndarray]


def sums(pairs: list[Pair], size: Size | None, radiometry: SarRadiometry | None) -> Sums:
    """``size``: of all evaluated images, to which larger training images are cut; None if they differ."""
    image = np.zeros((*size, 3)) if size else np.empty(0)
    colour, pixels, gram, moment, thumbnails = np.zeros(3), 0, np.zeros((5, 5)), np.zeros((5, 3)), []
    for pair in pairs:
        own = partners.picture(pair.target)[0]
        if size and own.height >= size.height and own.width >= size.width:
            own = size
        target = partners.read_rgb(pair.target, own).astype(np.float64)
        image = image + target if image.shape == target.shape else np.empty(0)
        colour, pixels = colour + target.sum((0, 1)), pixels + own.height * own.width
        if pair.sar is not None:
            sar = partners.read_sar(pair.sar, own, radiometry)
            x = features(sar)[::STRIDE, ::STRIDE].reshape(-1, 5)
            gram, moment = gram + x.T @ x, moment + x.T @ target[::STRIDE, ::STRIDE].reshape(-1, 3)
            thumbnails.append(thumbnail(sar))
    return Sums(image, colour, pixels, gram, moment, np.array(thumbnails))


def fit(pairs: list[Pair], parts: Iterable[Sums]) -> Fit:
    """The sums of all ``CHUNK``s of ``pairs``, added in order."""
    parts = iter(parts)
    total = next(parts)
    thumbnails = [total.thumbnails]
    for part in parts:
        same = total.image.shape == part.image.shape
        total = Sums(
            total.image + part.image if same else np.empty(0),
            *(getattr(total, name) + getattr(part, name) for name in ("colour", "pixels", "gram", "moment")),
            thumbnails=part.thumbnails,
        )
        thumbnails.append(part.thumbnails)
    small = np.concatenate(thumbnails)
    weights = np.linalg.lstsq(total.gram, total.moment)[0] if len(small) else np.empty(0)
    return Fit(total.image / len(pairs), total.colour / total.pixels, weights, small, pairs)


def features(sar: np.ndarray) -> np.ndarray:
    """1, the value, and its means over boxes of 5, 15 and 31 px (symmetric border): [H,W,5]."""
    from scipy.ndimage import uniform_filter

    return np.stack([np.ones_like(sar), sar, *[uniform_filter(sar, size, mode="reflect") for size in BOXES]], axis=-1)


def thumbnail(sar: np.ndarray) -> np.ndarray:
    """Means over a grid of 16 x 16 boxes: [16,16]; speckle averages out."""
    rows, columns = (np.linspace(0, side, THUMBNAIL + 1).astype(int) for side in sar.shape)
    blocks = np.add.reduceat(np.add.reduceat(sar, rows[:-1], axis=0), columns[:-1], axis=1)
    return blocks / np.outer(np.diff(rows), np.diff(columns))


def baselines(fitted: Fit | None, has_sar: bool, radiometry: SarRadiometry | None) -> dict[str, Baseline]:
    """Those that are possible with what is there."""
    found: dict[str, Baseline] = {}
    if fitted is not None:
        found["mean_colour"] = Baseline(
            "mean colour of the training targets, rounded", lambda sar, size: np.broadcast_to(fitted.colour, (*size, 3))
        )
        if fitted.mean_image.size:
            found["mean_image"] = Baseline(
                "mean of the training targets, pixel by pixel, rounded", lambda sar, size: fitted.mean_image
            )
        if has_sar and len(fitted.thumbnails):
            found["linear"] = Baseline(
                "linear regression per pixel on SAR value and its means over boxes of 5, 15 and 31 px, fitted on every "
                f"{STRIDE}th row and column of the training pairs",
                lambda sar, size: features(sar) @ fitted.weights,
            )
        if has_sar and len(fitted.thumbnails) and fitted.mean_image.size:  # all of one size
            found["nearest_neighbour"] = Baseline(
                f"target of the training pair whose SAR is nearest, in means over {THUMBNAIL} x {THUMBNAIL} boxes",
                lambda sar, size: _nearest(sar, size, fitted),
            )
    if has_sar:
        found["sar_copy"] = Baseline("the SAR input, mean of bands, as grey", lambda sar, size: sar[..., None])
    return found


def _nearest(sar: np.ndarray, size: Size, fitted: Fit) -> np.ndarray:
    distance = ((fitted.thumbnails - thumbnail(sar)) ** 2).sum((1, 2))
    return partners.read_rgb(fitted.pairs[int(distance.argmin())].target, size)  # the first of equals


def write(baseline: Baseline, item: Item, size: Size, radiometry: SarRadiometry | None, path: Path) -> None:
    """The output as 8-bit PNG, as a model's would be."""
    sar = np.empty(0) if item.sar is None else partners.read_sar(item.sar, size, radiometry)
    levels = np.clip(np.rint(np.broadcast_to(baseline.paint(sar, size), (*size, 3))), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path, compress_level=1)
