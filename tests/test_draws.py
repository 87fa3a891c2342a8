"""Randomness is a function of (seed, name, key) and of nothing else."""

import numpy as np
import torch

from sar2opt.draws import Draws, normal, rng


def test_a_row_does_not_depend_on_its_neighbours_or_on_other_draws():
    whole, alone = Draws(0, [5, 6, "a"], "cpu"), Draws(0, [6], "cpu")
    whole.normal("first", (2, 5, 4))
    assert torch.equal(whole.integers("t", 1000)[1:2], alone.integers("t", 1000))
    assert torch.equal(whole.normal("eps", (2, 5, 4))[1:2], alone.normal("eps", (2, 5, 4)))
    assert torch.equal(whole.uniform("u")[1:2], alone.uniform("u"))


def test_seeds_names_positions_and_ids_are_different_noise():
    rows = [normal(s, n, k, (4000,)) for s, n, k in [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1), (0, "a", "1")]]
    correlation = np.corrcoef(np.stack(rows)) - np.eye(5)
    assert abs(correlation).max() < 0.08  # 5 sigma


def test_seeds_beyond_32_bits_are_not_folded():
    assert rng(7, "a", 0).random() != rng(7 + 2**32, "a", 0).random()


def test_noise_drawn_ahead_is_the_noise_drawn_here():
    ahead = Draws(
        3, [8, 9], "cpu", ready={"eps": torch.from_numpy(np.stack([normal(3, "eps", k, (3, 4, 6)) for k in (8, 9)]))}
    )
    here = Draws(3, [8, 9], "cpu")
    assert torch.equal(ahead.normal("eps", (3, 4, 6)), here.normal("eps", (3, 4, 6)))
    assert torch.equal(ahead.normal("eps", (1, 2)), here.normal("eps", (1, 2)))  # another shape is drawn anew


def test_laws_of_the_distributions():
    draw = Draws(1, range(4000), "cpu")
    t, u, z = draw.integers("t", 10), draw.uniform("u"), draw.normal("z", (3,))
    assert torch.bincount(t, minlength=10).float().sub(400).abs().max() < 5 * 19  # sqrt(4000 * .1 * .9) = 19
    assert abs(u.mean() - 0.5) < 5 * 0.2887 / 63 and u.min() >= 0 and u.max() < 1
    assert abs(z.mean()) < 5 / 110 and abs(z.std() - 1) < 5 / 155
