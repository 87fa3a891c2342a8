"""Critics: networks that tell true optical images from translated ones, given the SAR image.

Both are called critic(x_t, t, candidate, t_prime, sar): does the clean image ``candidate``, labelled with the time
t_prime, belong with sar and its noised image x_t at t? The candidates may be several batches for one [x_t, sar], such
as cat([translated, true]): one call, what depends on x_t alone is computed once, and ``chunk`` parts the logits.
Logits are float32, one row per candidate: [n B] (encoder) or [n B, patches] (patch). The loss is a mean over all of
them, so that every patch is judged by itself; ``losses.per_image`` is the mean of each image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from ..config import UserError
from .unet import OPT_CHANNELS

_PATCH_SIDE = 24  # px: the smallest image of which PatchCritic leaves a logit
_ENCODER = ("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block")
_DROPPED = ("up_blocks", "conv_norm_out", "conv_act", "conv_out")


class PatchCritic(nn.Module):
    """One logit per patch of 70 px of [candidate, sar], or of [candidate, sar, x_t] (``sees_x_t``).

    The PatchGAN of Isola et al. 2017 (pix2pix, section 6.1.2) at three strides of 2, with SiLU, whose second
    derivative R1 can follow, and group norm for batch norm, whose running means would differ between processes. It
    has no time input; t and t_prime are ignored, and without ``sees_x_t`` x_t may be None.
    """

    def __init__(
        self, num_bands: int, sees_x_t: bool = False, width: int = 64, groups: int = 32, channels: int = OPT_CHANNELS
    ):
        super().__init__()
        self.sees_x_t = sees_x_t
        widths = (width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = [nn.Conv2d(channels + num_bands + channels * sees_x_t, width, 4, 2, 1), nn.SiLU()]
        for before, after, stride in zip(widths, widths[1:], (2, 2, 1), strict=False):
            layers += [nn.Conv2d(before, after, 4, stride, 1), nn.GroupNorm(groups, after), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(
        self, x_t: Tensor | None, t: Tensor | None, candidate: Tensor, t_prime: Tensor | None, sar: Tensor
    ) -> Tensor:
        """[B,3,H,W], [B], [nB,3,H,W], [nB] or [B], [B,b,H,W] -> raw logits [nB, patches]; 30 x 30 patches at 256 px."""
        if min(candidate.shape[2:]) < _PATCH_SIDE:
            raise UserError(
                f"the patch critic needs images of at least {_PATCH_SIDE} px, got {tuple(candidate.shape[2:])}; raise "
                "data.resolution, or use the encoder critic"
            )
        n = len(candidate) // len(sar)
        seen = [candidate, _repeated(sar, n)]
        if self.sees_x_t:
            assert x_t is not None
            seen.append(_repeated(x_t, n))
        return _float(self.net(torch.cat(seen, dim=1)).flatten(1))


class EncoderCritic(nn.Module):
    """The encoder half of a trained denoiser, copied, and a head on two of its features (arXiv 2402.13929; 2407.06095).

    feature(x, t, s) is the output of the middle block for [x, s]; the logit is head([feature(x_t, t, s),
    feature(candidate, t_prime, s)]), or of the latter alone (``sees_x_t`` false). With ``head_only`` the encoder stays
    as the denoiser had it. State-dict names are those of UNet2DModel, and head.N as published.
    """

    def __init__(self, unet: UNet2DModel, sees_x_t: bool = True, head_only: bool = False):
        super().__init__()
        if strange := sorted({name for name, _ in unet.named_children()} ^ {*_ENCODER, *_DROPPED}):
            raise UserError(f"the encoder critic is made of a plain UNet2DModel; this one differs in {strange}")
        assert unet.mid_block is not None
        self.sees_x_t = sees_x_t
        # submodules alone: what a frame around the whole network, such as autocast, has changed stays behind
        self.conv_in, self.time_proj = deepcopy(unet.conv_in), deepcopy(unet.time_proj)
        self.time_embedding, self.down_blocks = deepcopy(unet.time_embedding), deepcopy(unet.down_blocks)
        self.mid_block: nn.Module = deepcopy(unet.mid_block)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # R1 by differences compares two passes
        self.requires_grad_(not head_only).train()
        width, groups = unet.config["block_out_channels"][-1], unet.config["norm_num_groups"]
        _require_room(unet)
        self.head = nn.Sequential(
            nn.Conv2d((1 + sees_x_t) * width, 2 * width, 3, padding=1), nn.GroupNorm(groups, 2 * width), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1), nn.GroupNorm(groups, 2 * width), nn.SiLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 1),
        )  # fmt: skip

    def forward(self, x_t: Tensor | None, t: Tensor | None, candidate: Tensor, t_prime: Tensor, sar: Tensor) -> Tensor:
        """[B,3,H,W], [B], [nB,3,H,W], [nB] or [B], [B,b,H,W] -> raw logits [nB]."""
        n = len(candidate) // len(sar)
        # two passes, not one over all images: x_t needs no gradient, and in its own pass costs no backward
        features = self.feature(candidate, _repeated(t_prime, len(candidate) // len(t_prime)), _repeated(sar, n))
        if self.sees_x_t:
            assert x_t is not None and t is not None
            features = torch.cat([_repeated(self.feature(x_t, t, sar), n), features], dim=1)
        return _float(self.head(features).flatten())

    def feature(self, x: Tensor, t: Tensor, sar: Tensor) -> Tensor:
        """The middle block's output for [x, sar] at t: 512 x 8 x 8 for the reference network at 256 px."""
        emb = self.time_embedding(self.time_proj(t).to(self.conv_in.weight.dtype))
        h = self.conv_in(torch.cat([x, sar], dim=1))
        for block in cast(nn.ModuleList, self.down_blocks):
            h, _ = block(hidden_states=h, temb=emb)
        return self.mid_block(h, emb)


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Within, no gradient reaches the weights of ``net``; afterwards those that were trained are trained again.

    For a loss through a critic that trains another network: its forward belongs inside, its backward may follow. The
    critic's accumulated gradients stay as they are.
    """
    trained = [p for p in net.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def _require_room(unet: UNet2DModel) -> None:
    """The head halves the feature once: at 1 px it would have nothing left."""
    side, levels = unet.config["sample_size"], len(unet.config["block_out_channels"])
    smallest = 2 * 2 ** (levels - 1)
    if side is not None and min((side, side) if isinstance(side, int) else side) < smallest:
        raise UserError(
            f"the encoder critic of a network of {levels} levels needs images of at least {smallest} px, so that its "
            f"head sees 2 x 2; got {side}: use fewer levels (model.block_out_channels), larger images "
            "(data.resolution), or the patch critic"
        )


def _repeated(x: Tensor, n: int) -> Tensor:
    return x if n == 1 else x.repeat(n, *[1] * (x.ndim - 1))


def _float(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))  # autocast may have given 16 bits
