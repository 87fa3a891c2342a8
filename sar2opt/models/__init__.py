"""Networks, built from diffusers."""

from .critic import EncoderCritic, PatchCritic, frozen
from .unet import UNetConfig, build_unet, lerp_, load_unet, predict, stride

__all__ = [
    "EncoderCritic", "PatchCritic", "UNetConfig", "build_unet", "frozen", "lerp_", "load_unet", "predict", "stride",
]  # fmt: skip
