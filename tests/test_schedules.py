"""Schedules against their closed forms."""

import math

import pytest

from sar2opt.config import EMAConfig, OptimConfig
from sar2opt.schedules import ema_decay, learning_rate


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_rate_warms_up_linearly_and_peaks_at_lr(schedule):
    cfg = OptimConfig(lr=3e-4, schedule=schedule, warmup_steps=10)
    assert [learning_rate(cfg, step, 1000) for step in range(10)] == pytest.approx([3e-5 * k for k in range(1, 11)])
    assert learning_rate(cfg, 10, 1000) == 3e-4
    assert max(learning_rate(cfg, step, 1000) for step in range(1000)) == 3e-4


def test_the_rate_ends_where_its_name_says():
    def rate(schedule, step):
        return learning_rate(OptimConfig(lr=1.0, schedule=schedule, warmup_steps=100), step, 1100)

    assert [rate("constant", step) for step in (100, 600, 1100)] == [1, 1, 1]
    assert [rate("linear", step) for step in (100, 600, 1100)] == [1, 0.5, 0]
    assert [rate("cosine", step) for step in (100, 350, 600, 1100)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, 0]
    )


def test_no_warm_up_starts_at_the_full_rate_and_a_warm_up_longer_than_the_run_never_reaches_it():
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=0), 0, 10) == 1.0
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=20), 9, 10) == 0.5


def test_the_ramp_reaches_its_decay_where_the_formula_says():
    cfg = EMAConfig(decay=0.9999, ramp=True)
    assert [ema_decay(cfg, n) for n in (0, 1, 8)] == [1 / 10, 2 / 11, 9 / 18]
    assert ema_decay(cfg, 89_989) < 0.9999 == ema_decay(cfg, 89_990)
    assert ema_decay(cfg, 25_000) == pytest.approx(0.99964, abs=5e-6)
    assert ema_decay(EMAConfig(decay=0.95, ramp=False), 0) == 0.95


def test_averages_follow_their_closed_forms():
    # constant w: w + (e0 - w) d^n; ramp w_k = k, k = 1..n, from 0: n - d(1 - d^n)/(1 - d)
    d, n = 0.95, 100
    constant, ramp = 3.0, 0.0
    for k in range(1, n + 1):
        decay = ema_decay(EMAConfig(decay=d, ramp=False), k - 1)
        constant, ramp = decay * constant + (1 - decay) * 1.0, decay * ramp + (1 - decay) * k
    assert constant == pytest.approx(1 + 2 * d**n, abs=1e-10)
    assert ramp == pytest.approx(n - d * (1 - d**n) / (1 - d), abs=1e-10) == pytest.approx(81.11249, abs=1e-5)
