"""Networks that judge images: LPIPS and Inception features. Their weights are files that a person fetched before.

Nothing here downloads, and nothing is loaded whose SHA-256 is not the one pinned in ``WEIGHTS``.
"""

import hashlib
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import UserError

INCEPTION_SIDE = 299  # px
SMALLEST = {"lpips_alex": 31, "lpips_vgg": 16, "lpips_vgg_cdiffset": 16}  # px: below, nothing is left after the pools


class Weights(NamedTuple):
    """One file, the metrics that need it, and the names under which it is known; the first is that of the download."""

    files: tuple[str, ...]
    metrics: tuple[str, ...]
    url: str
    sha256: str


WEIGHTS = {
    "alexnet": Weights(
        ("alexnet-owt-7be5be79.pth",),
        ("lpips_alex",),
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    "vgg16": Weights(
        ("vgg16-397923af.pth",),
        ("lpips_vgg", "lpips_vgg_cdiffset"),
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "inception": Weights(
        ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
        ("fid", "kid", "fid_torch_fidelity", "fid_clean", "fid_cdiffset"),
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
}
# the calibrated heads, files of the lpips package itself
HEADS = {
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}


class Missing(NamedTuple):
    """Why a metric is skipped, and the one command that would change it."""

    reason: str
    expected: str
    sha256: str
    command: str


def weights_dir(chosen: Path | None = None) -> Path:
    """``chosen``, else SAR2OPT_WEIGHTS, else the user's cache."""
    if chosen is not None:
        return chosen
    if named := os.environ.get("SAR2OPT_WEIGHTS"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sar2opt" / "weights"


def needed_by(metric: str) -> str | None:
    """The key of ``WEIGHTS`` that ``metric`` needs."""
    return next((key for key, weights in WEIGHTS.items() if metric in weights.metrics), None)


def locate(key: str, folder: Path) -> Path | Missing:
    """The file of ``WEIGHTS[key]`` in ``folder``, if it is there and has the pinned hash."""
    weights = WEIGHTS[key]
    expected = folder / weights.files[0]
    where = "" if folder == weights_dir() else f" --weights-dir {folder}"
    command = f"python scripts/weights.py --fetch {weights.metrics[0]}{where}"
    path = next((folder / name for name in weights.files if (folder / name).is_file()), None)
    if path is None:
        return Missing("weights not found", str(expected), weights.sha256, command)
    if (found := file_hash(path)) != weights.sha256:
        reason = f"weights of {path.name} have SHA-256 {found[:16]}..., expected {weights.sha256[:16]}..."
        return Missing(reason, str(path), weights.sha256, command)
    return path


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file whose hash is known; nothing in it can run code."""
    return torch.load(path, map_location="cpu", weights_only=True)


# LPIPS ----------------------------------------------------------------------------------------------------------------


def lpips_net(net: str, state: dict[str, Tensor]) -> nn.Module:
    """LPIPS v0.1 with the convolutions of a torchvision ``state`` in module order; ``net``: alex or vgg."""
    import lpips

    head = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    if (found := file_hash(head)) != HEADS[net]:
        raise UserError(f"{head}: SHA-256 {found[:16]}..., expected {HEADS[net][:16]}...; install lpips again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about the argument that lpips passes
        made = lpips.LPIPS(net=net, version="0.1", pretrained=True, pnet_rand=True, verbose=False)
    convs = [module for module in made.net.modules() if isinstance(module, nn.Conv2d)]
    names = sorted((k for k in state if k.startswith("features.") and k.endswith(".weight")), key=_position)
    for conv, name in zip(convs, names, strict=True):
        conv.load_state_dict({"weight": state[name], "bias": state[name.replace(".weight", ".bias")]})
    return made.eval().requires_grad_(False)


def _position(name: str) -> int:
    return int(name.split(".")[1])


def lpips_input(images: Tensor) -> Tensor:
    """uint8 [B,3,H,W] -> x/127.5 - 1. With [0, 1] LPIPS would be about .05 too low, without a warning."""
    return images.float() / 127.5 - 1


def lpips_input_cdiffset(images: Tensor) -> Tensor:
    """uint8 [B,3,H,W] -> clip(x/127.5 - 1/2, 0, 1), as that paper's tables have it."""
    return (images.float() / 127.5 - 1 + 0.5).clamp(0, 1)


# Inception ------------------------------------------------------------------------------------------------------------


def inception(state: dict[str, Tensor]) -> nn.Module:
    """pool3 features of the network of pytorch-fid and torch-fidelity: [B,3,299,299] in [-1, 1] -> [B,2048]."""
    from torch_fidelity import feature_extractor_inceptionv3 as blocks

    made = nn.Sequential(
        OrderedDict[str, nn.Module](
            Conv2d_1a_3x3=blocks.BasicConv2d(3, 32, kernel_size=3, stride=2),
            Conv2d_2a_3x3=blocks.BasicConv2d(32, 32, kernel_size=3),
            Conv2d_2b_3x3=blocks.BasicConv2d(32, 64, kernel_size=3, padding=1),
            MaxPool_1=nn.MaxPool2d(kernel_size=3, stride=2),
            Conv2d_3b_1x1=blocks.BasicConv2d(64, 80, kernel_size=1),
            Conv2d_4a_3x3=blocks.BasicConv2d(80, 192, kernel_size=3),
            MaxPool_2=nn.MaxPool2d(kernel_size=3, stride=2),
            Mixed_5b=blocks.InceptionA(192, pool_features=32),
            Mixed_5c=blocks.InceptionA(256, pool_features=64),
            Mixed_5d=blocks.InceptionA(288, pool_features=64),
            Mixed_6a=blocks.InceptionB(288),
            Mixed_6b=blocks.InceptionC(768, channels_7x7=128),
            Mixed_6c=blocks.InceptionC(768, channels_7x7=160),
            Mixed_6d=blocks.InceptionC(768, channels_7x7=160),
            Mixed_6e=blocks.InceptionC(768, channels_7x7=192),
            Mixed_7a=blocks.InceptionD(768),
            Mixed_7b=blocks.InceptionE_1(1280),
            Mixed_7c=blocks.InceptionE_2(2048),
            AvgPool=nn.AdaptiveAvgPool2d((1, 1)),
            flat=nn.Flatten(),
        )
    )
    made.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
    return made.eval().requires_grad_(False)


def inception_input(images: Tensor) -> Tensor:
    """uint8 [B,3,H,W] -> [B,3,299,299] as pytorch-fid: x/255, bilinear without antialiasing, 2x - 1."""
    side = (INCEPTION_SIDE, INCEPTION_SIDE)
    return 2 * F.interpolate(images.float() / 255, side, mode="bilinear", align_corners=False) - 1


def inception_input_torch_fidelity(images: Tensor) -> Tensor:
    """As torch-fidelity: TensorFlow 1's bilinear resize, (x - 128)/128."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

    return (resize(images.float(), (INCEPTION_SIDE, INCEPTION_SIDE), align_corners=False) - 128) / 128


def inception_input_clean(images: Tensor) -> Tensor:
    """As clean-fid: Pillow's antialiased bicubic resize of every channel in float, (clip(x, 0, 255) - 128)/128."""
    from PIL import Image

    def resized(channel: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(channel.astype(np.float32))
        return np.asarray(picture.resize((INCEPTION_SIDE, INCEPTION_SIDE), Image.Resampling.BICUBIC)).clip(0, 255)

    stack = np.stack([[resized(channel) for channel in image] for image in images.cpu().numpy()])
    return (torch.from_numpy(stack).to(images.device) - 128) / 128


# All of them ----------------------------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """A network and what it is fed; ``net`` is alex, vgg or inception."""

    net: str
    prepare: Callable[[Tensor], Tensor]


PERCEPTUAL = {
    "lpips_alex": Recipe("alex", lpips_input),
    "lpips_vgg": Recipe("vgg", lpips_input),
    "lpips_vgg_cdiffset": Recipe("vgg", lpips_input_cdiffset),
}
FEATURE = {
    "inception": Recipe("inception", inception_input),
    "inception_torch_fidelity": Recipe("inception", inception_input_torch_fidelity),
    "inception_clean": Recipe("inception", inception_input_clean),
}


class Judges:
    """The networks of the wanted metrics on one device; ``wanted`` has keys of ``PERCEPTUAL`` and ``FEATURE``."""

    def __init__(self, wanted: Iterable[str], paths: dict[str, Path], device: torch.device):
        self.wanted, self.device, self.nets = set(wanted), device, dict[str, Any]()
        for net in {(PERCEPTUAL | FEATURE)[key].net for key in self.wanted}:
            state = load_state(paths[{"alex": "alexnet", "vgg": "vgg16"}.get(net, net)])
            self.nets[net] = (inception(state) if net == "inception" else lpips_net(net, state)).to(device)

    def distances(self, target: np.ndarray, output: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 [B,H,W,3] -> every wanted LPIPS, float64 [B]."""
        a, b = self._tensor(target), self._tensor(output)
        return {
            key: self._run(
                lambda x, y, net=self.nets[recipe.net]: net(x, y), recipe.prepare(a), recipe.prepare(b)
            ).ravel()
            for key, recipe in PERCEPTUAL.items()
            if key in self.wanted
        }

    def features(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 [B,H,W,3] -> every wanted kind of features, float32 [B,2048]."""
        x = self._tensor(images)
        found = {key: recipe for key, recipe in FEATURE.items() if key in self.wanted}
        return {key: self._run(self.nets[r.net], r.prepare(x)).astype(np.float32) for key, r in found.items()}

    def _tensor(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _run(self, net: Callable[..., Tensor], *inputs: Tensor) -> np.ndarray:
        # TF32 would keep 10 bits of every product
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return net(*inputs).double().cpu().numpy()
