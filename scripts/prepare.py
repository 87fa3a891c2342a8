"""A data set becomes a manifest: pairs found by name, every file looked at, splits and statistics fixed.

    python scripts/prepare.py --layout sen12 --root /data/SEN12 --out manifests/sen12 [--verify full] [--dry-run]
    python scripts/prepare.py --layout folders --root mine --scene-regex '^(\\d+)_' --out manifests/mine
    python scripts/prepare.py --layout sar2opt --root /data/sar2opt --split official_guarded --out manifests/sar2opt
    python scripts/prepare.py --layout qxs --root /data/QXSLAB_SAROPT --split file:LISTS --out manifests/qxs
    python scripts/prepare.py --layout spacenet6 --root /data/SN6 --orientations FILE --out manifests/spacenet6
    python scripts/prepare.py --layout sen12ms --root /data/SEN12MS --split official --out manifests/sen12ms

What the pixels are is known for each layout but folders and csv. LISTS is a folder with train*.txt and test*.txt.
Training then takes data.manifest=manifests/NAME. All that is wrong with the files is said at once, and nothing is
written unless all of it is right. The files of the manifest repeat to the last byte, for any number of workers.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where the package is not installed

from sar2opt import config  # noqa: E402
from sar2opt.config import UserError  # noqa: E402
from sar2opt.data import DataConfig, manifest, pairs, scan  # noqa: E402
from sar2opt.data.layouts import LAYOUTS  # noqa: E402

A = TypeVar("A")
B = TypeVar("B")


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    cfg = data_config(args)
    manifest.require_free(args.out)
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:  # spawn: GDAL does not survive a fork
        found = scan.scan(cfg, None, hashing=True, mapper=partial(mapped, pool))
    print(pairs.wrapped([*pairs.warning_lines(found.warnings), *table(cfg, found)]))
    if args.dry_run:
        print("dry run: nothing written")
    else:
        manifest.write(found.manifest, args.out)
        print(pairs.wrapped([f"written: {args.out}; train with data.root={cfg.root} data.manifest={args.out}"]))


def mapped(pool: Any, work: Callable[[A], B], items: Iterable[A]) -> Iterable[B]:
    """``map`` by processes, in order, with a bar."""
    listed = list(items)
    chunk = max(1, min(64, len(listed) // 64))
    return tqdm(pool.imap(work, listed, chunk), total=len(listed), disable=not sys.stderr.isatty(), leave=False)


def table(cfg: DataConfig, found: scan.Scan) -> list[str]:
    """Counts, scenes, sizes, types and statistics."""
    lines = pairs.table_lines(cfg, found.manifest)
    for name in ("train", "val", "test", "unused"):
        rows = found.manifest.of(name)
        lines.append(f"{name:8}{len(rows):9,} pairs  {len(rows) / len(found.manifest.rows):6.1%}")
    lines += [f"skipped: {count} files, {kind}" for kind, count in sorted(found.skipped.items())]
    return [*lines, *pairs.statistics_lines(cfg, found.manifest.facts["statistics"])]


def data_config(args: argparse.Namespace) -> DataConfig:
    """The flags as a ``data`` section: it checks them."""
    sar = given(bands=args.sar_bands, scale=args.sar_scale, nodata=args.sar_nodata, floor=args.sar_floor)
    if args.sar_scale not in (None, "uint8") or args.sar_clip:  # clipping is training's; here it is for the table only
        sar |= {"clip": args.sar_clip, "norm": "minmax" if args.sar_clip else "percentile"}
    opt = given(bands=args.opt_bands, scale=args.opt_scale)
    if args.opt_scale:
        opt["clip"] = None if args.opt_scale == "uint8" else [0, 1]  # the clip is training's
    tree = given(
        layout=args.layout, root=str(args.root), sar_dir=args.sar_dir, opt_dir=args.opt_dir,
        scene_regex=args.scene_regex, split=args.split, split_seed=args.seed, guard=args.guard,
        val_fraction=args.val_fraction, test_fraction=args.test_fraction, verify=args.verify,
        orientations=args.orientations and str(args.orientations), allow_outside_root=args.allow_outside_root,
        max_pixels=args.max_pixels, sar=sar, opt=opt,
        csv={"files": [str(file) for file in args.csv], "trust_order": args.trust_order,
             "header": {"true": True, "false": False}.get(args.csv_header, "auto")},
    )  # fmt: skip
    try:
        return DataConfig.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        lines = [".".join(map(str, e["loc"])) + ": " + e["msg"].removeprefix("Value error, ") for e in error.errors()]
        raise UserError("\n".join(line.removeprefix(": ") for line in lines)) from None


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given: a layout's own settings stand for the others."""
    return {name: value for name, value in flags.items() if value is not None}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--layout", choices=("folders", "csv", *LAYOUTS), required=True)
    add("--root", type=Path, required=True)
    add("--out", type=Path, required=True, help="folder for manifest.csv and manifest.json")
    add("--dry-run", action="store_true", help="look and print, write nothing")
    add(
        "--split",
        help="scene, random, geographic, official, official_guarded (sar2opt: without training tiles that "
        "touch the test), file:PATH of a CSV id,split or of a folder of lists (default: scene where scenes are known)",
    )
    add("--seed", type=int, default=0, help="of the split")
    add("--val-fraction", type=float, default=0.1)
    add("--test-fraction", type=float, default=0.1)
    add("--guard", type=float, help="m without use between the splits of a geographic one (default: 450)")
    add("--orientations", type=Path, metavar="FILE", help="SAR_orientations.txt: turns tiles seen from the south")
    add("--verify", choices=("header", "full"), default="full", help="full decodes every file (default)")
    add("--workers", type=int, default=min(os.cpu_count() or 1, 16))
    add("--sar-dir", default="sar", help="layout folders: ROOT/sar")
    add("--opt-dir", default="opt", help="layout folders: ROOT/opt")
    add("--scene-regex", help="its first group, searched in the id, is the scene")
    add("--csv", type=Path, nargs="+", default=[], metavar="FILE", help="layout csv: one table, or two lists")
    add("--csv-header", choices=("auto", "true", "false"), default="auto")
    add("--trust-order", action="store_true", help="two lists whose names do not tell that their rows belong together")
    add("--sar-bands", nargs="+", metavar="BAND", help="default: those of the layout, else VV")
    add("--sar-scale", choices=("uint8", "uint16", "db", "linear", "amplitude"), help="default: the layout's, or uint8")
    add("--sar-clip", type=float, nargs=2, metavar=("LOW", "HIGH"), help="prints how much it keeps; not recorded")
    add("--sar-nodata", type=float, help="pixels with this value in all bands are invalid")
    add("--sar-floor", type=float, help="power below which linear and amplitude are cut (default: 0.001)")
    add("--opt-bands", type=int, nargs=3, metavar="N", help="numbers of red, green and blue in the file, from 1")
    add("--opt-scale", choices=("uint8", "uint16"), help="default: the layout's, or uint8")
    add("--allow-outside-root", action="store_true", help="follow links and paths that leave the root")
    add("--max-pixels", type=int)
    return parser


if __name__ == "__main__":
    config.command_line(main)
