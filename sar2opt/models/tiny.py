"""A Stable Diffusion folder of a few megabytes with random weights: same classes, same files, nothing learnt.

For tests and first trials. The U-Net has 792,964 parameters, the codec 81,215 (four levels keep its factor of 8), the
text encoder 36,064.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

TEXT_WIDTH = 32
SCHEDULER: dict[str, Any] = {  # the file of SD 2.1-base
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
}  # fmt: skip


def unet(seed: int = 0) -> UNet2DConditionModel:
    """Two levels, one layer each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=TEXT_WIDTH, attention_head_dim=8, norm_num_groups=8, use_linear_projection=True,
        )  # fmt: skip


def vae(seed: int = 0) -> AutoencoderKL:
    """Four levels, 4 latent channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        kinds: dict[str, Any] = {
            "block_out_channels": (8, 16, 16, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
        }
        return AutoencoderKL(
            latent_channels=4, layers_per_block=1, norm_num_groups=8, sample_size=64, scaling_factor=0.18215, **kinds
        )


def write(folder: Path, seed: int = 0) -> None:
    """The whole folder, as StableDiffusionPipeline saves and loads it."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=514, hidden_size=TEXT_WIDTH, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, projection_dim=TEXT_WIDTH, bos_token_id=512, eos_token_id=513,
            )
        )  # fmt: skip
    scheduler: Any = PNDMScheduler.from_config(SCHEDULER)
    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline(
        vae=vae(seed), text_encoder=text, tokenizer=_tokenizer(), unet=unet(seed), scheduler=scheduler, **parts
    )
    pipeline.save_pretrained(folder)


def _tokenizer():
    """CLIP's, without merges: every byte is a token, in the middle of a word or at its end."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    words = [*letters, *[f"{letter}</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
