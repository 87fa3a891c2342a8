"""Latent networks: a Stable Diffusion 1.x or 2.x U-Net that denoises [z_sar, z_t], its codec and its constant prompt.

    z = vae.encode(x).mean * scaling_factor: [B,3,H,W] -> [B,4,H/8,W/8]

The codec is frozen. Everything is read from local folders, as safetensors and JSON, and every key must fit.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors
import safetensors.torch
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ..config import UserError
from . import tiny
from .unet import CONFIG_FILE, read_settings, read_unet_weights, require_equal, shapes, unet_from

LATENT_CHANNELS = 4
PROMPT_FILE = "prompt/prompt_embeds.safetensors"
GENERATED = "generated"  # cdiff.base: the tiny network of tiny.py
DIFFERENCE = (0.0, 25.0)  # dB between VV and VH that the rule ``ratio`` maps to [-1, 1]
Rule = Literal["one", "three", "dual", "ratio", "quad"]
ConvIn = Literal["half_repeat", "zero_sar"]


class Base(NamedTuple):
    """A verified Stable Diffusion folder: what latent training starts from."""

    name: str
    folder: Path | None  # None: generated
    settings: dict[str, Any]  # of the U-Net
    scheduler: dict[str, Any]
    vae: AutoencoderKL


# the folder -----------------------------------------------------------------------------------------------------------


def open_base(name: str, revision: str | None, timesteps: int) -> Base:
    """Verify ``name``: a folder, a hub id with ``revision`` that is on this machine already, or ``generated``. One
    message names everything that is not as a Stable Diffusion 1.x or 2.x has it."""
    if name == GENERATED:
        return Base(name, None, dict(tiny.unet().config), dict(tiny.SCHEDULER), load_vae(None))
    folder = _local(name, revision)
    parts = {"unet": CONFIG_FILE, "vae": CONFIG_FILE, "scheduler": "scheduler_config.json"}
    missing = [f"{part}/{file}" for part, file in parts.items() if not (folder / part / file).is_file()]
    if missing:
        raise UserError(f"cdiff.base={name}: not a Stable Diffusion folder: {folder} lacks {', '.join(missing)}")
    unet, vae, scheduler = (_json(folder / part / file) for part, file in parts.items())
    expected: list[tuple[str, str, Any, tuple[Any, ...]]] = [
        ("unet", "_class_name", unet.get("_class_name"), ("UNet2DConditionModel",)),
        ("unet", "in_channels", unet.get("in_channels"), (LATENT_CHANNELS, 2 * LATENT_CHANNELS)),
        ("unet", "out_channels", unet.get("out_channels"), (LATENT_CHANNELS, LATENT_CHANNELS + 1)),
        ("unet", "addition_embed_type", unet.get("addition_embed_type"), (None,)),
        ("vae", "_class_name", vae.get("_class_name"), ("AutoencoderKL",)),
        ("vae", "latent_channels", vae.get("latent_channels"), (LATENT_CHANNELS,)),
        ("vae", "shift_factor", vae.get("shift_factor"), (None,)),
        ("scheduler", "num_train_timesteps", scheduler.get("num_train_timesteps"), (timesteps,)),
    ]
    wrong = [
        f"{folder / part / parts[part]}: {key}: expected {' or '.join(map(str, allowed))}, found {found}"
        for part, key, found, allowed in expected
        if found not in allowed
    ]
    if not isinstance(factor := vae.get("scaling_factor"), float):
        wrong.append(
            f"{folder / 'vae' / CONFIG_FILE}: scaling_factor: expected a number such as 0.18215, found {factor}"
        )
    if wrong:
        raise UserError(f"cdiff.base={name}: cannot be used:\n  " + "\n  ".join(wrong))
    return Base(name, folder, unet, scheduler, load_vae(folder))


def _local(name: str, revision: str | None) -> Path:
    """The folder that ``name`` stands for; nothing is downloaded here."""
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise UserError(
            f"cdiff.base={name}: no such folder; name a Stable Diffusion 1.x or 2.x in the format of diffusers, or "
            f"make a tiny one to try: python scripts/make_tiny_sd.py {name}"
        )
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"cdiff.base={name}: no such folder; and as a model of the Hugging Face hub it needs cdiff.revision, a "
            f"commit of 40 hexadecimal digits (got {revision}), since a name can change what it means. To try without "
            f"its weights: python scripts/make_tiny_sd.py {name}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise UserError(
            f"cdiff.base={name}: revision {revision} is not on this machine, and a training downloads nothing; fetch "
            f"it once:\n  hf download {name} --revision {revision} --include '*.json' --include '*.txt' "
            "--include '*/*model.safetensors'"
        ) from None


def _json(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{file}: expected settings by name, found {settings!r:.60}")
    return settings


def load_vae(folder: Path | None) -> AutoencoderKL:
    """The codec in ``folder``/vae, frozen, in float32; None: the tiny one. Its attention may have the old names."""
    if folder is None:
        return tiny.vae().eval().requires_grad_(False)
    if not (folder / "vae" / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder}: no vae/{CONFIG_FILE} in it; expected a local Stable Diffusion or latent model folder"
        )
    try:
        loaded: Any = AutoencoderKL.from_pretrained(
            folder / "vae", local_files_only=True, use_safetensors=True, output_loading_info=True,
            torch_dtype=torch.float32,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder / 'vae'}: its codec does not load: {error}") from None
    vae, found = loaded
    if wrong := {key: found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if found[key]}:
        raise UserError(f"{folder / 'vae'}: its weights are not those of its {CONFIG_FILE}: {str(wrong):.300}")
    return vae.eval().requires_grad_(False)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values, in whatever file they lie."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def settings_digest(settings: dict[str, Any]) -> str:
    """SHA-256 of the settings of a scheduler."""
    own = {key: value for key, value in settings.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


# the network ----------------------------------------------------------------------------------------------------------


def build_unet(
    base: Base, info_channels: int, conv_in: ConvIn, dropout: float, scratch: bool, init_from: Path | None
) -> UNet2DConditionModel:
    """The base's U-Net on [z_sar, z_t], with ``info_channels`` outputs more; ``init_from``: the model folder of stage
    1, whose weights replace the base's."""
    settings = {key: value for key, value in base.settings.items() if not key.startswith("_")} | {"dropout": dropout}
    if base.settings["out_channels"] not in (LATENT_CHANNELS, LATENT_CHANNELS + info_channels):
        raise UserError(
            f"cdiff.base={base.name}: unet/{CONFIG_FILE}: out_channels: expected {LATENT_CHANNELS} or "
            f"{LATENT_CHANNELS + info_channels} for this cdiff.loss, found {base.settings['out_channels']}"
        )
    if scratch:
        unet = UNet2DConditionModel.from_config(settings | {"in_channels": 2 * LATENT_CHANNELS})
        assert isinstance(unet, UNet2DConditionModel)
    else:
        weights = tiny.unet().state_dict() if base.folder is None else read_unet_weights(base.folder / "unet")
        unet = unet_from(UNet2DConditionModel, settings, weights, Path(base.name) / "unet")
    widen_input_(unet, conv_in)
    if init_from is not None:
        folder = init_from / "unet"
        weights = read_unet_weights(folder)
        require_equal(folder, shapes(unet.state_dict()), shapes(weights))
        unet.load_state_dict(weights, strict=True)
    widen_output_(unet, info_channels)
    return unet


def load_latent_unet(folder: Path) -> UNet2DConditionModel:
    """The network of a latent model folder."""
    unet = unet_from(UNet2DConditionModel, read_settings(folder), read_unet_weights(folder), folder)
    if unet.config["in_channels"] != 2 * LATENT_CHANNELS:
        found = unet.config["in_channels"]
        raise UserError(
            f"{folder / CONFIG_FILE}: in_channels: expected {2 * LATENT_CHANNELS}, [z_sar, z_t], found {found}"
        )
    return unet


@torch.no_grad()
def narrow_output_(unet: UNet2DConditionModel) -> None:
    """conv_out without the channels about the error; nothing where it has none."""
    old = unet.conv_out
    if old.out_channels == LATENT_CHANNELS:
        return
    unet.conv_out = nn.Conv2d(old.in_channels, LATENT_CHANNELS, 3, padding=1)
    unet.conv_out.weight.copy_(old.weight[:LATENT_CHANNELS])
    assert old.bias is not None and unet.conv_out.bias is not None
    unet.conv_out.bias.copy_(old.bias[:LATENT_CHANNELS])
    unet.register_to_config(out_channels=LATENT_CHANNELS)


@torch.no_grad()
def widen_input_(unet: UNet2DConditionModel, how: ConvIn) -> None:
    """conv_in from 4 to 8 channels, [z_sar, z_t]; nothing where it has 8. ``half_repeat``: the same filters on both, at
    half their size: what the base did, were both the same. ``zero_sar``: exactly the base, blind to the SAR."""
    old = unet.conv_in
    if old.in_channels == 2 * LATENT_CHANNELS:
        return
    new = nn.Conv2d(2 * LATENT_CHANNELS, old.out_channels, 3, padding=1)
    sar = old.weight / 2 if how == "half_repeat" else torch.zeros_like(old.weight)
    new.weight.copy_(torch.cat([sar, old.weight / 2 if how == "half_repeat" else old.weight], dim=1))
    assert old.bias is not None and new.bias is not None
    new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=2 * LATENT_CHANNELS)  # unet.config["in_channels"] = 8 would be lost


@torch.no_grad()
def widen_output_(unet: UNet2DConditionModel, info_channels: int) -> None:
    """``info_channels`` filters of zeros beside the 4 of conv_out; nothing where they are there."""
    old, channels = unet.conv_out, LATENT_CHANNELS + info_channels
    if old.out_channels == channels:
        return
    new = nn.Conv2d(old.in_channels, channels, 3, padding=1)
    assert old.bias is not None and new.bias is not None
    for grown, kept in ((new.weight, old.weight), (new.bias, old.bias)):
        grown.zero_()
        grown[: len(kept)].copy_(kept)
    unet.conv_out = new
    unet.register_to_config(out_channels=channels)


# the prompt -----------------------------------------------------------------------------------------------------------


def open_prompt(base: Base, text: str, stored: Sequence[Path]) -> Tensor:
    """The embedding [1,L,D] of ``text``: the first that is stored in one of the folders ``stored`` or in the base, else
    made by the base's text encoder, which is then forgotten."""
    width = base.settings["cross_attention_dim"]
    folders = [folder for folder in (*stored, base.folder) if folder is not None and (folder / PROMPT_FILE).is_file()]
    if folders:
        file = folders[0] / PROMPT_FILE
        found, prompt = read_prompt(folders[0])
        if found != text:
            raise UserError(
                f"{file}: is the prompt {found!r}, cdiff.prompt is {text!r}; set cdiff.prompt to what is stored"
            )
    elif base.folder is None:
        file, prompt = Path(PROMPT_FILE), _generated_prompt(text)
    else:
        file, prompt = base.folder / "text_encoder", embed(base.folder, text)
    if prompt.ndim != 3 or len(prompt) != 1 or prompt.shape[2] != width:
        raise UserError(
            f"{file}: prompt: expected [1, length, {width}] (cross_attention_dim), found {list(prompt.shape)}"
        )
    return prompt


def read_prompt(folder: Path) -> tuple[str, Tensor]:
    """Text and embedding of a model folder."""
    file = folder / PROMPT_FILE
    try:
        with safetensors.safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get("prompt", "")
            return text, opened.get_tensor("prompt_embeds").float()
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file}: not a stored prompt: {error}") from None


def prompt_bytes(text: str, prompt: Tensor) -> bytes:
    """The content of ``PROMPT_FILE``."""
    return safetensors.torch.save({"prompt_embeds": prompt.detach().cpu().contiguous()}, {"prompt": text})


@torch.no_grad()
def embed(folder: Path, text: str) -> Tensor:
    """text_encoder(tokens)[0], not padded to 77: [1,L,D] in float32. The only place that needs transformers."""
    if missing := [name for name in ("tokenizer", "text_encoder") if not (folder / name).is_dir()]:
        raise UserError(f"{folder}: no {' and no '.join(missing)} in it, and no stored {PROMPT_FILE} to use instead")
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its text encoder does not load: {error}") from None
    ids = tokenizer(text, padding="do_not_pad", truncation=True, return_tensors="pt").input_ids
    return encoder.float().eval()(ids)[0].clone()


def _generated_prompt(text: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
    return torch.randn(1, 8, tiny.TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))


# the space ------------------------------------------------------------------------------------------------------------


class ThreeBands(NamedTuple):
    """How the bands of a normalised SAR image become the three channels that the codec reads."""

    rule: Rule
    bands: tuple[str, ...]
    limits: tuple[tuple[float, float], ...] = ()  # dB at -1 and 1 per band; for ``ratio``

    @classmethod
    def choose(cls, bands: Sequence[str], ratio: bool, limits: Sequence[tuple[float, float]] = ()) -> "ThreeBands":
        """The rule for these bands; UserError where there is none."""
        names = tuple(bands)
        if ratio:
            if {*names} != {"VV", "VH"} or len(limits) != 2:
                raise UserError(
                    "cdiff.channels=ratio: needs data.sar.bands [VV, VH] in dB with norm minmax, got the bands "
                    f"{list(names)}; use cdiff.channels=auto"
                )
            return cls("ratio", names, tuple(limits))
        if len(names) in (1, 3):
            return cls("one" if len(names) == 1 else "three", names)
        if {*names} in ({"VV", "VH"}, {"HH", "HV"}):
            return cls("dual", names)
        if {*names} == {"HH", "HV", "VH", "VV"}:
            return cls("quad", names)
        raise UserError(
            f"data.sar.bands={list(names)}: a latent model reads one band, three, [VV, VH], [HH, HV] or "
            "[HH, HV, VH, VV]"
        )

    def __call__(self, sar: Tensor) -> Tensor:
        """[B,b,H,W] -> [B,3,H,W], both in [-1, 1]: co-polarised, cross-polarised, co-polarised where there are both."""
        if self.rule in ("one", "three"):
            return sar.expand(-1, 3, -1, -1)
        band = {name: sar[:, i] for i, name in enumerate(self.bands)}
        if self.rule == "quad":
            return torch.stack([band["HH"], (band["HV"] + band["VH"]) / 2, band["VV"]], dim=1)
        co, cross = (band["VV"], band["VH"]) if "VV" in band else (band["HH"], band["HV"])
        return torch.stack([co, cross, self._ratio(sar) if self.rule == "ratio" else co], dim=1)

    def _ratio(self, sar: Tensor) -> Tensor:
        """VV - VH in dB, clipped to ``DIFFERENCE``, as [-1, 1]; of values that are themselves clipped."""
        low, high = (torch.tensor(side, device=sar.device)[:, None, None] for side in zip(*self.limits, strict=True))
        decibel = dict(zip(self.bands, ((sar + 1) / 2 * (high - low) + low).unbind(1), strict=True))
        low_dif, high_dif = DIFFERENCE
        return 2 * ((decibel["VV"] - decibel["VH"]).clamp(low_dif, high_dif) - low_dif) / (high_dif - low_dif) - 1


class LatentSpace(nn.Module):
    """The latents of a frozen codec. A ``Space``: see ``space.py``."""

    channels, bounded = LATENT_CHANNELS, False
    prompt: Tensor

    def __init__(self, vae: AutoencoderKL, prompt: Tensor, three: ThreeBands, half_decoder: bool = False):
        super().__init__()
        self.vae, self.three, self.half_decoder = vae, three, half_decoder
        self.scale = float(vae.config["scaling_factor"])
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.register_buffer("prompt", prompt)

    def multiple(self, unet: Any) -> int:
        """The codec's factor: the U-Net itself takes latents of any size."""
        return self.factor

    def condition(self, sar: Tensor) -> Tensor:
        return self.latent(self.three(sar))

    def encode(self, sar: Tensor, opt: Tensor) -> tuple[Tensor, Tensor]:
        return self.condition(sar), self.latent(opt)

    @torch.no_grad()
    def latent(self, x: Tensor) -> Tensor:
        """[B,3,H,W] in [-1, 1] -> [B,4,H/8,W/8], in float32 whatever surrounds it."""
        with torch.autocast(x.device.type, enabled=False):
            return self.vae.encode(x.float(), return_dict=False)[0].mode() * self.scale  # pyright: ignore

    def outputs(self, unet: nn.Module, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """[B,4+k,h,w] in float32 or better: the prediction, and k channels about its error."""
        words = self.prompt.expand(len(x_t), -1, -1)
        out = unet(torch.cat([cond, x_t], dim=1), t, encoder_hidden_states=words).sample
        return out.to(torch.promote_types(out.dtype, torch.float32))  # autocast may have given 16 bits

    def predict(self, unet: nn.Module, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.outputs(unet, x_t, t, cond)[:, :LATENT_CHANNELS]

    def decode(self, x0: Tensor) -> Tensor:
        return self.image(x0).clamp(-1, 1)

    @torch.no_grad()
    def image(self, z: Tensor) -> Tensor:
        """The picture of a latent, not clamped; in float32, or bfloat16 if ``half_decoder``."""
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.half_decoder):
            return self.vae.decode(z / self.scale, return_dict=False)[0].float()  # pyright: ignore
