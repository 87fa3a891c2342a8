"""One entry to every sampler: diffusers' schedulers by name, and a loop whose every random number has a name.

The result for one image depends on the image, the draws of its id and the settings, never on the batch around it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from . import diffusion
from .config import Section
from .diffusion import NoiseConfig, offset_noise
from .draws import Draws
from .models import PIXELS, Space, predict

Sampler = Literal["ddim", "ddpm", "dpmpp", "unipc", "lcm"]
Spacing = Literal["trailing", "leading", "linspace", "auto"]
Scheduler = DDIMScheduler | DDPMScheduler | DPMSolverMultistepScheduler | UniPCMultistepScheduler | LCMScheduler

# x0_hat is clipped to [-1, 1] in every step; the solvers have only thresholding, which at a maximum of 1 is that clip
_CLAMP = {"thresholding": True, "sample_max_value": 1.0}
_SOLVER = {"solver_order": 2, "final_sigmas_type": "zero", **_CLAMP}
SAMPLERS: dict[str, tuple[type[Scheduler], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": True, "set_alpha_to_one": True}),
    "ddpm": (DDPMScheduler, {"clip_sample": True, "variance_type": "fixed_small"}),
    "dpmpp": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", **_SOLVER}),
    "unipc": (UniPCMultistepScheduler, _SOLVER),
    "lcm": (LCMScheduler, {"clip_sample": False}),
}
# what a saved scheduler says about the noise, whatever its class
_NOISE_KEYS = (
    "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr", "timestep_spacing", "steps_offset",
)  # fmt: skip
AUTO_TRAILING = 8  # steps up to which spacing auto is trailing: leading would start from pure noise far from T-1


class SampleConfig(Section):
    """``sample:`` how images are made in validation and, by default, from the exported model.

    Steps: 50 suit ddim, 20 dpmpp and unipc, 1000 ddpm. ``spacing`` auto is that of the base of a latent model, and
    trailing for up to 8 steps and in pixel space. ``guidance`` 1 is off. ``ids`` images go into the sample grid,
    ``validate_ids`` into the validation metrics.
    """

    sampler: Sampler = "ddim"
    steps: PositiveInt = 50
    spacing: Spacing = "trailing"
    guidance: NonNegativeFloat = 1.0
    ids: NonNegativeInt = 8
    validate_ids: NonNegativeInt = 32


class FewStepsConfig(SampleConfig):
    """``sample:`` for a consistency model: x_t -> f, noise to the next t of the training grid, f, ...

    ``clip_x0`` clips f to [-1, 1] before it is noised again.
    """

    sampler: Literal["lcm"] = "lcm"  # pyright: ignore[reportIncompatibleVariableOverride]
    steps: PositiveInt = 4
    clip_x0: bool = False


def check(noise: NoiseConfig, sample: SampleConfig, condition_dropout: float) -> None:
    """Refuse, by ValueError, what cannot sample a model trained with ``noise``. For a config's validator."""
    if noise.zero_terminal_snr and sample.spacing not in ("trailing", "auto"):
        raise ValueError(
            f"sample.spacing={sample.spacing} with noise.zero_terminal_snr: only trailing starts from pure noise at T-1"
        )
    if sample.sampler == "lcm":
        raise ValueError("sample.sampler=lcm is for distilled networks (lcm_train.py); use ddim, dpmpp, unipc or ddpm")
    if sample.steps > noise.timesteps:
        raise ValueError(f"sample.steps={sample.steps} is more than noise.timesteps={noise.timesteps}")
    if sample.guidance != 1 and not condition_dropout:
        raise ValueError(
            f"sample.guidance={sample.guidance} needs a network trained without its SAR image now and then: "
            "set ddpm.condition_dropout > 0, or sample.guidance=1"
        )


def build_scheduler(noise: NoiseConfig, sampler: str, spacing: str, **more: Any) -> Scheduler:
    """The diffusers scheduler of ``sampler`` for a model trained with ``noise``."""
    cls, own = SAMPLERS[sampler]
    spacing = "trailing" if spacing == "auto" else spacing
    # everything is passed: the classes' own defaults are other betas, and leading or linspace
    return cls(**noise.scheduler_arguments(), timestep_spacing=cast(Any, spacing), **(own | more))


def max_steps(scheduler: Scheduler) -> int:
    """A consistency model knows the times of its training grid only."""
    settings = scheduler.config
    return settings["original_inference_steps" if isinstance(scheduler, LCMScheduler) else "num_train_timesteps"]


def scheduler_from(settings: dict[str, Any], sampler: str, bounded: bool = True) -> Scheduler:
    """Another sampler for the noise of a saved scheduler with config ``settings``. Not ``bounded``: clean samples, such
    as latents, may leave [-1, 1]."""
    cls, own = SAMPLERS[sampler]
    kept: dict[str, Any] = {key: settings[key] for key in _NOISE_KEYS if settings.get(key) is not None}
    unclipped: dict[str, Any] = {key: False for key in ("clip_sample", "thresholding") if key in own and not bounded}
    return cls(**(kept | own | unclipped))


@torch.no_grad()
def sample(
    unet: nn.Module,
    scheduler: Scheduler,
    sar: Tensor,
    draw: Draws,
    steps: int,
    *,
    noise_offset: float = 0.0,
    guidance: float = 1.0,
    start_noise: float = 1.0,
    space: Space = PIXELS,
    predict: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Translate sar [B,b,H,W] to [B,3,H,W] in [-1, 1], from x_T = start_noise (eps + noise_offset n). ``predict``: in
    place of the space's own, to see what passes.

    start_noise = 0 makes a network deterministic in its input: one DDIM step of a ``sample`` prediction with zero
    terminal SNR is then exactly a regression network.
    """
    cond = space.condition(sar)
    shape = (space.channels, *cond.shape[2:])
    x_T = start_noise * offset_noise(draw, "start", shape, noise_offset)
    fresh = partial(_fresh_noise, draw, shape, noise_offset)
    return space.decode(denoise(unet, scheduler, x_T, cond, steps, fresh, guidance, predict or space.predict))


def denoise(
    unet: nn.Module,
    scheduler: Scheduler,
    x_T: Tensor,
    sar: Tensor,
    steps: int,
    fresh: Callable[[int], Tensor],
    guidance: float = 1.0,
    predict: Callable[..., Tensor] = predict,
) -> Tensor:
    """From x_T to x0 in ``steps`` evaluations of the network; ``fresh(t)`` is the noise of an ancestral step at t."""
    scheduler.set_timesteps(steps)
    x = x_T
    for t in scheduler.timesteps.tolist():
        out = guided(unet, x, torch.full((len(x),), t, device=x.device), sar, guidance, predict)
        if isinstance(scheduler, DDPMScheduler):
            x = ancestral_step(scheduler, out, t, x, fresh(t))
        elif isinstance(scheduler, LCMScheduler):
            x = consistency_step(scheduler, out, t, x, fresh)
        else:
            x = scheduler.step(out, t, x, return_dict=False)[0]
    return x


def guided(
    unet: nn.Module, x_t: Tensor, t: Tensor, sar: Tensor, guidance: float, predict: Callable[..., Tensor] = predict
) -> Tensor:
    """out_null + w (out_sar - out_null), out_null with all bands 0 (Ho & Salimans 2022); w = 1 costs one pass.

    Linear, so guiding out, eps, v or x0 is the same.
    """
    out = predict(unet, x_t, t, sar)
    if guidance == 1:
        return out
    null = predict(unet, x_t, t, torch.zeros_like(sar))
    return null + guidance * (out - null)


def ancestral_step(scheduler: DDPMScheduler, out: Tensor, t: int, x_t: Tensor, z: Tensor) -> Tensor:
    """x_u = a_u beta/s_t^2 x0_hat + sqrt(1 - beta) s_u^2/s_t^2 x_t + sigma z (Ho et al. 2020, eq. 7).

    DDPMScheduler.step is the same step with a noise of its own: one draw for the whole batch, without offset.
    """
    u = int(scheduler.previous_timestep(t))
    abar_t = scheduler.alphas_cumprod[t].double()
    abar_u = scheduler.alphas_cumprod[u].double() if u >= 0 else torch.ones_like(abar_t)
    beta, shrink = 1 - abar_t / abar_u, (1 - abar_u) / (1 - abar_t)
    prediction = diffusion.OUR_NAMES[scheduler.config["prediction_type"]]
    x0_hat = diffusion.x0_hat(prediction, out, x_t, *diffusion.levels(abar_t.to(x_t)))
    if scheduler.config["clip_sample"]:
        x0_hat = x0_hat.clamp(-1, 1)
    variance = beta if scheduler.config["variance_type"] == "fixed_large" else beta * shrink
    c_x0, c_xt = (beta * abar_u.sqrt() / (1 - abar_t)).to(x_t), ((1 - beta).sqrt() * shrink).to(x_t)
    sigma = variance.sqrt().to(x_t) if t > 0 else 0.0
    return c_x0 * x0_hat + c_xt * x_t + sigma * z


def consistency_step(
    scheduler: LCMScheduler, out: Tensor, t: int, x_t: Tensor, fresh: Callable[[int], Tensor]
) -> Tensor:
    """x_u = a_u f + s_u z, and f itself in the last step (Luo et al. 2023, algorithm 4; arXiv 2310.04378).

    LCMScheduler.step gives f; the noise that it adds is one draw for the whole batch, without offset.
    """
    _, f = scheduler.step(out, t, x_t, return_dict=False)
    if scheduler.step_index == len(scheduler.timesteps):
        return f
    u = scheduler.timesteps[scheduler.step_index]
    a, s = diffusion.levels(scheduler.alphas_cumprod[u].to(x_t))
    return a * f + s * fresh(t)


def _fresh_noise(draw: Draws, shape: tuple[int, ...], offset: float, t: int) -> Tensor:
    return offset_noise(draw, f"step_{t}", shape, offset)
