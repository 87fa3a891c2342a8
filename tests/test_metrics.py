"""Metrics of one image against the reference values and against other implementations."""

import hashlib

import numpy as np
import pytest
import torch

from sar2opt import metrics
from sar2opt.config import UserError
from tests.reference import A, B, C, D, E, F, G, S, T, X, make

SAR = S.astype(float)


def mean_of(function, targets=T, outputs=G):
    return np.mean([function(a, b) for a, b in zip(targets, outputs, strict=True)])


def test_the_reference_arrays_are_the_published_ones():
    digests = [hashlib.sha256(x.tobytes()).hexdigest()[:16] for x in (A, B, S, C, D, E, F, T, G, X)]
    assert digests == [
        "274ae8e9059d0c48", "7bf060d9dd73447c", "6a0b0b0200b50238", "725687338f04f113", "2468d94ea74a4e3c",
        "47c2e1d6772b1666", "8fba80a5543714db", "f6275dc392114185", "796660e6b4aa9092", "136a68b365b0cf87",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "output", "psnr", "ssim", "scc"),
    [
        (A, B, 26.650588, 0.766964, 0.527604),
        (A, C, 22.403991, 0.638989, 0.080479),
        (A, D, 22.750546, 0.829697, 0.997814),
        (E, F, 29.692175, 0.897571, 0.361218),
        (A, A, 100.0, 1.0, 1.0),
    ],
    ids=["noise", "shift", "contrast", "half flat", "identical"],
)
def test_psnr_ssim_and_scc_have_their_reference_values_and_are_symmetric(target, output, psnr, ssim, scc):
    for a, b in ((target, output), (output, target)):
        assert metrics.psnr(a, b) == pytest.approx(psnr, abs=1e-5)
        assert metrics.ssim(a, b) == pytest.approx(ssim, abs=1e-5)
        assert metrics.scc(a, b) == pytest.approx(scc, abs=1e-5)


def test_a_set_counts_by_the_mean_over_images_not_over_errors():
    values = [metrics.psnr(a, b) for a, b in zip(T, G, strict=True)]
    expected = [26.650588, 26.702754, 26.668185, 26.666712, 26.678785, 26.701541, 26.643721, 26.705466]
    assert values == pytest.approx(expected, abs=1e-5)
    assert np.mean(values) == pytest.approx(26.677219, abs=1e-5)
    assert mean_of(metrics.ssim) == pytest.approx(0.763758, abs=1e-5)
    assert mean_of(metrics.scc) == pytest.approx(0.533957, abs=1e-5)


@pytest.mark.parametrize(
    ("output", "psnr", "ssim", "scc"),
    [(B, 21.017525, 0.744717, 0.515891), (C, 16.723658, 0.550619, 0.073397), (D, 17.136719, 0.755694, 0.971054)],
)
def test_the_legacy_convention_has_its_reference_values(output, psnr, ssim, scc):
    assert metrics.legacy_cdiffset(A, output) == pytest.approx((psnr, ssim, scc), abs=1e-4)  # float32


@pytest.mark.parametrize(
    ("grey", "standard", "legacy"),
    [(0.5, 20.01, 14.51), (0.3, 20.13, 16.44), (0.2, 20.47, 19.27), (0.15, 20.83, 21.34)],
)
def test_the_legacy_stretch_is_no_constant_offset(grey, standard, legacy):
    random = np.random.RandomState(0)
    image = np.clip(grey + 0.1 * random.standard_normal((256, 256, 3)), 0, 1)
    noisy = np.clip(image + 0.1 * random.standard_normal(image.shape), 0, 1)
    a, b = (np.rint(255 * x).astype(np.uint8) for x in (image, noisy))
    assert metrics.psnr(a, b) == pytest.approx(standard, abs=0.05)
    assert metrics.legacy_cdiffset(a, b)[0] == pytest.approx(legacy, abs=0.06)


def test_an_identical_pair_has_a_finite_legacy_psnr():
    assert metrics.legacy_cdiffset(A, A) == pytest.approx((100, 1, 1), abs=1e-4)


def test_psnr_agrees_with_scikit_image_and_not_with_a_pooled_error():
    from skimage.metrics import peak_signal_noise_ratio
    from torchmetrics.functional.image import peak_signal_noise_ratio as pooled

    assert metrics.psnr(A, B) == pytest.approx(peak_signal_noise_ratio(A, B, data_range=255), rel=1e-12)
    brighter = np.clip(G[1].astype(int) + 40, 0, 255).astype(np.uint8)
    x, y = (torch.from_numpy(np.stack(pair)).float() for pair in ((B, brighter), (A, T[1])))
    assert float(pooled(x, y, data_range=255)) == pytest.approx(18.397066, abs=1e-4)
    assert np.mean([metrics.psnr(A, B), metrics.psnr(T[1], brighter)]) == pytest.approx(21.187384, abs=1e-5)


def test_other_recipes_of_ssim_have_other_values():
    import sewar
    from skimage.metrics import structural_similarity
    from torchmetrics.functional.image import structural_similarity_index_measure

    assert metrics.ssim_uniform7(A, B) == pytest.approx(0.814563, abs=1e-5)
    assert metrics.ssim_uniform7(A, B) == structural_similarity(A, B, data_range=255, channel_axis=2)
    assert metrics.ssim_torchmetrics(A, B) == pytest.approx(0.768335, abs=1e-5)
    gaussian = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5}
    sample = structural_similarity(A, B, channel_axis=2, use_sample_covariance=True, **gaussian)
    assert sample == pytest.approx(0.766739, abs=1e-6)
    grey = [image @ np.array([0.299, 0.587, 0.114]) for image in (A, B)]
    assert structural_similarity(*grey, use_sample_covariance=False, **gaussian) == pytest.approx(0.792191, abs=1e-6)
    assert sewar.ssim(A, B)[0] == pytest.approx(0.876015, abs=1e-6)
    x, y = (torch.from_numpy(image).double().permute(2, 0, 1)[None] for image in (B, A))
    signed = structural_similarity_index_measure(x / 127.5 - 1, y / 127.5 - 1, data_range=2.0)
    assert float(signed) == pytest.approx(0.741099, abs=1e-6)
    _, full = structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
    assert float(full[..., 5:-5, 5:-5].mean()) == pytest.approx(metrics.ssim(A, B), abs=1e-6)


def test_scc_agrees_with_sewar_and_with_torchmetrics_on_integers():
    import sewar
    from torchmetrics.functional.image import spatial_correlation_coefficient

    for a, b in ((A, B), (A, C), (E, F), (make(3)[0][:51, :37], make(3)[1][:51, :37])):
        assert metrics.scc(a, b) == pytest.approx(sewar.scc(a, b), abs=1e-12)
    x, y = (torch.from_numpy(image).double().permute(2, 0, 1)[None] for image in (F, E))
    assert metrics.scc(E, F) == pytest.approx(float(spatial_correlation_coefficient(x, y)), abs=1e-5)
    noisy = float(spatial_correlation_coefficient((x / 255).float(), (y / 255).float()))
    assert noisy == pytest.approx(0.449109, abs=1e-3)  # flat areas correlate rounding noise: the reason for integers


def test_ssim_agrees_with_scikit_image():
    from skimage.metrics import structural_similarity

    settings = {"data_range": 255, "channel_axis": 2, "gaussian_weights": True, "sigma": 1.5}
    for a, b in ((A, B), (A, D), (E, F), (A[:51, :37], C[:51, :37]), (A[:11, :11], B[:11, :11])):
        expected = structural_similarity(a, b, use_sample_covariance=False, **settings)
        assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-10)


def test_flat_images_have_no_structure_to_correlate():
    flat = np.full_like(A, 30)
    assert metrics.scc(flat, flat) == 0 and metrics.scc(flat, A) == 0
    assert metrics.edge_correlations(flat, flat, SAR) == (0, 0)
    assert metrics.edge_correlations(A, B, SAR * 0 + 7) == (0, 0)


def test_edges_have_their_reference_correlation_with_the_sar():
    for image, expected in ((B, 0.355517), (C, 0.234660), (make(1)[0], 0.063741), (np.repeat(S[..., None], 3, 2), 1)):
        assert metrics.edge_correlations(A, image, SAR) == pytest.approx((expected, 0.377648), abs=1e-5)
    pairs = [metrics.edge_correlations(a, b, s.astype(float)) for a, b, s in zip(T, G, X, strict=True)]
    assert np.mean(pairs, 0) == pytest.approx([0.341355, 0.364217], abs=1e-5)


def test_copies_of_the_sar_are_nearer_to_it_than_to_the_truth():
    def ratio(outputs, targets, sars):
        sums = [metrics.absolute_errors(a, b, s.astype(float)) for a, b, s in zip(targets, outputs, sars, strict=True)]
        return np.sum(sums, 0)[0] / np.sum(sums, 0)[1]

    assert ratio([B], [A], [S]) == pytest.approx(3.870274, abs=1e-5)
    assert ratio([D], [A], [S]) == pytest.approx(2.318797, abs=1e-5)
    assert ratio([np.repeat(S[..., None], 3, 2)], [A], [S]) == 0
    assert ratio(G, T, X) == pytest.approx(3.934565, abs=1e-5)


def test_a_colour_shift_changes_its_sign_with_the_order():
    shifts = np.mean([metrics.rgb_shift(a, b) for a, b in zip(T, G, strict=True)], 0)
    assert shifts == pytest.approx([-0.021301, -0.036621, -0.047516], abs=1e-6)
    assert metrics.rgb_shift(A, B) == pytest.approx(-metrics.rgb_shift(B, A), abs=1e-12)


def test_a_wave_has_its_power_on_its_ring():
    x = np.arange(48)
    wave = (128 + 50 * np.cos(2 * np.pi * 8 * x / 48)).round().astype(np.uint8)
    power = metrics.ring_power(np.broadcast_to(wave[None, :, None], (64, 48, 3)).copy())
    assert len(power) == 24 and power.argmax() == 7  # ring k = 8 of min(H, W) = 48


def test_spectral_angle_and_ergas_of_known_colours():
    red, green = np.zeros((12, 13, 3), np.uint8), np.zeros((12, 13, 3), np.uint8)
    red[..., 0], green[..., 1] = 200, 100
    assert metrics.sam(red, green) == pytest.approx(90)
    assert metrics.sam(A, A) == pytest.approx(0, abs=1e-5)  # arccos near 1
    grey = np.full((12, 13, 3), 100, np.uint8)
    assert metrics.ergas(grey, grey + np.uint8(10)) == pytest.approx(10)
    assert metrics.mae(grey, grey + np.uint8(10)) == 10


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(UserError, match=r"at least 11 px.* has 10 x 12 px"):
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
