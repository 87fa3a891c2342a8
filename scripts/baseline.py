"""The two baselines that every claim needs: what a network of the same size reaches without diffusion.

    regression   L   = mean (G(s) - opt)^2,                                   G(s) = unet([0, s], T-1)
    pix2pix      L_G = softplus(-D(G(s), s)) + l1 |G(s) - opt|,  l1 = 100     (Isola et al. 2017, eqs. 3 and 4)
                 L_D = ( softplus(-D(opt, s)) + softplus(D(G(s), s)) ) / 2

The same loop, data and model folder as train.py: the export is a ``sample`` prediction with zero terminal SNR whose
start noise is 0, so that one DDIM step is exactly one pass of the network.

    python scripts/baseline.py configs/baseline/cities.yaml [baseline.kind=pix2pix ...] [--check]
"""

import sys
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where the package is not installed

from sar2opt import config, losses, samplers  # noqa: E402
from sar2opt.config import EMAConfig, OptimConfig, RunConfig, Section  # noqa: E402
from sar2opt.data import DataConfig  # noqa: E402
from sar2opt.data.stream import Batch  # noqa: E402
from sar2opt.diffusion import NoiseConfig  # noqa: E402
from sar2opt.launch import launch  # noqa: E402
from sar2opt.models import PatchCritic, UNetConfig, build_unet, frozen, predict  # noqa: E402
from sar2opt.pipeline import SAR2OptPipeline  # noqa: E402
from sar2opt.run import Run  # noqa: E402
from sar2opt.samplers import SampleConfig  # noqa: E402

NOISE = NoiseConfig(prediction="sample", zero_terminal_snr=True)


class BaselineConfig(Section):
    kind: Literal["regression", "pix2pix"] = "regression"
    l1_weight: PositiveFloat = 100.0


class Config(Section):
    run: RunConfig
    data: DataConfig
    model: UNetConfig = UNetConfig()
    optim: OptimConfig = OptimConfig()
    ema: EMAConfig = EMAConfig()
    baseline: BaselineConfig = BaselineConfig()
    sample: SampleConfig = SampleConfig(steps=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.sample.sampler, self.sample.steps, self.sample.guidance) != ("ddim", 1, 1.0):
            raise ValueError(
                "a regression network has one way to translate: sample {sampler: ddim, steps: 1, guidance: 1}"
            )
        return self


class Regression:
    def __init__(self, cfg: Config, run: Run):
        self.cfg, self.run = cfg, run
        unet = build_unet(cfg.model, len(cfg.data.sar.bands), cfg.data.resolution)
        self.ema = run.frozen_copy(unet, average="ema")
        self.unet = run.trainable("unet", unet)
        scheduler = samplers.build_scheduler(NOISE, "ddim", "trailing")
        self.pipeline = SAR2OptPipeline(self.ema, scheduler, run.card(cfg.baseline.kind, start_noise=0.0))

    def output(self, unet: nn.Module, sar: Tensor) -> Tensor:
        t = torch.full((len(sar),), NOISE.timesteps - 1, device=sar.device)
        return predict(unet, sar.new_zeros(len(sar), 3, *sar.shape[2:]), t, sar)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        loss = losses.mse(self.output(self.unet, batch.sar), batch.opt).mean()
        self.run.update(loss, self.unet)
        return {"loss": loss}

    def after_step(self) -> None:
        self.run.average(self.ema, self.unet)

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": losses.mse(self.output(self.ema, batch.sar), batch.opt)}


class Pix2Pix(Regression):
    def __init__(self, cfg: Config, run: Run):
        super().__init__(cfg, run)
        self.critic = run.trainable("critic", PatchCritic(len(cfg.data.sar.bands)))

    def step(self, batch: Batch) -> dict[str, Tensor]:
        sar, opt = batch.sar, batch.opt
        fake = self.output(self.unet, sar)
        with frozen(self.critic):  # the generator's loss must leave nothing in the critic
            adversarial = losses.non_saturating_generator(self.critic(None, None, fake, None, sar))
        l1 = F.l1_loss(fake, opt)
        loss = adversarial + self.cfg.baseline.l1_weight * l1
        self.run.update(loss, self.unet)
        # one forward over both halves, so that DDP sees a single pass
        real_logits, fake_logits = self.critic(None, None, torch.cat([opt, fake.detach()]), None, sar).chunk(2)
        critic = losses.non_saturating_critic(real_logits, fake_logits) / 2
        self.run.update(critic, self.critic)
        return {"loss": loss, "l1": l1, "adversarial": adversarial, "critic": critic}


def build(cfg: Config, run: Run) -> Regression:
    return {"regression": Regression, "pix2pix": Pix2Pix}[cfg.baseline.kind](cfg, run)


def main(argv: list[str]) -> None:
    launch(Config, build, argv, __doc__)


if __name__ == "__main__":
    config.command_line(main)
