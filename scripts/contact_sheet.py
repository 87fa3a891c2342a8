"""SAR | outputs | target on one sheet, and PSNR and SSIM of every output beside those of the mean image.

    python scripts/contact_sheet.py --sar sar/ --target opt/ --pred diffusion=out/ [--pred regression=out2/] \\
        [--train-target train_opt/] [--rows 8] --out sheet.png

Pairs by stem, on the written 8-bit pictures. ``--train-target`` names optical training images: their mean image and
their mean colour are the baselines that every model has to beat.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where the package is not installed

from sar2opt import checkpoint, config, images, metrics  # noqa: E402
from sar2opt.config import UserError  # noqa: E402
from sar2opt.validation import spread  # noqa: E402

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
Files = dict[str, Path]  # relative path without suffix -> file


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sar", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--pred", action="append", required=True, metavar="NAME=DIR", help="may be repeated")
    parser.add_argument("--train-target", type=Path, help="optical images of the training set")
    parser.add_argument("--rows", type=int, default=8, help="images on the sheet")
    parser.add_argument("--out", type=Path, required=True, help="PNG; the figures go beside it as JSON")
    args = parser.parse_args(argv)
    targets, sar = find(args.target), find(args.sar)
    outputs = {name: find(Path(folder)) for name, _, folder in (item.partition("=") for item in args.pred)}
    for name, files in {"SAR": sar, **outputs}.items():
        require_same(name, files, targets)
    table = {name: score(targets, {i: read(path) for i, path in files.items()}) for name, files in outputs.items()}
    if args.train_target:
        mean = mean_image(list(find(args.train_target).values()))
        flat = np.broadcast_to(mean.mean((0, 1)), mean.shape)
        for name, image in {"mean image": mean, "mean colour": flat}.items():
            pixels = np.rint(image).astype(np.uint8)
            table[name] = score(targets, {i: pixels for i in targets})
    columns = {"SAR": sar, **outputs, "target": targets}
    write(args.out, columns, [sorted(targets)[i] for i in spread(len(targets), args.rows)], table, len(targets))


def find(folder: Path) -> Files:
    """Every picture below ``folder`` by its relative path without suffix."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(f"{folder}: no pictures ({', '.join(sorted(SUFFIXES))}) in it")
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in files}


def require_same(name: str, files: Files, targets: Files) -> None:
    """Every target has its partner, and nothing is left over."""
    for what, ids in (("lacks", targets.keys() - files.keys()), ("has besides", files.keys() - targets.keys())):
        if ids:
            first = ", ".join(sorted(ids)[:5])
            raise UserError(f"{name}: {len(files)} images for {len(targets)} targets; it {what} {len(ids)}: {first}")


def read(path: Path) -> np.ndarray:
    """uint8 RGB [H,W,3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def score(targets: Files, outputs: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM over images."""
    rows = []
    for i in tqdm(sorted(targets), leave=False, disable=not sys.stderr.isatty()):
        target = read(targets[i])
        if target.shape != outputs[i].shape:
            raise UserError(f"{i}: the target has {target.shape[:2]} px, the output {outputs[i].shape[:2]} px")
        rows.append((metrics.psnr(target, outputs[i]), metrics.ssim(target, outputs[i])))
    return {"psnr": float(np.mean([r[0] for r in rows])), "ssim": float(np.mean([r[1] for r in rows]))}


def mean_image(files: list[Path]) -> np.ndarray:
    """Mean over images, float64 [H,W,3]."""
    total = np.zeros(read(files[0]).shape)
    for path in files:
        total += read(path)
    return total / len(files)


def write(out: Path, columns: dict[str, Files], ids: list[str], table: dict[str, dict[str, float]], n: int) -> None:
    tensors = {
        name: torch.stack([torch.from_numpy(read(files[i]).copy()).permute(2, 0, 1) / 127.5 - 1 for i in ids])
        for name, files in columns.items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.put(out, images.png(images.contact_sheet(tensors, ids)))
    figures = out.with_suffix(".json")
    checkpoint.put(figures, json.dumps({"n": n, "figures": table}, indent=1).encode())
    print(f"{'n = ' + str(n):24}  PSNR dB    SSIM")
    for name, row in table.items():
        print(f"{name:24}  {row['psnr']:7.3f}  {row['ssim']:6.4f}")
    print(f"sheet: {out}   figures: {figures}")


if __name__ == "__main__":
    config.command_line(main)
