"""Measure a folder of outputs against the truth: every number with its recipe.

    python scripts/evaluate.py --pred out/ --target opt/ [--sar sar/] [--out DIR] [--metrics psnr,swd] [--baselines]
    python scripts/evaluate.py --pred out/ --manifest manifests/sen12 --split test
    python scripts/evaluate.py --model runs/x --manifest manifests/sen12 --steps 1,2,4,8 [--teacher runs/y]
    torchrun --nproc-per-node 4 scripts/evaluate.py ...        (the same numbers, sooner)

Pairs by relative path without suffix; nothing is resized. Writes metrics.json, per_image.csv and report.html. Without
--pred, --model translates the SAR first, once for each number of steps, each in a folder of its own; steps.csv,
steps.png, images.png and report.html then compare them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where the package is not installed

from sar2opt import config, evaluation, recipes, report, translate, vaebound  # noqa: E402
from sar2opt.config import UserError, natural, positive  # noqa: E402
from sar2opt.evaluation import Request  # noqa: E402

OUTPUTS = ("baselines", "allow_missing", "crop")  # options that speak of given outputs
TRANSLATION = ("steps", "sampler", "seed", "limit", "resolution", "teacher", "teacher_steps")  # and of outputs to make


def main(argv: list[str]) -> None:
    args = vars(_parser().parse_args(argv))
    args |= {"crop": args["crop"] is not None, "device": translate.device(args["device"])}
    plan = {key: value for key in TRANSLATION if (value := args.pop(key)) is not None}
    made = args["model"] is not None and args["pred"] is None and not args["vae_bound"]
    resolution = plan.pop("resolution", 0) if args["vae_bound"] else 0
    if wrong := [key for key in OUTPUTS if args[key]] if made else [*plan]:
        flags = ", ".join("--" + key.replace("_", "-") for key in wrong)
        raise UserError(f"{flags}: only " + ("with --pred" if made else "without --pred, for outputs of --model"))
    if made:
        return _sweep(args, plan)
    request = _request(args, resolution)
    if results := evaluation.evaluate(request):  # None but in the main process
        print(evaluation.summary(results))
        report.evaluation_page(request.out)
        print(f"written: {request.out / 'report.html'}, metrics.json, per_image.csv")


def _sweep(args: dict[str, Any], plan: dict[str, Any]) -> None:
    from sar2opt import sweep  # with diffusers, which takes seconds

    for key in ("base", "vae_bound"):
        del args[key]
    args["out"] = args["pred"] = args["out"] or _beside(args["model"], "steps")
    if rows := sweep.sweep(sweep.Plan(Request(**args), **plan)):
        print(sweep.summary(rows))
        print(f"written: {args['out'] / 'report.html'}, steps.csv, steps.png, images.png")


def _request(args: dict[str, Any], resolution: int) -> Request:
    base, bound = args.pop("base"), args.pop("vae_bound")
    named, suffix = (args["target"], "vae-bound") if bound else (args["pred"], "evaluation")
    if named is None or bound == (args["pred"] is not None):
        raise UserError("expected either --pred DIR, or --vae-bound --base BASE --target DIR")
    args["out"] = args["out"] or _beside(named, suffix)
    if bound:
        args["pred"] = args["out"] / "images"
        args["crop"] = args["crop"] or resolution > 0
        vaebound.write(base, args["target"], args["pred"], args["device"], resolution)
    return Request(**args)


def _beside(folder: Path, suffix: str) -> Path:
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}-{suffix}")


def _parser() -> argparse.ArgumentParser:
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
    add("--model", type=Path, help="makes the outputs; with --pred: says what SAR values that are not 8-bit mean")
    add("--steps", type=_counts, metavar="1,2,4", help="of the sampler; default: what the model recommends")
    add("--sampler", help="default: what the model recommends")
    add("--seed", type=natural)
    add("--limit", type=positive, help="translate this many images, evenly spaced")
    add("--resolution", type=natural, help="px of the centre to translate, or of --vae-bound; 0: whole images")
    add("--teacher", type=Path, help="also the rows of this model, --teacher-steps")
    add("--teacher-steps", type=_samplers, metavar="ddim:50,ddim:4")
    add("--out", type=Path, help="default: PRED-evaluation, beside PRED; MODEL-steps, beside MODEL")
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
    add("--batch-size", type=positive, default=16, help="of the networks; changes no number")
    add("--workers", type=positive, default=0, help="processes for the other metrics; default: one per core")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(positive(part) for part in text.split(",")))


def _samplers(text: str) -> tuple[tuple[str, int], ...]:
    pairs = [part.strip().partition(":") for part in text.split(",")]
    return tuple((name, positive(count)) for name, _, count in pairs)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    config.command_line(main)
