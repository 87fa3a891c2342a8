"""Validation and sample grids: fixed images with fixed noise, so that steps and runs can be compared."""

import math
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from . import distances, images, metrics
from .data import Pairs, to_uint8
from .data.stream import Batch
from .draws import Draws
from .pipeline import SAR2OptPipeline


class Translator(Protocol):
    """What a method offers to validation; both use its averaged weights."""

    pipeline: SAR2OptPipeline  # what training exports

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The method's own values, rows [B]."""
        ...


@runtime_checkable
class Explained(Protocol):
    """A method that shows the images behind its loss."""

    def evidence(self, batch: Batch) -> list[dict[str, Any]]:
        """Rows for ``sheet``: the batch's id, a label, and images."""
        ...


def spread(length: int, count: int) -> list[int]:
    """At most ``count`` indices, evenly spaced over 0..length-1."""
    return [i * length // min(count, length) for i in range(min(count, length))]


def fixed_batch(pairs: Pairs, chosen: list[int], seed: int, device: torch.device) -> Batch:
    """Centre crops of ``chosen``, with one noise per image id whatever the step, the run or the batch."""
    sar, opt = (torch.stack(x).to(device) for x in zip(*[pairs.read(i, None) for i in chosen], strict=True))
    return Batch(sar, opt, Draws(seed, [pairs.ids[i] for i in chosen], device))


@torch.no_grad()
def picture_rows(method: Translator, batch: Batch, steps: int) -> list[dict[str, Any]]:
    """SAR, output and target of each image: float32 [b or 3,H,W]."""
    output = method.pipeline.translate(batch.sar, batch.draw, steps).float()
    columns = {"SAR": batch.sar, "output": output, "target": batch.opt}
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    return [{"id": i} | {name: a[k] for name, a in arrays.items()} for k, i in enumerate(batch.draw.keys)]


def evidence_rows(method: Translator, batch: Batch, steps: int) -> list[dict[str, Any]]:
    """The images behind the loss, where a method shows them."""
    return method.evidence(batch) if isinstance(method, Explained) else []


@torch.no_grad()
def by_steps(pipeline: SAR2OptPipeline, batch: Batch, steps: list[int]) -> dict[str, Tensor]:
    """Quality against steps: PSNR (dB), the colour gauge and ``hf_db``, the energy above half Nyquist of output over
    target in dB, for each number of steps: rows [B] named ``psnr/steps4``, ..."""
    table: dict[str, list[float]] = {}
    for n in steps:
        output = pipeline.translate(batch.sar, batch.draw, n)
        for pair in zip(batch.opt, output, strict=True):
            target, image = map(_pixels, pair)
            values = {"psnr": metrics.psnr(target, image), **metrics.colour_gauge(target, image)}
            high, wanted = (distances.high_frequencies(metrics.ring_power(x)) for x in (image, target))
            values["hf_db"] = 10 * math.log10((high + 1) / (wanted + 1))
            for key, value in values.items():
                table.setdefault(f"{key}/steps{n}", []).append(value)
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in table.items()}


@torch.no_grad()
def metric_rows(method: Translator, batch: Batch, steps: int) -> list[dict[str, Any]]:
    """PSNR (dB), SSIM and the colour gauge of each image, the gauge of a one-step output, and the method's values."""
    output, one_step = (method.pipeline.translate(batch.sar, batch.draw, n) for n in (steps, 1))
    own = {key: value.double().tolist() for key, value in method.validate(batch).items()}
    rows = []
    for k, i in enumerate(batch.draw.keys):
        target, many, single = (_pixels(x[k]) for x in (batch.opt, output, one_step))
        values = {"psnr": metrics.psnr(target, many), "ssim": metrics.ssim(target, many)}
        values |= metrics.colour_gauge(target, many)
        values |= {f"one_step/{key}": value for key, value in metrics.colour_gauge(target, single).items()}
        rows.append({"id": i, **values, **{key: value[k] for key, value in own.items()}})
    return rows


def mean_row(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over images, exactly rounded: independent of how the rows were shared among processes."""
    return {key: math.fsum(row[key] for row in rows) / len(rows) for key in rows[0] if key != "id"}


def sheet(rows: list[dict[str, Any]]) -> bytes:
    """Rows of images as PNG, such as SAR | output | target; ``label`` stands beside a row, or else its id."""
    names = [name for name in rows[0] if name not in ("id", "label")]
    columns = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in names}
    return images.png(images.contact_sheet(columns, [str(row.get("label", row["id"])) for row in rows]))


def _pixels(x: Tensor) -> np.ndarray:
    return to_uint8(x.float()).permute(1, 2, 0).cpu().numpy()
