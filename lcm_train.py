"""Consistency distillation: a student that jumps from any point of its teacher's path to the end.

    L = mean huber(f_theta(x_t, t, s) - y),     y = f_ema(x_u, u, s),     x_u = DDIM step of the teacher from t to u
    f(x, t, s) = c_skip(t) x + c_out(t) x0_hat(x, t, s),     ema <- 0.95 ema + 0.05 theta after every update

t is drawn from a grid of N = ``lcm.solver_steps`` times that ends at T-1, u is its lower neighbour. Song et al. 2023;
Luo et al. 2023 (arXiv 2310.04378), algorithm 1 with a fixed guidance; arXiv 2407.06095, stage 2 without its critic.
With a latent teacher (cdiff_train.py) x and s are latents.

    python lcm_train.py configs/lcm/demo.yaml [model.init_from=runs/demo ...] [--check]
"""

from torch import Tensor

from sar2opt import config
from sar2opt.data.stream import Batch
from sar2opt.distill import Distillation, DistillConfig
from sar2opt.launch import launch
from sar2opt.run import Run


class Config(DistillConfig):
    """Nothing beside the sections of every distillation."""


class LCM(Distillation):
    def __init__(self, cfg: Config, run: Run):
        super().__init__(cfg, run, "lcm")
        self.student = run.trainable("student", self.unet)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        cond, _, x_t, t, u = self.point(batch)
        y = self.consistency.target(self.teacher, self.ema, x_t, t, u, cond)
        f = self.consistency(self.student, x_t, t, cond)
        loss = self.consistency.error(f, y).mean()
        self.run.update(loss, self.student)
        return {"loss": loss, **self.logged(f, y, t)}


def main(argv: list[str]) -> None:
    launch(Config, LCM, argv, __doc__)


if __name__ == "__main__":
    config.command_line(main)
