"""Loss atoms. Tensors in, one value per sample [B] or a scalar out; they know nothing of training."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def mse(x: Tensor, y: Tensor) -> Tensor:
    """mean_{chw} (x - y)^2: [B,C,H,W] twice -> [B]."""
    return ((x - y) ** 2).flatten(1).mean(1)


def pseudo_huber(x: Tensor, y: Tensor, c: float) -> Tensor:
    """mean_{chw} sqrt(d^2 + c^2) - c for d = x - y, free of cancellation (Song & Dhariwal 2023, section 3.3): [B].

    d^2 / 2c for small d, |d| - c for large ones.
    """
    square = (x - y) ** 2
    return (square / ((square + c * c).sqrt() + c)).flatten(1).mean(1)


def non_saturating_generator(fake: Tensor) -> Tensor:
    """mean softplus(-D(fake)) on logits: the generator's part (Goodfellow et al. 2014, section 3); log 2 at 0."""
    return F.softplus(-fake).mean()


def non_saturating_critic(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(-D(real)) + mean softplus(D(fake)) on logits: the critic's part; 2 log 2 for a blind critic."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def linear_generator(fake: Tensor) -> Tensor:
    """-mean D(fake): the generator's part of ``hinge`` and ``wgan``; unbounded, and 0 says nothing."""
    return -fake.mean()


def hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """mean relu(1 - D(real)) + mean relu(1 + D(fake)) (Lim & Ye 2017); 2 for a blind critic."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def wgan_critic(real: Tensor, fake: Tensor) -> Tensor:
    """mean D(fake) - mean D(real) (Arjovsky et al. 2017): minus infinity without a penalty on the critic's slope."""
    return fake.mean() - real.mean()


class Adversarial(NamedTuple):
    """The two halves of a game on logits of any shape."""

    generator: Callable[[Tensor], Tensor]  # fake
    critic: Callable[[Tensor, Tensor], Tensor]  # real, fake


ADVERSARIAL: dict[str, Adversarial] = {
    "non_saturating": Adversarial(non_saturating_generator, non_saturating_critic),
    "hinge": Adversarial(linear_generator, hinge_critic),
    "wgan": Adversarial(linear_generator, wgan_critic),
}


def per_image(logits: Tensor) -> Tensor:
    """The mean logit of every image: [B] or [B,...] -> [B]."""
    return logits.reshape(len(logits), -1).mean(1)


def r1_exact(logits: Tensor, images: Tensor) -> Tensor:
    """mean_b sum_{chw} (d D / d images)^2 with D = ``per_image`` (Mescheder et al. 2018, eq. 9, without gamma / 2).

    ``images`` required gradients before ``logits`` were made of them. Differentiable once more: the fused attention
    kernels are not, so run the critic under ``sdpa_kernel(SDPBackend.MATH)``, in float32, without checkpointing.
    """
    # no image's logit depends on another image, so the gradient of the sum is all gradients
    (slope,) = torch.autograd.grad(per_image(logits).sum(), images, create_graph=True)
    return slope.square().flatten(1).sum(1).mean()


def r1_difference(logits: Tensor, moved: Tensor, h: float) -> Tensor:
    """mean_b ((D(images + h z) - D(images)) / h)^2, z ~ N(0, I): the expectation of ``r1_exact`` to first order in h.

    Without a second derivative, but in float32 or better: the rounding of bfloat16 is of the order of h = 0.01.
    """
    return ((per_image(moved) - per_image(logits)) / h).square().mean()


def colour(x0_hat: Tensor, x0: Tensor, size: int, sigma: float) -> Tensor:
    """mean_{chw} (K * x0_hat - K * x0)^2 with K of ``blur``: colour without detail (arXiv 2407.16921): [B].

    No clamp inside: a clamped pixel would have no gradient.
    """
    return mse(blur(x0_hat, size, sigma), blur(x0, size, sigma))


def blur(x: Tensor, size: int, sigma: float) -> Tensor:
    """K * x: Gaussian of ``size`` taps (odd) and ``sigma`` px on every channel alone, reflected border: [B,C,H,W].

    Both sides of the image must exceed size // 2. With groups=1 the channels would be summed, and a red image would
    equal a green one; with zero padding a constant image would be 0.57 of its value at an edge.
    """
    channels, radius = x.shape[1], size // 2
    row = gaussian_taps(size, sigma).to(x).expand(channels, 1, 1, size)
    padded = F.pad(x, (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(F.conv2d(padded, row, groups=channels), row.mT, groups=channels)


@lru_cache
def gaussian_taps(size: int, sigma: float) -> Tensor:
    """exp(-i^2 / 2 sigma^2), i = -size//2 .. size//2, with sum 1 in float64: [size]."""
    weights = [math.exp(-0.5 * ((i - size // 2) / sigma) ** 2) for i in range(size)]
    return torch.tensor(weights, dtype=torch.float64, device="cpu") / math.fsum(weights)
