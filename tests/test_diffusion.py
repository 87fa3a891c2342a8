"""Noise schedule and parameterisations: identities in float64, diffusers as the reference, refusals."""

import itertools

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from pydantic import ValidationError

from sar2opt import config, diffusion, losses
from sar2opt.diffusion import ColourConfig, DDPMConfig, NoiseConfig, NoiseSchedule
from sar2opt.draws import Draws
from sar2opt.models import UNetConfig, build_unet, predict

T = 1000
KINDS = [
    NoiseConfig(schedule=schedule, prediction=prediction, zero_terminal_snr=zero)
    for schedule, prediction, zero in itertools.product(
        ("linear", "scaled_linear", "cosine"), ("epsilon", "v", "sample"), (False, True)
    )
    if not (zero and prediction == "epsilon")
]
PLAIN = [cfg for cfg in KINDS if not cfg.zero_terminal_snr]


def name(cfg):
    return f"{cfg.schedule}-{cfg.prediction}{'-zero' if cfg.zero_terminal_snr else ''}"


def noise_cfg(schedule="linear", prediction="epsilon", zero=False):
    return NoiseConfig(schedule=schedule, prediction=prediction, zero_terminal_snr=zero)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def everything(dtype=torch.float64):
    """x0 in [-1, 1], eps, and every t once."""
    return normal(T, 3, 2, 4, dtype=dtype).clamp(-1, 1), normal(T, 3, 2, 4, seed=1, dtype=dtype), torch.arange(T)


@pytest.mark.parametrize("cfg", KINDS, ids=name)
def test_the_table_is_that_of_diffusers(cfg):
    betas = {
        "linear": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    }[cfg.schedule]
    reference = DDPMScheduler(rescale_betas_zero_snr=cfg.zero_terminal_snr, **betas)
    assert torch.equal(NoiseSchedule(cfg).abar, reference.alphas_cumprod)


@pytest.mark.parametrize(
    ("schedule", "first", "middle", "last", "a_last", "below_one_from"),
    [
        ("linear", 0.9999, 0.0785872, 4.03583e-5, 0.00635282, 259),
        ("scaled_linear", 0.99915, 0.277669, 0.0046601, 0.0682649, 354),
        ("cosine", 0.999959, 0.493843, 2.42873e-9, 4.928e-5, 496),
    ],
)
def test_published_values_of_the_schedules(schedule, first, middle, last, a_last, below_one_from):
    noise = NoiseSchedule(noise_cfg(schedule))
    assert noise.abar[[0, 499]].tolist() == pytest.approx([first, middle], rel=2e-6)
    assert noise.abar[999].item() == pytest.approx(last, rel=3e-6)
    a, s = noise.at(torch.tensor([999]), torch.zeros(1))
    assert a.item() == pytest.approx(a_last, rel=1e-4)
    assert (a**2 + s**2).item() == pytest.approx(1, abs=1e-6)
    snr = noise.snr(torch.arange(T))
    assert int((snr < 1).nonzero()[0]) == below_one_from


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_rescaling_to_zero_terminal_snr(schedule):
    r = NoiseSchedule(noise_cfg(schedule)).abar.double().sqrt()
    expected = ((r - r[-1]) * r[0] / (r[0] - r[-1])) ** 2
    abar = NoiseSchedule(noise_cfg(schedule, "v", zero=True)).abar
    assert (abar - expected).abs().max() < 1e-6
    assert abar[-1].item() == 0.0 and abar[0].item() == pytest.approx(r[0].item() ** 2, abs=1e-6)


@pytest.mark.parametrize("cfg", KINDS, ids=name)
def test_every_conversion_comes_back(cfg):
    noise, (x0, eps, t) = NoiseSchedule(cfg).double(), everything()
    x_t = noise.add_noise(x0, eps, t)
    out = noise.target(x0, eps, t)
    # a_t is 5e-5 at the end of the cosine schedule, and divides the rounding of x_t by it
    assert (noise.x0_hat(out, x_t, t) - x0).abs().max() < 1e-10
    assert (noise.eps_hat(out, x_t, t) - eps).abs().max() < 1e-10


@pytest.mark.parametrize(("schedule", "tolerance"), [("linear", 1e-4), ("scaled_linear", 2e-5)])
def test_float32_loses_s_over_a_at_the_last_step(schedule, tolerance):
    noise, t = NoiseSchedule(noise_cfg(schedule)), torch.full((8,), 999)
    x0, eps = normal(8, 3, 16, 16, dtype=torch.float32).clamp(-1, 1), normal(8, 3, 16, 16, seed=1, dtype=torch.float32)
    error = noise.x0_hat(eps, noise.add_noise(x0, eps, t), t) - x0
    assert 0 < error.abs().max() <= tolerance


@pytest.mark.parametrize("cfg", KINDS, ids=name)
def test_noise_velocity_and_ddim_step_agree_with_diffusers(cfg):
    noise, (x0, eps, t) = NoiseSchedule(cfg), everything(torch.float32)
    reference = DDPMScheduler(**cfg.scheduler_arguments())
    x_t = noise.add_noise(x0, eps, t)
    torch.testing.assert_close(x_t, reference.add_noise(x0, eps, t), rtol=0, atol=1e-6)
    torch.testing.assert_close(noise.velocity(x0, eps, t), reference.get_velocity(x0, eps, t), rtol=0, atol=1e-6)
    ddim = DDIMScheduler(**cfg.scheduler_arguments(), clip_sample=False, timestep_spacing="trailing")
    ddim.set_timesteps(50)
    for start, end in ((999, 979), (499, 479), (39, 19)):
        index = slice(start, start + 1)
        ours = noise.ddim_step(eps[index], x_t[index], t[index], torch.tensor([end]))
        theirs = ddim.step(eps[index], start, x_t[index]).prev_sample
        # epsilon amplifies the rounding of x_t by 1/a_t
        scale = 1 if cfg.prediction != "epsilon" else float(noise.abar[start]) ** -0.5
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("cfg", KINDS, ids=name)
def test_a_ddim_step_with_the_true_noise_is_exact(cfg):
    noise, (x0, eps, _) = NoiseSchedule(cfg).double(), everything()
    t, u = torch.full((T,), 999), torch.arange(T)
    x_t = noise.add_noise(x0, eps, t)
    x_u = noise.ddim_step(noise.target(x0, eps, t), x_t, t, u)
    assert (x_u - noise.add_noise(x0, eps, u)).abs().max() < 1e-9


@pytest.mark.parametrize("cfg", PLAIN, ids=name)
def test_the_three_errors_in_terms_of_x0(cfg):
    noise, (x0, eps, t) = NoiseSchedule(cfg).double(), everything()
    x_t, out = noise.add_noise(x0, eps, t), normal(T, 3, 2, 4, seed=2)
    d2, snr = losses.mse(noise.x0_hat(out, x_t, t), x0), noise.snr(t)
    error = losses.mse(out, noise.target(x0, eps, t))
    factor = {"epsilon": snr, "v": snr + 1, "sample": torch.ones_like(snr)}[cfg.prediction]
    torch.testing.assert_close(error, factor * d2, rtol=1e-10, atol=0)
    for weighting, wanted in (("min_snr", snr.clamp(max=5)), ("min_snr_plus_one", (snr + 1).clamp(max=5))):
        if (weighting, cfg.prediction) != ("min_snr_plus_one", "epsilon"):
            w = diffusion.loss_weight(weighting, cfg.prediction, snr, 5.0)
            torch.testing.assert_close(w * error, wanted * d2, rtol=1e-10, atol=0)
    assert torch.equal(diffusion.loss_weight("uniform", cfg.prediction, snr, 5.0), torch.ones_like(snr))


def test_mean_weights_of_the_linear_schedule():
    snr = NoiseSchedule(noise_cfg()).snr(torch.arange(T))
    assert diffusion.loss_weight("min_snr", "epsilon", snr, 5.0).mean().item() == pytest.approx(0.913, abs=1e-3)
    assert diffusion.loss_weight("min_snr", "v", snr, 5.0).mean().item() == pytest.approx(0.192, abs=1e-3)
    zero = NoiseSchedule(noise_cfg(prediction="v", zero=True)).snr(torch.arange(T))
    assert diffusion.loss_weight("min_snr_plus_one", "v", zero, 5.0)[-1] == 1  # the step sampling starts with counts


@pytest.mark.parametrize(("schedule", "last", "mean"), [("linear", 24780, 1311), ("scaled_linear", 213.6, 20.3)])
def test_the_auto_colour_weight_bounds_what_epsilon_would_amplify(schedule, last, mean):
    snr = NoiseSchedule(noise_cfg(schedule)).snr(torch.arange(T))
    assert (1 / snr[-1]).item() == pytest.approx(last, rel=1e-3)
    assert (1 / snr).mean().item() == pytest.approx(mean, rel=5e-3)
    auto = diffusion.colour_weight("auto", "epsilon", snr)
    assert torch.equal(auto, snr.clamp(max=1)) and (auto / snr).max() <= 1 + 1e-6
    for weighting, prediction in (("uniform", "epsilon"), ("auto", "v"), ("auto", "sample")):
        assert torch.equal(diffusion.colour_weight(weighting, prediction, snr), torch.ones_like(snr))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_the_colour_loss_has_a_gradient_in_the_last_layer(prediction):
    torch.manual_seed(0)
    unet = build_unet(
        UNetConfig(
            block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
            layers_per_block=1, norm_num_groups=4,
        ), 1, 24,
    )  # fmt: skip
    noise, t = NoiseSchedule(noise_cfg(prediction=prediction)), torch.tensor([700, 30])
    x0, eps = normal(2, 3, 24, 24, dtype=torch.float32), normal(2, 3, 24, 24, seed=1, dtype=torch.float32)
    x_t = noise.add_noise(x0, eps, t)
    x0_hat = noise.x0_hat(predict(unet, x_t, t, x0[:, :1]), x_t, t)
    losses.colour(x0_hat, x0, 21, 3.0).mean().backward()
    assert unet.conv_out.weight.grad is not None and unet.conv_out.weight.grad.norm() > 1e-6


def test_the_floor_of_input_perturbation():
    n, g = 1_000_000, 0.1
    eps, other = normal(n), normal(n, seed=1)
    seen = eps + g * other  # all that x_t says about eps when x0 is known
    best = seen / (1 + g**2)
    assert ((best - eps) ** 2).mean().item() == pytest.approx(0.00990, rel=0.01)


def test_offset_noise_has_its_covariance_and_is_plain_at_zero():
    draw = Draws(0, range(2000), "cpu")
    eps = diffusion.offset_noise(draw, "eps", (3, 4, 4), 0.5)
    assert eps.mean((2, 3)).var().item() == pytest.approx(1 / 16 + 0.25, rel=0.05)
    assert eps.var((2, 3)).mean().item() == pytest.approx(1, rel=0.02)  # the offset is common to a channel
    assert torch.equal(diffusion.offset_noise(draw, "eps", (3, 4, 4), 0.0), draw.normal("eps", (3, 4, 4)))


def test_dropped_conditions_are_zero_in_all_bands_of_a_sample():
    sar, u = normal(5, 2, 4, 3) + 3, torch.tensor([0.0, 0.29, 0.3, 0.31, 0.99])
    dropped = diffusion.drop_condition(sar, u, 0.3)
    assert dropped[:2].abs().max() == 0 and torch.equal(dropped[2:], sar[2:])
    assert torch.equal(diffusion.drop_condition(sar, u, 0.0), sar)


def test_by_level_sorts_rows_into_five_bins():
    t, row = torch.tensor([0, 199, 200, 999]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    bins = diffusion.by_level({"error": row}, t, T)
    assert list(bins) == ["error/t0", "error/t200", "error/t400", "error/t600", "error/t800"]
    assert bins["error/t0"].nansum() == 3 and bins["error/t200"].nansum() == 3 and bins["error/t800"].nansum() == 4
    assert sum(int((~b.isnan()).sum()) for b in bins.values()) == 4


def test_accumulated_micro_batches_have_the_gradient_of_the_batch():
    noise, x0, eps = NoiseSchedule(noise_cfg(prediction="v")).double(), normal(8, 3, 8, 8), normal(8, 3, 8, 8, seed=1)
    t = torch.tensor([0, 100, 250, 400, 550, 700, 850, 999])
    torch.manual_seed(0)
    unet = build_unet(
        UNetConfig(
            block_out_channels=(8, 8), down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=4,
        ), 1, 8,
    ).double()  # fmt: skip

    def gradient(cuts):
        unet.zero_grad()
        for i in torch.arange(8).split(8 // cuts):
            x_t = noise.add_noise(x0[i], eps[i], t[i])
            error = losses.mse(predict(unet, x_t, t[i], x0[i, :1]), noise.target(x0[i], eps[i], t[i]))
            (error.mean() / cuts).backward()
        return torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None])

    whole, halves = gradient(1), gradient(2)
    assert (whole - halves).norm() / whole.norm() < 1e-12


def test_configs_that_cannot_work_are_refused():
    with pytest.raises(ValidationError, match="pure noise says nothing"):
        NoiseConfig(prediction="epsilon")
    with pytest.raises(ValidationError, match="must be odd"):
        ColourConfig(size=20)
    zero, plain = NoiseConfig(), noise_cfg()
    with pytest.raises(ValueError, match="sampling starts, is 0"):
        diffusion.check(zero, DDPMConfig(weighting="min_snr"), 256)
    with pytest.raises(ValueError, match="use min_snr"):
        diffusion.check(plain, DDPMConfig(weighting="min_snr_plus_one"), 256)
    with pytest.raises(ValueError, match="at most 19"):
        diffusion.check(plain, DDPMConfig(colour=ColourConfig(weight=1.0)), 10)
    with pytest.warns(UserWarning, match="same colour cast"):
        diffusion.check(zero, DDPMConfig(noise_offset=0.1), 256)
    diffusion.check(zero, DDPMConfig(weighting="min_snr_plus_one", colour=ColourConfig(weight=1.0)), 11)
    diffusion.check(plain, DDPMConfig(weighting="min_snr", noise_offset=0.1), 256)


def test_the_name_of_diffusers_is_a_synonym(tmp_path):
    class Config(config.Section):
        noise: NoiseConfig

    file = tmp_path / "a.yaml"
    file.write_text("noise: {prediction: v_prediction}\n")
    assert config.load(Config, file).noise == NoiseConfig()
    file.write_text("noise:\n  prediction: epsilon\n")
    with pytest.raises(config.ConfigError, match=r"a.yaml:1:1: noise: zero_terminal_snr with prediction=epsilon"):
        config.load(Config, file)
