"""The best that a latent model can reach: decode(encode(target)), what the codec of its base leaves of the truth."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from . import checkpoint, images, partners
from .config import UserError
from .data import to_uint8
from .measure import progress
from .models.latent import load_vae


@torch.no_grad()
def write(base: Path | None, target: Path | None, folder: Path, device: torch.device, resolution: int = 0) -> None:
    """One PNG per image of ``target`` below ``folder``, with the codec in ``base``/vae; float32, mean of the posterior,
    sides reflected up to the codec's stride. ``resolution``: px of the centre, 0 for whole images."""
    if base is None or target is None:
        raise UserError("--vae-bound: needs --base BASE, a model folder with vae/, and --target DIR")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("--vae-bound: runs in one process; then score its images with --pred under torchrun")
    found, sizes = partners.files(target, "--target", partners.PICTURES), []
    for path in found.values():
        size, mode = partners.picture(path)
        sizes.append(partners.Size(*(min(side, resolution or side) for side in size)))
        if mode != "RGB" or min(size) < partners.MIN_SIDE:
            raise UserError(
                f"{path}: {mode}, {size.width} x {size.height} px; expected 8-bit RGB of {partners.MIN_SIDE} px or more"
            )
    vae = load_vae(base)
    vae.to(device)  # pyright: ignore[reportArgumentType]  diffusers wraps the method
    stride = 2 ** (len(vae.config["block_out_channels"]) - 1)
    for (name, path), size in progress(zip(found.items(), sizes, strict=True), len(found), "codec", True):
        x = torch.from_numpy(partners.read_rgb(path, size).astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        padded = F.pad(x, (0, -size.width % stride, 0, -size.height % stride), mode="reflect").to(device)
        latent: Any = vae.encode(padded, return_dict=False)[0].mode()
        decoded = vae.decode(latent, return_dict=False)[0]
        decoded = decoded[0, :, : size.height, : size.width]
        final = folder / f"{name}.png"
        final.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.put(final, images.png(Image.fromarray(to_uint8(decoded).permute(1, 2, 0).cpu().numpy())))
