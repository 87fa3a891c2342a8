"""Loss atoms: known values, and the mistakes that a colour loss invites."""

import math

import pytest
import torch
import torch.nn.functional as F

from sar2opt import losses


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mse_is_one_value_per_sample():
    x, y = noise(4, 3, 8, 6), noise(4, 3, 8, 6, seed=1)
    rows = torch.stack([F.mse_loss(a, b) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(losses.mse(x, y), rows, rtol=1e-14, atol=0)


def test_blur_keeps_a_constant_up_to_the_corners():
    x = torch.full((2, 3, 24, 31), 0.7, dtype=torch.float64)
    assert (losses.blur(x, 21, 3.0) - 0.7).abs().max() < 1e-12  # zero padding: 0.32 of the value in a corner


def test_blur_equals_the_full_kernel_and_its_sum_of_squares():
    x, taps = noise(2, 3, 26, 37), losses.gaussian_taps(21, 3.0)
    kernel = torch.outer(taps, taps)
    full = F.conv2d(F.pad(x, (10,) * 4, mode="reflect").flatten(0, 1)[:, None], kernel[None, None])
    torch.testing.assert_close(losses.blur(x, 21, 3.0), full.reshape(x.shape), rtol=0, atol=1e-12)
    impulse = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    impulse[0, 0, 20, 20] = 1
    assert (losses.blur(impulse, 21, 3.0) ** 2).sum().item() == pytest.approx(0.00885743, abs=1e-8)


def test_red_and_green_of_equal_sum_are_different_colours():
    red, green = (torch.zeros(1, 3, 32, 32, dtype=torch.float64) for _ in range(2))
    red[:, 0], green[:, 1] = 0.6, 0.6
    # two of three channels differ by 0.6; a blur that sums the channels gives 0
    assert losses.colour(red, green, 21, 3.0).item() == pytest.approx(0.24, abs=1e-12)


def test_colour_of_a_constant_offset_and_its_derivative():
    x0 = noise(2, 3, 24, 30)
    d = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    loss = losses.colour(x0 + d, x0, 21, 3.0).mean()
    loss.backward()
    assert d.grad is not None
    assert loss.item() == pytest.approx(0.01, abs=1e-12)
    assert d.grad.item() == pytest.approx(0.2, abs=1e-12)


def test_colour_ignores_detail():
    detail = noise(4, 3, 200, 200)
    # white noise of variance 1 costs the kernel's sum of squares; the reflected border adds some percent
    assert losses.colour(detail, 0 * detail, 21, 3.0).mean().item() == pytest.approx(0.00885743, rel=0.1)


def test_colour_works_per_sample_in_float32():
    x, y = noise(4, 3, 24, 30).float(), noise(4, 3, 24, 30, seed=1).float()
    alone = torch.cat([losses.colour(x[i : i + 1], y[i : i + 1], 21, 3.0) for i in range(4)])
    torch.testing.assert_close(losses.colour(x, y, 21, 3.0), alone, rtol=1e-5, atol=0)


def test_a_blind_critic_loses_two_log_two_and_its_generator_log_two():
    zero = torch.zeros(3, 1, 4, 5)
    assert losses.non_saturating_critic(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert losses.non_saturating_generator(zero).item() == pytest.approx(math.log(2))


def test_adversarial_losses_are_binary_cross_entropies_and_do_not_saturate():
    real, fake = torch.tensor([-3.0, 0.5, 90.0]), torch.tensor([-80.0, 1.5, 2.0])
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones(3)) + bce(fake, torch.zeros(3))
    torch.testing.assert_close(losses.non_saturating_critic(real, fake), expected)
    torch.testing.assert_close(losses.non_saturating_generator(fake), bce(fake, torch.ones(3)))
    lost = torch.tensor([-80.0], requires_grad=True)
    losses.non_saturating_generator(lost).backward()
    assert lost.grad.item() == pytest.approx(-1)  # the generator learns most where the critic is sure


def test_the_games_at_zero_and_far_from_it():
    zero, far = torch.zeros(3, 5), torch.tensor([1e4, -1e4])
    at_zero = {name: (g(zero).item(), c(zero, zero).item()) for name, (g, c) in losses.ADVERSARIAL.items()}
    expected = {"non_saturating": (math.log(2), 2 * math.log(2)), "hinge": (0, 2), "wgan": (0, 0)}
    assert at_zero == {name: pytest.approx(values) for name, values in expected.items()}
    for generator, critic in losses.ADVERSARIAL.values():
        assert generator(far).isfinite() and critic(far, -far).isfinite()
        # each half pulls its own way
        fake = torch.tensor([0.3], requires_grad=True)
        real = torch.tensor([-0.2], requires_grad=True)
        assert torch.autograd.grad(generator(fake), fake)[0] < 0
        down, up = torch.autograd.grad(critic(real, fake), (fake, real))
        assert down > 0 > up
    assert losses.hinge_critic(torch.tensor([1.5]), torch.tensor([-2.0])) == 0  # settled beyond the margin
    assert losses.wgan_critic(torch.tensor([2.0, 4.0]), torch.tensor([1.0])).item() == -2


def linear_critic(images, w, patches=1):
    """Logits [B, patches] whose mean is the inner product with ``w``."""
    value = (images * w).flatten(1).sum(1, keepdim=True)
    return value * torch.linspace(0, 2, patches).to(w) if patches > 1 else value[:, 0]


@pytest.mark.parametrize("patches", [1, 5])
def test_r1_of_a_linear_critic_is_its_squared_slope(patches):
    w, images = noise(3, 4, 5), noise(7, 3, 4, 5, seed=1).requires_grad_(True)
    penalty = losses.r1_exact(linear_critic(images, w, patches), images)
    assert penalty.item() == pytest.approx((w**2).sum().item(), rel=1e-12)


def test_r1_by_differences_agrees_on_average():
    w, images = noise(3, 4, 5), noise(20_000, 3, 4, 5, seed=1)
    logits, moved = (linear_critic(x, w) for x in (images, images + 0.01 * noise(20_000, 3, 4, 5, seed=2)))
    # chi-squared of one degree: its mean over 20,000 has a standard deviation of 1 %
    assert losses.r1_difference(logits, moved, 0.01).item() == pytest.approx((w**2).sum().item(), rel=0.03)


def test_r1_is_a_loss_for_the_critic():
    w, images = noise(3, 4, 5).requires_grad_(True), noise(2, 3, 4, 5, seed=1).requires_grad_(True)
    losses.r1_exact(linear_critic(images, w), images).backward()
    torch.testing.assert_close(w.grad, 2 * w.detach(), rtol=1e-12, atol=0)
