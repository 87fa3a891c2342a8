"""What cdiff_train.py is configured by, and the set-up of its latent space (arXiv 2411.10788)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from pydantic import Field, PositiveInt
from torch import Tensor

from . import confidence, diffusion, samplers
from .config import EMAConfig, Section, UserError
from .data import DataConfig, SarRadiometry
from .diffusion import NoiseConfig, NoiseSchedule
from .models import LatentSpace, latent
from .models.latent import Base, ConvIn, ThreeBands
from .pipeline import CARD_FILE, SCHEDULER_FILE, LatentCard, read_card
from .samplers import SampleConfig, Scheduler, Spacing

BASE = "Manojb/stable-diffusion-2-1-base"  # the community copy that the authors used
PINNED = {BASE: "0094d483a120f3f33dafbd187ea4aa60d10de75c"}  # where no revision is stated


class LatentUNetConfig(Section):
    """``model:`` what is not the base's own. ``init_from``: the model folder of stage 1."""

    init_from: Path | None = None
    gradient_checkpointing: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)


class LatentNoiseConfig(Section):
    """``noise:`` the base's; stated, ``timesteps`` must agree with it."""

    timesteps: PositiveInt = 1000
    schedule: Literal["from_base"] = "from_base"
    prediction: Literal["from_base", "epsilon", "v", "sample"] = "from_base"


class LatentSampleConfig(SampleConfig):
    """``sample:`` of a latent model."""

    spacing: Spacing = "auto"


class CDiffConfig(Section):
    """``cdiff:`` what is trained, and on which ``base``: a folder of Stable Diffusion 1.x or 2.x in the format of
    diffusers, its name on the Hugging Face hub with ``revision``, or ``generated``, a tiny one with random weights.

    loss: ``mse`` is stage 1, ``beta_nll`` stage 2. beta: ``sqrt_abar`` of the timestep, or ``beta_const``. conv_in:
    ``half_repeat``, or ``zero_sar``, which starts as the base itself. init: ``scratch`` keeps the codec alone.
    channels: ``ratio`` shows the codec VV, VH and their difference in dB, ``auto`` repeats what there is.
    """

    base: str = BASE
    revision: str | None = None
    init: Literal["pretrained", "scratch"] = "pretrained"
    loss: confidence.Loss = "mse"
    beta: Literal["sqrt_abar", "const"] = "sqrt_abar"
    beta_const: float = Field(default=1.0, ge=0, le=1)
    var_min: float = Field(default=confidence.VAR_MIN, gt=0, lt=1)
    var_max: float = Field(default=confidence.VAR_MAX, gt=1)
    conv_in: ConvIn = "half_repeat"
    prompt: str = "electro-optical image"
    channels: Literal["auto", "ratio"] = "auto"
    allow_prediction_change: bool = False
    vae_dtype: Literal["fp32", "bf16"] = "fp32"  # of the decoder; encoding is float32

    @property
    def pinned(self) -> str | None:
        """``revision``, or the authors' of their base."""
        return self.revision or PINNED.get(self.base)


class Config(Protocol):
    """The sections that the set-up reads."""

    data: DataConfig
    model: LatentUNetConfig
    noise: LatentNoiseConfig
    ema: EMAConfig
    cdiff: CDiffConfig
    sample: LatentSampleConfig


class Latents(NamedTuple):
    """All that training on latents starts from."""

    unet: UNet2DConditionModel
    space: LatentSpace
    schedule: NoiseSchedule
    scheduler: Scheduler
    card: LatentCard


def check(cfg: Config) -> None:
    """Refuse, by ValueError, what contradicts itself. For a config's validator."""
    if cfg.data.resolution % 8:
        raise ValueError(f"data.resolution={cfg.data.resolution} is not a multiple of 8, the factor of the codec")
    if cfg.sample.steps > cfg.noise.timesteps:
        raise ValueError(f"sample.steps={cfg.sample.steps} is more than noise.timesteps={cfg.noise.timesteps}")
    if cfg.sample.sampler == "lcm" or cfg.sample.guidance != 1:
        raise ValueError("sample: a latent model has no guidance and is not distilled; set guidance 1 and sampler ddim")
    if cfg.cdiff.init == "scratch" and cfg.model.init_from is not None:
        raise ValueError("cdiff.init=scratch with model.init_from: weights are either new or those of a model folder")
    if cfg.model.dropout and cfg.ema.decay is None:
        raise ValueError("model.dropout without ema.decay: pictures of the weights in training would be drawn with it")


def build(cfg: Config, radiometry: SarRadiometry, own_model: Path) -> Latents:
    """Open and verify the base, then network, codec, prompt and noise; ``own_model``: where the run exports to."""
    cdiff, first = cfg.cdiff, cfg.model.init_from
    if first is not None:
        first = first / "model" if (first / "model" / CARD_FILE).is_file() else first
    base = latent.open_base(cdiff.base, cdiff.pinned, cfg.noise.timesteps)
    info = confidence.INFO_CHANNELS[cdiff.loss]
    unet = latent.build_unet(base, info, cdiff.conv_in, cfg.model.dropout, cdiff.init == "scratch", first)
    if cfg.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    stored = [own_model, *([first] if first is not None else [])]
    made = surround(unet, base, cdiff, cfg.noise, cfg.sample, radiometry, stored)
    if first is not None:
        _require_stage1(first, made, radiometry)
    return made


def surround(
    unet: UNet2DConditionModel, base: Base, cdiff: CDiffConfig, noise: LatentNoiseConfig, sample: LatentSampleConfig,
    radiometry: SarRadiometry, stored_prompts: Sequence[Path] = (),
) -> Latents:  # fmt: skip
    """What belongs to a network on the base's latents: codec, prompt, noise, sampler and card."""
    prompt = latent.open_prompt(base, cdiff.prompt, stored_prompts)
    three = ThreeBands.choose(radiometry.bands, cdiff.channels == "ratio", _limits(radiometry))
    space = LatentSpace(base.vae, prompt, three, cdiff.vae_dtype == "bf16")
    levels, scheduler = _noise(base, cdiff, noise, sample)
    hashes = {"vae": latent.digest(base.vae.state_dict()), "prompt": latent.digest({"prompt": prompt})}
    hashes["scheduler"] = latent.settings_digest(base.scheduler)
    card = LatentCard(
        base=cdiff.base, revision=cdiff.pinned, prompt=cdiff.prompt, rule=three.rule, limits=three.limits,
        loss=cdiff.loss, var_min=cdiff.var_min, var_max=cdiff.var_max, half_decoder=space.half_decoder,
        auto_spacing=sample.spacing == "auto", hashes=hashes,
    )  # fmt: skip
    return Latents(unet, space, NoiseSchedule(levels), scheduler, card)


def _noise(
    base: Base, cdiff: CDiffConfig, stated: LatentNoiseConfig, sample: LatentSampleConfig
) -> tuple[NoiseConfig, Scheduler]:
    """The base's noise, and the sampler for it. Its config is the truth, but for clipping: latents leave [-1, 1]."""
    ddim = DDIMScheduler.from_config(base.scheduler, clip_sample=False)
    assert isinstance(ddim, DDIMScheduler)
    try:
        noise = NoiseConfig.from_scheduler(ddim.config)
    except (ValueError, KeyError) as error:
        raise UserError(f"cdiff.base={base.name}: scheduler/scheduler_config.json: {error}") from None
    wanted = noise.prediction if stated.prediction == "from_base" else stated.prediction
    if wanted != noise.prediction and cdiff.init != "scratch" and not cdiff.allow_prediction_change:
        raise UserError(
            f"noise.prediction={wanted}: the base {base.name} predicts {noise.prediction}; use from_base, or "
            "cdiff.init=scratch, or cdiff.allow_prediction_change=true if its weights shall be turned around"
        )
    noise = noise.model_copy(update={"prediction": wanted})
    ddim.register_to_config(prediction_type=diffusion.DIFFUSERS_NAMES[wanted])
    if sample.spacing != "auto":
        ddim.register_to_config(timestep_spacing=sample.spacing)
    if sample.sampler == "ddim":
        return noise, ddim
    return noise, samplers.scheduler_from(dict(ddim.config), sample.sampler, bounded=False)


def _limits(radiometry: SarRadiometry) -> tuple[tuple[float, float], ...]:
    """dB at -1 and 1 of each band; none where the values are not dB."""
    if radiometry.norm != "minmax" or radiometry.clip is None or radiometry.scale not in ("db", "linear", "amplitude"):
        return ()
    return radiometry.clip * (len(radiometry.bands) if len(radiometry.clip) == 1 else 1)


def _require_stage1(folder: Path, made: Latents, radiometry: SarRadiometry) -> None:
    """Stage 1 must have worked on the same latents, and predicted the same."""
    card = read_card(folder)
    if card.latent is None:
        raise UserError(f"model.init_from={folder}: is not a latent model; name one that cdiff_train.py has exported")
    scheduler = json.loads((folder / "scheduler" / SCHEDULER_FILE).read_bytes())
    had = _identity(card.latent, scheduler, SarRadiometry.from_dict(card.sar))
    have = _identity(made.card, made.scheduler.config, radiometry)
    if wrong := [f"  {key}: stage 1 {had.get(key)}, now {have[key]}" for key in have if had.get(key) != have[key]]:
        raise UserError(f"model.init_from={folder}: trained on other latents or another target:\n" + "\n".join(wrong))


def _identity(card: LatentCard, scheduler: Mapping[str, Any], radiometry: SarRadiometry) -> dict[str, Any]:
    """What a network on latents has learned about, by the names that messages give."""
    return {
        **{f"SHA-256 of {key}": value for key, value in card.hashes.items()},
        "SAR channels": card.rule, "their limits in dB": card.limits, "prediction": scheduler["prediction_type"],
        **{f"data.sar.{key}": value for key, value in radiometry.meaning().items()},
    }  # fmt: skip


# the loss -------------------------------------------------------------------------------------------------------------


def loss(cdiff: CDiffConfig, out: Tensor, target: Tensor, abar: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each sample [B], and rows [B] to log: ``error`` mean r^2, and what the network says of it.

    out [B,4+k,h,w], target [B,4,h,w], abar [B] of each sample's t. ``calibration``, mean r^2/var, is 1 at the optimum,
    whatever beta; exp of ``log_var`` is the geometric mean of var; ``clamped`` the share of var at its bounds.
    """
    r, info = target - out[:, : target.shape[1]], out[:, target.shape[1] :]
    error = (r**2).flatten(1).mean(1)
    rows = {"error": error.detach()}
    if cdiff.loss == "mse":
        return error, rows
    if cdiff.loss == "laplace2":
        return confidence.laplace2(r, info), rows | {"narrow": _mean(confidence.narrow_weight(info))}
    var = confidence.variance(info, cdiff.var_min, cdiff.var_max)
    beta = abar.sqrt() if cdiff.beta == "sqrt_abar" else torch.full_like(abar, cdiff.beta_const)
    clamped = (var <= cdiff.var_min) | (var >= cdiff.var_max)
    rows |= {"var": _mean(var), "log_var": _mean(var.log()), "clamped": _mean(clamped.to(r.dtype))}
    return confidence.beta_nll(r, var, beta), rows | {"calibration": _mean(r**2 / var)}


def by_level(rows: dict[str, Tensor], t: Tensor, timesteps: int) -> dict[str, Tensor]:
    """What to log: every row as it is, and error, var and calibration in five bins of t."""
    binned = {key: rows[key] for key in ("error", "var", "calibration", "narrow") if key in rows}
    return rows | diffusion.by_level(binned, t, timesteps)


def _mean(x: Tensor) -> Tensor:
    return x.detach().flatten(1).mean(1)
