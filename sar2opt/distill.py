"""What consistency distillation with and without a critic share: the teacher, and the networks that start from it.

Teacher, target and student begin with the same weights; the noise is the teacher's and cannot be chosen.
"""

from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from . import consistency, diffusion, losses, models, samplers, validation
from .config import EMAConfig, OptimConfig, RunConfig, Section, UserError
from .consistency import Consistency, LCMConfig
from .data import DataConfig, PairedData
from .data.stream import Batch
from .diffusion import NoiseConfig, NoiseSchedule
from .models import PIXELS, LatentSpace
from .models.latent import narrow_output_
from .pipeline import SAR2OptPipeline, model_hash
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


class DistillConfig(Section):
    """The sections of every distillation."""

    run: RunConfig
    data: DataConfig
    model: StudentConfig
    noise: NoiseConfig | None = None  # the teacher's; stated, it must agree
    optim: OptimConfig = OptimConfig(lr=8e-6)
    ema: EMAConfig = EMAConfig(decay=None)  # a slow average of the student, exported instead of the target network
    lcm: LCMConfig = LCMConfig()
    sample: FewStepsConfig = FewStepsConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lcm, sample = self.lcm, self.sample
        if sample.steps > lcm.solver_steps:
            raise ValueError(f"sample.steps={sample.steps} is more than lcm.solver_steps={lcm.solver_steps}")
        if sample.guidance != 1:
            raise ValueError(
                f"sample.guidance={sample.guidance}: a distilled network has its guidance within; set lcm.guidance"
            )
        return self


class Point(NamedTuple):
    """Where a step trains: on the teacher's path at t, in its space; u is the next time."""

    cond: Tensor
    x0: Tensor
    x_t: Tensor
    t: Tensor
    u: Tensor


def open_teacher(cfg: DistillConfig, data: PairedData) -> tuple[SAR2OptPipeline, NoiseConfig]:
    """The model folder ``model.init_from``; UserError names everything in which it cannot teach this config."""
    folder = cfg.model.init_from
    pipeline = SAR2OptPipeline.from_pretrained(folder)
    card, unet, multiple = pipeline.card, pipeline.unet, pipeline.space.multiple(pipeline.unet)
    try:
        noise = NoiseConfig.from_scheduler(pipeline.scheduler.config)
        consistency.check(noise, cfg.lcm)
    except ValueError as error:
        raise UserError(f"model.init_from={folder}: cannot be distilled: {error}") from None
    if card.sampler == "lcm" or card.start_noise != 1:
        raise UserError(
            f"model.init_from={folder}: a model of {card.method!r} is not a diffusion model; name one that "
            "train.py or cdiff_train.py has exported"
        )
    if cfg.lcm.guidance != 1 and not card.condition_dropout:
        raise UserError(
            f"lcm.guidance={cfg.lcm.guidance}: the teacher {folder} never saw an empty SAR image "
            "(ddpm.condition_dropout was 0); set lcm.guidance=1"
        )
    stated = cfg.model.model_dump(mode="json", exclude={"init_from"}, exclude_none=True)
    want = {f"model.{key}": value for key, value in stated.items()}
    have = {f"model.{key}": _plain(unet.config[key]) for key in stated}
    radiometry = data.radiometry.meaning()
    want |= {f"data.sar.{key}": _plain(value) for key, value in radiometry.items()}
    have |= {f"data.sar.{key}": _plain(card.sar.get(key)) for key in radiometry}
    if cfg.noise is not None:
        want |= {f"noise.{key}": value for key, value in cfg.noise.model_dump().items()}
        have |= {f"noise.{key}": value for key, value in noise.model_dump().items()}
    if remainder := cfg.data.resolution % multiple:
        want["data.resolution"] = cfg.data.resolution
        have["data.resolution"] = f"multiples of {multiple} (remainder {remainder})"
    wrong = [f"  {key}: config has {want[key]}, teacher has {have[key]}" for key in want if want[key] != have[key]]
    if wrong:
        raise UserError(f"model.init_from={folder}: not a teacher for this config\n" + "\n".join(wrong))
    return pipeline, noise


class Distillation:
    """The networks of consistency distillation; a method adds its ``step``."""

    student: nn.Module

    def __init__(self, cfg: DistillConfig, run: Run, method: str):
        self.run, self.teacher_folder = run, cfg.model.init_from
        (teacher, noise), space = open_teacher(cfg, run.data), PIXELS
        if noise.prediction == "epsilon" and run.precision == "bf16":
            raise UserError("an epsilon teacher is too coarse in bf16 at high noise; set run.precision=fp32 or fp16")
        run.inputs["teacher"] = model_hash(cfg.model.init_from)
        latent = teacher.card.latent
        if isinstance(teacher.space, LatentSpace) and isinstance(teacher.unet, UNet2DConditionModel):
            narrow_output_(teacher.unet)  # a jump has no variance
            latent = latent and latent.model_copy(update={"loss": "mse"})
            run.space = space = teacher.space.to(run.device)
        self.space, self.cached = space, cfg.data.cache_latents != "off"
        self.schedule = NoiseSchedule(noise).to(run.device)
        self.consistency = Consistency(self.schedule, cfg.lcm, space.predict)
        self.noise_offset = teacher.card.noise_offset
        self.ema_decay, self.unet = cfg.lcm.ema_decay, teacher.unet
        self.teacher = run.frozen_copy(self.unet)
        self.ema = run.frozen_copy(self.unet, average="ema")  # the target network
        self.slow = run.frozen_copy(self.unet, average="slow") if cfg.ema.decay is not None else None
        scheduler = samplers.build_scheduler(
            noise, "lcm", "trailing", original_inference_steps=cfg.lcm.solver_steps,
            timestep_scaling=cfg.lcm.timestep_scaling, clip_sample=cfg.sample.clip_x0,
        )  # fmt: skip
        card = run.card(method, noise_offset=self.noise_offset, latent=latent)
        self.pipeline = SAR2OptPipeline(self.slow or self.ema, scheduler, card, space)

    def point(self, batch: Batch, cell: Tensor | None = None) -> Point:
        """The true image in the teacher's space, noised to a cell of the grid as in the teacher's training. Cells are
        random in training, whose batches may have latents already."""
        there = self.cached and cell is None
        if cell is None:
            cell = batch.draw.integers("cell", self.consistency.cfg.solver_steps)
        cond, x0 = (batch.sar, batch.opt) if there else self.space.encode(batch.sar, batch.opt)
        t, u = self.consistency.pair(cell)
        eps = diffusion.offset_noise(batch.draw, "eps", x0.shape[1:], self.noise_offset)
        return Point(cond, x0, self.schedule.add_noise(x0, eps, t), t, u)

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

    def judge(self, point: Point, shown: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a critic says of the images that are shown: one value [B] each."""
        return {}

    @torch.no_grad()
    def evidence(self, batch: Batch) -> list[dict[str, Any]]:
        """The images behind the loss, at high, middle and low noise: rows for ``validation.sheet``."""
        rows, student = [], self.run.bare(self.student).eval()
        for level in LEVELS:
            cell = torch.full((len(batch.opt),), int(level * self.consistency.cfg.solver_steps), device=self.run.device)
            point = cond, x0, x_t, t, u = self.point(batch, cell)
            x0_hat = self.schedule.x0_hat(self.space.predict(self.teacher, x_t, t, cond), x_t, t)
            y = self.consistency.target(self.teacher, self.ema, x_t, t, u, cond)
            f = self.consistency(student, x_t, t, cond)
            logits = self.judge(point, {"f": f, "y": y, "opt": x0})
            decoded = {"x_t": x_t, "teacher x0_hat": x0_hat, "target y": y, "student f": f}
            decoded = {name: self.space.decode(x) for name, x in decoded.items()}
            columns = {"SAR": batch.sar, **decoded, "opt": batch.opt}
            for i, key in enumerate(batch.draw.keys):
                said = "".join(f"\n{name} {value[i].item():+.2f}" for name, value in logits.items())
                images = {name: column[i].float().cpu().numpy() for name, column in columns.items()}
                rows.append({"id": key, "label": f"{key}\nt = {int(t[0])}{said}", **images})
        student.train()
        return rows


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
