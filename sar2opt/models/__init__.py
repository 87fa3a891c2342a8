"""Networks, built from diffusers."""

from .unet import UNetConfig, build_unet, lerp_, load_unet, predict, stride

__all__ = ["UNetConfig", "build_unet", "lerp_", "load_unet", "predict", "stride"]
