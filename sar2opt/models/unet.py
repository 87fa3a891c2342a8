"""The denoiser: a plain diffusers UNet2DModel on the channels [x_t, sar].

Its weights are safetensors with diffusers' own names; nothing is unpickled, and nothing is loaded loosely.
"""

import json
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import safetensors
import safetensors.torch
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from ..config import Section, UserError

OPT_CHANNELS = 3
CONFIG_FILE, WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"
Down = Literal["DownBlock2D", "AttnDownBlock2D"]
Up = Literal["UpBlock2D", "AttnUpBlock2D"]
Net = TypeVar("Net", UNet2DModel, UNet2DConditionModel)


class UNetConfig(Section):
    """``model:`` the arguments of diffusers' UNet2DModel; the defaults are the reference network (113.7 M parameters).

    Input channels (3 + number of SAR bands) and size follow from ``data``. ``init_from`` names a model folder of ours,
    or its unet/, whose weights training starts from.
    """

    block_out_channels: tuple[PositiveInt, ...] = Field(default=(128, 128, 256, 256, 512, 512), min_length=1)
    layers_per_block: PositiveInt = 2
    down_block_types: tuple[Down, ...] = (
        "DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D",
    )  # fmt: skip
    up_block_types: tuple[Up, ...] = (
        "UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D",
    )  # fmt: skip
    norm_num_groups: PositiveInt = 32
    attention_head_dim: PositiveInt = 8
    dropout: float = Field(default=0.0, ge=0, lt=1)
    in_channels: NonNegativeInt | None = None  # stated or not, it is 3 + the number of SAR bands
    init_from: Path | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        widths, downs, ups = self.block_out_channels, self.down_block_types, self.up_block_types
        if not len(widths) == len(downs) == len(ups):
            raise ValueError(
                f"block_out_channels has {len(widths)} levels, down_block_types {len(downs)}, "
                f"up_block_types {len(ups)}; each needs one entry per level"
            )
        if uneven := [c for c in widths if c % self.norm_num_groups]:
            raise ValueError(
                f"norm_num_groups={self.norm_num_groups} does not divide block_out_channels {uneven}; "
                "choose a common divisor of all widths"
            )
        attended = {widths[-1]}  # the middle block always attends
        attended |= {c for c, kind in zip(widths, downs, strict=True) if kind.startswith("Attn")}
        attended |= {c for c, kind in zip(reversed(widths), ups, strict=True) if kind.startswith("Attn")}
        if uneven := sorted(c for c in attended if c % self.attention_head_dim):
            raise ValueError(
                f"attention_head_dim={self.attention_head_dim} does not divide the widths with attention {uneven}"
            )
        return self


def build_unet(cfg: UNetConfig, num_bands: int, resolution: int) -> UNet2DModel:
    """The network of ``cfg`` on [x_t, sar]: 3 + num_bands -> 3 channels; library initialisation, or ``init_from``."""
    if cfg.in_channels not in (None, OPT_CHANNELS + num_bands):
        raise UserError(
            f"model.in_channels={cfg.in_channels}, but 3 optical channels and {num_bands} SAR bands make "
            f"{OPT_CHANNELS + num_bands}; leave model.in_channels out, it is derived"
        )
    multiple = 2 ** (len(cfg.block_out_channels) - 1)
    if resolution % multiple:
        raise UserError(
            f"data.resolution={resolution} is not a multiple of {multiple}, the stride of a network of "
            f"{len(cfg.block_out_channels)} levels (model.block_out_channels)"
        )
    unet = UNet2DModel(
        sample_size=resolution, in_channels=OPT_CHANNELS + num_bands, out_channels=OPT_CHANNELS, **_architecture(cfg)
    )
    if cfg.init_from is not None:
        _initialise_(unet, cfg, cfg.init_from)
    return unet


def predict(unet: nn.Module, x_t: Tensor, t: Tensor, sar: Tensor) -> Tensor:
    """out(x_t, t, s): [B,3,H,W], [B] or [], [B,b,H,W] -> [B,3,H,W], in float32 or better.

    The one place where the channels are put together: x_t first, then the SAR bands in their order.
    """
    out = unet(torch.cat([x_t, sar], dim=1), t).sample
    return out.to(torch.promote_types(out.dtype, torch.float32))  # autocast may have given 16 bits


@torch.no_grad()
def lerp_(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """ema <- decay ema + (1 - decay) net; buffers are copied."""
    averages, weights = tuple(ema.parameters()), tuple(net.parameters())
    torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
    for b_ema, b in zip(ema.buffers(), net.buffers(), strict=True):
        b_ema.copy_(b)


def stride(unet: UNet2DModel) -> int:
    """The sides of every input must be multiples of this: 32 for the reference network."""
    return 2 ** (len(unet.config["block_out_channels"]) - 1)


def load_unet(folder: Path) -> UNet2DModel:
    """The network saved in ``folder`` (config.json and safetensors), in eval mode; every key must fit."""
    weights = read_unet_weights(folder)
    return unet_from(UNet2DModel, read_settings(folder), weights, folder)


def unet_from(kind: type[Net], settings: dict[str, Any], weights: dict[str, Tensor], source: Path) -> Net:
    """A network of diffusers with ``settings`` and exactly ``weights``, in eval mode; ``source`` is named in errors."""
    try:
        with torch.device("meta"):  # no time is spent on initial values that are about to be replaced
            unet = kind.from_config(settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: describes no {kind.__name__}: {error}") from None
    assert isinstance(unet, kind)
    require_equal(source, shapes(unet.state_dict()), shapes(weights))
    unet.load_state_dict(weights, strict=True, assign=True)
    return unet.eval()


def _architecture(cfg: UNetConfig) -> dict:
    return cfg.model_dump(exclude={"in_channels", "init_from"})


def _initialise_(unet: UNet2DModel, cfg: UNetConfig, folder: Path) -> None:
    """Copy the weights of ``folder`` into ``unet``, fitting their number of SAR bands to it."""
    folder = folder / "unet" if (folder / "unet").is_dir() else folder
    weights, have = read_unet_weights(folder), read_settings(folder)
    want = {"out_channels": OPT_CHANNELS, **_architecture(cfg)}
    want.pop("dropout")  # no weight depends on it
    require_equal(folder, want, {key: have.get(key) for key in want})
    shape = list(weights["conv_in.weight"].shape) if "conv_in.weight" in weights else None
    if shape is not None:
        weights["conv_in.weight"] = fit_bands(weights["conv_in.weight"], unet.conv_in.in_channels)
    require_equal(folder, shapes(unet.state_dict()), shapes(weights))
    unet.load_state_dict(weights, strict=True)


def fit_bands(weight: Tensor, in_channels: int) -> Tensor:
    """Filters of conv_in for another number of SAR bands: one band repeated and divided, or SAR read as RGB summed.

    Both are exact when all bands carry the same image. Anything else is left as it is, to be refused.
    """
    x_t, sar, bands = weight[:, :OPT_CHANNELS], weight[:, OPT_CHANNELS:], in_channels - OPT_CHANNELS
    if sar.shape[1] == 1:
        return torch.cat([x_t, sar.expand(-1, bands, -1, -1) / bands], dim=1)
    if sar.shape[1] == 3 and bands == 1:
        return torch.cat([x_t, sar.sum(1, keepdim=True)], dim=1)
    return weight


def read_settings(folder: Path) -> dict:
    """config.json of a network."""
    try:
        settings = json.loads((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG_FILE}: not readable: {error}") from None
    if not isinstance(settings, dict) or "block_out_channels" not in settings:
        raise UserError(f"{folder / CONFIG_FILE}: expected the settings of a U-Net")
    return settings


def read_unet_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in the folder of a network, in float32."""
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        found = sorted(path.name for path in folder.glob("*"))[:5] if folder.is_dir() else "no such folder"
        raise UserError(
            f"{folder}: no network here: expected {CONFIG_FILE} and {WEIGHTS_FILE}, found {found}; "
            "name a model folder such as runs/NAME/model (pickled weights, .bin or .pt, are never opened)"
        )
    return read_weights(file)


def read_weights(file: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file, in float32."""
    try:
        return {name: tensor.float() for name, tensor in safetensors.torch.load_file(file).items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file}: damaged, or not safetensors: {error}") from None


def shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    """What ``require_equal`` compares."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def require_equal(folder: Path, want: dict, have: dict) -> None:
    """One table of everything in which the weights are not the configured network."""
    plain = json.loads(json.dumps(want))  # a tuple in Python is a list in the file
    rows = [
        f"  {key}: config says {plain.get(key)!r}, weights have {have.get(key)!r}"
        for key in [*plain, *(have.keys() - plain.keys())]
        if plain.get(key) != have.get(key)
    ]
    if rows:
        more = f"\n  ... and {len(rows) - 20} more" if len(rows) > 20 else ""
        raise UserError(f"{folder}: not the configured network\n" + "\n".join(rows[:20]) + more)
