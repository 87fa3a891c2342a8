"""Metrics against the reference values of metrics.md, section 4, and against an independent implementation."""

import hashlib

import numpy as np
import pytest

from sar2opt import metrics
from sar2opt.config import UserError


def up8(lo):
    """Integer bilinear, 9 x 9 -> 64 x 64."""
    i, f = np.arange(64) // 8, np.arange(64) % 8
    rows = lo[i] * (8 - f)[:, None, None] + lo[i + 1] * f[:, None, None]
    return (rows[:, i] * (8 - f)[None, :, None] + rows[:, i + 1] * f[None, :, None]) // 64


def make(seed):
    """A target and an output; RandomState streams are frozen by numpy's policy."""
    random = np.random.RandomState(seed)
    base = up8(random.randint(40, 216, (9, 9, 3), dtype=np.int64))
    target = np.clip(base + random.randint(-12, 13, (64, 64, 3), dtype=np.int64), 0, 255).astype(np.uint8)
    noise = random.randint(-20, 21, (64, 64, 3), dtype=np.int64)
    return target, np.clip(target.astype(int) + noise, 0, 255).astype(np.uint8)


A, B = make(0)
C, D = np.roll(A, 2, axis=1), (A // 2 + 70).astype(np.uint8)


def test_the_reference_arrays_are_the_published_ones():
    digests = [hashlib.sha256(x.tobytes()).hexdigest()[:16] for x in (A, B, C, D)]
    assert digests == ["274ae8e9059d0c48", "7bf060d9dd73447c", "725687338f04f113", "2468d94ea74a4e3c"]


@pytest.mark.parametrize(
    ("output", "psnr", "ssim"),
    [(B, 26.650588, 0.766964), (C, 22.403991, 0.638989), (D, 22.750546, 0.829697), (A, 100.0, 1.0)],
    ids=["noise", "shift", "contrast", "identical"],
)
def test_psnr_and_ssim_have_their_reference_values(output, psnr, ssim):
    assert metrics.psnr(A, output) == pytest.approx(psnr, abs=1e-5)
    assert metrics.ssim(A, output) == pytest.approx(ssim, abs=1e-5)
    assert metrics.psnr(output, A) == pytest.approx(psnr, abs=1e-5)
    assert metrics.ssim(output, A) == pytest.approx(ssim, abs=1e-5)


def test_psnr_is_a_mean_over_images_not_over_errors():
    values = [metrics.psnr(*make(seed)) for seed in range(8)]
    assert np.mean(values) == pytest.approx(26.677219, abs=1e-5)
    assert np.mean([metrics.ssim(*make(seed)) for seed in range(8)]) == pytest.approx(0.763758, abs=1e-5)


def test_psnr_agrees_with_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio

    assert metrics.psnr(A, B) == pytest.approx(peak_signal_noise_ratio(A, B, data_range=255), rel=1e-12)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(UserError, match="at least 11 px.* has 10 x 12 px"):
        metrics.ssim(A[:12, :10], B[:12, :10])
    assert 0 < metrics.ssim(A[:11, :11], B[:11, :11]) < 1


def test_the_colour_gauge_sees_a_cast_and_a_flat_contrast():
    image = np.clip(A.astype(int), 40, 200).astype(np.uint8)
    tinted = (image + np.array([7, 0, -5])).astype(np.uint8)
    gauge = metrics.colour_gauge(image, tinted)
    assert gauge == pytest.approx(
        {"shift_r": 7, "shift_g": 0, "shift_b": -5, "contrast_r": 1, "contrast_g": 1, "contrast_b": 1}
    )
    halved = metrics.colour_gauge(A, D)  # A // 2 + 70
    assert halved["contrast_g"] == pytest.approx(0.5, abs=0.002)
    assert halved["shift_g"] == pytest.approx(70 - A[..., 1].mean() / 2, abs=0.3)
    flat = np.full_like(A, 9)
    assert metrics.colour_gauge(flat, flat)["contrast_r"] == 1
