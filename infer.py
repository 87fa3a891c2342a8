"""Translate SAR images with a trained model.

    python infer.py --model runs/x --input sar/ --output out/ [--steps 20 --sampler dpmpp] [--batch-size 8] [--grid]

Writes one PNG per image under the same relative name. Each depends on the model, the file, its relative name, the
settings and the seed alone: not on the batch, the order or the number of processes. Finished outputs are kept, a bad
file does not stop the others, and torchrun shares the files among its processes. With --confidence, a model that knows
how sure it is (cdiff_train.py, stage 2) writes NAME_confidence.tif and .png too.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sar2opt import config, heatmap, images, translate
from sar2opt.config import UserError, natural, positive
from sar2opt.data import SarRadiometry
from sar2opt.draws import Draws
from sar2opt.pipeline import SAR2OptPipeline, model_hash
from sar2opt.progress import clock

PROBED = 8  # images whose range of values is compared with the training's
GRID_ROWS = 16


def main(argv: list[str]) -> None:
    args = _arguments(argv)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    everything = translate.find_jobs(args.input, args.output)
    jobs = everything[rank::world]
    pipe = SAR2OptPipeline.from_pretrained(args.model).to(translate.device(args.device))
    radiometry = SarRadiometry.from_dict(pipe.card.sar)
    sampler, steps = args.sampler or pipe.card.sampler, args.steps or pipe.card.steps
    pipe.scheduler_for(sampler, steps)  # refuses both before any work
    settings = {"seed": args.seed, "sampler": sampler, "steps": steps, "model": model_hash(args.model)}
    if args.confidence:
        pipe.require_confidence()
        heatmap.require_free_names([job.target for job in everything])
        settings |= {"confidence_space": args.confidence_space, "confidence_scale": args.confidence_scale}
    todo = [job for job in jobs if args.overwrite or not _finished(job, args)]
    kept = {str(job.target) for job in jobs} - {str(job.target) for job in todo}
    print(
        f"{len(jobs)} images, {len(kept)} of them done before; {sampler}, {steps} steps, seed {args.seed}", flush=True
    )
    manifest = args.output / "manifest.jsonl"
    if stale := translate.other_settings(manifest, settings, kept):
        print(f"warning: {len(stale)} kept outputs have other settings; --overwrite renews them\n  " + stale[0])
    if rank == 0 and (probe := [sar for _, sar in translate.read(todo[:PROBED], radiometry, {})]):
        print(translate.compare_percentiles(probe, pipe.card), flush=True)

    failed: dict[translate.Job, str] = {}
    recorded = settings | {"model_folder": str(args.model.resolve())}
    begin, done = time.perf_counter(), 0
    bar = tqdm(total=len(todo), disable=not sys.stderr.isatty(), unit="image", dynamic_ncols=True)
    for batch in translate.equal_sizes(translate.read(todo, radiometry, failed), args.batch_size):
        start = time.perf_counter()
        results = _translated(pipe, batch, args, steps, sampler)
        seconds = {"seconds": round((time.perf_counter() - start) / len(batch), 4)}
        for (job, _), (picture, facts) in zip(batch, results, strict=True):
            translate.write(job, picture, manifest, recorded | facts | seconds)
        bar.update(len(batch))
        done += len(batch)
        if bar.disable:
            rate, left = done / (time.perf_counter() - begin), len(todo) - done - len(failed)
            print(f"{done}/{len(todo)}  {rate:.2f} images/s, {clock(left / rate)} left", flush=True)
    bar.close()
    if args.grid and rank == 0:
        finished = [job for job in jobs if job.target.exists()]
        if shown := next(translate.equal_sizes(translate.read(finished, radiometry, {}), GRID_ROWS), None):
            # beside the output folder: inside, it would be one of the outputs
            translate.write_grid(Path(f"{args.output}-grid.png"), shown)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} images failed, all others are done\n" + "\n".join(failed.values())
        )


def _finished(job: translate.Job, args: argparse.Namespace) -> bool:
    return job.target.exists() and (not args.confidence or heatmap.tiff_of(job.target).exists())


def _translated(
    pipe: SAR2OptPipeline, batch: list[tuple[translate.Job, Tensor]], args: argparse.Namespace, steps: int, sampler: str
) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    """Pictures of a batch and facts for the manifest; the maps of confidence are written here."""
    ids, sar = [job.name for job, _ in batch], torch.stack([image for _, image in batch])
    if not args.confidence:
        return zip(pipe(sar, steps, args.seed, ids, sampler).images, [{}] * len(batch), strict=True)
    draw, of_clean = Draws(args.seed, ids, pipe.device), args.confidence_space == "x0"
    output, said = pipe.confident(sar, draw, steps, sampler, of_clean)
    facts = [heatmap.facts(values, said.t, said.step) for values in said.values.numpy()]
    for (job, _), values in zip(batch, said.values.numpy(), strict=True):
        heatmap.write(job.target, job.source, values, said.kind, args.confidence_scale == "minmax")
    return zip([Image.fromarray(images.rgb(picture).numpy()) for picture in output], facts, strict=True)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder, or the run folder it lies in")
    parser.add_argument("--input", type=Path, required=True, help="an image, or a folder of images and folders")
    parser.add_argument("--output", type=Path, required=True, help="folder for the PNG files and manifest.jsonl")
    parser.add_argument("--steps", type=positive, help="sampler steps; default: what the model recommends")
    parser.add_argument("--sampler", help="ddim, ddpm, dpmpp or unipc; default: what the model recommends")
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--batch-size", type=positive, default=4, help="images translated at once, of equal size")
    parser.add_argument("--confidence", action="store_true", help="also write where the model is sure, 1/variance")
    parser.add_argument("--confidence-scale", choices=("fixed", "minmax"), default="fixed", help="of the heat maps")
    parser.add_argument("--confidence-space", choices=("noise", "x0"), default="noise", help="of which variance")
    parser.add_argument("--grid", action="store_true", help="also write OUTPUT-grid.png, SAR beside output")
    parser.add_argument("--overwrite", action="store_true", help="make finished outputs anew")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser.parse_args(argv)


if __name__ == "__main__":
    config.command_line(main)
