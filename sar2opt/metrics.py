"""Image quality on 8-bit RGB, one image at a time, in float64. ``target`` and ``output`` are uint8 [H,W,3].

The recipes stand in recipes.py. A number without its recipe is not a result. The ``*_cdiffset`` functions repeat the
convention of one paper's tables (arXiv 2411.10788) and share no key with the others.
"""

import math
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from .config import UserError

IDENTICAL_DB = 100.0
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # px
LUMA = np.array([0.299, 0.587, 0.114])
EDGE_SIGMA, EDGE_BORDER = 1.0, 4  # px; within the border the filters would see the mirrored image


def psnr(target: np.ndarray, output: np.ndarray) -> float:
    """10 log10(255^2 / mean((target - output)^2)) over pixels and channels, in dB; an identical pair counts 100 dB."""
    difference = _difference(target, output)
    error = np.square(difference, dtype=np.int32).sum(dtype=np.int64) / difference.size
    return float(10 * math.log10(255**2 / error)) if error else IDENTICAL_DB


def ssim(target: np.ndarray, output: np.ndarray) -> float:
    """Wang et al. 2004 per channel, then mean: gaussian window of sigma 1.5 and 11 x 11 px, biased covariance,
    K = (0.01, 0.03), the map cropped by 5 px. Both sides must have at least 11 px.

    Equal to scikit-image with these settings, in half of its time: four filters instead of five, without border.
    """
    if min(target.shape[:2]) < SSIM_WINDOW:
        size = f"{target.shape[1]} x {target.shape[0]} px"
        raise UserError(f"SSIM needs images of at least {SSIM_WINDOW} px on each side, this one has {size}")
    return float(np.mean([_ssim_band(target[..., c], output[..., c]) for c in range(3)]))


def _ssim_band(target: np.ndarray, output: np.ndarray) -> float:
    a, b = target.astype(np.float64), output.astype(np.float64)
    mean_a, mean_b, squares, product = (_window_mean(x) for x in (a, b, a * a + b * b, a * b))
    means, powers = mean_a * mean_b, mean_a**2 + mean_b**2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = (2 * means + c1) * (2 * (product - means) + c2) / ((powers + c1) * (squares - powers + c2))
    return float(values.mean())


def _window_mean(x: np.ndarray) -> np.ndarray:
    """Means of [H,W] under SSIM's window, where it lies inside: [H-10,W-10]."""
    radius = SSIM_WINDOW // 2
    taps = np.exp(-0.5 * (np.arange(radius + 1) / SSIM_SIGMA) ** 2)
    taps /= taps[0] + 2 * taps[1:].sum()
    for axis in (0, 1):
        x = x.swapaxes(0, axis)
        end = len(x) - radius
        total, both = taps[0] * x[radius:end], np.empty_like(x[radius:end])  # in place: twice as fast
        for k in range(1, radius + 1):
            np.add(x[radius - k : end - k], x[radius + k : end + k], out=both)
            both *= taps[k]
            total += both
        x = total.swapaxes(0, axis)
    return x


def ssim_uniform7(target: np.ndarray, output: np.ndarray) -> float:
    """scikit-image's default: uniform window of 7 x 7 px, sample covariance."""
    from skimage.metrics import structural_similarity

    return float(cast(float, structural_similarity(target, output, data_range=255, channel_axis=2)))


def ssim_torchmetrics(target: np.ndarray, output: np.ndarray) -> float:
    """torchmetrics' default, which averages the mirrored border too."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = _unit(output), _unit(target)
    return float(cast(Tensor, structural_similarity_index_measure(x, y, data_range=1.0)))


def scc(target: np.ndarray, output: np.ndarray) -> float:
    """Spatial correlation coefficient: 8 x 8 px local correlation of the high-passed bands (8 at the centre, -1 around,
    symmetric border), mean over pixels and bands. Zero variance correlates 0.

    Every sum in it is an exact integer, so that a flat area gives 0, where [0, 1] in float32 correlates rounding noise.
    """
    return float(np.mean([_scc_band(target[..., c], output[..., c]) for c in range(3)]))


def _scc_band(target: np.ndarray, output: np.ndarray) -> float:
    a, b = _high_pass(target), _high_pass(output)
    mean_a, mean_b = _box8(a), _box8(b)
    var_a, var_b = (np.maximum(v, 0) for v in (_box8(a * a) - mean_a**2, _box8(b * b) - mean_b**2))
    scale = np.sqrt(var_a) * np.sqrt(var_b)
    covariance = _box8(a * b) - mean_a * mean_b
    return float(np.mean(np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)))


def _high_pass(band: np.ndarray) -> np.ndarray:
    """9 x the pixel minus the sum over its 3 x 3 neighbourhood: int32 [H,W], at most 2040."""
    x = np.pad(band.astype(np.int32), 1, mode="symmetric")
    rows = x[:-2] + x[1:-1] + x[2:]
    return 9 * x[1:-1, 1:-1] - (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:])


def _box8(x: np.ndarray) -> np.ndarray:
    """Means over 8 x 8 px, zeros outside: 4 before and 3 after each pixel; 64 x 2040^2 fits in int32."""
    x = np.pad(x, (4, 3))
    for step in (1, 2, 4):  # sums over 2, 4, 8
        x = x[:-step] + x[step:]
    for step in (1, 2, 4):
        x = x[:, :-step] + x[:, step:]
    return x / 64


def luma(image: np.ndarray) -> np.ndarray:
    """.299 R + .587 G + .114 B: float64 [H,W] in grey values."""
    red, green, blue = (weight * image[..., c] for c, weight in enumerate(LUMA))
    return red + green + blue


def edges(grey: np.ndarray) -> np.ndarray:
    """Sobel magnitude of [H,W] after a gaussian of sigma 1, without the outer 4 px."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(grey, EDGE_SIGMA, mode="reflect", truncate=4.0)  # scipy's reflect is symmetric
    border = slice(EDGE_BORDER - 1, 1 - EDGE_BORDER)
    x = smooth[border, border]
    # Sobel: the difference of the neighbours along one axis, (1 2 1) along the other
    rows, columns = x[2:] - x[:-2], x[:, 2:] - x[:, :-2]
    rows = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
    columns = columns[:-2] + 2 * columns[1:-1] + columns[2:]
    return np.sqrt(rows * rows + columns * columns)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson over all elements; 0 where one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum()) * float((b * b).sum()))  # vdot would round by the number of threads
    # a constant image keeps rounding noise after the filters
    return float((a * b).sum()) / scale if min(np.abs(a).max(), np.abs(b).max()) > 1e-9 else 0.0


def edge_correlations(target: np.ndarray, output: np.ndarray, sar: np.ndarray) -> tuple[float, float]:
    """Correlation of the edges of output and of target with those of ``sar``, float64 [H,W] in grey values."""
    found = edges(sar)
    return correlation(edges(luma(output)), found), correlation(edges(luma(target)), found)


def rgb_shift(target: np.ndarray, output: np.ndarray) -> np.ndarray:
    """mean(output) - mean(target) per channel in grey values: [3]."""
    height, width, _ = _difference(target, output).shape
    sums = [x.reshape(height, -1).sum(0, dtype=np.int64).reshape(width, 3).sum(0) for x in (target, output)]
    return (sums[1] - sums[0]) / (height * width)


def absolute_errors(target: np.ndarray, output: np.ndarray, sar: np.ndarray) -> tuple[float, float]:
    """sum abs(output - sar) and sum abs(output - target), whose ratio over a set is its ``copy_ratio``."""
    return float(np.abs(output - sar[..., None]).sum()), float(np.abs(_difference(target, output)).sum(dtype=np.int64))


def mae(target: np.ndarray, output: np.ndarray) -> float:
    """Mean absolute error in grey values."""
    difference = _difference(target, output)
    return float(np.abs(difference).sum(dtype=np.int64) / difference.size)


def sam(target: np.ndarray, output: np.ndarray) -> float:
    """Spectral angle in degrees, mean over the pixels where both colours are not black."""
    a, b = _levels(target), _levels(output)
    scale = np.linalg.norm(a, axis=2) * np.linalg.norm(b, axis=2)
    cosine = (a * b).sum(2)[scale > 0] / scale[scale > 0]
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean()) if cosine.size else 0.0


def ergas(target: np.ndarray, output: np.ndarray) -> float:
    """100 sqrt(mean_c (rmse_c / mean_c)^2) with the means of the target's channels, at ratio 1; a mean below one grey
    value counts as one."""
    a, b = _levels(target), _levels(output)
    error = ((a - b) ** 2).mean((0, 1))
    return float(100 * np.sqrt(np.mean(error / np.maximum(a.mean((0, 1)), 1) ** 2)))


def ring_power(image: np.ndarray) -> np.ndarray:
    """Power of the luma on rings of frequency k / min(H, W) cycles per px, k = 1..min(H, W) // 2, after taking the
    mean off and a Hann window."""
    grey = luma(image)
    window, ring, weights, counts = _rings(*grey.shape)
    values = np.fft.rfft2((grey - grey.mean()) * window)
    sums = np.bincount(ring, ((values.real**2 + values.imag**2) * weights).ravel())
    return (sums / np.maximum(counts, 1))[1 : min(grey.shape) // 2 + 1]


@lru_cache(maxsize=4)
def _rings(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of images of one size: the window; of every frequency of rfft2, its ring and how often the whole plane has it;
    the frequencies on each ring of the plane."""
    window = np.hanning(height)[:, None] * np.hanning(width)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    ring = np.rint(np.hypot(rows, columns) * min(height, width)).astype(int).ravel()
    weights = np.where((columns == 0) | (columns == 0.5), 1.0, 2.0)  # the others have a mirrored one
    return window, ring, weights, np.bincount(ring, np.broadcast_to(weights, (height, len(columns))).ravel())


def colour_gauge(target: np.ndarray, output: np.ndarray) -> dict[str, float]:
    """The colour cast: ``shift_c`` = mean(output) - mean(target) in grey values, and ``contrast_c`` = std(output) /
    std(target), for c = r, g, b. A perfect image has 0 and 1; a standard deviation below one grey value counts as one,
    so that flat images have a ratio too."""
    shift = rgb_shift(target, output)
    a, b = _levels(target), _levels(output)
    contrast = np.maximum(b.std((0, 1)), 1) / np.maximum(a.std((0, 1)), 1)
    return {f"shift_{c}": float(v) for c, v in zip("rgb", shift, strict=True)} | {
        f"contrast_{c}": float(v) for c, v in zip("rgb", contrast, strict=True)
    }


class Legacy(NamedTuple):
    psnr: float
    ssim: float
    scc: float


def legacy_cdiffset(target: np.ndarray, output: np.ndarray) -> Legacy:
    """PSNR, SSIM and SCC by torchmetrics on y = clip(u8/127.5 - 1/2, 0, 1) of both images: a contrast stretch by 2 that
    clips dark and bright pixels. For the tables of arXiv 2411.10788 alone."""
    from torchmetrics.functional import image

    x, y = stretched(output), stretched(target)
    return Legacy(
        float(image.peak_signal_noise_ratio(x, y, data_range=1.0)) if not x.equal(y) else IDENTICAL_DB,
        float(cast(Tensor, image.structural_similarity_index_measure(x, y, data_range=1.0))),
        float(image.spatial_correlation_coefficient(x, y)),
    )


def stretched(image: np.ndarray) -> Tensor:
    """clip((u8/127.5 - 1) + 1/2, 0, 1): float32 [1,3,H,W]."""
    x = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    return (x + 0.5).clamp(0, 1)


def _difference(target: np.ndarray, output: np.ndarray) -> np.ndarray:
    """target - output: int16, whose sums are exact."""
    assert target.dtype == output.dtype == np.uint8 and target.shape == output.shape, (target.shape, output.shape)
    return np.subtract(target, output, dtype=np.int16)


def _unit(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.astype(np.float32) / np.float32(255)).permute(2, 0, 1)[None]


def _levels(image: np.ndarray) -> np.ndarray:
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, (image.dtype, image.shape)
    return image.astype(np.float64)
