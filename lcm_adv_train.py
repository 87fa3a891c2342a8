"""Adversarial consistency distillation: lcm_train.py with a critic on the jump.

    L_G = huber(f - y) + lambda(n) g(L-),     f = f_theta(x_t, t, s),   y as in lcm_train.py
    L_D = d(L+, L-) + gamma/2 |grad L+|^2,    L- = D(x_t, t, f, t', s),   L+ = D(x_t, t, real, t', s)

D asks whether a clean image belongs with (x_t, s); its encoder is the teacher's. ``lcm_adv.real`` is the true image
(``opt``), or y (``target``: the published code). g and d: ``lcm_adv.loss``; the gradient is with respect to the real
image (R1, Mescheder et al. 2018). arXiv 2407.06095, stage 2; the critic as in arXiv 2402.13929.

    python lcm_adv_train.py configs/lcm_adv/demo.yaml [model.init_from=runs/demo ...] [--check]
"""

import torch
from torch import Tensor

from sar2opt import adversarial, config, schedules
from sar2opt.adversarial import AdversarialConfig
from sar2opt.data.stream import Batch
from sar2opt.distill import Distillation, DistillConfig, Point
from sar2opt.launch import launch
from sar2opt.models import frozen
from sar2opt.run import Run


class Config(DistillConfig):
    lcm_adv: AdversarialConfig = AdversarialConfig()


class AdversarialLCM(Distillation):
    def __init__(self, cfg: Config, run: Run):
        super().__init__(cfg, run, "lcm_adv")
        self.adv = adv = cfg.lcm_adv
        critic = adversarial.build_critic(adv.critic, self.unet)
        self.student = run.trainable("student", self.unet)
        self.critic = run.trainable("critic", critic, adv.critic.optim(cfg.optim), second_order=adv.r1.gamma > 0)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        adv, n = self.adv, self.run.step
        point = cond, x0, x_t, t, u = self.point(batch)
        y = self.consistency.target(self.teacher, self.ema, x_t, t, u, cond)
        f = self.consistency(self.student, x_t, t, cond)
        lcm, t_prime = self.consistency.error(f, y).mean(), self.label(u)
        weight = adv.weight * schedules.ramp(n, adv.start_step, adv.ramp_steps)
        loss, scalars = lcm, {"lcm": lcm, "lambda": lcm.new_tensor(weight)}
        if weight:
            with frozen(self.critic):  # the student's loss must leave nothing in the critic
                scalars["adv"] = adv.game.generator(self.run.bare(self.critic)(x_t, t, f, t_prime, cond))
            loss = lcm + weight * scalars["adv"]
        self.run.update(loss, self.student)
        if self.run.reached(adv.critic_start_step):
            real = x0 if adv.real == "opt" else y
            given = x_t, t, t_prime, cond
            critic, judged = adversarial.critic_loss(adv, self.critic, f.detach(), real, given, batch.draw, n)
            self.run.update(critic, self.critic)
            scalars |= {"critic": critic, **judged}
        if self.run.logging:
            other = {"y": y} if adv.real == "opt" else {"opt": x0}
            scalars |= {f"logit/{name}": x for name, x in self.judge(point, other).items()}
        return {"loss": loss, **scalars, **self.logged(f, y, t)}

    def label(self, u: Tensor) -> Tensor:
        """t': the time that the critic is told for a candidate."""
        return torch.zeros_like(u) if self.adv.critic.time == "zero" else u

    @torch.no_grad()
    def judge(self, point: Point, shown: dict[str, Tensor]) -> dict[str, Tensor]:
        images, label = torch.cat([*shown.values()]), self.label(point.u)
        logits = self.run.bare(self.critic)(point.x_t, point.t, images, label, point.cond)
        return dict(zip(shown, adversarial.per_image(logits).chunk(len(shown)), strict=True))


def main(argv: list[str]) -> None:
    launch(Config, AdversarialLCM, argv, __doc__)


if __name__ == "__main__":
    config.command_line(main)
