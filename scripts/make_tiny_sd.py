"""A Stable Diffusion folder with random weights, 4 MB, to try and to test latent diffusion with.

python scripts/make_tiny_sd.py runs/tiny-sd [--seed 0]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where the package is not installed

from sar2opt import config  # noqa: E402
from sar2opt.config import UserError  # noqa: E402
from sar2opt.models import tiny  # noqa: E402


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", metavar="OUT", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.folder.exists() and (not args.folder.is_dir() or any(args.folder.iterdir())):
        raise UserError(f"{args.folder}: exists and is not empty; choose another folder")
    tiny.write(args.folder, args.seed)
    print(f"{args.folder}: a tiny Stable Diffusion with random weights")


if __name__ == "__main__":
    config.command_line(main)
