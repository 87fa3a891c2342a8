"""Samplers on problems whose answer is known: Gaussians, point masses, constant images; and diffusers' own steps."""

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn

from sar2opt import diffusion, samplers
from sar2opt.diffusion import NoiseConfig, NoiseSchedule
from sar2opt.draws import Draws
from sar2opt.models import UNetConfig, build_unet, predict
from sar2opt.samplers import SAMPLERS, SampleConfig, build_scheduler, denoise, guided, sample, scheduler_from

EPSILON = NoiseConfig(prediction="epsilon", zero_terminal_snr=False)
MEAN, STD = 0.3, 0.5
TINY = UNetConfig(
    block_out_channels=(8, 16), down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=4,
)  # fmt: skip


class GaussianDenoiser(nn.Module):
    """The best possible network where every pixel is N(MEAN, std^2) and noise has ``scale`` times its usual std."""

    def __init__(self, cfg: NoiseConfig, std: float = STD, scale: float = 1.0):
        super().__init__()
        self.noise, self.prediction, self.std, self.scale = NoiseSchedule(cfg).double(), cfg.prediction, std, scale

    def forward(self, x: torch.Tensor, t: torch.Tensor):
        x_t = x[:, :3]
        a, s = self.noise.at(t, x_t)
        variance = a**2 * self.std**2 + (s * self.scale) ** 2
        x0 = MEAN + a * self.std**2 / variance * (x_t - a * MEAN)
        eps = (x_t - a * x0) / s
        out = {"epsilon": eps, "v": a * eps - s * x0, "sample": x0}[self.prediction]
        return type("Output", (), {"sample": out})


class Recorder(nn.Module):
    """Returns half of x_t and keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor):
        self.seen.append((x.clone(), t.clone()))
        return type("Output", (), {"sample": 0.5 * x[:, :3]})


def unclipped(cfg, sampler, **changes):
    scheduler = build_scheduler(cfg, sampler, "trailing")
    return type(scheduler).from_config(scheduler.config, clip_sample=False, thresholding=False, **changes)


def nowhere(t):
    raise AssertionError(f"no noise is due at {t}")


def tiny(bands=1):
    torch.manual_seed(0)
    return build_unet(TINY, bands, 16).eval()


def sar(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


LISTS = {
    ("trailing", 50): list(range(999, 0, -20)),
    ("trailing", 8): [999, 874, 749, 624, 499, 374, 249, 124],
    ("trailing", 4): [999, 749, 499, 249],
    ("leading", 8): [875, 750, 625, 500, 375, 250, 125, 0],
    ("leading", 4): [750, 500, 250, 0],
    ("linspace", 8): [999, 856, 714, 571, 428, 285, 143, 0],
}


@pytest.mark.parametrize(("spacing", "steps"), LISTS)
def test_timesteps_of_each_spacing(spacing, steps):
    for sampler in ("ddim", "ddpm"):
        scheduler = build_scheduler(EPSILON, sampler, spacing)
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == LISTS[spacing, steps]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_samplers_start_at_the_last_timestep_by_default(sampler):
    scheduler = build_scheduler(NoiseConfig(), sampler, SampleConfig().spacing)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == LISTS["trailing", 50]
    assert scheduler.init_noise_sigma == 1


@pytest.mark.parametrize(
    ("sampler", "errors"),
    [
        ("ddim", {50: 5.73e-2, 100: 2.92e-2, 200: 1.48e-2}),
        ("dpmpp", {20: 4.4e-2, 50: 1.1e-3}),
        ("unipc", {20: 4.1e-2, 50: 2.3e-3}),
    ],
)
def test_solvers_converge_to_the_flow_of_a_gaussian(sampler, errors):
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 3, 1, 3)
    a, s = NoiseSchedule(EPSILON).double().at(torch.tensor([999]), x_T)
    exact = MEAN + STD * (x_T - a * MEAN) / (a**2 * STD**2 + s**2).sqrt()
    for steps, expected in errors.items():
        x0 = denoise(GaussianDenoiser(EPSILON), unclipped(EPSILON, sampler), x_T, x_T[:, :1], steps, nowhere)
        assert (x0 - exact).abs().max().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_the_ratio_of_a_ddim_step_on_a_gaussian(prediction):
    cfg = NoiseConfig(prediction=prediction, zero_terminal_snr=False)
    noise, t, u = NoiseSchedule(cfg).double(), torch.tensor([499]), torch.tensor([439])
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 3, 1, 3)
    x_u = noise.ddim_step(predict(GaussianDenoiser(cfg), x_t, t, x_t[:, :1]), x_t, t, u)
    (a_t, s_t), (a_u, s_u) = noise.at(t, x_t), noise.at(u, x_t)
    ratio = (a_u * a_t * STD**2 + s_u * s_t) / (a_t**2 * STD**2 + s_t**2)
    torch.testing.assert_close(x_u - a_u * MEAN, ratio * (x_t - a_t * MEAN), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "expected"), [("fixed_small", 0.49611), ("fixed_large", 0.50075)])
def test_1000_ancestral_steps_reproduce_the_gaussian(kind, expected):
    scheduler, net = unclipped(EPSILON, "ddpm", variance_type=kind), GaussianDenoiser(EPSILON)
    scheduler.set_timesteps(1000)
    # the step is affine in (x, z): three probes per step carry mean and variance exactly
    mean, variance = 0.0, 1.0
    for t in range(999, -1, -1):
        x, z = torch.tensor([0.0, 1.0, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
        x_t = x.reshape(3, 1, 1, 1).expand(3, 3, 1, 1)
        out = predict(net, x_t, torch.full((3,), t), x_t[:, :1])
        base, slope, std = samplers.ancestral_step(scheduler, out, t, x_t, z.reshape(3, 1, 1, 1))[:, 0, 0, 0].tolist()
        mean, variance = base + (slope - base) * mean, (slope - base) ** 2 * variance + (std - base) ** 2
    assert mean == pytest.approx(0.299997, abs=1e-5)
    assert variance**0.5 == pytest.approx(expected, abs=2e-5)


def test_ancestral_sampling_draws_the_gaussian():
    rng = np.random.default_rng(0)
    x_T = torch.from_numpy(rng.standard_normal((8, 3, 50, 67)))

    def fresh(t):
        return torch.from_numpy(rng.standard_normal(x_T.shape))

    x0 = denoise(GaussianDenoiser(EPSILON), unclipped(EPSILON, "ddpm"), x_T, x_T[:, :1], 1000, fresh)
    assert x0.mean().item() == pytest.approx(0.299997, abs=0.006)  # 3 standard errors of 80,400 values
    assert x0.std().item() == pytest.approx(0.49611, abs=0.004)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
@pytest.mark.parametrize(("kind", "steps"), [("fixed_small", 1000), ("fixed_small", 50), ("fixed_large", 250)])
def test_the_ancestral_step_is_that_of_diffusers(prediction, kind, steps):
    cfg = NoiseConfig(prediction=prediction, zero_terminal_snr=prediction != "epsilon")
    scheduler = build_scheduler(cfg, "ddpm", "trailing")
    scheduler = DDPMScheduler.from_config(scheduler.config, variance_type=kind)
    assert isinstance(scheduler, DDPMScheduler)
    scheduler.set_timesteps(steps)
    x_t, out = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    for t in scheduler.timesteps.tolist()[:: max(steps // 10, 1)] + [int(scheduler.timesteps[-1])]:
        z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(t))
        theirs = scheduler.step(out, t, x_t, generator=torch.Generator().manual_seed(t)).prev_sample
        torch.testing.assert_close(samplers.ancestral_step(scheduler, out, t, x_t, z), theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("cfg", "kept"),
    [
        (NoiseConfig(schedule="scaled_linear", prediction="epsilon", zero_terminal_snr=False), 0.018),
        (NoiseConfig(schedule="linear", prediction="epsilon", zero_terminal_snr=False), 0.561),
        (NoiseConfig(schedule="scaled_linear"), 0.999),
        (NoiseConfig(schedule="linear"), 0.999),
        (NoiseConfig(schedule="cosine"), 0.999),
    ],
)
def test_how_much_of_the_colour_survives(cfg, kept):
    # the channel mean of a 256 px image has noise of 1/256, and is N(MEAN, 0.3^2) given the SAR image
    x_T = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    net = GaussianDenoiser(cfg, std=0.3, scale=1 / 256)
    x0 = denoise(net, unclipped(cfg, "ddim"), x_T, x_T[:, :1], 1000, nowhere)
    assert x0.mean().item() / MEAN == pytest.approx(kept, abs=0.003)


@pytest.mark.parametrize("prediction", ["v", "sample"])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_ddim_equals_its_closed_form(prediction, steps):
    """x0 clipped, eps as predicted, T, T - T/n, ..: written again from the definition, in float64."""
    cfg, unet, image = NoiseConfig(prediction=prediction), tiny().double(), sar(2, 1, 8, 6).double()
    draw = Draws(5, ["a", "b"], "cpu")
    ours = sample(unet, build_scheduler(cfg, "ddim", "trailing"), image, draw, steps)

    beta = np.linspace(1e-4, 0.02, 1000)
    r = np.sqrt(np.cumprod(1 - beta))
    a = (r - r[-1]) * r[0] / (r[0] - r[-1])
    s = np.sqrt(1 - a**2)
    x = draw.normal("start", (3, 8, 6)).double()
    for i in range(steps):
        t, u = round(1000 - i * 1000 / steps) - 1, round(1000 - (i + 1) * 1000 / steps) - 1
        with torch.no_grad():
            out = unet(torch.cat([x, image], 1), torch.full((2,), t)).sample
        if prediction == "v":
            x0, eps = a[t] * x - s[t] * out, a[t] * out + s[t] * x
        else:
            x0, eps = out, (x - a[t] * out) / s[t]
        x = x0.clamp(-1, 1) if u < 0 else a[u] * x0.clamp(-1, 1) + s[u] * eps
    torch.testing.assert_close(ours, x.clamp(-1, 1), rtol=0, atol=2e-5)  # the float32 table, through all steps


def test_training_and_sampling_feed_the_network_the_same():
    noise, image = NoiseSchedule(NoiseConfig()), sar(2, 3, 8, 6)
    x0, eps, t = sar(2, 3, 8, 6), torch.randn(2, 3, 8, 6), torch.tensor([999, 999])
    train, test = Recorder(), Recorder()
    x_t = noise.add_noise(x0, eps, t)  # at 999 with zero terminal SNR: eps alone
    predict(train, x_t, t, image)
    scheduler = build_scheduler(NoiseConfig(), "ddim", "trailing")
    denoise(test, scheduler, x_t, image, 4, nowhere)
    (x, time), (y, time_) = train.seen[0], test.seen[0]
    assert torch.equal(x, y) and torch.equal(time, time_) and time.dtype == time_.dtype
    assert torch.equal(x[:, :3], x_t) and torch.equal(x[:, 3:], image)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_an_image_does_not_depend_on_its_batch(sampler, offset):
    unet, image, ids = tiny(2), sar(3, 2, 16, 8), ["a", "b", "c"]

    def run(rows):
        scheduler = build_scheduler(NoiseConfig(), sampler, "trailing")
        draw = Draws(1, [ids[i] for i in rows], "cpu")
        return sample(unet, scheduler, image[rows], draw, 10, noise_offset=offset)

    together = run([0, 1, 2])
    assert (run([1])[0] - together[1]).abs().max() < 1e-5
    assert (run([2, 0])[1] - together[0]).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 0.1 and together.abs().max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_scheduler_may_be_used_again(sampler):
    unet, scheduler, draw = tiny(), build_scheduler(NoiseConfig(), sampler, "trailing"), Draws(1, ["a"], "cpu")
    first = sample(unet, scheduler, sar(1, 1, 8, 8), draw, 5)
    sample(unet, scheduler, sar(1, 1, 8, 8), draw, 3)
    assert torch.equal(sample(unet, scheduler, sar(1, 1, 8, 8), draw, 5), first)


def test_every_noise_carries_the_offset():
    class Constant(Draws):
        def normal(self, name, shape):
            return torch.full((1, *shape), 10.0 if name.endswith("_offset") else 1.0)

    seen, draw = Recorder(), Constant(0, ["a"], "cpu")
    sample(seen, build_scheduler(NoiseConfig(), "ddpm", "trailing"), sar(1, 1, 4, 4), draw, 2, noise_offset=0.1)
    plain = Recorder()
    sample(plain, build_scheduler(NoiseConfig(), "ddpm", "trailing"), sar(1, 1, 4, 4), draw, 2)
    (start, _), (later, _) = seen.seen
    assert torch.equal(start[:, :3], torch.full((1, 3, 4, 4), 2.0))
    a, s = NoiseSchedule(NoiseConfig()).at(torch.tensor([499]), start)
    # at T-1 the step is a_u x0 + s_u z, with x0 = -s_t out = -start/2, clipped
    torch.testing.assert_close(later[:, :3], (a * -1 + s * 2).expand(1, 3, 4, 4))
    torch.testing.assert_close(plain.seen[1][0][:, :3], (a * -0.5 + s * 1).expand(1, 3, 4, 4))


def test_one_step_without_start_noise_is_a_regression_network():
    unet, image = tiny(2), sar(3, 2, 16, 8)
    scheduler = build_scheduler(NoiseConfig(prediction="sample"), "ddim", "trailing")
    output = sample(unet, scheduler, image, Draws(3, "abc", "cpu"), 1, start_noise=0.0)
    with torch.no_grad():
        direct = predict(unet, torch.zeros(3, 3, 16, 8), torch.full((3,), 999), image).clamp(-1, 1)
    assert torch.equal(output, direct)


def test_guidance_of_one_is_off_and_costs_nothing():
    unet, x_t, t, image = tiny(), torch.randn(2, 3, 8, 6), torch.tensor([10, 900]), sar(2, 1, 8, 6)
    with torch.no_grad():
        assert torch.equal(guided(unet, x_t, t, image, 1.0), predict(unet, x_t, t, image))
        null = predict(unet, x_t, t, torch.zeros_like(image))
        torch.testing.assert_close(guided(unet, x_t, t, image, 0.0), null, rtol=0, atol=0)
    seen = Recorder()
    guided(seen, x_t, t, image, 1.0)
    assert len(seen.seen) == 1


def test_guiding_the_output_guides_noise_velocity_and_image_alike():
    x_t, t, w = torch.randn(2, 3, 4, 5).double(), torch.tensor([300, 700]), 3.0
    out, null = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 4, 5).double()
    for prediction in ("epsilon", "v", "sample"):
        noise = NoiseSchedule(NoiseConfig(prediction=prediction, zero_terminal_snr=False)).double()
        for convert in (noise.x0_hat, noise.eps_hat):
            guided_after = convert(null, x_t, t) + w * (convert(out, x_t, t) - convert(null, x_t, t))
            guided_before = convert(null + w * (out - null), x_t, t)
            torch.testing.assert_close(guided_before, guided_after, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cfg", [NoiseConfig(), NoiseConfig(schedule="cosine", prediction="sample"), EPSILON])
@pytest.mark.parametrize("old", SAMPLERS)
@pytest.mark.parametrize("new", SAMPLERS)
def test_a_saved_scheduler_gives_every_other_sampler(cfg, old, new):
    switched = scheduler_from(dict(build_scheduler(cfg, old, "trailing").config), new)
    expected = build_scheduler(cfg, new, "trailing")
    assert type(switched) is type(expected)
    assert switched.to_json_string() == expected.to_json_string()  # what a model folder holds


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "lcm"])  # it clips its last image only
@pytest.mark.parametrize("cfg", [NoiseConfig(), EPSILON, NoiseConfig(prediction="sample")])
def test_x0_is_clipped_in_every_step(sampler, cfg):
    """An image of +-3 is what the network insists on; every sampler ends at +-1 without overshooting inside."""

    class Bright(nn.Module):
        def forward(self, x, t):
            noise = NoiseSchedule(cfg)
            a, s = noise.at(t, x[:, :3])
            x0 = torch.full_like(x[:, :3], 3.0)
            eps = (x[:, :3] - a * x0) / s
            return type("Output", (), {"sample": noise.target(x0, eps, t)})

    x_T = torch.randn(1, 3, 4, 4)
    scheduler = build_scheduler(cfg, sampler, "trailing")
    x0 = denoise(Bright(), scheduler, x_T, x_T[:, :1], 20, lambda t: torch.zeros(1, 3, 4, 4))
    assert (x0 - 1).abs().max() < 0.05


def test_settings_that_cannot_work_are_refused():
    check = samplers.check
    with pytest.raises(ValueError, match="only trailing"):
        check(NoiseConfig(), SampleConfig(spacing="leading"), 0.0)
    with pytest.raises(ValueError, match="steps=50 is more than noise.timesteps=20"):
        check(NoiseConfig(timesteps=20), SampleConfig(), 0.0)
    with pytest.raises(ValueError, match="condition_dropout > 0"):
        check(NoiseConfig(), SampleConfig(guidance=2.0), 0.0)
    check(NoiseConfig(), SampleConfig(guidance=2.0), 0.1)
    check(EPSILON, SampleConfig(spacing="leading"), 0.0)
    assert diffusion.OUR_NAMES["v_prediction"] == "v"


# few steps ------------------------------------------------------------------------------------------------------------

GRID = {
    1: [999], 2: [999, 499], 3: [999, 679, 339], 4: [999, 759, 499, 259], 5: [999, 799, 599, 399, 199],
    6: [999, 839, 679, 499, 339, 179], 7: [999, 859, 719, 579, 439, 299, 159],
    8: [999, 879, 759, 639, 499, 379, 259, 139],
}  # fmt: skip


def few_steps(cfg, solver_steps=50):
    return build_scheduler(cfg, "lcm", "trailing", original_inference_steps=solver_steps, timestep_scaling=10.0)


@pytest.mark.parametrize("solver_steps", [10, 20, 25, 40, 50, 100])
def test_few_steps_stay_on_the_training_grid(solver_steps):
    scheduler, k = few_steps(NoiseConfig(), solver_steps), 1000 // solver_steps
    grid = set(range(k - 1, 1000, k))
    for steps, expected in GRID.items():
        scheduler.set_timesteps(steps)
        times = scheduler.timesteps.tolist()
        assert times[0] == 999 and set(times) <= grid
        assert solver_steps != 50 or times == expected
    with pytest.raises(ValueError):
        scheduler.set_timesteps(solver_steps + 1)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_few_steps_are_those_of_diffusers_with_the_same_noise(steps):
    cfg, ours, theirs = NoiseConfig(), few_steps(NoiseConfig()), few_steps(NoiseConfig())
    net, x_T = Recorder(), torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    noise = {}
    result = denoise(net, ours, x_T, x_T[:, :1], steps, lambda t: noise.setdefault(t, torch.randn_like(x_T)))
    theirs.set_timesteps(steps)
    x = x_T
    for t in theirs.timesteps.tolist():
        step = theirs.step(0.5 * x, t, x)
        later = theirs.timesteps[theirs.step_index :]
        x = step.denoised if not len(later) else theirs.add_noise(step.denoised, noise[t], later[:1].expand(2))
    assert len(noise) == steps - 1 and len(net.seen) == steps
    torch.testing.assert_close(result, x, rtol=0, atol=1e-6)
    assert NoiseSchedule(cfg).abar.equal(ours.alphas_cumprod)


def test_a_perfect_consistency_model_draws_the_gaussian_in_any_number_of_steps():
    """f = the exact flow map to its end: one step has the right distribution, and every further one keeps it."""
    cfg = NoiseConfig()
    table = NoiseSchedule(cfg).double()

    class Flow(nn.Module):
        def forward(self, x, t):
            x_t = x[:, :3]
            a, s = table.at(t, x_t)
            x0 = MEAN + STD * (x_t - a * MEAN) / (a**2 * STD**2 + s**2).sqrt()
            return type("Output", (), {"sample": (a * x_t - x0) / s})  # the v that means x0

    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(1, 3, 200, 300, dtype=torch.float64, generator=generator)
    for steps in (1, 2, 4, 8):
        fresh = lambda t: torch.randn(x_T.shape, dtype=torch.float64, generator=generator)  # noqa: E731
        x0 = denoise(Flow(), few_steps(cfg), x_T, x_T[:, :1], steps, fresh)
        assert x0.mean().item() == pytest.approx(MEAN, abs=0.006)  # 180,000 samples: 5 standard errors
        assert x0.std().item() == pytest.approx(STD, rel=0.01)
