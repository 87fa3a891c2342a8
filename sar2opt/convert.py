"""Weights that others published become model folders.

What the file does not say (heads, noise, radiometry) is assumed as its authors' code has it, and listed in ``notes``.
Keys and shapes are compared completely; the network is taken from the shapes.
"""

import inspect
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from . import checkpoint, confidence, samplers
from .cdiff import CDiffConfig, LatentNoiseConfig, LatentSampleConfig, surround
from .config import MachineError, UserError
from .data import SarRadiometry
from .diffusion import NoiseConfig
from .models import EncoderCritic, latent
from .models.latent import LATENT_CHANNELS
from .models.unet import CONFIG_FILE, OPT_CHANNELS, fit_bands, read_weights, require_equal, shapes, unet_from
from .pipeline import Card, SAR2OptPipeline

# of the authors' own sampling; 50 of a teacher: ours, for their 1000
ACD_STEPS, ACD_TEACHER_STEPS, GUIDED_STEPS, CDIFFSET_STEPS = 8, 50, 250, 50
GROUPS, ACD_HEAD_DIM = 32, 8  # not in the weights
Weights = dict[str, Tensor]


class Converted(NamedTuple):
    """A model, and what was found and assumed, line by line."""

    pipeline: SAR2OptPipeline
    notes: list[str]


def write(made: Converted, output: Path) -> None:
    """The model folder, completely or not at all."""
    tmp = output.with_name(f".tmp-{output.name}-{os.getpid()}")
    try:
        made.pipeline.save_pretrained(tmp)
        require_new(output)
        checkpoint.commit(tmp, output)
    except OSError as error:
        raise MachineError(f"{output}: not written: {error}") from error
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def require_new(output: Path) -> None:
    """Nothing is replaced."""
    if output.exists():
        raise UserError(f"{output}: exists already; remove it, or name another --output")


# adversarially distilled (arXiv 2407.06095) --------------------------------------------------------------------------


def acd(path: Path, stage: int, noise: NoiseConfig, bands: list[str] | None, resolution: int) -> Converted:
    """Checkpoints of Accelerating-Diffusion-for-SAR-to-Optical-Image-Translation: ``path`` is a checkpoint folder of
    Accelerate, the folder of its average, a folder of these, or one file. Stage 2 is distilled, stage 1 its teacher.

    Files are told apart by their keys: the order of model.safetensors and model_1.safetensors is an accident.
    """
    generator, critics = _find_acd(path)
    weights, config = read_weights(generator), generator.parent / CONFIG_FILE
    settings = {"sample_size": resolution, **_architecture(generator, weights), "attention_head_dim": ACD_HEAD_DIM}
    notes = [f"generator: {generator}"]
    if config.is_file():
        settings |= _declared(config, settings)
        notes.append(f"assumed nothing about the network: {config}")
    else:
        notes.append(f"assumed, as the file does not say it: attention heads of {settings['attention_head_dim']}")
    unet = unet_from(UNet2DModel, settings, weights, generator)
    for file in critics:
        with torch.device("meta"):
            critic = EncoderCritic(unet)
        require_equal(file, shapes(critic.state_dict()), shapes(read_weights(file)))
        notes.append(f"critic: {file}: complete and of this network; translation does not need it, left out")
    sampler: samplers.Sampler = "lcm" if stage == 2 else "ddim"
    own = {"original_inference_steps": 50, "timestep_scaling": 10.0} if stage == 2 else {}
    scheduler = samplers.build_scheduler(noise, sampler, "trailing", **own)
    notes.append(
        f"assumed, as the training schedule was never published: {noise.schedule} betas, prediction {noise.prediction}"
    )
    method, steps = ("lcm_adv", ACD_STEPS) if stage == 2 else ("train", ACD_TEACHER_STEPS)
    card = _card(method, unet.config["in_channels"], bands, resolution, sampler, steps)
    return Converted(SAR2OptPipeline(unet, scheduler, card), notes + _summary(card))


def _find_acd(path: Path) -> tuple[Path, list[Path]]:
    """The one generator, an average before a raw one, and all critics."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*/*.safetensors")])
    found: dict[str, list[Path]] = {"average": [], "generator": [], "critic": []}
    for file in files:
        keys = _keys(file)
        if any(key.startswith("head.") for key in keys):
            found["critic"].append(file)
        elif "conv_out.weight" in keys:
            found["average" if (file.parent / CONFIG_FILE).is_file() else "generator"].append(file)
        else:
            raise UserError(
                f"{file}: neither a generator (conv_out.weight) nor a critic (head.*); its keys begin {keys[:5]}"
            )
    candidates = found["average"] or found["generator"]
    if len(candidates) != 1:
        listed = "".join(f"\n  {file}" for file in candidates or files)
        raise UserError(
            f"{path}: expected one generator as safetensors, such as model.safetensors, or one average "
            f"(checkpoint_ema-N/), found {len(candidates)}; name one of its files or folders by --input{listed}"
        )
    return candidates[0], found["critic"]


def _keys(file: Path) -> list[str]:
    try:
        with safetensors.safe_open(file, "pt") as content:
            return sorted(content.keys())
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{file}: damaged, or not safetensors: {error}. Pickled files (.bin, .pkl) are never opened here"
        ) from None


def _declared(config: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What config.json adds to the shapes; it may not contradict them."""
    try:
        declared = json.loads(config.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{config}: not readable: {error}") from None
    if not isinstance(declared, dict):
        raise UserError(f"{config}: expected the settings of a network, found {str(declared)[:80]}")
    assumed = ("sample_size", "norm_num_groups", "attention_head_dim", "attn_norm_num_groups")
    by_shape = {key: value for key, value in settings.items() if key in declared and key not in assumed}
    require_equal(config, {key: declared[key] for key in by_shape}, json.loads(json.dumps(by_shape)))
    known = inspect.signature(UNet2DModel.__init__).parameters.keys() - {"sample_size"}
    return {key: value for key, value in declared.items() if key in known}


# guided-diffusion ----------------------------------------------------------------------------------------------------

_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_ATTENTION = {"norm": "group_norm", "qkv": "qkv", "proj_out": "to_out.0"}


def guided(
    path: Path, heads: int, steps: int, xstart: bool, keep_rgb: bool, bands: list[str] | None, resolution: int
) -> Converted:
    """A state dict of guided-diffusion's UNetModel on [x_t, SAR], as Conditional-Diffusion-for-SAR-to-Optical trains.

    ``heads``: its num_heads; ``steps``: its diffusion_steps, linear betas; ``xstart``: its predict_xstart. SAR that it
    read as RGB is folded into one band unless ``keep_rgb``.
    """
    source = _load(path)
    weights = _renamed(path, source, heads)
    if weights["conv_in.weight"].shape[1] == 2 * OPT_CHANNELS and not keep_rgb:
        weights["conv_in.weight"] = fit_bands(weights["conv_in.weight"], OPT_CHANNELS + 1)
    width = weights["mid_block.attentions.0.to_q.weight"].shape[0]
    settings = {"sample_size": resolution, **_architecture(path, weights), "attention_head_dim": width // heads}
    unet = unet_from(UNet2DModel, settings, weights, path)
    prediction: Literal["sample", "epsilon"] = "sample" if xstart else "epsilon"
    scheduler = DDPMScheduler(
        num_train_timesteps=steps, beta_schedule="linear", beta_start=0.1 / steps, beta_end=20 / steps,
        prediction_type=prediction, variance_type="fixed_large", clip_sample=True,
        timestep_spacing="linspace",
    )  # fmt: skip
    notes = [
        f"network: {path}",
        f"assumed, as the file does not say it: {heads} attention heads, {steps} diffusion steps with linear betas, "
        f"prediction {prediction}",
    ]
    card = _card("train", unet.config["in_channels"], bands, resolution, "ddpm", min(GUIDED_STEPS, steps))
    return Converted(SAR2OptPipeline(unet, scheduler, card), notes + _summary(card))


def _load(path: Path) -> Weights:
    """The tensors of a pickled state dict; nothing in it can run code."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a state dict, such as ema_0.9999_050000.pt")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of many kinds, code in them an UnpicklingError
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: not a plain state dict, and nothing else is unpickled: {reason[0]}") from None
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        inside = f"keys {list(found)[:5]}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise UserError(f"{path}: expected a state dict, names with their tensors; found {inside}")
    return {name: tensor.float() for name, tensor in found.items()}


def _renamed(path: Path, source: Weights, heads: int) -> Weights:
    """guided-diffusion's tensors under diffusers' names."""
    _require_supported(path, source, heads)
    names, weights, strange = _guided_modules(path, source), {}, []
    for key, value in source.items():
        module, _, kind = key.rpartition(".")
        target = names.get(module)
        if target is None:
            strange.append(key)
        elif target.endswith(".qkv"):
            parts = zip("qkv", _split_heads(value, heads), strict=True)
            weights |= {f"{target.removesuffix('qkv')}to_{letter}.{kind}": part for letter, part in parts}
        else:  # 1 x 1 convolutions of attention are linear layers in diffusers
            weights[f"{target}.{kind}"] = value.squeeze(-1) if target.endswith(".to_out.0") else value
    if strange:
        raise UserError(f"{path}: {len(strange)} keys have no place in a UNetModel of guided-diffusion: {strange[:8]}")
    return weights


def _require_supported(path: Path, source: Weights, heads: int) -> None:
    need = (
        "input_blocks.0.0.weight",
        "middle_block.1.qkv.weight",
        "out.2.weight",
        "input_blocks.1.0.in_layers.2.weight",
    )
    if missing := [key for key in need if key not in source]:
        raise UserError(f"{path}: no UNetModel of guided-diffusion: lacks {missing}; its keys begin {list(source)[:5]}")
    if (channels := len(source["out.2.weight"])) != OPT_CHANNELS:
        learned = " (learned sigma, which no sampler here uses)" if channels == 2 * OPT_CHANNELS else ""
        raise UserError(f"{path}: out.2.weight has {channels} output channels{learned}, expected {OPT_CHANNELS}")
    if not any(key.endswith(".0.op.weight") for key in source):
        raise UserError(f"{path}: no input_blocks.N.0.op.weight: a network with resblock_updown, or of a single level")
    widths = {key: len(value) // 3 for key, value in source.items() if key.endswith(".qkv.weight")}
    if len(set(widths.values())) > 1:
        raise UserError(
            f"{path}: attention at several widths, {sorted(set(widths.values()))}: UNet2DModel has one head width, "
            f"guided-diffusion one number of heads: {sorted(widths)[:8]}"
        )
    if (width := widths["middle_block.1.qkv.weight"]) % heads:
        raise UserError(f"{path}: --heads {heads} does not divide the width {width} of middle_block.1.qkv.weight")


def _guided_modules(path: Path, source: Weights) -> dict[str, str]:
    """Module of guided-diffusion -> module of UNet2DModel, with "qkv" for the three projections."""
    blocks = len({key.split(".")[1] for key in source if key.startswith("input_blocks.")})
    n = 1 + sum(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", key) is not None for key in source)
    if blocks % n:
        raise UserError(f"{path}: {blocks} input_blocks for {n} levels: expected a multiple")
    per = blocks // n  # L + 1: residual blocks of a level, and what changes the resolution
    names = {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
    }  # fmt: skip

    def block(old: str, new: str, j: int) -> None:
        names.update({f"{old}.0.{a}": f"{new}.resnets.{j}.{b}" for a, b in _RESNET.items()})
        names.update({f"{old}.1.{a}": f"{new}.attentions.{j}.{b}" for a, b in _ATTENTION.items()})

    for i in range(n):
        for j in range(per - 1):
            block(f"input_blocks.{1 + i * per + j}", f"down_blocks.{i}", j)
        for j in range(per):
            block(f"output_blocks.{i * per + j}", f"up_blocks.{i}", j)
        names[f"input_blocks.{(i + 1) * per}.0.op"] = f"down_blocks.{i}.downsamplers.0.conv"
        last = f"output_blocks.{i * per + per - 1}"
        after = 2 if f"{last}.1.qkv.weight" in source else 1
        names[f"{last}.{after}.conv"] = f"up_blocks.{i}.upsamplers.0.conv"
    names.update(
        {f"middle_block.{2 * j}.{a}": f"mid_block.resnets.{j}.{b}" for j in (0, 1) for a, b in _RESNET.items()}
    )
    names.update({f"middle_block.1.{a}": f"mid_block.attentions.0.{b}" for a, b in _ATTENTION.items()})
    return names


def _split_heads(rows: Tensor, heads: int) -> tuple[Tensor, ...]:
    """[3C,C,1] or [3C], its rows ordered [head][q,k,v][dim] (the legacy order) -> q, k, v: [C,C] or [C]."""
    rows = rows.squeeze(-1) if rows.ndim == 3 else rows
    by_head = rows.reshape(heads, 3, -1, *rows.shape[1:])
    return tuple(part.reshape(-1, *rows.shape[1:]).contiguous() for part in by_head.unbind(1))


# C-DiffSET ------------------------------------------------------------------------------------------------------------

WRAPPERS = re.compile(r"^(module\.|unet\.)+")  # of DistributedDataParallel, and of a module that holds the network
# as its authors read SpaceNet 6: every image by itself, with the empty pixels
QUAD = {"scale": "db", "norm": "percentile_image", "nodata": 0.0, "include_nodata": True}


def cdiffset(path: Path, cdiff: CDiffConfig, bands: list[str] | None, resolution: int) -> Converted:
    """A U-Net of KAIST-VICLab/C-DiffSET, one safetensors file; ``cdiff.base``: the Stable Diffusion that it was trained
    from, for codec, prompt and noise. The weights tell the stage: stage 2 has a fifth output, the variance."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the U-Net as one file, such as model.safetensors")
    source = read_weights(path)
    weights = {WRAPPERS.sub("", key): value for key, value in source.items()}
    outputs = len(weights["conv_out.weight"]) if "conv_out.weight" in weights else 0
    losses: dict[int, confidence.Loss] = {LATENT_CHANNELS: "mse", LATENT_CHANNELS + 1: "beta_nll"}
    if outputs not in losses or len(weights) < len(source):
        raise UserError(
            f"{path}: no U-Net of C-DiffSET: expected conv_out.weight with 4 (stage 1) or 5 (stage 2) filters, found "
            f"{outputs}; its keys begin {list(source)[:5]}"
        )
    cdiff = cdiff.model_copy(update={"loss": losses[outputs]})
    base = latent.open_base(cdiff.base, cdiff.pinned, LatentNoiseConfig().timesteps)
    settings = base.settings | {"in_channels": 2 * LATENT_CHANNELS, "out_channels": outputs}
    unet = unet_from(UNet2DConditionModel, settings, weights, path)
    own = QUAD if bands and {*bands} == {"HH", "HV", "VH", "VV"} else {"scale": "uint8"}
    radiometry = SarRadiometry.from_dict({"bands": bands or ["VV"], **own})
    made = surround(unet, base, cdiff, LatentNoiseConfig(), LatentSampleConfig(), radiometry)
    card = Card(
        method="cdiff", sar=radiometry.to_dict(), resolution=resolution, sampler="ddim", steps=CDIFFSET_STEPS,
        latent=made.card,
    )  # fmt: skip
    notes = [
        f"network: {path}: stage {1 if losses[outputs] == 'mse' else '2, with confidence'}",
        f"codec, prompt and noise: {base.folder or base.name}",
    ]
    return Converted(SAR2OptPipeline(unet, made.scheduler, card, made.space), notes + _summary(card))


# all -----------------------------------------------------------------------------------------------------------------


def _architecture(path: Path, weights: Weights) -> dict[str, Any]:
    """Arguments of UNet2DModel, as far as the shapes tell them."""
    first = {}
    for key, value in weights.items():
        if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.resnets\.0\.conv1\.weight", key):
            first[found[1], int(found[2])] = len(value)
    levels = Counter(side for side, _ in first)
    if not levels["down"] or set(first) != {(side, i) for side in ("down", "up") for i in range(levels["down"])}:
        raise UserError(f"{path}: no UNet2DModel: its blocks are {[f'{side}_blocks.{i}' for side, i in sorted(first)]}")
    need = ("conv_in.weight", "conv_out.weight", "down_blocks.0.resnets.0.time_emb_proj.weight")
    if missing := [key for key in need if key not in weights]:
        raise UserError(f"{path}: no UNet2DModel: lacks {missing}")

    def kinds(side: str) -> tuple[str, ...]:
        attends = [f"{side}_blocks.{i}.attentions.0.to_q.weight" in weights for i in range(levels["down"])]
        return tuple(f"{'Attn' * attend}{side.capitalize()}Block2D" for attend in attends)

    shifts = len(weights["down_blocks.0.resnets.0.time_emb_proj.weight"]) == 2 * first["down", 0]
    return {
        "in_channels": weights["conv_in.weight"].shape[1],
        "out_channels": len(weights["conv_out.weight"]),
        "block_out_channels": tuple(first["down", i] for i in range(levels["down"])),
        "layers_per_block": len(
            [k for k in weights if re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1\.weight", k)]
        ),
        "down_block_types": kinds("down"),
        "up_block_types": kinds("up"),
        "norm_num_groups": GROUPS,
        "resnet_time_scale_shift": "scale_shift" if shifts else "default",
        # unset beside scale_shift, the middle attention would lose its norm
        "attn_norm_num_groups": GROUPS if shifts else None,
    }


def _card(
    method: str, in_channels: int, bands: list[str] | None, resolution: int, sampler: samplers.Sampler, steps: int
) -> Card:
    count = in_channels - OPT_CHANNELS
    names = bands or {1: ["VV"], 3: ["R", "G", "B"]}.get(count)
    if names is None or len(names) != count:
        raise UserError(f"the network reads {count} SAR bands; name them by --bands (got {bands})")
    radiometry = SarRadiometry.from_dict({"bands": names, "scale": "uint8"})
    return Card(method=method, sar=radiometry.to_dict(), resolution=resolution, sampler=sampler, steps=steps)


def _summary(card: Card) -> list[str]:
    kind = "8 bit" if card.sar["scale"] == "uint8" else "floats as stored, 1st to 99th percentile of each image"
    return [
        f"assumed: SAR of {kind}, bands {', '.join(card.sar['bands'])}; trained at {card.resolution} px",
        f"recommended: {card.sampler}, {card.steps} steps",
    ]
