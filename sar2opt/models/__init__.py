"""Networks, built from diffusers."""

from .critic import EncoderCritic, PatchCritic, frozen
from .latent import LatentSpace, load_latent_unet
from .space import PIXELS, Space
from .unet import UNetConfig, build_unet, lerp_, load_unet, predict, stride

__all__ = [
    "PIXELS", "EncoderCritic", "LatentSpace", "PatchCritic", "Space", "UNetConfig", "build_unet", "frozen", "lerp_",
    "load_latent_unet", "load_unet", "predict", "stride",
]  # fmt: skip
