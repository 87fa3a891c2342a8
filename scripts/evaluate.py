"""Measure a folder of outputs against the truth: every number with its recipe.

    python scripts/evaluate.py --pred out/ --target opt/ [--sar sar/] [--out DIR] [--metrics psnr,swd] [--baselines]
    python scripts/evaluate.py --pred out/ --manifest manifests/sen12 --split test
    torchrun --nproc-per-node 4 scripts/evaluate.py ...        (the same numbers, sooner)

Pairs by relative path without suffix; nothing is resized. Writes metrics.json, per_image.csv and report.html.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where the package is not installed

from sar2opt import config, evaluation, recipes, report, translate, vaebound  # noqa: E402
from sar2opt.config import UserError  # noqa: E402
from sar2opt.evaluation import Request  # noqa: E402


def main(argv: list[str]) -> None:
    request = _request(argv)
    results = evaluation.evaluate(request)
    if results is None:  # not the main process
        return
    print(evaluation.summary(results.content))
    report.evaluation_page(request.out, request.pred, results.target, results.sar, results.curves)
    print(f"written: {request.out / 'report.html'}, metrics.json, per_image.csv")


def _request(argv: list[str]) -> Request:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--pred", type=Path, help="outputs, 8-bit RGB or grey")
    add("--target", type=Path, help="the truth; default: the manifest's")
    add("--sar", type=Path, help="SAR input; default: the manifest's")
    add("--manifest", type=Path, help="which images count, their scenes (for intervals), and training pairs")
    add("--split", default="test", help="of the manifest, and of published values")
    add("--set", help="name of the data set in published.json, such as SAR2Opt: its rows join the report")
    add("--model", type=Path, help="what SAR values that are not 8-bit mean: the folder of the model that saw them")
    add("--out", type=Path, help="default: PRED-evaluation, beside PRED")
    add("--metrics", type=_names, default=(), metavar="A,B", help="only these")
    add("--require", type=_names, default=(), metavar="A,B", help="exit 2 where one of these cannot be computed")
    add("--legacy", choices=["cdiffset"], help="the convention of that paper's tables instead")
    add("--baselines", action="store_true", help="also score trivial outputs")
    add("--train-sar", type=Path, help="training SAR for --baselines; default: the manifest's")
    add("--train-target", type=Path, help="training targets for --baselines; default: the manifest's")
    add("--vae-bound", action="store_true", help="score decode(encode(target)) of --base instead of --pred")
    add("--base", type=Path, help="model folder with a vae/, for --vae-bound")
    add("--crop", choices=["center"], help="cut larger targets to the size of the outputs")
    add("--allow-missing", action="store_true", help="score the images that all folders have")
    add("--force", action="store_true", help=f"FID below {recipes.FID_SMALLEST} images too")
    add("--weights-dir", type=Path, help="default: SAR2OPT_WEIGHTS, else ~/.cache/sar2opt/weights")
    add("--batch-size", type=_positive, default=16, help="of the networks; changes no number")
    add("--workers", type=_positive, default=0, help="processes for the other metrics; default: one per core")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    args = vars(parser.parse_args(argv))
    device, base, bound = translate.device(args.pop("device")), args.pop("base"), args.pop("vae_bound")
    named, suffix = (args["target"], "vae-bound") if bound else (args["pred"], "evaluation")
    if named is None or bound == (args["pred"] is not None):
        raise UserError("expected either --pred DIR, or --vae-bound --base BASE --target DIR")
    args["out"] = args["out"] or named.with_name(f"{named.resolve().name}-{suffix}")
    if bound:
        args["pred"] = args["out"] / "images"
        vaebound.write(base, args["target"], args["pred"], device)
    return Request(**args | {"crop": args["crop"] is not None, "device": device})


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    config.command_line(main)
