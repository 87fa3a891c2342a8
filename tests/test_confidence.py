"""Losses with a variance: closed forms on fixed arrays, gradients, and what the optimum is."""

import math

import numpy as np
import pytest
import torch

from sar2opt import cdiff, confidence
from sar2opt.cdiff import CDiffConfig
from sar2opt.confidence import beta_nll, laplace2, variance, variance_offset
from sar2opt.diffusion import NoiseConfig, NoiseSchedule

ABAR = NoiseSchedule(NoiseConfig(schedule="scaled_linear", prediction="epsilon", zero_terminal_snr=False))
BETAS = {"sqrt_abar": None, "one": 1.0, "half": 0.5, "zero": 0.0}
HALF_LOG_TAU = 0.9189385332046727  # log(2 pi)/2


@pytest.fixture
def arrays():
    """eps, hat, raw, info: float64, [2,4,8,8] but for raw [2,1,8,8]."""
    rng = np.random.RandomState(0)
    eps, hat = rng.standard_normal((2, 4, 8, 8)), 0.3 * rng.standard_normal((2, 4, 8, 8))
    raw, info = rng.standard_normal((2, 1, 8, 8)), rng.standard_normal((2, 4, 8, 8))
    return tuple(map(torch.from_numpy, (eps, hat, raw, info)))


def beta(name, t=(100, 900)):
    """One value per sample, from a schedule in float64."""
    if BETAS[name] is not None:
        return torch.full((len(t),), BETAS[name], dtype=torch.float64)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)[list(t)].sqrt()


def gradients(loss, *of):
    return torch.autograd.grad(loss, of)


# the variance ---------------------------------------------------------------------------------------------------------


def test_a_head_of_zeros_means_variance_one():
    assert variance_offset() == pytest.approx(0.541323272636, abs=1e-12)
    assert variance(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(1, abs=1e-15)
    assert abs(1 - variance(torch.zeros(1)).item()) <= 1.2e-7
    assert variance(torch.zeros(1, dtype=torch.float64), low=1e-3).item() == pytest.approx(1, abs=1e-15)


def test_the_variance_stays_within_its_bounds():
    raw = torch.tensor([-1e4, -30.0, 9.4586, 9.46, 1e4], dtype=torch.float64)
    assert variance(raw).tolist() == pytest.approx([1e-6, 1e-6, 10, 10, 10], abs=1e-4)
    assert variance(raw, 1e-2, 2.0).tolist() == pytest.approx([1e-2, 1e-2, 2, 2, 2], abs=1e-9)


def test_beta_is_the_square_root_of_abar():
    table = {0: 0.999575, 100: 0.945634, 250: 0.820849, 500: 0.525674, 750: 0.237002, 999: 0.068265}
    cfg = CDiffConfig(loss="beta_nll")
    for t, expected in table.items():
        assert ABAR.abar[t].sqrt().item() == pytest.approx(expected, abs=1e-6)
        # var^(beta - 1) is what multiplies the gradient of the mean, relative to half the MSE: checked through the loss
        out = torch.zeros(1, 5, 2, 2, dtype=torch.float64)
        out[:, 4] = math.log(math.expm1(0.01 - 1e-6)) - variance_offset()  # var 0.01
        out.requires_grad_(True)
        target, abar = torch.ones(1, 4, 2, 2, dtype=torch.float64), ABAR.abar[[t]].double()
        (gradient,) = gradients(cdiff.loss(cfg, out, target, abar)[0].mean(), out)
        assert -gradient[0, 0, 0, 0].item() * 16 == pytest.approx(0.01 ** (abar.sqrt().item() - 1), rel=1e-9)


# beta-NLL -------------------------------------------------------------------------------------------------------------


def test_the_mean_squared_error_of_the_arrays(arrays):
    eps, hat, _, _ = arrays
    loss, rows = cdiff.loss(CDiffConfig(), hat, eps, torch.ones(2))
    assert loss.mean().item() == pytest.approx(1.099059448450, abs=1e-12)
    assert torch.equal(rows["error"], loss)


@pytest.mark.parametrize("name", BETAS)
def test_at_variance_one_it_is_half_the_mse_and_a_constant(arrays, name):
    eps, hat, raw, _ = arrays
    hat.requires_grad_(True)
    loss = beta_nll(eps - hat, variance(torch.zeros_like(raw)), beta(name)).mean()
    assert loss.item() == pytest.approx(1.4684682574, abs=1e-10)
    assert loss.item() == pytest.approx(0.5 * 1.099059448450 + HALF_LOG_TAU, abs=1e-11)
    (a,), (b,) = gradients(loss, hat), gradients(0.5 * ((eps - hat) ** 2).mean(), hat)
    assert (a - b).abs().max() < 1e-15


def test_with_beta_one_the_mean_has_the_gradient_of_half_the_mse_for_any_variance(arrays):
    eps, hat, raw, _ = arrays
    hat.requires_grad_(True)
    loss = beta_nll(eps - hat, variance(raw), beta("one")).mean()
    (a,), (b,) = gradients(loss, hat), gradients(0.5 * ((eps - hat) ** 2).mean(), hat)
    assert (a - b).abs().max() < 1e-15


VALUES = {"sqrt_abar": 1.5778124020, "one": 1.7250359808, "half": 1.5599620301, "zero": 1.5258983756}


@pytest.mark.parametrize(("name", "value"), VALUES.items())
def test_known_values(arrays, name, value):
    eps, hat, raw, _ = arrays
    assert beta_nll(eps - hat, variance(raw), beta(name)).mean().item() == pytest.approx(value, abs=1e-10)


def test_the_config_chooses_beta(arrays):
    eps, hat, raw, _ = arrays
    out, abar = torch.cat([hat, raw], dim=1), beta("sqrt_abar") ** 2
    for name, settings in {"sqrt_abar": {}, "half": {"beta": "const", "beta_const": 0.5}}.items():
        loss, rows = cdiff.loss(CDiffConfig(loss="beta_nll", **settings), out, eps, abar)
        assert loss.mean().item() == pytest.approx(VALUES[name], abs=1e-10)
    r2, var = (eps - hat) ** 2, variance(raw)
    torch.testing.assert_close(rows["calibration"], (r2 / var).flatten(1).mean(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(rows["log_var"], var.log().flatten(1).mean(1), rtol=1e-12, atol=0)


def test_the_gradient_of_the_head(arrays):
    eps, hat, raw, _ = arrays
    zero = torch.zeros_like(raw, requires_grad=True)
    (gradient,) = gradients(beta_nll(eps - hat, variance(zero), beta("sqrt_abar")).mean(), zero)
    expected = 0.6321201909 * 0.5 * (1 - ((eps - hat) ** 2).mean(1, keepdim=True)) / 128
    assert (gradient - expected).abs().max() < 1e-12  # the constant has ten digits
    slope = torch.sigmoid(torch.tensor(variance_offset(), dtype=torch.float64))
    assert slope.item() == pytest.approx(0.6321201909, abs=1e-10)
    assert (gradient - expected / 0.6321201909 * slope).abs().max() < 1e-15
    raw.requires_grad_(True)
    (gradient,) = gradients(beta_nll(eps - hat, variance(raw), beta("sqrt_abar")).mean(), raw)
    assert gradient.abs().sum().item() == pytest.approx(0.2113700698, abs=1e-10)


def test_the_best_variance_is_the_squared_error_and_the_weight_has_no_gradient():
    r2 = torch.tensor([0.04, 0.25, 1.0, 4.0], dtype=torch.float64)
    grid = torch.arange(0.01, 8, 0.0025, dtype=torch.float64)
    nll = 0.5 * (r2[:, None] / grid + grid.log())
    torch.testing.assert_close(grid[nll.argmin(1)], r2, rtol=0, atol=0.0026)
    assert grid[nll.sum(0).argmin()].item() == pytest.approx(1.3225, abs=0.0026)
    for power in (0.0, 0.5, 1.0):
        var = torch.full((1, 1, 1, 1), 0.25, dtype=torch.float64, requires_grad=True)
        r = torch.full((1, 4, 1, 1), 0.5, dtype=torch.float64)
        (gradient,) = gradients(beta_nll(r, var, torch.tensor([power], dtype=torch.float64)).mean(), var)
        assert gradient.item() == pytest.approx(0, abs=1e-15)
        attached = (var**power * beta_nll(r, var, torch.zeros(1, dtype=torch.float64))).sum()
        (mutant,) = gradients(attached, var)
        assert mutant.item() == pytest.approx(0.72579 if power else 0, abs=1e-5)  # what the test would see


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_trained_it_is_calibrated_in_every_bin(power):
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.04, 0.25, 1.0, 4.0], dtype=torch.float64).sqrt()
    target = torch.randn(1024, 4, 1, 4, generator=generator, dtype=torch.float64) * scale  # a bin per column
    mean, raw = (torch.zeros(1, 1, 1, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([mean, raw], lr=0.02)
    # the sum over samples and channels of a bin, as sufficient statistics: exact, and a thousand times cheaper
    m1, m2 = target.mean((0, 1, 2)), (target**2).mean((0, 1, 2))
    for _ in range(1500):
        var = variance(raw).flatten()
        r2 = m2 - 2 * m1 * mean.flatten() + mean.flatten() ** 2
        r = torch.sqrt(r2)[None, None, None]
        loss = beta_nll(r, var[None, None, None], torch.tensor([power], dtype=torch.float64)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    r2 = ((target - mean) ** 2).mean((0, 1, 2))
    var = variance(raw).flatten()
    torch.testing.assert_close(var, r2, rtol=1e-3, atol=0)
    assert (r2 / var).mean().item() == pytest.approx(1, abs=1e-3)


# two Laplacians -------------------------------------------------------------------------------------------------------


def test_two_laplacians_at_the_start_and_on_the_arrays(arrays):
    eps, hat, _, info = arrays
    zero = torch.zeros_like(info)
    assert laplace2(zero, zero).mean().item() == pytest.approx(0.688155492, abs=1e-9)
    assert math.log(2) - math.log(math.cosh(0.1)) == pytest.approx(0.688155492, abs=1e-9)
    assert laplace2(eps - hat, zero).mean().item() == pytest.approx(1.5353348763, abs=1e-9)
    assert math.log(2) + (eps - hat).abs().mean().item() == pytest.approx(1.5332263884, abs=1e-9)  # near a pure L1
    assert laplace2(eps - hat, info).mean().item() == pytest.approx(1.5451069022, abs=1e-9)


def test_the_head_of_two_laplacians_learns_from_the_start(arrays):
    eps, hat, _, info = arrays
    zero = torch.zeros_like(info, requires_grad=True)
    (gradient,) = gradients(laplace2(eps - hat, zero).mean(), zero)
    assert (gradient.abs().sum((0, 2, 3)) > 0).all()


def test_two_laplacians_integrate_to_one(arrays):
    info = arrays[3][:1, :, :1, :1]
    r = torch.linspace(-60, 60, 240001, dtype=torch.float64)
    density = torch.exp(-torch.stack([laplace2(x.reshape(1, 1, 1, 1), info)[0] for x in r[::400]]))
    assert torch.trapezoid(density, r[::400]).item() == pytest.approx(1, abs=5e-3)


# the map --------------------------------------------------------------------------------------------------------------


def test_the_variance_of_the_clean_latent_follows_from_the_parameterisation():
    var, abar = torch.tensor(0.04, dtype=torch.float64), 0.2
    assert confidence.clean_variance(var, "epsilon", abar).item() == pytest.approx(0.16)  # ((1 - abar)/abar) var
    assert confidence.clean_variance(var, "v", abar).item() == pytest.approx(0.032)
    assert confidence.clean_variance(var, "sample", abar).item() == pytest.approx(0.04)


def test_enlarging_the_logarithm_keeps_confidences_positive_and_between_their_neighbours():
    confident = torch.tensor([[1.0, 1000.0], [1.0, 1.0]])[None, None]
    large = (-confidence.enlarged(-confident.log(), 8)).exp()
    assert large.shape == (1, 1, 16, 16) and large.min() >= 1 - 1e-5 and large.max() <= 1000 * (1 + 1e-5)
