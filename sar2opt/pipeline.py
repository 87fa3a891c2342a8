"""What every training exports and infer.py loads: a diffusers folder plus ``sar2opt.json``, the card.

The output for one image depends on the weights, the image, its id, the seed and the settings, never on its batch.
"""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

import diffusers
import numpy as np
import safetensors.torch
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError
from torch import Tensor

from . import checkpoint, confidence, images
from .config import Section, UserError
from .diffusion import OUR_NAMES
from .draws import Draws
from .models import PIXELS, LatentSpace, Space, latent, load_latent_unet, load_unet
from .models.latent import PROMPT_FILE, Rule, ThreeBands
from .models.unet import CONFIG_FILE, OPT_CHANNELS, WEIGHTS_FILE
from .samplers import AUTO_TRAILING, SAMPLERS, Sampler, Scheduler, max_steps, sample, scheduler_from

INDEX_FILE, CARD_FILE, SCHEDULER_FILE = "model_index.json", "sar2opt.json", "scheduler_config.json"
Picture = Tensor | np.ndarray | Image.Image


class LatentCard(Section):
    """``sar2opt.json`` of a latent model: what lies between the SAR image, the latents and the confidence."""

    base: str
    revision: str | None = None
    prompt: str
    rule: Rule  # from the SAR bands to three channels
    limits: tuple[tuple[float, float], ...] = ()  # dB, for the rule ratio
    loss: confidence.Loss  # says what the channels beside the prediction mean
    var_min: PositiveFloat = confidence.VAR_MIN
    var_max: PositiveFloat = confidence.VAR_MAX
    half_decoder: bool = False
    auto_spacing: bool = True  # trailing up to 8 steps
    hashes: dict[str, str] = {}  # SHA-256 of the tensors of codec and prompt, and of the scheduler's settings


class Confidence(NamedTuple):
    """How sure a network was of each pixel, in the middle of sampling: values [B,H,W], 1/var or, of ``laplace2``, the
    weight of the narrow component in (0, 1); at timestep t, in this step."""

    values: Tensor
    t: int
    step: int
    kind: confidence.Loss


class Card(Section):
    """``sar2opt.json``: what inference must know beside the weights."""

    format: Literal[1] = 1
    method: str  # the entry script: train, lcm, ...
    sar: dict[str, Any]  # SarRadiometry: what the SAR pixel values are, and how they become [-1, 1]
    optical_range: tuple[float, float] = (0.0, 255.0)  # the 8-bit values that -1 and 1 of the output stand for
    resolution: PositiveInt  # of training, px
    sampler: Sampler  # recommended, as are the steps
    steps: PositiveInt
    noise_offset: NonNegativeFloat = 0.0
    start_noise: NonNegativeFloat = 1.0
    guidance: NonNegativeFloat = 1.0
    condition_dropout: NonNegativeFloat = 0.0
    lists: dict[str, str] = {}  # hash of the list of ids per split that the weights have seen
    sar_percentiles: tuple[
        tuple[float, float, float, float], ...
    ] = ()  # per band: p0.1, p1, p99, p99.9 of SAR in [-1, 1]
    latent: LatentCard | None = None  # None: the network works on pixels


class SAR2OptPipeline(DiffusionPipeline):
    """A trained network, its sampler and its card; calling it translates SAR images."""

    model_cpu_offload_seq = "unet"

    def __init__(
        self, unet: UNet2DModel | UNet2DConditionModel, scheduler: Scheduler, card: Card, space: Space = PIXELS
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.card, self.space = card, space

    @property
    def components(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"unet": self.unet, "scheduler": self.scheduler, "card": self.card, "space": self.space}

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As in diffusers; the codec moves along, and keeps its precision."""
        super().to(*args, **kwargs)
        if isinstance(self.space, LatentSpace):
            self.space.to(self.device)
        return self

    @property
    def num_bands(self) -> int:
        """SAR bands that the network reads."""
        return len(self.card.sar["bands"])

    @torch.no_grad()
    def __call__(
        self,
        sar: Picture | Sequence[Picture],
        num_inference_steps: int | None = None,
        seed: int = 0,
        ids: Sequence[str] | None = None,
        sampler: str | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
    ) -> ImagePipelineOutput:
        """Translate SAR images of one size; ``.images`` is a list of PIL images, an array uint8 [B,H,W,3] ("np"), or
        a tensor [B,3,H,W] in [-1, 1] ("pt").

        ``sar``: a tensor [b,H,W] or [B,b,H,W] in [-1, 1]; or an array [H,W] or [b,H,W], or a PIL image, with pixel
        values as the card declares them; or a list of these. The noise of an image is a function of the seed and its
        id; ids are its numbers "0", "1", ... unless given.
        """
        tensors = [tensor for item in _listed(sar) for tensor in self._tensors(item)]
        if len(sizes := {tuple(tensor.shape[1:]) for tensor in tensors}) != 1:
            raise UserError(
                f"one call translates images of one size, got {len(tensors)} images of sizes {sorted(sizes)}"
            )
        batch = torch.stack(tensors)
        names = [str(i) for i in range(len(batch))] if ids is None else [str(i) for i in ids]
        if len(names) != len(batch):
            raise UserError(f"ids: {len(names)} given for {len(batch)} images")
        output = self.translate(batch, Draws(seed, names, self.device), num_inference_steps, sampler).cpu()
        if output_type == "pt":
            return ImagePipelineOutput(images=cast(Any, output))
        arrays = np.stack([images.rgb(picture).numpy() for picture in output])
        if output_type == "np":
            return ImagePipelineOutput(images=arrays)
        if output_type == "pil":
            return ImagePipelineOutput(images=[Image.fromarray(array) for array in arrays])
        raise UserError(f"output_type={output_type!r}: expected 'pil', 'np' or 'pt'")

    def scheduler_for(self, sampler: str | None, steps: int) -> Scheduler:
        """A fresh scheduler: the saved one, or another sampler for the same noise."""
        if sampler is not None and sampler not in SAMPLERS:
            raise UserError(f"sampler {sampler!r}: expected one of {', '.join(SAMPLERS)}")
        if sampler == "lcm" != self.card.sampler:
            raise UserError(f"sampler 'lcm': needs a distilled model, this is one of {self.card.method!r}")
        if sampler in (None, self.card.sampler):
            scheduler = copy.deepcopy(self.scheduler)
        else:
            scheduler = scheduler_from(dict(self.scheduler.config), str(sampler), self.space.bounded)
        if not 1 <= steps <= max_steps(scheduler):
            raise UserError(f"{steps} steps: expected 1 to {max_steps(scheduler)}, as the model was trained")
        total, offset = scheduler.config["num_train_timesteps"], scheduler.config.get("steps_offset", 0)
        beyond = (steps - 1) * (total // steps) + offset >= total  # where leading spacing would begin
        if self.card.latent is not None and self.card.latent.auto_spacing and (steps <= AUTO_TRAILING or beyond):
            scheduler.register_to_config(timestep_spacing="trailing")
        if beyond and scheduler.config.get("timestep_spacing") == "leading":
            raise UserError(f"{steps} steps: the first would lie beyond the {total} of training; take fewer")
        return scheduler

    # diffusers' own has options that write other formats, or to the network
    def save_pretrained(self, folder: str | os.PathLike) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write the model folder; for an atomic one, save under another name and rename it."""
        folder = Path(folder)
        modules = {name: ["diffusers", type(net).__name__] for name, net in self._networks().items()}
        modules["scheduler"] = ["diffusers", type(self.scheduler).__name__]
        for name in modules:
            (folder / name).mkdir(parents=True, exist_ok=True)
        index = {"_class_name": type(self).__name__, "_diffusers_version": diffusers.__version__, **modules}
        for name, net in self._networks().items():
            weights = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
            # safetensors' own writer, and with it diffusers', leaves mode 0600: a group could not read its own model
            checkpoint.write(folder / name / WEIGHTS_FILE, safetensors.torch.save(weights, {"format": "pt"}))
            checkpoint.write(folder / name / CONFIG_FILE, net.to_json_string().encode())
        if isinstance(self.space, LatentSpace) and self.card.latent is not None:
            (folder / PROMPT_FILE).parent.mkdir(exist_ok=True)
            checkpoint.write(folder / PROMPT_FILE, latent.prompt_bytes(self.card.latent.prompt, self.space.prompt))
        checkpoint.write(folder / "scheduler" / SCHEDULER_FILE, self.scheduler.to_json_string().encode())
        checkpoint.write(folder / CARD_FILE, (self.card.model_dump_json(indent=1) + "\n").encode())
        checkpoint.write(folder / INDEX_FILE, (json.dumps(index, indent=1) + "\n").encode())

    # diffusers' own may download, unpickle, and import code by name
    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load a model folder of ours, or of a run: local files, safetensors and JSON only, on the CPU."""
        folder = _model_folder(Path(folder))
        card, scheduler = read_card(folder), _read_scheduler(folder)
        if card.latent is not None:
            unet, space = load_latent_unet(folder / "unet"), read_space(folder, card.latent, tuple(card.sar["bands"]))
            return cls(unet, scheduler, card, space)
        unet = load_unet(folder / "unet")
        if unet.config["in_channels"] - OPT_CHANNELS != len(card.sar["bands"]):
            raise UserError(
                f"{folder}: the network has {unet.config['in_channels']} input channels, 3 + {len(card.sar['bands'])} "
                f"expected for the SAR bands {card.sar['bands']} of {CARD_FILE}"
            )
        return cls(unet, scheduler, card)

    def translate(
        self,
        sar: Tensor,
        draw: Draws,
        steps: int | None = None,
        sampler: str | None = None,
        predict: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """[B,b,H,W] -> [B,3,H,W], both in [-1, 1]: any size, by reflecting up to the network's stride."""
        card, (height, width) = self.card, sar.shape[2:]
        steps = card.steps if steps is None else steps
        output = sample(
            self.unet, self.scheduler_for(sampler, steps), pad(sar.to(self.device), self.space.multiple(self.unet)),
            draw, steps, noise_offset=card.noise_offset, guidance=card.guidance, start_noise=card.start_noise,
            space=self.space, predict=predict,
        )  # fmt: skip
        return output[..., :height, :width]

    @torch.no_grad()
    def confident(
        self, sar: Tensor, draw: Draws, steps: int | None = None, sampler: str | None = None, of_clean: bool = False
    ) -> tuple[Tensor, Confidence]:
        """``translate``, and how sure the network was half-way: of its target, or (``of_clean``) of the clean latent.

        Variances of different timesteps cannot be compared.
        """
        card, space = self.require_confidence()
        said: list[tuple[Tensor, Tensor]] = []

        def predict(unet: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            out = space.outputs(unet, x_t, t, cond)
            said.append((t, out[:, space.channels :]))
            return out[:, : space.channels]

        output, middle = self.translate(sar, draw, steps, sampler, predict), len(said) // 2
        t, info = int(said[middle][0][0]), said[middle][1]
        if card.loss == "laplace2":
            values = confidence.enlarged(confidence.narrow_weight(info), space.factor)
        else:
            var = confidence.variance(info, card.var_min, card.var_max)
            if of_clean:
                name = OUR_NAMES[self.scheduler.config["prediction_type"]]
                var = confidence.clean_variance(var, name, float(self.scheduler.alphas_cumprod[t]))
            values = 1 / confidence.enlarged(var.log(), space.factor).exp()
        height, width = sar.shape[2:]
        return output, Confidence(values[:, 0, :height, :width].cpu(), t, middle, card.loss)

    def require_confidence(self) -> tuple[LatentCard, LatentSpace]:
        """Refuse a model whose network says nothing about its error."""
        card, space = self.card.latent, self.space
        if card is None or not isinstance(space, LatentSpace) or not confidence.INFO_CHANNELS[card.loss]:
            raise UserError(
                f"a model of {self.card.method!r} has no confidence; train one with cdiff_train.py cdiff.loss=beta_nll"
            )
        return card, space

    def _networks(self) -> dict[str, Any]:
        """The networks of the model folder."""
        return {"unet": self.unet} | ({"vae": self.space.vae} if isinstance(self.space, LatentSpace) else {})

    def _tensors(self, item: Picture) -> list[Tensor]:
        """One element of the input as tensors [b,H,W] in [-1, 1]."""
        if not isinstance(item, Tensor):
            return [self._normalised(item)]
        tensors = list(item) if item.ndim == 4 else [item]
        for tensor in tensors:
            if tensor.ndim != 3 or len(tensor) != self.num_bands or not tensor.is_floating_point():
                bands = ", ".join(self.card.sar["bands"])
                raise UserError(
                    f"SAR tensor {tensor.dtype} {list(tensor.shape)}: expected float [{self.num_bands},H,W] in [-1, 1] "
                    f"with the bands {bands}"
                )
            if not tensor.isfinite().all():
                raise UserError(
                    f"SAR tensor {list(tensor.shape)}: {int((~tensor.isfinite()).sum())} values are not finite"
                )
        return [tensor.float() for tensor in tensors]

    def _normalised(self, item: np.ndarray | Image.Image) -> Tensor:
        from .data import SarRadiometry

        pixels = np.asarray(item)
        if isinstance(item, Image.Image) and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 2, 0)
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        if isinstance(item, Image.Image) and self.num_bands == 1 and (pixels == pixels[:1]).all():
            pixels = pixels[:1]  # grey stored as RGB
        if pixels.ndim != 3 or len(pixels) != self.num_bands:
            raise UserError(
                f"SAR pixels {pixels.dtype} {list(pixels.shape)}: expected [{self.num_bands},H,W] with the bands "
                f"{', '.join(self.card.sar['bands'])}"
            )
        return SarRadiometry.from_dict(self.card.sar).normalise(pixels, None)


def pad(x: Tensor, multiple: int) -> Tensor:
    """Reflect [...,H,W] at its lower and right border up to multiples of ``multiple``, however small the image is."""
    rows, columns = (_folded(length, -(-length // multiple) * multiple) for length in x.shape[-2:])
    return x[..., rows[:, None], columns]


def model_hash(folder: Path) -> str:
    """SHA-256 of everything in a model folder that its output depends on."""
    total, folder = hashlib.sha256(), _model_folder(folder)
    names = [CARD_FILE, f"scheduler/{SCHEDULER_FILE}", f"unet/{CONFIG_FILE}", f"unet/{WEIGHTS_FILE}"]
    latents = [f"vae/{CONFIG_FILE}", f"vae/{WEIGHTS_FILE}", PROMPT_FILE]
    for name in [*names, *[name for name in latents if (folder / name).is_file()]]:
        with open(folder / name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def read_space(folder: Path, card: LatentCard, bands: tuple[str, ...]) -> LatentSpace:
    """The latent space of a model folder: its codec, its stored prompt, and its rule for the SAR bands."""
    three = ThreeBands.choose(bands, card.rule == "ratio", card.limits)
    if three.rule != card.rule:
        raise UserError(
            f"{folder / CARD_FILE}: latent.rule: expected {three.rule!r} for the SAR bands {list(bands)}, found "
            f"{card.rule!r}"
        )
    text, prompt = latent.read_prompt(folder)
    if text != card.prompt:
        raise UserError(f"{folder / PROMPT_FILE}: expected the prompt {card.prompt!r} of {CARD_FILE}, found {text!r}")
    return LatentSpace(latent.load_vae(folder), prompt, three, card.half_decoder)


def _folded(length: int, total: int) -> Tensor:
    """0, 1, .., length-1, length-2, .., 1, 0, 1, ..: [total]."""
    period = max(2 * (length - 1), 1)
    i = torch.arange(total) % period
    return torch.minimum(i, period - i)


def _listed(sar: Picture | Sequence[Picture]) -> list[Picture]:
    return [sar] if isinstance(sar, (Tensor, np.ndarray, Image.Image)) else list(sar)


def _model_folder(folder: Path) -> Path:
    """A run folder stands for the model it has exported."""
    return folder / "model" if (folder / "model" / CARD_FILE).is_file() else folder


def read_card(folder: Path) -> Card:
    """``sar2opt.json`` of a model folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder; expected one written by training, such as runs/NAME/model")
    if not (folder / CARD_FILE).is_file():
        found = sorted(path.name for path in folder.iterdir())[:5]
        raise UserError(f"{folder}: not a sar2opt model: expected {CARD_FILE}, found {found}")
    text = (folder / CARD_FILE).read_text()
    try:
        return Card.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{folder / CARD_FILE}: {place}: {first['msg']} (got {first['input']!r:.80})") from None


def _read_scheduler(folder: Path) -> Scheduler:
    file = folder / "scheduler" / SCHEDULER_FILE
    classes = {cls.__name__: cls for cls, _ in SAMPLERS.values()}
    try:
        settings = json.loads(file.read_text())
        return cast(Scheduler, classes[settings["_class_name"]].from_config(settings))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: expected the settings of one of {', '.join(classes)}: {error!r}") from None
