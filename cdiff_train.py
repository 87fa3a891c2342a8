"""C-DiffSET: diffusion in the latent space of a frozen Stable Diffusion codec, which says how sure it is.

    z = vae.encode(x).mean * scale,    z_t = a_t z_opt + s_t eps,    out = unet([z_sar, z_t], t, prompt)
    r = eps - out[:, :4],    var = clamp(softplus(out[:, 4] + OFF) + 1e-6, 1e-6, 10),    confidence = 1/var
    stage 1   L = mean r^2
    stage 2   L = mean sg(var)^beta_t (r^2/var + log var + log 2 pi)/2,    beta_t = sqrt(abar_t)

The U-Net is fine-tuned; codec and text encoder stay as they are, the prompt is one constant. Stage 2 starts from the
model of stage 1. Do & Kim 2024 (arXiv 2411.10788) with the loss of their code; Seitzer et al. 2022 (arXiv 2203.09168).

    python cdiff_train.py configs/cdiff/smoke.yaml [cdiff.loss=beta_nll ...] [--check]
"""

from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor

from sar2opt import cdiff, config
from sar2opt.cdiff import CDiffConfig, LatentNoiseConfig, LatentSampleConfig, LatentUNetConfig
from sar2opt.config import EMAConfig, OptimConfig, RunConfig, Section
from sar2opt.data import DataConfig
from sar2opt.data.stream import Batch
from sar2opt.launch import launch
from sar2opt.pipeline import SAR2OptPipeline
from sar2opt.run import Run


class Config(Section):
    run: RunConfig
    data: DataConfig
    model: LatentUNetConfig = LatentUNetConfig()
    noise: LatentNoiseConfig = LatentNoiseConfig()
    optim: OptimConfig = OptimConfig(lr=3e-5, warmup_steps=100, clip_norm=None)
    ema: EMAConfig = EMAConfig(decay=None)
    cdiff: CDiffConfig = CDiffConfig()
    sample: LatentSampleConfig = LatentSampleConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        cdiff.check(self)
        return self


class CDiff:
    def __init__(self, cfg: Config, run: Run):
        self.cfg, self.run = cfg, run
        made = cdiff.build(cfg, run.data.radiometry, cfg.run.folder / "model")
        run.inputs |= made.card.hashes
        run.space, self.cached = made.space, cfg.data.cache_latents != "off"
        self.space, self.schedule = made.space.to(run.device), made.schedule.to(run.device)
        self.average = run.frozen_copy(made.unet, average="ema") if cfg.ema.decay is not None else None
        self.unet = run.trainable("unet", made.unet)
        self.ema = made.unet if self.average is None else self.average
        card = run.card("cdiff", latent=made.card)
        self.pipeline = SAR2OptPipeline(self.ema, made.scheduler, card, self.space)
        self.pipeline.scheduler_for(None, cfg.sample.steps)  # refuses what it cannot do

    def step(self, batch: Batch) -> dict[str, Tensor]:
        cond, z0 = (batch.sar, batch.opt) if self.cached else self.space.encode(batch.sar, batch.opt)
        t, eps = batch.draw.integers("t", self.schedule.timesteps), batch.draw.normal("eps", z0.shape[1:])
        z_t = self.schedule.add_noise(z0, eps, t)
        out = self.space.outputs(self.unet, z_t, t, cond)
        loss, rows = cdiff.loss(self.cfg.cdiff, out, self.schedule.target(z0, eps, t), self.schedule.abar[t])
        self.run.update(loss.mean(), self.unet)
        return {"loss": loss.mean(), **cdiff.by_level(rows, t, self.schedule.timesteps)}

    def after_step(self) -> None:
        if self.average is not None:
            self.run.average(self.average, self.unet)

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        values, (cond, z0) = {}, self.space.encode(batch.sar, batch.opt)
        eps = batch.draw.normal("eps", z0.shape[1:])
        for level in (self.schedule.timesteps * k // 10 for k in (1, 3, 5, 7, 9)):
            t = torch.full((len(eps),), level, device=eps.device)
            out = self.space.outputs(self.ema, self.schedule.add_noise(z0, eps, t), t, cond)
            target, abar = self.schedule.target(z0, eps, t), self.schedule.abar[t]
            rows = cdiff.loss(self.cfg.cdiff, out, target, abar)[1]
            values |= {f"{name}/t{level}": rows[name] for name in ("error", "var", "calibration") if name in rows}
        return values


def main(argv: list[str]) -> None:
    launch(Config, CDiff, argv, __doc__)


if __name__ == "__main__":
    config.command_line(main)
