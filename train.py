"""Conditional diffusion in pixel space: the baseline, and the teacher of the few-step methods.

    x_t = a_t opt + s_t eps,    out = unet([x_t, sar], t),    eps ~ N(0, I),    t ~ U{0..T-1}
    L   = mean_b [ w(t) mean (out - target)^2  +  weight w_c(t) mean (K * x0_hat - K * opt)^2 ]

target is v = a eps - s opt, eps or opt (``noise.prediction``), w is 1 or Min-SNR (``ddpm.weighting``), K is a Gaussian
blur (``ddpm.colour``, off by default). Ho et al. 2020; Salimans & Ho 2022; Hang et al. 2023; arXiv 2407.06095, stage 1.

    python train.py configs/train/demo.yaml [optim.lr=2e-4 ...] [--check]
"""

from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor

from sar2opt import config, diffusion, losses, samplers
from sar2opt.config import EMAConfig, OptimConfig, RunConfig, Section
from sar2opt.data import DataConfig
from sar2opt.data.stream import Batch
from sar2opt.diffusion import DDPMConfig, NoiseConfig, NoiseSchedule
from sar2opt.launch import launch
from sar2opt.models import UNetConfig, build_unet, predict
from sar2opt.pipeline import SAR2OptPipeline
from sar2opt.run import Run
from sar2opt.samplers import SampleConfig


class Config(Section):
    run: RunConfig
    data: DataConfig
    model: UNetConfig = UNetConfig()
    noise: NoiseConfig = NoiseConfig()
    optim: OptimConfig = OptimConfig()
    ema: EMAConfig = EMAConfig()
    ddpm: DDPMConfig = DDPMConfig()
    sample: SampleConfig = SampleConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        diffusion.check(self.noise, self.ddpm, self.data.resolution)
        samplers.check(self.noise, self.sample, self.ddpm.condition_dropout)
        return self


class Diffusion:
    def __init__(self, cfg: Config, run: Run):
        self.cfg, self.run, ddpm = cfg, run, cfg.ddpm
        self.schedule = NoiseSchedule(cfg.noise).to(run.device)
        unet = build_unet(cfg.model, len(cfg.data.sar.bands), cfg.data.resolution)
        self.ema = run.frozen_copy(unet, average="ema")
        self.unet = run.trainable("unet", unet)
        scheduler = samplers.build_scheduler(cfg.noise, cfg.sample.sampler, cfg.sample.spacing)
        card = run.card("train", noise_offset=ddpm.noise_offset, condition_dropout=ddpm.condition_dropout)
        self.pipeline = SAR2OptPipeline(self.ema, scheduler, card)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        ddpm, prediction, (sar, opt, draw) = self.cfg.ddpm, self.cfg.noise.prediction, batch
        t = draw.integers("t", self.schedule.timesteps)
        eps = noise = diffusion.offset_noise(draw, "eps", opt.shape[1:], ddpm.noise_offset)
        if ddpm.input_perturbation:
            noise = eps + ddpm.input_perturbation * draw.normal("perturbation", opt.shape[1:])
        if ddpm.condition_dropout:
            sar = diffusion.drop_condition(sar, draw.uniform("condition"), ddpm.condition_dropout)
        x_t = self.schedule.add_noise(opt, noise, t)
        out, snr = predict(self.unet, x_t, t, sar), self.schedule.snr(t)
        error = losses.mse(out, self.schedule.target(opt, eps, t))
        loss = (diffusion.loss_weight(ddpm.weighting, prediction, snr, ddpm.snr_gamma) * error).mean()
        x0_hat, logged = self.schedule.x0_hat(out, x_t, t), {}
        if ddpm.colour.weight:
            w = diffusion.colour_weight(ddpm.colour.weighting, prediction, snr)
            logged["colour"] = (w * losses.colour(x0_hat, opt, ddpm.colour.size, ddpm.colour.sigma)).mean()
            loss = loss + ddpm.colour.weight * logged["colour"]
        self.run.update(loss, self.unet)
        by_level = {"error": error, "x0_error": losses.mse(x0_hat, opt)}
        return {"loss": loss, **logged, **diffusion.by_level(by_level, t, self.schedule.timesteps)}

    def after_step(self) -> None:
        self.run.average(self.ema, self.unet)

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        rows, timesteps = {}, self.schedule.timesteps
        eps = diffusion.offset_noise(batch.draw, "eps", batch.opt.shape[1:], self.cfg.ddpm.noise_offset)
        for level in (timesteps * k // 10 for k in (1, 3, 5, 7, 9)):
            t = torch.full((len(eps),), level, device=eps.device)
            out = predict(self.ema, self.schedule.add_noise(batch.opt, eps, t), t, batch.sar)
            rows[f"error/t{level}"] = losses.mse(out, self.schedule.target(batch.opt, eps, t))
        return rows


def main(argv: list[str]) -> None:
    launch(Config, Diffusion, argv, __doc__)


if __name__ == "__main__":
    config.command_line(main)
