"""Distances between sets against closed forms and reference values."""

import numpy as np
import pytest
from scipy import ndimage

from sar2opt import distances, metrics
from tests.reference import G, T, blurred

R = np.random.RandomState(1)
x = R.standard_normal((50, 16))
y = R.standard_normal((60, 16)) * 1.5 + 0.3
SHIFTED = np.roll(T, 2, axis=2)


def spectrum(targets, outputs):
    return distances.spectrum(*(np.mean([metrics.ring_power(i) for i in side], 0) for side in (targets, outputs)))


# swd ------------------------------------------------------------------------------------------------------------------


def test_the_sliced_distance_has_its_reference_values():
    assert distances.swd(T, G) == pytest.approx([580.535, 36.238, 15.574], abs=1e-3)
    assert np.mean(distances.swd(T, G)) == pytest.approx(210.7824, abs=1e-3)
    assert distances.swd(T, G, own_norm=True) == pytest.approx([50.990, 27.605, 15.485], abs=1e-3)
    assert np.mean(distances.swd(T, G, own_norm=True)) == pytest.approx(31.3597, abs=1e-3)


def test_only_the_targets_norm_sees_a_colour_cast():
    cast = (T + 20).astype(np.uint8)
    assert distances.swd(T, cast) == pytest.approx([0, 0, 544.104], abs=1e-3)
    assert np.mean(distances.swd(T, cast)) == pytest.approx(181.3680, abs=1e-3)
    assert distances.swd(T, cast, own_norm=True) == pytest.approx([0, 0, 0], abs=1e-3)


def test_the_sliced_distance_grades_identity_shift_blur_and_chance():
    assert distances.swd(T, T) == [0, 0, 0]
    assert np.mean(distances.swd(T, SHIFTED)) == pytest.approx(48.4933, abs=1e-3)
    assert np.mean(distances.swd(T, blurred(T, 1))) == pytest.approx(183.6120, abs=1e-3)
    assert np.mean(distances.swd(T[:4], T[4:])) == pytest.approx(143.450, abs=1e-3)


def low_pass(x):
    """The filter (1 4 6 4 1)/16 along both axes, mirrored without the edge pixel."""
    for axis in (0, 1):
        x = ndimage.correlate1d(x, np.array([1, 4, 6, 4, 1]) / 16, axis, mode="mirror")
    return x


def test_a_laplacian_pyramid_rebuilds_its_image_exactly():
    pyramids = [distances.laplacian(image) for image in T]
    assert [np.std([p[k] for p in pyramids]) for k in range(3)] == pytest.approx(
        [8.145770, 10.650471, 28.787696], abs=1e-6
    )
    for image in (T[0], T[0][:43, :51], T[0][:32, :31], T[0][:33, :62]):
        *levels, current = distances.laplacian(image)
        for level in levels[::-1]:
            small, spread = current, np.zeros_like(level)
            spread[::2, ::2] = small
            current = level + 4 * low_pass(spread)
            assert np.array_equal(low_pass(current)[::2, ::2], small)
        assert np.array_equal(current, image)


def test_flat_images_are_at_distance_zero():
    flat = np.full_like(T, 128)
    assert distances.swd(flat, flat) == [0, 0, 0]
    assert np.isfinite(distances.swd(flat, T)).all()


# spectrum -------------------------------------------------------------------------------------------------------------


def test_the_spectrum_has_its_reference_values():
    assert spectrum(T, G) == pytest.approx(4.466000, abs=1e-5)
    assert spectrum(G, T) == pytest.approx(4.466000, abs=1e-5)
    assert spectrum(T, blurred(T, 1)) == pytest.approx(16.271558, abs=1e-5)
    assert spectrum(T, SHIFTED) == pytest.approx(0.045684, abs=1e-5)
    assert spectrum(T, np.full_like(T, 128)) == pytest.approx(48.8502, abs=1e-4)
    assert spectrum(T, T) == 0


def high_frequency_ratio(target, output):
    return distances.high_frequencies(metrics.ring_power(output)) / distances.high_frequencies(
        metrics.ring_power(target)
    )


def wave(amplitude, period, side=64):
    """Grey 128 with a square wave along x."""
    signs = np.where(np.arange(side) % period < period / 2, 1, -1)
    return np.broadcast_to((128 + amplitude * signs)[None, :, None], (side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("side", [64, 65, 66, 67])
def test_high_frequencies_are_those_above_half_of_nyquist(side):
    assert high_frequency_ratio(T[0], T[0]) == 1
    assert high_frequency_ratio(wave(10, 2, side), wave(30, 2, side)) == pytest.approx(9, rel=1e-6)  # energy
    power = metrics.ring_power(wave(20, 2, side))  # all of it at Nyquist, but for an odd last column
    assert distances.high_frequencies(power) == pytest.approx(power.sum(), rel=0.01)
    rings = np.arange(1, side // 2 + 1) / side  # cycles per px
    assert distances.high_frequencies(rings) == pytest.approx(rings[rings > 0.25].sum(), abs=1e-12)


def test_blur_lowers_and_noise_raises_the_high_frequencies():
    blurry = high_frequency_ratio(T[0], blurred(T[:1], 1)[0])
    assert blurry < 0.2 and high_frequency_ratio(T[0], G[0]) > 2


# Frechet distance and KID ---------------------------------------------------------------------------------------------


def gaussian(n, mean, std, d=8):
    """A sample whose mean and covariance (n - 1) are exactly those asked for."""
    z = np.random.RandomState(3).standard_normal((n, d))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / (n - 1)).T)
    return mean + std * z


def test_the_frechet_distance_has_its_reference_values():
    assert distances.frechet(x, y) == pytest.approx(11.402038869687, abs=1e-9)
    assert distances.frechet(x, y[:50]) == pytest.approx(11.555537166949, abs=1e-9)
    random = np.random.RandomState(2)
    u, v = random.standard_normal((20, 64)), random.standard_normal((24, 64)) + 0.2  # fewer samples than dimensions
    assert distances.frechet(u, v) == pytest.approx(80.792989, abs=1e-5)
    assert scipys_frechet(u, v) == pytest.approx(80.792987, abs=1e-5)


# a sample of one distribution against another, as a share of the trace: FID of different n are not comparable
@pytest.mark.parametrize(
    ("n", "share"), [(50, 1.07), (200, 0.69), (627, 0.42), (1000, 0.31), (2000, 0.17), (4000, 0.087), (10_000, 0.035)]
)
def test_the_frechet_distance_of_equals_falls_with_their_number_and_kid_does_not(n, share):
    random, scale = np.random.RandomState(0), np.sqrt(1 / np.arange(1, 2049))
    a, b = (random.standard_normal((n, 2048)) * scale for _ in range(2))
    assert distances.frechet(a, b) / (scale**2).sum() == pytest.approx(share, rel=0.03)
    if n <= 1000:  # blocks of n x n take long above
        assert abs(distances.kid(a, b)) < 2e-4


@pytest.mark.parametrize("n", [9, 40])
def test_the_frechet_distance_of_gaussians_is_its_closed_form(n):
    # d m^2 + d (1 - s)^2
    assert distances.frechet(gaussian(n, 0, 1), gaussian(n, 0.3, 1.5)) == pytest.approx(2.72, abs=1e-9)


def test_both_ways_to_the_frechet_distance_agree_and_are_symmetric():
    wide = np.column_stack([x, np.zeros((50, 60))])  # the same points among more dimensions than points
    other = np.column_stack([y, np.zeros((60, 60))])
    assert distances.frechet(wide, other) == pytest.approx(distances.frechet(x, y), rel=1e-9)
    assert distances.frechet(y, x) == pytest.approx(distances.frechet(x, y), rel=1e-12)
    assert distances.frechet(x, x[::-1]) == pytest.approx(0, abs=1e-10)


def scipys_frechet(x, y):
    from scipy.linalg import sqrtm

    a, b = np.cov(x.T), np.cov(y.T)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)


def test_the_frechet_distance_agrees_with_scipys_matrix_root():
    assert distances.frechet(x, y) == pytest.approx(scipys_frechet(x, y), abs=1e-9)


def test_kid_has_its_reference_values_and_is_symmetric():
    assert distances.kid(x, y) == pytest.approx(1.117741371105, abs=1e-10)
    assert distances.kid(y, x) == pytest.approx(1.117741371105, abs=1e-10)
    assert distances.kid(x, y[:50]) == pytest.approx(1.058315625673, abs=1e-10)
    assert distances.kid(x[:25], x[25:]) == pytest.approx(0.020359753425, abs=1e-10)


def test_the_kid_of_torchmetrics_is_wrong_for_unequal_sizes():
    import torch
    from torchmetrics.image.kid import poly_mmd

    assert float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))) == pytest.approx(1.8116, abs=1e-4)
    assert float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y[:50]))) == pytest.approx(1.058316, abs=1e-6)


def test_kid_does_not_depend_on_its_blocks(monkeypatch):
    whole = distances.kid(x, y)
    monkeypatch.setattr(distances, "BLOCK", 7 * 60)
    assert distances.kid(x, y) == pytest.approx(whole, abs=1e-13)


def test_kid_and_its_spread_agree_with_torch_fidelity():
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = x.astype(np.float32), y[:50].astype(np.float32)
    settings = {"kid_subsets": 100, "kid_subset_size": 25, "rng_seed": 0, "verbose": False, "kid_kernel": "poly",
                "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}  # fmt: skip
    theirs = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), **settings)
    assert distances.kid_std(a, b) == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-5)
    settings |= {"kid_subsets": 1, "kid_subset_size": 50}  # all images at once
    theirs = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), **settings)
    assert distances.kid(a, b) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    assert distances.kid_std(a[:3], b[:3]) is None


# bootstrap ------------------------------------------------------------------------------------------------------------


def test_intervals_have_their_reference_values():
    pairs = list(zip(T, G, strict=True))
    values = np.array([(metrics.psnr(a, b), metrics.ssim(a, b)) for a, b in pairs])
    expected = [[26.661384, 26.692965], [0.755432, 0.771951]]
    assert np.array(distances.bootstrap(values)) == pytest.approx(np.array(expected), abs=1e-5)
    assert distances.bootstrap(np.arange(1.0, 11)[:, None])[0] == pytest.approx([3.8, 7.3], abs=1e-5)


def test_intervals_do_not_depend_on_the_blocks_of_resamples(monkeypatch):
    whole = distances.bootstrap(x)
    monkeypatch.setattr(distances, "BLOCK", 1)
    assert distances.bootstrap(x) == whole


def test_tiles_of_one_scene_are_resampled_together():
    values = np.repeat([1.0, 2, 4, 7], 50)[:, None]  # within a scene, tiles repeat each other
    scenes = list(np.repeat(["a", "b", "c", "d"], 50))
    (low, high), (low_scene, high_scene) = distances.bootstrap(values)[0], distances.bootstrap(values, scenes=scenes)[0]
    assert high_scene - low_scene > 4 * (high - low)
    alone = distances.bootstrap(np.array([1.0, 2, 4, 7])[:, None])[0]
    assert [low_scene, high_scene] == pytest.approx(alone)
    assert distances.bootstrap(values, scenes=[str(1000 + i) for i in range(200)])[0] == pytest.approx([low, high])


def test_ratios_have_intervals_too():
    over, under = np.array([2.0, 4, 6])[:, None], np.array([1.0, 2, 3])
    assert distances.bootstrap(over, under)[0] == pytest.approx([2, 2])
