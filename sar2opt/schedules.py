"""Everything that changes with time is a function of the step: nothing scheduled is ever saved or restored."""

import math

from .config import EMAConfig, OptimConfig


def learning_rate(cfg: OptimConfig, step: int, max_steps: int) -> float:
    """The rate of update ``step`` = 0..max_steps-1: linear warm-up to ``cfg.lr``, then constant, or down to 0 by a
    half cosine or a line. The first update has rate lr/warmup_steps, the update after the last one would have 0."""
    warmup = min(1.0, (step + 1) / max(cfg.warmup_steps, 1))
    progress = max(0, step - cfg.warmup_steps) / max(max_steps - cfg.warmup_steps, 1)
    shape = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress}[cfg.schedule]
    return cfg.lr * warmup * shape


def ema_decay(cfg: EMAConfig, updates: int) -> float:
    """d_n at update n = 0, 1, ...: ``decay``, or with the ramp min(decay, (1 + n)/(10 + n)): 0.9999 from n = 89,990; 0
    for null."""
    if cfg.decay is None:
        return 0.0
    return min(cfg.decay, (1 + updates) / (10 + updates)) if cfg.ramp else cfg.decay


def ramp(step: int, start: int, steps: int) -> float:
    """0 before ``start``, then up to 1 on a line of ``steps`` steps, then 1; 0 steps jump."""
    if steps == 0:
        return float(step >= start)
    return min(max((step - start) / steps, 0.0), 1.0)
