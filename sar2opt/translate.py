"""Folders of SAR images: what is to be translated, in which groups, and what is left on disk.

An output that exists is complete and has its line in manifest.jsonl, whenever a process was stopped.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import checkpoint, images
from .config import MachineError, UserError
from .data import SarRadiometry

if TYPE_CHECKING:  # diffusers takes seconds, and who translates has it
    from .pipeline import Card

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")


class Job(NamedTuple):
    """One image: its id (relative path without suffix), its file, and the file of its translation."""

    name: str
    source: Path
    target: Path


def device(name: str) -> torch.device:
    """``name``, or with auto the GPU of this process if there is one."""
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not available here: {str(error).splitlines()[0]}") from None


def find_jobs(source: Path, target: Path) -> list[Job]:
    """The images of a file or, recursively, of a folder, sorted by id; their translations go to ``target``."""
    if not source.exists():
        raise UserError(f"--input {source}: no such file or folder")
    if source.is_dir() and source.resolve() in [target.resolve(), *target.resolve().parents]:
        raise UserError(f"--output {target} lies inside --input {source}: outputs would be read as inputs; move it out")
    root, found = source if source.is_dir() else source.parent, {}
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and path.suffix.lower() in SUFFIXES and not hidden:
            found.setdefault(relative.with_suffix("").as_posix(), []).append(path)
    if not found:
        raise UserError(f"--input {source}: no images; expected files ending in {', '.join(SUFFIXES)}")
    if double := [" and ".join(map(str, paths)) for paths in found.values() if len(paths) > 1]:
        listed = "".join(f"\n  {pair}" for pair in double[:5])
        raise UserError(f"{len(double)} outputs would each have two inputs; rename one of each pair{listed}")
    jobs = [Job(name, paths[0], target / f"{name}.png") for name, paths in sorted(found.items())]
    if own := [job for job in jobs if job.target.resolve() == job.source.resolve()]:
        raise UserError(f"--output {target}: would overwrite the input {own[0].source}; choose another folder")
    return jobs


def read(jobs: Iterable[Job], radiometry: SarRadiometry, failed: dict[Job, str]) -> Iterator[tuple[Job, Tensor]]:
    """The images that can be read, [b,H,W] in [-1, 1]; ``failed`` receives the reason for each of the others."""
    for job in jobs:
        try:
            yield job, radiometry.read(job.source)[0]
        except (UserError, OSError) as error:
            failed[job] = str(error) if str(job.source) in str(error) else f"{job.source}: {error}"


def equal_sizes(pictures: Iterable[tuple[Job, Tensor]], size: int) -> Iterator[list[tuple[Job, Tensor]]]:
    """Groups of at most ``size`` images of one shape; at most 4 x ``size`` images wait for company."""
    waiting: dict[torch.Size, list[tuple[Job, Tensor]]] = {}
    for job, picture in pictures:
        group = waiting.setdefault(picture.shape, [])
        group.append((job, picture))
        if len(group) == size or sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def write(job: Job, picture: Image.Image, manifest: Path, facts: dict[str, Any]) -> None:
    """The manifest's line, then the image, atomically."""
    digest = hashlib.sha256(job.source.read_bytes()).hexdigest()
    names = {"input": str(job.source), "output": str(job.target), "input_sha256": digest}
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        append_line(manifest, names | facts)
        checkpoint.put(job.target, images.png(picture))
    except OSError as error:
        raise MachineError(f"{job.target}: not written: {error}; run the same command again to go on") from error


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add one JSON line in one write, so that lines of several processes do not mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, (json.dumps(record) + "\n").encode())
    finally:
        os.close(descriptor)


def other_settings(manifest: Path, settings: dict[str, Any], outputs: set[str]) -> list[str]:
    """Those of ``outputs`` that the manifest says were made with other settings, each with what differs."""
    lines = manifest.read_text().splitlines() if manifest.exists() else []
    # a full disk may have left half a line; a later line replaces an earlier one
    newest = {record["output"]: record for record in (json.loads(line) for line in lines if line.endswith("}"))}
    return [
        f"{output}: " + ", ".join(f"{key} {newest[output].get(key)}, now {settings[key]}" for key in differing)
        for output in sorted(outputs & newest.keys())
        if (differing := [key for key in settings if newest[output].get(key) != settings[key]])
    ]


def write_grid(path: Path, shown: list[tuple[Job, Tensor]]) -> None:
    """SAR | output of finished jobs of one size."""
    outputs = [np.asarray(Image.open(job.target)).astype(np.float32) / 127.5 - 1 for job, _ in shown]
    columns = {
        "SAR": torch.stack([sar for _, sar in shown]),
        "output": torch.from_numpy(np.stack(outputs)).permute(0, 3, 1, 2),
    }
    checkpoint.put(path, images.png(images.contact_sheet(columns, [job.name for job, _ in shown])))


def percentiles(sar: Sequence[Tensor]) -> tuple[tuple[float, float, float, float], ...]:
    """p0.1, p1, p99, p99.9 of each band over all images [b,H,W]."""
    pixels = torch.cat([image.flatten(1) for image in sar], dim=1).numpy()
    values = np.percentile(pixels, [0.1, 1, 99, 99.9], axis=1).T
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in values)


def compare_percentiles(sar: Sequence[Tensor], card: "Card") -> str:
    """One line per band: p1 and p99 of the input beside those of training, after normalisation to [-1, 1]."""
    lines = []
    for i, (band, own) in enumerate(zip(card.sar["bands"], percentiles(sar), strict=True)):
        lines.append(f"{band} in [-1, 1]: input p1/p99 = {own[1]:.3f}/{own[2]:.3f}")
        if card.sar_percentiles:
            p01, p1, p99, p999 = card.sar_percentiles[i]
            lines[-1] += f", training p1/p99 = {p1:.3f}/{p99:.3f}"
            # clipping may hide a wrong scale, but then the bulk of one lies beyond the bulk of the other
            if own[1] < p01 or own[2] > p999 or own[1] > p99 or own[2] < p1:
                lines.append(f"warning: {band} is unlike the training's; check scale and bands of the input")
    return "\n".join(lines)
