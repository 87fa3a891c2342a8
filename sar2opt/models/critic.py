"""Critics: networks that tell true optical images from translated ones, given the SAR image."""

import torch
from torch import Tensor, nn


class PatchCritic(nn.Module):
    """One logit per patch: does this optical image belong to this SAR image? [B,3,H,W], [B,b,H,W] -> [B,1,h,w].

    The 70-px PatchGAN of Isola et al. 2017 (pix2pix, section 6.1.2) at three strides of 2; group norm for its batch
    norm, whose running means would differ between processes. Sides must be at least 32 px.
    """

    def __init__(self, num_bands: int, width: int = 64, groups: int = 8):
        super().__init__()
        widths = (width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = [nn.Conv2d(3 + num_bands, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after, stride in zip(widths, widths[1:], (2, 2, 1), strict=False):
            layers += [nn.Conv2d(before, after, 4, stride, 1), nn.GroupNorm(groups, after), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, opt: Tensor, sar: Tensor) -> Tensor:
        """Raw logits; the loss applies the nonlinearity."""
        return self.net(torch.cat([opt, sar], dim=1))
