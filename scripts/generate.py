"""Paired scenes without any data: OUT/sar/ID.png (8-bit grey, VV) and OUT/opt/ID.png (RGB), to try things on.

    python scripts/generate.py --out pairs --count 100 [--size 256] [--split test] [--looks 4] [--seed 0]
    python scripts/generate.py --out changed --count 100 --changes 3    # and OUT/mask/ID.png: white where they show

The same pairs as ``data.layout: generated`` makes in training; the three splits have no pair in common.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where the package is not installed

from sar2opt import checkpoint, config, images  # noqa: E402
from sar2opt.config import UserError  # noqa: E402
from sar2opt.data.config import SPLITS  # noqa: E402
from sar2opt.data.generated import GeneratedPairs  # noqa: E402


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder, or one that these pairs are in")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--size", type=int, default=256, help="px (default: 256)")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--looks", type=float, default=4.0, help="fewer looks, more speckle (default: 4)")
    parser.add_argument("--changes", type=int, default=0, help="objects that only one image of a pair shows")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for name, least in (("count", 1), ("size", 8), ("changes", 0), ("seed", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: expected at least {least}")
    if not args.looks > 0:
        raise UserError(f"--looks {args.looks}: expected more than 0")
    pairs = GeneratedPairs(args.split, args.count, args.size, args.seed, args.looks, ("VV",), "uint8", args.changes)
    write(pairs, args.out)


def write(pairs: GeneratedPairs, out: Path) -> None:
    if not pairs.changes and (out / "mask").exists():
        raise UserError(f"--out {out}: its folder mask belongs to pairs with --changes; choose another folder")
    sides = ("sar", "opt", "mask") if pairs.changes else ("sar", "opt")
    for side in sides:
        (out / side).mkdir(parents=True, exist_ok=True)
        if other := sorted({path.stem for path in (out / side).glob("*.png")} - set(pairs.ids)):
            raise UserError(
                f"--out {out / side}: holds {len(other)} other images, such as {other[0]}; choose another folder"
            )
    for i, name in enumerate(tqdm(pairs.ids, unit="pair", disable=not sys.stderr.isatty())):
        sar, opt = pairs.pixels(i)
        checkpoint.put(out / "sar" / f"{name}.png", images.png(Image.fromarray(sar[0])))
        checkpoint.put(out / "opt" / f"{name}.png", images.png(Image.fromarray(opt.transpose(1, 2, 0))))
        if pairs.changes:
            checkpoint.put(out / "mask" / f"{name}.png", images.png(Image.fromarray(pairs.mask(i))))
    print(f"{len(pairs.ids)} pairs of {pairs.size} px in " + ", ".join(f"{out}/{side}" for side in sides))


if __name__ == "__main__":
    config.command_line(main)
