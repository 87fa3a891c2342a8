"""What consistency distillation with and without a critic share: the teacher, and the networks that start from it.

Teacher, target and student begin with the same weights; the noise is the teacher's and cannot be chosen.
"""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from pydantic import PositiveInt
from torch import Tensor, nn

from . import consistency, diffusion, losses, models, samplers, validation
from .config import EMAConfig, Section, UserError
from .consistency import Consistency, LCMConfig
from .data import DataConfig, PairedData
from .data.stream import Batch
from .diffusion import NoiseConfig, NoiseSchedule
from .pipeline import Card, SAR2OptPipeline, model_hash
from .run import Run
from .samplers import FewStepsConfig

STEPS = (1, 2, 4, 8)  # of validation
LEVELS = (0.999, 0.499, 0.099)  # of the pictures behind the loss, in units of T


class StudentConfig(Section):
    """``model:`` the teacher's model folder. The student has its architecture; what is stated here must agree."""

    init_from: Path
    in_channels: PositiveInt | None = None
    block_out_channels: tuple[PositiveInt, ...] | None = None
    layers_per_block: PositiveInt | None = None
    down_block_types: tuple[str, ...] | None = None
    up_block_types: tuple[str, ...] | None = None
    norm_num_groups: PositiveInt | None = None
    attention_head_dim: PositiveInt | None = None


class Config(Protocol):
    """The sections that distillation reads."""

    data: DataConfig
    model: StudentConfig
    noise: NoiseConfig | None
    ema: EMAConfig
    lcm: LCMConfig
    sample: FewStepsConfig


class Teacher(NamedTuple):
    """An opened model folder."""

    unet: UNet2DModel
    noise: NoiseConfig
    card: Card


def check(lcm: LCMConfig, sample: FewStepsConfig) -> None:
    """Refuse, by ValueError, sampling that leaves the training grid. For a config's validator."""
    if sample.steps > lcm.solver_steps:
        raise ValueError(f"sample.steps={sample.steps} is more than lcm.solver_steps={lcm.solver_steps}")
    if sample.guidance != 1:
        raise ValueError(
            f"sample.guidance={sample.guidance}: a distilled network has its guidance within; set lcm.guidance"
        )


def open_teacher(cfg: Config, data: PairedData) -> Teacher:
    """The model folder ``model.init_from``; UserError names everything in which it cannot teach this config."""
    folder = cfg.model.init_from
    pipeline = SAR2OptPipeline.from_pretrained(folder)
    card, unet = pipeline.card, pipeline.unet
    if card.latent is not None:
        raise UserError(f"model.init_from={folder}: a latent model, and only models of pixels are distilled")
    try:
        noise = NoiseConfig.from_scheduler(pipeline.scheduler.config)
        consistency.check(noise, cfg.lcm)
    except ValueError as error:
        raise UserError(f"model.init_from={folder}: cannot be distilled: {error}") from None
    if card.sampler == "lcm" or card.start_noise != 1:
        raise UserError(
            f"model.init_from={folder}: a model of {card.method!r} is not a diffusion model; name one that "
            "train.py has exported"
        )
    if cfg.lcm.guidance != 1 and not card.condition_dropout:
        raise UserError(
            f"lcm.guidance={cfg.lcm.guidance}: the teacher {folder} never saw an empty SAR image "
            "(ddpm.condition_dropout was 0); set lcm.guidance=1"
        )
    stated = cfg.model.model_dump(mode="json", exclude={"init_from"}, exclude_none=True)
    want = {f"model.{key}": value for key, value in stated.items()}
    have = {f"model.{key}": _plain(unet.config[key]) for key in stated}
    radiometry = data.radiometry.to_dict()
    radiometry.pop("median")  # fills crops without data
    want |= {f"data.sar.{key}": _plain(value) for key, value in radiometry.items()}
    have |= {f"data.sar.{key}": _plain(card.sar.get(key)) for key in radiometry}
    if cfg.noise is not None:
        want |= {f"noise.{key}": value for key, value in cfg.noise.model_dump().items()}
        have |= {f"noise.{key}": value for key, value in noise.model_dump().items()}
    if remainder := cfg.data.resolution % models.stride(unet):
        want["data.resolution"] = cfg.data.resolution
        have["data.resolution"] = f"multiples of {models.stride(unet)} (remainder {remainder})"
    wrong = [f"  {key}: config has {want[key]}, teacher has {have[key]}" for key in want if want[key] != have[key]]
    if wrong:
        raise UserError(f"model.init_from={folder}: not a teacher for this config\n" + "\n".join(wrong))
    return Teacher(unet, noise, card)


class Distillation:
    """The networks of consistency distillation; a method adds its ``step``."""

    student: nn.Module

    def __init__(self, cfg: Config, run: Run, method: str):
        self.run, self.teacher_folder = run, cfg.model.init_from
        teacher = open_teacher(cfg, run.data)
        if teacher.noise.prediction == "epsilon" and run.precision == "bf16":
            raise UserError("an epsilon teacher is too coarse in bf16 at high noise; set run.precision=fp32 or fp16")
        run.inputs["teacher"] = model_hash(cfg.model.init_from)
        self.schedule = NoiseSchedule(teacher.noise).to(run.device)
        self.consistency = Consistency(self.schedule, cfg.lcm)
        self.noise_offset = teacher.card.noise_offset
        self.ema_decay, self.unet = cfg.lcm.ema_decay, teacher.unet
        self.teacher = run.frozen_copy(teacher.unet)
        self.ema = run.frozen_copy(teacher.unet, average="ema")  # the target network
        self.slow = run.frozen_copy(teacher.unet, average="slow") if cfg.ema.decay is not None else None
        scheduler = samplers.build_scheduler(
            teacher.noise, "lcm", "trailing", original_inference_steps=cfg.lcm.solver_steps,
            timestep_scaling=cfg.lcm.timestep_scaling, clip_sample=cfg.sample.clip_x0,
        )  # fmt: skip
        card = run.card(method, noise_offset=self.noise_offset)
        self.pipeline = SAR2OptPipeline(self.slow or self.ema, scheduler, card)

    def point(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, t, u): the true image, noised to a random cell of the grid."""
        t, u = self.consistency.pair(batch.draw.integers("cell", self.consistency.cfg.solver_steps))
        return self.noised(batch, t), t, u

    def noised(self, batch: Batch, t: Tensor) -> Tensor:
        """x_t of the true image, with the noise of the teacher's training."""
        eps = diffusion.offset_noise(batch.draw, "eps", batch.opt.shape[1:], self.noise_offset)
        return self.schedule.add_noise(batch.opt, eps, t)

    def logged(self, f: Tensor, y: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Distance and mean squared distance of student and target, by noise level, for logs."""
        values = {self.consistency.cfg.loss: self.consistency.error(f.detach(), y), "l2": losses.mse(f.detach(), y)}
        return diffusion.by_level(values, t, self.schedule.timesteps)

    def after_step(self) -> None:
        student = self.run.bare(self.student)
        models.lerp_(self.ema, student, self.ema_decay)
        if self.slow is not None:
            self.run.average(self.slow, student)

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        steps = [n for n in STEPS if n <= self.consistency.cfg.solver_steps]
        return validation.by_steps(self.pipeline, batch, steps)

    def judge(self, x_t: Tensor, t: Tensor, u: Tensor, batch: Batch, shown: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a critic says of the images that are shown: one value [B] each."""
        return {}

    @torch.no_grad()
    def evidence(self, batch: Batch) -> list[dict[str, Any]]:
        """The images behind the loss, at high, middle and low noise: rows for ``validation.sheet``."""
        rows, student = [], self.run.bare(self.student).eval()
        for level in LEVELS:
            cell = torch.full((len(batch.opt),), int(level * self.consistency.cfg.solver_steps), device=self.run.device)
            t, u = self.consistency.pair(cell)
            x_t = self.noised(batch, t)
            x0_hat = self.schedule.x0_hat(models.predict(self.teacher, x_t, t, batch.sar), x_t, t)
            y = self.consistency.target(self.teacher, self.ema, x_t, t, u, batch.sar)
            f = self.consistency(student, x_t, t, batch.sar)
            logits = self.judge(x_t, t, u, batch, {"f": f, "y": y, "opt": batch.opt})
            columns = {"SAR": batch.sar, "x_t": x_t, "teacher x0_hat": x0_hat, "target y": y}
            columns |= {"student f": f, "opt": batch.opt}
            for i, key in enumerate(batch.draw.keys):
                said = "".join(f"\n{name} {value[i].item():+.2f}" for name, value in logits.items())
                images = {name: column[i].float().cpu().numpy() for name, column in columns.items()}
                rows.append({"id": key, "label": f"{key}\nt = {int(t[0])}{said}", **images})
        student.train()
        return rows


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
