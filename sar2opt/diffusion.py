"""Noise schedule, parameterisations and loss weights of pixel-space diffusion.

    x_t = a_t x0 + s_t eps,   a_t = sqrt(abar_t),   s_t = sqrt(1 - abar_t),   snr_t = abar_t / (1 - abar_t)

t counts 0..T-1; ``out`` is what the network returns: eps, v = a eps - s x0 (Salimans & Ho 2022) or x0. The table of
abar is the one diffusers' schedulers sample with, so training and sampling cannot differ.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator
from torch import Tensor, nn

from .config import Section
from .draws import Draws

Prediction = Literal["epsilon", "v", "sample"]
Weighting = Literal["uniform", "min_snr", "min_snr_plus_one"]

BETAS: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
    # start and end mean nothing here; stated, because the classes of diffusers have different ones
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "beta_start": 1e-4, "beta_end": 0.02},
}
DIFFUSERS_NAMES: dict[Prediction, str] = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
OUR_NAMES: dict[str, Prediction] = {name: ours for ours, name in DIFFUSERS_NAMES.items()}


class NoiseConfig(Section):
    """``noise:`` how images are noised, and what the network predicts.

    Zero terminal SNR: the last x_t is pure noise, as sampling starts; without it, sampled colours drift to grey
    (Lin et al. 2023).
    """

    timesteps: int = Field(default=1000, ge=2)
    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    prediction: Prediction = "v"
    zero_terminal_snr: bool = True

    @field_validator("prediction", mode="before")
    @classmethod
    def _synonym(cls, value: Any) -> Any:
        return "v" if value == "v_prediction" else value  # diffusers' name

    @model_validator(mode="after")
    def _determined(self) -> Self:
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "zero_terminal_snr with prediction=epsilon: pure noise says nothing about x0; "
                "use prediction=v or sample, or zero_terminal_snr=false"
            )
        return self

    def scheduler_arguments(self) -> dict[str, Any]:
        """The same noise in the words of a diffusers scheduler."""
        return {
            "num_train_timesteps": self.timesteps,
            "prediction_type": DIFFUSERS_NAMES[self.prediction],
            "rescale_betas_zero_snr": self.zero_terminal_snr,
            **BETAS[self.schedule],
        }

    @classmethod
    def from_scheduler(cls, settings: Mapping[str, Any]) -> Self:
        """The noise of a saved scheduler; ValueError if it is none that a config can state."""
        fitting = [name for name, betas in BETAS.items() if all(settings.get(k) == v for k, v in betas.items())]
        if not fitting:
            found = {key: settings.get(key) for key in ("beta_schedule", "beta_start", "beta_end")}
            raise ValueError(f"its betas {found} are none of the schedules {', '.join(BETAS)}")
        if settings.get("trained_betas") is not None:
            raise ValueError("it has a table of betas of its own")
        return cls.model_validate(
            {
                "timesteps": settings["num_train_timesteps"],
                "schedule": fitting[0],
                "prediction": OUR_NAMES[settings["prediction_type"]],
                "zero_terminal_snr": settings["rescale_betas_zero_snr"],
            }
        )


class ColourConfig(Section):
    """``ddpm.colour:`` loss on blurred images (arXiv 2407.16921); ``size`` and ``sigma`` in pixels, weight 0 is off.

    ``auto`` weighs by min(1, snr_t) for epsilon, where x0_hat amplifies errors by 1/snr, and by 1 otherwise.
    """

    weight: NonNegativeFloat = 0.0
    size: PositiveInt = 21
    sigma: PositiveFloat = 3.0
    weighting: Literal["auto", "uniform"] = "auto"

    @field_validator("size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError("must be odd, so that the blur has a centre")
        return size


class DDPMConfig(Section):
    """``ddpm:`` the loss of pixel-space diffusion. Every default is the plain uniform loss."""

    weighting: Weighting = "uniform"
    snr_gamma: PositiveFloat = 5.0  # Hang et al. 2023
    noise_offset: NonNegativeFloat = 0.0
    input_perturbation: NonNegativeFloat = 0.0  # 0.1 in Ning et al. 2023
    condition_dropout: float = Field(default=0.0, ge=0, lt=1)
    colour: ColourConfig = ColourConfig()


def check(noise: NoiseConfig, ddpm: DDPMConfig, resolution: int) -> None:
    """Refuse, by ValueError, losses that the noise or the image size makes meaningless. For a config's validator."""
    if ddpm.weighting == "min_snr" and noise.zero_terminal_snr:
        raise ValueError(
            "ddpm.weighting=min_snr with noise.zero_terminal_snr: the weight of t = T-1, where sampling starts, "
            "is 0; use min_snr_plus_one or uniform"
        )
    if ddpm.weighting == "min_snr_plus_one" and noise.prediction == "epsilon":
        raise ValueError("ddpm.weighting=min_snr_plus_one is for noise.prediction v and sample; use min_snr")
    if ddpm.colour.weight and ddpm.colour.size // 2 >= resolution:
        raise ValueError(
            f"ddpm.colour.size={ddpm.colour.size} is too large for {resolution} px images; at most {2 * resolution - 1}"
        )
    if ddpm.noise_offset and noise.zero_terminal_snr:
        warnings.warn("ddpm.noise_offset beside noise.zero_terminal_snr: both cure the same colour cast", stacklevel=2)


class NoiseSchedule(nn.Module):
    """The forward process of one config. Tables are float32; ``.double()`` and float64 images work in float64."""

    abar: Tensor  # [T], bit-equal to alphas_cumprod of the diffusers schedulers

    def __init__(self, cfg: NoiseConfig):
        super().__init__()
        self.prediction: Prediction = cfg.prediction
        self.timesteps = cfg.timesteps
        table = DDPMScheduler(**cfg.scheduler_arguments()).alphas_cumprod
        self.register_buffer("abar", table, persistent=False)

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(a_t, s_t), each broadcastable to ``like`` and in its precision."""
        return levels(self.abar[t].to(like.dtype).reshape(-1, *[1] * (like.ndim - 1)))

    def snr(self, t: Tensor) -> Tensor:
        """abar / (1 - abar): the shape of ``t``; 0 at T-1 with zero terminal SNR."""
        return self.abar[t] / (1 - self.abar[t])

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = a x0 + s eps. Also the deterministic DDIM step to t, given estimates of x0 and eps."""
        a, s = self.at(t, x0)
        return a * x0 + s * eps

    def velocity(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """v = a eps - s x0."""
        a, s = self.at(t, x0)
        return a * eps - s * x0

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What ``out`` should be."""
        if self.prediction == "v":
            return self.velocity(x0, eps, t)
        return eps if self.prediction == "epsilon" else x0

    def x0_hat(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean image that ``out`` implies at x_t."""
        return x0_hat(self.prediction, out, x_t, *self.at(t, x_t))

    def eps_hat(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that ``out`` implies at x_t."""
        return eps_hat(self.prediction, out, x_t, *self.at(t, x_t))

    def ddim_step(self, out: Tensor, x_t: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """x_u = a_u x0_hat + s_u eps_hat, unclipped (Song et al. 2021, eq. 12, eta = 0)."""
        return self.add_noise(self.x0_hat(out, x_t, t), self.eps_hat(out, x_t, t), u)


def levels(abar: Tensor) -> tuple[Tensor, Tensor]:
    """(a, s) = (sqrt(abar), sqrt(1 - abar))."""
    return abar.sqrt(), (1 - abar).sqrt()


def x0_hat(prediction: Prediction, out: Tensor, x_t: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """(x_t - s eps)/a, which amplifies errors by s/a (157 at t = 999 of ``linear``), or a x_t - s v, or x0."""
    if prediction == "epsilon":
        return (x_t - s * out) / a
    return a * x_t - s * out if prediction == "v" else out


def eps_hat(prediction: Prediction, out: Tensor, x_t: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """eps, or a v + s x_t, or (x_t - a x0)/s."""
    if prediction == "sample":
        return (x_t - a * out) / s
    return a * out + s * x_t if prediction == "v" else out


def loss_weight(weighting: Weighting, prediction: Prediction, snr: Tensor, gamma: float) -> Tensor:
    """w(t) of the mean squared error of ``out`` (Hang et al. 2023): [B].

    With d = x0_hat - x0 that error is snr d^2 for epsilon, (snr + 1) d^2 for v and d^2 for sample; ``min_snr`` makes
    all three min(snr, gamma) d^2, ``min_snr_plus_one`` makes the last two min(snr + 1, gamma) d^2.
    """
    if weighting == "uniform":
        return torch.ones_like(snr)
    wanted = (snr if weighting == "min_snr" else snr + 1).clamp(max=gamma)
    if prediction == "sample":
        return wanted
    return wanted / (snr if prediction == "epsilon" else snr + 1)


def colour_weight(weighting: Literal["auto", "uniform"], prediction: Prediction, snr: Tensor) -> Tensor:
    """w_c(t) of the colour loss: [B]."""
    return snr.clamp(max=1) if weighting == "auto" and prediction == "epsilon" else torch.ones_like(snr)


def offset_noise(draw: Draws, name: str, shape: Sequence[int], offset: float) -> Tensor:
    """eps + offset n, n ~ N(0, 1) per channel: [B,*shape]. Training and all noise of a sampler must use one offset."""
    eps = draw.normal(name, shape)
    return eps + offset * draw.normal(f"{name}_offset", (shape[0], 1, 1)) if offset else eps


def drop_condition(sar: Tensor, u: Tensor, probability: float) -> Tensor:
    """All bands of image i become 0, mid-grey, where u_i < probability; u ~ U[0, 1): [B]."""
    return sar * (u >= probability).to(sar.dtype).reshape(-1, 1, 1, 1)


def by_level(values: dict[str, Tensor], t: Tensor, timesteps: int, bins: int = 5) -> dict[str, Tensor]:
    """Rows [B] split by noise level, for logs: ``name/t0``, ``name/t200``, ...; NaN where t lies in another bin."""
    width, chosen = timesteps / bins, (t * bins).div(timesteps, rounding_mode="floor")
    nan = torch.full_like(t, torch.nan, dtype=torch.float32)
    return {
        f"{name}/t{round(k * width)}": torch.where(chosen == k, row, nan)
        for name, row in values.items()
        for k in range(bins)
    }
