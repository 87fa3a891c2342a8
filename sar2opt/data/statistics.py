"""What the SAR and optical pixels of the training split look like. Sums in the order of the ids, so that the numbers
repeat to the last bit for every number of worker processes.

Percentiles come from histograms: exact for whole numbers, within 0.01 dB for dB.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

QUANTILES = ("0.1", "1", "2", "50", "98", "99", "99.9")
DB_STEP, DB_LOW, DB_HIGH = 0.01, -100.0, 100.0
WHOLE_BINS = 2**16
CHUNK = 32  # images per histogram that travels between processes


class Sums(NamedTuple):
    """Of one chunk of images: histogram int64 [b,bins]; per image and band a row (count, sum, sum of squares, low,
    high); per image the shares (nodata, NaN) and the mean optical colour."""

    histogram: np.ndarray
    moments: list[list[tuple[float, ...]]]
    missing: list[tuple[float, float]]
    colour: list[tuple[float, ...]]


def edges(scale: str) -> np.ndarray:
    """The value of each bin."""
    if scale in ("uint8", "uint16"):
        return np.arange(WHOLE_BINS, dtype=np.float64)
    return np.arange(round((DB_HIGH - DB_LOW) / DB_STEP) + 1) * DB_STEP + DB_LOW


def sums(images: Iterable[tuple[np.ndarray, np.ndarray, float, np.ndarray]], bands: int, scale: str) -> Sums:
    """``images``: SAR in scaled units [b,H,W], valid [H,W], share of NaN, optical [3,H,W]."""
    bins = edges(scale)
    total = np.zeros((bands, len(bins)), np.int64)
    out = Sums(total, [], [], [])
    for sar, valid, nan, opt in images:
        rows = []
        for b in range(bands):
            x = sar[b][valid].astype(np.float64)
            step, low = (1.0, 0.0) if scale in ("uint8", "uint16") else (DB_STEP, DB_LOW)
            number = np.clip(np.rint((x - low) / step), 0, len(bins) - 1).astype(np.int64)
            total[b] += np.bincount(number, minlength=len(bins))
            ends = (float(x.min()), float(x.max())) if x.size else (math.inf, -math.inf)
            rows.append((float(x.size), float(x.sum()), float((x * x).sum()), *ends))
        out.moments.append(rows)
        out.missing.append((1 - float(valid.mean()), nan))
        out.colour.append(tuple(float(c) for c in opt.mean((1, 2), dtype=np.float64)))
    return out


def combine(parts: Iterable[Sums], bands: tuple[str, ...], scale: str) -> dict[str, Any]:
    """Statistics of all chunks, plain JSON; per band in scaled units (dB, or stored units of uint8 and uint16)."""
    parts = list(parts)
    histogram = np.sum([part.histogram for part in parts], axis=0)
    moments = [row for part in parts for row in part.moments]
    missing = [row for part in parts for row in part.missing]
    colours = [row for part in parts for row in part.colour]
    images = max(len(moments), 1)
    sar = {band: _band([row[b] for row in moments], histogram[b], scale) for b, band in enumerate(bands)}
    return {
        "images": len(moments),
        "sar": sar,
        "nodata": _rounded(math.fsum(m for m, _ in missing) / images),
        "nan": _rounded(math.fsum(n for _, n in missing) / images),
        "opt": {"mean": [_rounded(math.fsum(c[k] for c in colours) / images) for k in range(3)]},
    }


def in_chunks(items: list[Any]) -> Iterator[list[Any]]:
    return (items[k : k + CHUNK] for k in range(0, len(items), CHUNK))


def kept_share(facts: dict[str, Any], low: float, high: float) -> float:
    """The share of pixels in [low, high], as far as the stored percentiles tell: linear between them."""
    points = [(facts["min"], 0.0), *((facts["percentiles"][q], float(q) / 100) for q in QUANTILES), (facts["max"], 1.0)]
    values, shares = zip(*points, strict=True)  # ascending: _band keeps percentiles within the ends
    return float(np.interp(high, values, shares, right=1.0) - np.interp(low, values, shares, left=0.0))


def _band(rows: list[tuple[float, ...]], histogram: np.ndarray, scale: str) -> dict[str, Any]:
    count = math.fsum(row[0] for row in rows)
    if not count:
        return dict.fromkeys(("min", "max", "mean", "std"), 0.0) | {"percentiles": dict.fromkeys(QUANTILES, 0.0)}
    mean = math.fsum(row[1] for row in rows) / count
    variance = math.fsum(row[2] for row in rows) / count - mean**2
    cumulated, values = np.cumsum(histogram), edges(scale)
    low, high = min(row[3] for row in rows), max(row[4] for row in rows)
    # the smallest value at which a share q of the pixels lies at or below
    wanted = [max(float(q) / 100 * cumulated[-1], 1) for q in QUANTILES]
    found = [min(max(float(values[np.searchsorted(cumulated, w)]), low), high) for w in wanted]
    facts = {"min": low, "max": high, "mean": mean, "std": math.sqrt(max(variance, 0.0))}
    return {k: _rounded(v) for k, v in facts.items()} | {
        "percentiles": {q: _rounded(v) for q, v in zip(QUANTILES, found, strict=True)}
    }


def _rounded(value: float) -> float:
    return round(value, 6)
