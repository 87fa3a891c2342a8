"""Losses of a network that says how sure it is of its prediction, and what it then says (arXiv 2411.10788).

    r = target - out[:, :4],   info = out[:, 4:],   confidence = 1/var

The mean of ``beta_nll`` over a batch is its loss; so for ``laplace2``. tau = log 2 pi has no gradient: the weight
var^beta is detached. Everything here is elementwise in [B,C,h,w], one value per sample out.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["mse", "beta_nll", "laplace2"]
INFO_CHANNELS: dict[Loss, int] = {"mse": 0, "beta_nll": 1, "laplace2": 4}
VAR_MIN, VAR_MAX = 1e-6, 10.0
LAPLACE_OFFSET = math.log(math.expm1(0.1))  # of the log-scales: two equal components would never separate


def variance(raw: Tensor, low: float = VAR_MIN, high: float = VAR_MAX) -> Tensor:
    """var = clamp(softplus(raw + OFF) + low, low, high), OFF such that a head of zeros means var = 1 everywhere and
    learns from the first step: d var/d raw is 0.63 there."""
    return (F.softplus(raw + variance_offset(low)) + low).clamp(low, high)


def variance_offset(low: float = VAR_MIN) -> float:
    """OFF = log(exp(1 - low) - 1)."""
    return math.log(math.expm1(1 - low))


def beta_nll(r: Tensor, var: Tensor, beta: Tensor) -> Tensor:
    """mean_{chw} sg(var)^beta (r^2/var + log var + log 2 pi)/2 (arXiv 2203.09168, eq. 5): r [B,C,h,w], var [B,1,h,w],
    beta [B] -> [B]. With beta = 1 the mean has the gradient of half the MSE, with 0 that of a Gaussian likelihood."""
    weight = var.detach() ** beta.reshape(-1, 1, 1, 1)
    return (weight * 0.5 * (r**2 / var + var.log() + math.log(2 * math.pi))).flatten(1).mean(1)


def laplace2(r: Tensor, info: Tensor) -> Tensor:
    """mean_{chw} -log sum_k w_k Laplace(r; 0, b_k), a narrow and a wide one (after arXiv 2405.14793): r [B,C,h,w], info
    [B,4,h,w] -> [B]. softplus keeps the scales apart; a clamp at 0 may have no gradient there."""
    log_w = F.log_softmax(info[:, :2], dim=1)
    log_b = torch.cat([-F.softplus(info[:, 2:3] + LAPLACE_OFFSET), F.softplus(info[:, 3:4] + LAPLACE_OFFSET)], dim=1)
    terms = log_w - log_b - math.log(2)
    # [B,2,1,h,w] against [B,1,C,h,w]: both components are shared by the channels
    return -torch.logsumexp(terms[:, :, None] - r.abs()[:, None] / log_b.exp()[:, :, None], dim=1).flatten(1).mean(1)


def narrow_weight(info: Tensor) -> Tensor:
    """The confidence of ``laplace2``: the weight of its narrow component, in (0, 1): [B,4,h,w] -> [B,1,h,w]."""
    return F.softmax(info[:, :2], dim=1)[:, :1]


def clean_variance(var: Tensor, prediction: str, abar: float) -> Tensor:
    """The variance of the network's target as that of the clean latent x0_hat at noise level abar."""
    factor = {"epsilon": (1 - abar) / abar, "v": 1 - abar, "sample": 1.0}[prediction]
    return factor * var


def enlarged(log_var: Tensor, factor: int) -> Tensor:
    """log var of every pixel: bilinear on the logarithm, which stays positive where bicubic on 1/var would not."""
    return F.interpolate(log_var, scale_factor=factor, mode="bilinear", align_corners=False)
