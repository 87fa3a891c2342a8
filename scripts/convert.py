"""Published weights of other code become a model folder for infer.py; what had to be assumed is printed.

    python scripts/convert.py acd --input checkpoint-25001-lcm-adv --output models/acd
    python scripts/convert.py guided --input ema_0.9999_050000.pt --output models/guided [--heads 4] [--steps 2000]
    python scripts/convert.py cdiffset --input model.safetensors --base SD_FOLDER --output models/cdiffset

acd:    Coordi777/Accelerating-Diffusion-for-SAR-to-Optical-Image-Translation, safetensors as Accelerate or diffusers
        saved them: a checkpoint folder, the folder of its average (checkpoint_ema-N), or one file.
guided: Coordi777/Conditional-Diffusion-for-SAR-to-Optical-Image-Translation, a state dict of guided-diffusion.
cdiffset: KAIST-VICLab/C-DiffSET, the U-Net of either stage, one safetensors file; the Stable Diffusion that it was
        trained from gives the rest. SpaceNet 6 weights need --bands HH HV VH VV.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where the package is not installed

from sar2opt import cdiff, config, convert  # noqa: E402
from sar2opt.config import positive  # noqa: E402
from sar2opt.convert import Converted  # noqa: E402
from sar2opt.diffusion import BETAS, DIFFUSERS_NAMES, NoiseConfig  # noqa: E402


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, (add_options, _) in KINDS.items():
        own = kinds.add_parser(name, allow_abbrev=False)
        own.add_argument("--input", type=Path, required=True)
        own.add_argument("--output", type=Path, required=True, help="the model folder; must not exist")
        own.add_argument("--bands", nargs="+", metavar="NAME", help="of the SAR; default VV, or R G B where it is RGB")
        own.add_argument("--resolution", type=positive, default=256, help="of training, px")
        add_options(own)
    args = parser.parse_args(argv)
    convert.require_new(args.output)
    made = KINDS[args.kind][1](args)
    convert.write(made, args.output)
    print("\n".join([*made.notes, f"written to {args.output}"]))


def acd_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2, help="1: diffusion; 2: distilled (default)")
    parser.add_argument("--schedule", choices=sorted(BETAS), default="scaled_linear", help="of the training noise")
    parser.add_argument("--prediction", choices=sorted(DIFFUSERS_NAMES), default="epsilon")


def acd(args: argparse.Namespace) -> Converted:
    noise = NoiseConfig(schedule=args.schedule, prediction=args.prediction, zero_terminal_snr=False)
    return convert.acd(args.input, args.stage, noise, args.bands, args.resolution)


def guided_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--heads", type=positive, default=4, help="num_heads of its training")
    parser.add_argument("--steps", type=positive, default=2000, help="diffusion_steps of its training")
    parser.add_argument("--xstart", action="store_true", help="trained with predict_xstart")
    parser.add_argument("--keep-rgb", action="store_true", help="leave SAR that was read as RGB three bands")


def guided(args: argparse.Namespace) -> Converted:
    return convert.guided(args.input, args.heads, args.steps, args.xstart, args.keep_rgb, args.bands, args.resolution)


def cdiffset_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default=cdiff.BASE, help="folder, or name on the hub (default: %(default)s)")
    parser.add_argument("--revision", help="of a name on the hub; default: the authors' for the default base")
    parser.add_argument("--prompt", default=cdiff.CDiffConfig().prompt, help="of its training (default: %(default)s)")


def cdiffset(args: argparse.Namespace) -> Converted:
    own = cdiff.CDiffConfig(base=args.base, revision=args.revision, prompt=args.prompt)
    return convert.cdiffset(args.input, own, args.bands, args.resolution)


KINDS = {
    "acd": (acd_options, acd),
    "guided": (guided_options, guided),
    "cdiffset": (cdiffset_options, cdiffset),
}


if __name__ == "__main__":
    config.command_line(main)
