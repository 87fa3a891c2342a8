"""Consistency distillation on problems whose answer is known, and against diffusers' LCM and DDIM schedulers."""

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from sar2opt import consistency, losses, models
from sar2opt.config import EMAConfig
from sar2opt.consistency import Consistency, LCMConfig, boundary
from sar2opt.diffusion import NoiseConfig, NoiseSchedule, levels
from sar2opt.schedules import ema_decay, ramp

MEAN, STD = 0.3, 0.5
LINEAR = NoiseConfig(prediction="epsilon", zero_terminal_snr=False)
SCALED = NoiseConfig(prediction="epsilon", schedule="scaled_linear", zero_terminal_snr=False)
ZERO = NoiseConfig(prediction="v")
ALL = [
    NoiseConfig(prediction=p, schedule=s, zero_terminal_snr=z)
    for p in ("epsilon", "v", "sample")
    for s in ("linear", "scaled_linear", "cosine")
    for z in (False, True)
    if not (z and p == "epsilon")
]


def made(noise, dtype=torch.float64, **settings):
    """The consistency function of a schedule."""
    return Consistency(NoiseSchedule(noise).to(dtype), LCMConfig(**settings))


def images(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gaussian(prediction, x_t, a, s, std=STD):
    """What the best network returns where every pixel is N(MEAN, std^2)."""
    x0 = MEAN + a * std**2 / (a**2 * std**2 + s**2) * (x_t - a * MEAN)
    eps = (x_t - a * x0) / s
    return {"epsilon": eps, "v": a * eps - s * x0, "sample": x0}[prediction]


class Gaussian(torch.nn.Module):
    """``gaussian`` as a network."""

    def __init__(self, noise, std=STD):
        super().__init__()
        self.noise, self.prediction, self.std = NoiseSchedule(noise).double(), noise.prediction, std

    def forward(self, x, t):
        x_t = x[:, :3]
        a, s = self.noise.at(t, x_t)
        return type("Output", (), {"sample": gaussian(self.prediction, x_t, a, s, self.std)})


def cells(function, count=64, seed=0):
    """t, u of all cells, and one batch of noise and images of the Gaussian for each."""
    t, u = function.pair(torch.arange(function.cfg.solver_steps))
    eps, x0 = images(len(t), 3, 4, count, seed=seed), MEAN + STD * images(len(t), 3, 4, count, seed=seed + 1)
    return t, u, function.schedule.add_noise(x0, eps, t)


# boundary and grid ----------------------------------------------------------------------------------------------------


def test_the_boundary_scalings():
    t = torch.tensor([0, 1, 19, 39, 999], dtype=torch.float64)
    c_skip, c_out = boundary(t, 10.0)
    expected = [1, 2.49377e-3, 6.92516e-6, 1.64365e-6, 2.50501e-9]
    torch.testing.assert_close(c_skip, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(
        c_out[:4], torch.tensor([0, 0.998752339, 0.999996537, 0.999999178], dtype=torch.float64), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_at_time_zero_f_is_x_and_the_network_has_no_say(noise):
    function, x, out = made(noise), images(2, 3, 4, 5).requires_grad_(), images(2, 3, 4, 5, seed=1).requires_grad_()
    f = function.denoised(out, x, torch.zeros(2, dtype=torch.long))
    assert torch.equal(f, x)
    dx, dout = torch.autograd.grad(f.sum(), (x, out))
    assert torch.equal(dx, torch.ones_like(x)) and not dout.any()


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("noise", ALL, ids=str)
def test_f_is_what_the_lcm_scheduler_denoises(noise, steps):
    scheduler, function = LCMScheduler(**noise.scheduler_arguments()), made(noise, torch.float32)
    scheduler.set_timesteps(steps)
    x = images(2, 3, 4, 5, dtype=torch.float32)
    for t in scheduler.timesteps.tolist():
        out = images(2, 3, 4, 5, seed=t, dtype=torch.float32)
        theirs = scheduler.step(out, t, x).denoised
        f = function.denoised(out, x, torch.full((2,), t))
        assert f.isfinite().all()
        torch.testing.assert_close(f, theirs, rtol=1e-6, atol=1e-6 * theirs.abs().max().item())


def test_the_grid():
    t, u = made(ZERO).pair(torch.arange(50))
    assert t.tolist() == [*range(19, 1000, 20)] and u.tolist() == [0, *range(19, 980, 20)]
    t, u = made(ZERO, solver_steps=1000).pair(torch.arange(1000))
    assert t[0] == u[0] == 0 and t[-1] == 999 and u[-1] == 998


def test_a_grid_that_does_not_end_at_pure_noise_is_refused():
    for steps in (10, 20, 25, 40, 50, 100):
        consistency.check(ZERO, LCMConfig(solver_steps=steps))
    with pytest.raises(ValueError, match="solver_steps=30 does not divide .* 20, 25"):
        consistency.check(ZERO, LCMConfig(solver_steps=30))


# the teacher's step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ["one", "first"])
@pytest.mark.parametrize("noise", [LINEAR, SCALED, ZERO, NoiseConfig(schedule="cosine", prediction="sample")], ids=str)
def test_the_teachers_step_is_that_of_ddim(noise, alpha):
    theirs = DDIMScheduler(
        **noise.scheduler_arguments(), timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=alpha == "one"
    )
    theirs.set_timesteps(50)
    function = made(noise, torch.float32, boundary_alpha=alpha)
    t, u, x_t = cells(function)
    out = images(*x_t.shape, seed=3, dtype=torch.float32)
    x_u = function.teacher_step(out, x_t.float(), t, u)
    for i, time in enumerate(t.tolist()):
        expected = theirs.step(out[i], time, x_t[i].float()).prev_sample
        if time == 19:  # there the scheduler's u is -1
            assert u[i] == 0
        torch.testing.assert_close(x_u[i], expected, rtol=0, atol=2e-6 * expected.abs().max().item())


# closed forms ---------------------------------------------------------------------------------------------------------


def error_of_best_networks(noise, alpha, c=None, std=STD, flow=False):
    """mean l2 and mean huber over the cells, student = target = teacher = the best network (closed form): d is affine
    in x_t ~ N, so d ~ N(m, w^2); a fine sum for huber. ``flow``: f is the exact flow map instead."""
    function = made(noise, boundary_alpha=alpha)
    t, u = function.pair(torch.arange(50))
    (a, s), (a_u, s_u) = (levels(function.schedule.abar[k]) for k in (t, u))
    if alpha == "one":
        a_u, s_u = torch.where(u == 0, 1.0, a_u), torch.where(u == 0, 0.0, s_u)
    v, v_u = a**2 * std**2 + s**2, a_u**2 * std**2 + s_u**2
    if flow:
        r = (a_u * a * std**2 + s_u * s) / (v * v_u).sqrt()
        return ((std * (1 - r)) ** 2).mean().item()
    (c_skip, c_out), (k_skip, k_out) = (boundary(k.double(), 10.0) for k in (t, u))
    kappa = (a_u * a * std**2 + s_u * s) / v
    low, level_u = u == 0, function.schedule.abar[u]
    A = c_skip + c_out * std**2 * a / v
    A_u = torch.where(low, 1.0, k_skip + k_out * std**2 * level_u.sqrt() / (level_u * std**2 + 1 - level_u))
    width = (A - A_u * kappa) * v.sqrt()
    mean = MEAN * (c_skip * a + c_out - k_skip * a_u - k_out)
    if c is None:
        return (width**2 + mean**2).mean().item()
    z = torch.linspace(-9, 9, 40001, dtype=torch.float64)
    d = mean[:, None] + width[:, None] * z
    huber = d**2 / ((d**2 + c**2).sqrt() + c)
    return torch.trapezoid(huber * torch.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), z).mean().item()


GAUSSIAN = {  # l2, huber at c = 1e-3, l2 of the flow map
    LINEAR: (1.582619e-4, 6.8513e-3, 1.680321e-6),
    ZERO: (1.592100e-4, 6.8746e-3, 1.697964e-6),
    SCALED: (1.059472e-4, 6.4556e-3, 6.264455e-6),
}


@pytest.mark.parametrize("noise", GAUSSIAN, ids=str)
def test_the_loss_of_the_best_networks_on_a_gaussian(noise):
    l2, huber, _ = GAUSSIAN[noise]
    assert error_of_best_networks(noise, "one") == pytest.approx(l2, rel=2e-5)
    assert error_of_best_networks(noise, "one", c=1e-3) == pytest.approx(huber, rel=2e-3)
    for loss, expected in (("l2", l2), ("huber", huber)):
        function, net = made(noise, loss=loss), Gaussian(noise)
        t, u, x_t = cells(function, 1000)
        y = function.target(net, net, x_t, t, u, x_t[:, :1])
        error = function.error(function(net, x_t, t, x_t[:, :1]), y)
        assert error.mean().item() == pytest.approx(expected, rel=0.01)  # 600,000 samples


@pytest.mark.parametrize("noise", GAUSSIAN, ids=str)
def test_with_the_exact_flow_map_only_the_solver_errs(noise):
    function, net = made(noise), Gaussian(noise)
    t, u, x_t = cells(function, 2000)

    def flow(x, a, s):
        return MEAN + STD * (x - a * MEAN) / (a**2 * STD**2 + s**2).sqrt()

    a, s = function.schedule.at(t, x_t)
    a_u, s_u = function.schedule.at(u, x_t)
    low = (u == 0).reshape(-1, 1, 1, 1)
    a_u, s_u = torch.where(low, 1.0, a_u), torch.where(low, 0.0, s_u)
    x_u = function.teacher_step(models.predict(net, x_t, t, x_t[:, :1]), x_t, t, u)
    d = flow(x_t, a, s) - flow(x_u, a_u, s_u)
    assert d.square().mean().item() == pytest.approx(GAUSSIAN[noise][2], rel=0.02)  # 300,000 samples
    assert error_of_best_networks(noise, "one", flow=True) == pytest.approx(GAUSSIAN[noise][2], rel=2e-5)
    exact = a_u * MEAN + (a_u**2 * STD**2 + s_u**2).sqrt() / (a**2 * STD**2 + s**2).sqrt() * (x_t - a * MEAN)
    assert (flow(x_t, a, s) - flow(exact, a_u, s_u)).abs().max() <= 1e-13


@pytest.mark.parametrize("noise", GAUSSIAN, ids=str)
def test_a_point_mass_is_a_fixed_point(noise):
    function, net, worst = made(noise), Gaussian(noise, std=0.0), []
    for scaling in (10.0, 1e6):
        function = made(noise, timestep_scaling=scaling)
        t, u = function.pair(torch.arange(50))
        x_t = function.schedule.add_noise(
            torch.full((50, 3, 4, 64), MEAN, dtype=torch.float64), images(50, 3, 4, 64), t
        )
        y = function.target(net, net, x_t, t, u, x_t[:, :1])
        worst.append((function(net, x_t, t, x_t[:, :1]) - y).abs().max().item())
    assert worst[0] <= 1e-5 and worst[1] < 1e-9
    assert losses.pseudo_huber(torch.full((1, 3), worst[0]), torch.zeros(1, 3), 1e-3).item() <= 5e-8


@pytest.mark.parametrize(
    ("noise", "l2", "huber"), [(LINEAR, 1.0001e-4, 7.124e-3), (SCALED, 8.4999e-4, 2.236e-2)], ids=["linear", "scaled"]
)
def test_the_first_alpha_leaves_noise_in_the_lowest_target(noise, l2, huber):
    function, net = made(noise, boundary_alpha="first"), Gaussian(noise, std=0.0)
    t, u = function.pair(torch.zeros(1, dtype=torch.long))
    eps = images(1, 3, 200, 700)
    x_t = function.schedule.add_noise(torch.full_like(eps, MEAN), eps, t)
    f, y = function(net, x_t, t, x_t[:, :1]), function.target(net, net, x_t, t, u, x_t[:, :1])
    assert losses.mse(f, y).item() == pytest.approx(l2, rel=1e-2)  # 420,000 samples of a square
    assert losses.pseudo_huber(f, y, 1e-3).item() == pytest.approx(huber, rel=1e-2)


# atoms ----------------------------------------------------------------------------------------------------------------


def test_pseudo_huber_at_its_limits():
    def huber(d, c, dtype=torch.float32):
        return losses.pseudo_huber(torch.full((2, 3, 4, 5), d, dtype=dtype), torch.zeros(2, 3, 4, 5), c)

    assert huber(1e-4, 1.0).tolist() == pytest.approx([5.0e-9] * 2, rel=1e-6)  # the textbook form gives 0
    assert huber(1e-3, 1e-3)[0].item() == pytest.approx(4.142136e-4, rel=1e-6)
    assert huber(0.5, 1e-3)[0].item() == pytest.approx(0.499001, rel=1e-6)
    d = (images(2, 3, 4, 5) * 10).requires_grad_()
    (slope,) = torch.autograd.grad(losses.pseudo_huber(d, torch.zeros_like(d), 1e-3).mean(), d)
    assert (slope.abs() * d.numel() <= 1).all() and (slope.sign() == d.sign()).all()


def test_the_target_network_forgets_without_a_ramp():
    net, ema = torch.nn.Linear(1, 1, bias=False).double(), torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.zeros_(ema.weight)
    for k in range(1, 101):
        torch.nn.init.constant_(net.weight, float(k))
        models.lerp_(ema, net, LCMConfig().ema_decay)
    assert ema.weight.item() == pytest.approx(81.11249005518638, rel=1e-10)
    torch.nn.init.constant_(ema.weight, 2.0)
    for _ in range(20):
        models.lerp_(ema, net, 0.95)
    assert ema.weight.item() == pytest.approx(100 + (2 - 100) * 0.95**20, rel=1e-12)


def test_the_weight_of_the_critic_is_a_function_of_the_step():
    assert [ramp(n, 3, 4) for n in range(10)] == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [ramp(n, 3, 0) for n in range(5)] == [0, 0, 0, 1, 1]


def test_without_a_decay_the_average_is_the_network():
    assert ema_decay(EMAConfig(decay=None), 1000) == 0.0


def test_guidance_moves_the_teacher_alone():
    calls = []

    class Net(torch.nn.Module):
        def forward(self, x, t):
            calls.append(x[:, 3:].abs().max().item())
            return type("Output", (), {"sample": x[:, :3] * 0.1 + x[:, 3:].mean()})

    function, net = made(ZERO, guidance=2.0), Net()
    t, u, x_t = cells(function, 8)
    sar = images(*x_t[:, :1].shape, seed=9) + 1
    y = function.target(net, net, x_t, t, u, sar)
    assert len(calls) == 3 and calls[1] == 0 and calls[0] == calls[2]
    assert not torch.equal(y, made(ZERO).target(net, net, x_t, t, u, sar))
