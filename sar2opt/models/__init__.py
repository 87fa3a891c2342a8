"""Networks, built from diffusers."""

from .critic import PatchCritic
from .unet import UNetConfig, build_unet, lerp_, load_unet, predict, stride

__all__ = ["PatchCritic", "UNetConfig", "build_unet", "lerp_", "load_unet", "predict", "stride"]
