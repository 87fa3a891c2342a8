"""Where a network works: on pixels, or on the latents of a frozen autoencoder (``latent.py``).

A training, a distillation or a sampler needs three things, the same for both:

    cond, x0 = space.encode(sar, opt)            what the network sees of the SAR image, and its clean target
    out      = space.predict(unet, x_t, t, cond) in the parameterisation of the schedule, the shape of x_t
    opt_hat  = space.decode(x0_hat)              [B,3,H,W] in [-1, 1]
"""

from typing import Any, Protocol

from torch import Tensor, nn

from .unet import OPT_CHANNELS, predict, stride


class Space(Protocol):
    """The working space of a network; ``bounded`` where clean samples lie in [-1, 1]."""

    channels: int
    bounded: bool

    def multiple(self, unet: Any) -> int:
        """Of which the sides of an image must be multiples, px."""
        ...

    def condition(self, sar: Tensor) -> Tensor:
        """[B,b,H,W] in [-1, 1] -> cond, whose sides are those of x_t."""
        ...

    def encode(self, sar: Tensor, opt: Tensor) -> tuple[Tensor, Tensor]: ...

    def predict(self, unet: nn.Module, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor: ...

    def decode(self, x0: Tensor) -> Tensor: ...


class PixelSpace:
    """The images themselves."""

    channels, bounded = OPT_CHANNELS, True

    def multiple(self, unet: Any) -> int:
        return stride(unet)

    def condition(self, sar: Tensor) -> Tensor:
        return sar

    def encode(self, sar: Tensor, opt: Tensor) -> tuple[Tensor, Tensor]:
        return sar, opt

    def predict(self, unet: nn.Module, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return predict(unet, x_t, t, cond)

    def decode(self, x0: Tensor) -> Tensor:
        return x0.clamp(-1, 1)


PIXELS = PixelSpace()
