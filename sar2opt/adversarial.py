"""The game of a critic and a student: what counts as real, the losses, and the penalty on the critic's slope.

L_D = d(L+, L-) + every gamma/2 mean_b sum_{chw} (dL+ / d real)^2      on steps n with n mod every = 0
"""

from contextlib import nullcontext
from typing import Literal, Self

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import losses
from .config import OptimConfig, Section, UserError
from .draws import Draws
from .losses import per_image
from .models import EncoderCritic, PatchCritic

H = 0.01  # length of the step of R1 by differences


class CriticConfig(Section):
    """``lcm_adv.critic:`` ``time`` is the label of a candidate: that of a clean image, or u as in the published code.
    ``lr`` and ``clip_norm`` null are those of ``optim``."""

    kind: Literal["encoder", "patch"] = "encoder"
    train: Literal["all", "head"] = "all"
    time: Literal["zero", "u"] = "zero"
    sees_x_t: bool = True
    lr: PositiveFloat | None = None
    clip_norm: PositiveFloat | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kind == "patch" and self.train == "head":
            raise ValueError("train=head is for the encoder critic; a patch critic has nothing that is trained before")
        return self

    def optim(self, optim: OptimConfig) -> OptimConfig:
        """The critic's optimiser, where that of the student is ``optim``."""
        own = {key: value for key in ("lr", "clip_norm") if (value := getattr(self, key)) is not None}
        return optim.model_copy(update=own) if own else optim


class R1Config(Section):
    """``lcm_adv.r1:`` the penalty on the critic's slope; gamma 0 is off. ``every`` > 1 multiplies it: raise
    ``critic.clip_norm`` with it."""

    gamma: NonNegativeFloat = 1.0
    every: PositiveInt = 1
    form: Literal["exact", "difference"] = "exact"


class AdversarialConfig(Section):
    """``lcm_adv:`` lambda(n) = weight clip((n - start_step) / ramp_steps, 0, 1); the critic trains from
    ``critic_start_step``, also while lambda is 0."""

    real: Literal["opt", "target"] = "opt"
    loss: Literal["non_saturating", "hinge", "wgan"] = "non_saturating"
    weight: float = Field(default=0.1, ge=0)
    start_step: NonNegativeInt = 0
    ramp_steps: NonNegativeInt = 0
    critic_start_step: NonNegativeInt = 0
    critic: CriticConfig = CriticConfig()
    r1: R1Config = R1Config()

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.loss == "wgan" and not self.r1.gamma:
            raise ValueError("loss=wgan with r1.gamma=0 has no bound; set r1.gamma > 0, or another loss")
        return self

    @property
    def game(self) -> losses.Adversarial:
        """The losses of both sides."""
        return losses.ADVERSARIAL[self.loss]


def build_critic(cfg: CriticConfig, unet: UNet2DModel | UNet2DConditionModel) -> nn.Module:
    """The critic of ``cfg`` for a student that starts as ``unet``."""
    if cfg.kind == "patch":
        channels = unet.config["out_channels"]
        return PatchCritic(unet.config["in_channels"] - channels, cfg.sees_x_t, channels=channels)
    if not isinstance(unet, UNet2DModel):
        raise UserError("the encoder critic is for pixel teachers; for a latent one set lcm_adv.critic.kind=patch")
    return EncoderCritic(unet, cfg.sees_x_t, head_only=cfg.train == "head")


def critic_loss(
    adv: AdversarialConfig, critic: nn.Module, f: Tensor, real: Tensor, given: tuple[Tensor, Tensor, Tensor, Tensor],
    draw: Draws, step: int,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """(L_D, what to log) for the candidates f and real, ``given`` x_t, t, t' and cond; one forward over all of them, so
    that DDP sees a single pass. f carries no gradient."""
    x_t, t, t_prime, cond = given
    penalised = bool(adv.r1.gamma) and step % adv.r1.every == 0
    exact, real = penalised and adv.r1.form == "exact", real.detach()
    real.requires_grad_(exact)
    candidates = [f, real]
    if penalised and not exact:
        candidates.append(real + H * draw.normal("r1", real.shape[1:]).to(real))
    # the fused kernels of attention have no second derivative
    with sdpa_kernel(SDPBackend.MATH) if exact else nullcontext():
        logits = critic(x_t, t, torch.cat(candidates), t_prime, cond)
    fake, true, *moved = logits.chunk(len(candidates))
    loss, right = adv.game.critic(true, fake), ((per_image(true) > 0).float() + (per_image(fake) < 0).float()) / 2
    logged = {"logit/real": per_image(true), "logit/fake": per_image(fake), "accuracy": right}
    if penalised:
        logged["r1"] = losses.r1_exact(true, real) if exact else losses.r1_difference(true, moved[0], H)
        loss = loss + adv.r1.every * adv.r1.gamma / 2 * logged["r1"]
    return loss, logged
