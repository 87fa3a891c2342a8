"""Consistency models on the grid of a teacher's DDIM steps (Song et al. 2023; Luo et al. 2023, arXiv 2310.04378).

f(x, t, s) = c_skip(t) x + c_out(t) x0_hat(net(x, t, s), x, t),     f(x, 0, s) = x
y = f_ema(x_u, u, s),     x_u = one DDIM step of the teacher from t to u = max(t - k, 0),     k = T/N
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from . import losses
from .config import Section
from .diffusion import NoiseConfig, NoiseSchedule
from .models import predict
from .samplers import guided

SIGMA_DATA = 0.5
Predict = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # (net, x_t, t, sar) -> out


class LCMConfig(Section):
    """``lcm:`` consistency distillation. ``boundary_alpha``: the noise level that t = 0 stands for in the teacher's
    step, none (``one``) or that of the table (``first``, as in the diffusers example). ``guidance`` 1 is off."""

    solver_steps: PositiveInt = 50
    timestep_scaling: PositiveFloat = 10.0
    loss: Literal["huber", "l2"] = "huber"
    huber_c: PositiveFloat = 1e-3
    ema_decay: float = Field(default=0.95, ge=0, lt=1)  # of the target network, without a ramp
    boundary_alpha: Literal["one", "first"] = "one"
    guidance: float = Field(default=1.0, ge=0)


def check(noise: NoiseConfig, lcm: LCMConfig) -> None:
    """Refuse, by ValueError, a grid that does not end at T-1, where sampling starts."""
    if noise.timesteps % lcm.solver_steps:
        fitting = [n for n in range(1, noise.timesteps + 1) if noise.timesteps % n == 0]
        nearest = sorted(fitting, key=lambda n: abs(n - lcm.solver_steps))[:2]
        raise ValueError(
            f"lcm.solver_steps={lcm.solver_steps} does not divide the teacher's {noise.timesteps} timesteps; "
            f"nearest that do: {', '.join(map(str, sorted(nearest)))}"
        )


def boundary(t: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) = (sd^2 / ((q t)^2 + sd^2), q t / sqrt((q t)^2 + sd^2)): (1, 0) at t = 0. Same order of
    operations as diffusers' LCMScheduler."""
    scaled = t * scaling
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    return c_skip, scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5


class Consistency:
    """The consistency function, the grid and the target of one schedule."""

    def __init__(self, schedule: NoiseSchedule, cfg: LCMConfig, predict: Predict = predict):
        self.schedule, self.cfg, self.predict = schedule, cfg, predict
        self.stride = schedule.timesteps // cfg.solver_steps

    def pair(self, cell: Tensor) -> tuple[Tensor, Tensor]:
        """(t, u) of cell i in 0..N-1: t = k (i + 1) - 1, and u = t - k, or 0 in the lowest cell: [B]."""
        t = self.stride * (cell + 1) - 1
        return t, (t - self.stride).clamp(min=0)

    def __call__(self, net: nn.Module, x: Tensor, t: Tensor, sar: Tensor) -> Tensor:
        """f(x, t, s): [B,3,H,W], [B], [B,b,H,W] -> [B,3,H,W], in float32 or better."""
        return self.denoised(self.predict(net, x, t, sar), x, t)

    def denoised(self, out: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """f for a network that has returned ``out`` at (x, t)."""
        c_skip, c_out = (c.reshape(-1, 1, 1, 1) for c in boundary(t.to(x.dtype), self.cfg.timestep_scaling))
        return c_out * self.schedule.x0_hat(out, x, t) + c_skip * x

    @torch.no_grad()
    def target(self, teacher: nn.Module, ema: nn.Module, x_t: Tensor, t: Tensor, u: Tensor, sar: Tensor) -> Tensor:
        """y = f_ema(x_u, u, s): [B,3,H,W]."""
        out = guided(teacher, x_t, t, sar, self.cfg.guidance, self.predict)
        return self(ema, self.teacher_step(out, x_t, t, u), u, sar)

    def teacher_step(self, out: Tensor, x_t: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """x_u = a_u x0_hat + s_u eps_hat, unclipped; in the lowest cell x0_hat alone with ``boundary_alpha: one``."""
        x_u = self.schedule.ddim_step(out, x_t, t, u)
        if self.cfg.boundary_alpha == "first":
            return x_u
        return torch.where((u == 0).reshape(-1, 1, 1, 1), self.schedule.x0_hat(out, x_t, t), x_u)

    def error(self, f: Tensor, y: Tensor) -> Tensor:
        """The distance that is trained, of every sample: [B]."""
        return losses.mse(f, y) if self.cfg.loss == "l2" else losses.pseudo_huber(f, y, self.cfg.huber_c)
