"""Image quality on 8-bit RGB, one image at a time, in float64. ``target`` and ``output`` are uint8 [H,W,3].

Recipes: metrics.md, section 2. A number without its recipe is not a result.
"""

import math
from typing import cast

import numpy as np

from .config import UserError

IDENTICAL_DB = 100.0
SSIM_WINDOW = 11  # px


def psnr(target: np.ndarray, output: np.ndarray) -> float:
    """10 log10(255^2 / mean((target - output)^2)) over pixels and channels, in dB; an identical pair counts 100 dB."""
    error = np.mean((_levels(target) - _levels(output)) ** 2)
    return float(10 * math.log10(255**2 / error)) if error else IDENTICAL_DB


def ssim(target: np.ndarray, output: np.ndarray) -> float:
    """Wang et al. 2004 per channel, then mean: gaussian window of sigma 1.5 and 11 x 11 px, biased covariance,
    K = (0.01, 0.03), the map cropped by 5 px. Both sides must have at least 11 px."""
    from skimage.metrics import structural_similarity

    if min(target.shape[:2]) < SSIM_WINDOW:
        size = f"{target.shape[1]} x {target.shape[0]} px"
        raise UserError(f"SSIM needs images of at least {SSIM_WINDOW} px on each side, this one has {size}")
    value = structural_similarity(
        target, output, data_range=255, channel_axis=2,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    return float(cast(float, value))  # the function returns a map too if asked to


def colour_gauge(target: np.ndarray, output: np.ndarray) -> dict[str, float]:
    """The colour cast: ``shift_c`` = mean(output) - mean(target) in grey values, and ``contrast_c`` = std(output) /
    std(target), for c = r, g, b. A perfect image has 0 and 1; a standard deviation below one grey value counts as one,
    so that flat images have a ratio too."""
    a, b = _levels(target), _levels(output)
    shift = b.mean((0, 1)) - a.mean((0, 1))
    contrast = np.maximum(b.std((0, 1)), 1) / np.maximum(a.std((0, 1)), 1)
    return {f"shift_{c}": float(v) for c, v in zip("rgb", shift, strict=True)} | {
        f"contrast_{c}": float(v) for c, v in zip("rgb", contrast, strict=True)
    }


def _levels(image: np.ndarray) -> np.ndarray:
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, (image.dtype, image.shape)
    return image.astype(np.float64)
