"""Stored values <-> [-1, 1]. The same object serves training and inference, and is written into the model folder.

Per band: read -> mask of valid pixels -> scale (dB, or stored units) -> clip -> norm.
"""

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from ..config import UserError
from .config import OptConfig, Range, SarConfig
from .rasters import MAX_PIXELS, Raster, read_raster

POLARISATIONS = {"VV", "VH", "HV", "HH"}
GREY_JPEG = 2  # grey values by which the bands of a grey picture may differ after JPEG
STD_RANGE = 3.0  # meanstd: this many standard deviations become 1
# which stored types a scale may have; GRD products store amplitude as uint16
DTYPES = {
    "uint8": "uint8",
    "uint16": "uint16",
    "db": "float",
    "linear": "float or uint16",
    "amplitude": "float or uint16",
}


class SarRadiometry(SarConfig):
    """``SarConfig`` with every number resolved; the statistics are of the training split, per band, in scaled units."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    percentiles: tuple[Range, ...] | None = None  # 1 and 99
    median: tuple[float, ...] | None = None  # fills crops without any valid pixel

    @classmethod
    def resolve(cls, cfg: SarConfig, statistics: dict[str, Any] | None) -> Self:
        """``statistics``: as of ``PairedData``; needed by norms meanstd and percentile."""
        facts = [statistics["sar"][band] for band in cfg.bands] if statistics else None
        if facts is None and cfg.norm in ("meanstd", "percentile"):
            raise UserError(f"data.sar.norm: {cfg.norm} needs the statistics of a training split")
        own: dict[str, Any] = {}
        if facts:
            own = {"median": tuple(f["percentiles"]["50"] for f in facts)}
        if facts and cfg.norm == "meanstd":
            own |= {"mean": tuple(f["mean"] for f in facts), "std": tuple(f["std"] for f in facts)}
        if facts and cfg.norm == "percentile":
            own |= {"percentiles": tuple((f["percentiles"]["1"], f["percentiles"]["99"]) for f in facts)}
        return cls.from_dict(cfg.model_dump(mode="json") | own)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: all that inference needs."""
        return self.model_dump(mode="json")

    def meaning(self) -> dict[str, Any]:
        """Plain JSON: what two networks must have alike to see the same. The median only fills crops without data."""
        return self.model_dump(mode="json", exclude={"median"})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``; absent keys have their defaults."""
        try:
            made = cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(["sar", *map(str, first["loc"])])
            raise UserError(f"SAR radiometry: {place}: {first['msg'].removeprefix('Value error, ')}") from None
        needed = {"meanstd": (made.mean, made.std), "percentile": (made.percentiles,)}.get(made.norm, ())
        for numbers in needed:
            if numbers is None or len(numbers) != len(made.bands):
                raise UserError(f"SAR radiometry: norm {made.norm} lacks its numbers for the bands {list(made.bands)}")
        return made

    def read(self, path: str | Path) -> tuple[Tensor, np.ndarray]:
        """One file: float32 [b,H,W] in [-1, 1], and which pixels are valid [H,W]."""
        pixels, valid = self.load(path)
        return self.normalise(pixels, valid), valid

    def load(self, path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, np.ndarray]:
        """``decode``, with at least one valid pixel."""
        pixels, valid = self.decode(path, max_pixels)
        if not valid.any():
            raise UserError(f"{path}: no valid SAR pixel among {valid.size}: all are nodata, transparent or not finite")
        return pixels, valid

    def decode(self, path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, np.ndarray]:
        """One file in its stored values: the declared bands [b,H,W], and which pixels are valid [H,W]."""
        raster = read_raster(path, max_pixels)
        pixels = self._select(path, raster)
        require_dtype(path, pixels, self.scale, "data.sar")
        return pixels, raster.valid & self._declared(pixels)

    def scaled(self, pixels: np.ndarray) -> np.ndarray:
        """Stored values -> float32 dB for db, linear and amplitude; else the stored units."""
        x = pixels.astype(np.float32, copy=False)
        if self.scale == "linear":
            return 10 * np.log10(np.fmax(x, np.float32(self.floor)))
        if self.scale == "amplitude":
            return 20 * np.log10(np.fmax(x, np.float32(self.floor**0.5)))
        return x

    def limits(self, pixels: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray | None:
        """What norm percentile_image takes from the whole image before it is cut: [b,2]; None for the other norms."""
        if self.norm != "percentile_image":
            return None
        valid = self._declared(pixels) if valid is None else valid
        return image_percentiles(self._clipped(self.scaled(pixels)), None if self.include_nodata else valid)

    def normalise(
        self, pixels: np.ndarray, valid: np.ndarray | None = None, limits: np.ndarray | None = None
    ) -> Tensor:
        """Stored values [b,H,W] -> float32 [b,H,W] in [-1, 1]. Invalid pixels take the median of the valid ones, so
        that they have no edge; ``valid`` None: all that are finite and not nodata. ``limits``: of a larger image."""
        if len(pixels) != len(self.bands):
            raise UserError(
                f"SAR pixels {list(pixels.shape)}: expected [{len(self.bands)},H,W], bands {list(self.bands)}"
            )
        require_dtype("SAR pixels", pixels, self.scale, "data.sar")
        valid = self._declared(pixels) if valid is None else valid
        x = self.scaled(pixels)
        kept = np.isfinite(x).all(0) if self.include_nodata else valid
        if not kept.all():
            x = np.where(kept, x, self._fill(x, valid))
        if limits is None:
            limits = self.limits(pixels, valid)
        return torch.from_numpy(np.ascontiguousarray(self._normed(x, limits), dtype=np.float32))

    def normed_statistics(self, statistics: dict[str, Any]) -> tuple[tuple[float, float, float, float], ...]:
        """p0.1, p1, p99, p99.9 of the training split in [-1, 1], per band; empty where each image has its own norm."""
        if self.norm == "percentile_image":
            return ()
        keys = ("0.1", "1", "99", "99.9")
        rows = [[statistics["sar"][band]["percentiles"][key] for key in keys] for band in self.bands]
        values = self._normed(np.array(rows, np.float32)[:, None], None)[:, 0].tolist()
        return tuple((a, b, c, d) for a, b, c, d in values)

    def _normed(self, x: np.ndarray, limits: np.ndarray | None) -> np.ndarray:
        """Scaled values [b,H,W] -> [-1, 1]."""
        if self.scale == "uint8":
            return x / np.float32(127.5) - 1
        x = self._clipped(x)
        if self.norm == "meanstd":
            mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.mean, self.std))
            return np.clip((x - mean) / np.maximum(std, 1e-6), -STD_RANGE, STD_RANGE) / STD_RANGE
        if limits is None:
            limits = np.array(self.percentiles if self.norm == "percentile" else self.clip, np.float64)
        return minmax(x, np.broadcast_to(limits, (len(x), 2)))

    def _clipped(self, x: np.ndarray) -> np.ndarray:
        if self.clip is None or self.norm == "minmax":
            return x  # minmax clips by itself
        low, high = np.array(self.clip, np.float32).T[:, :, None, None]
        return np.clip(x, low, high)

    def _fill(self, x: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """The value of invalid pixels, per band: [b,1,1]."""
        if valid.any():
            return np.stack([np.median(band[valid]) for band in x])[:, None, None]
        if self.median is not None:
            return np.array(self.median, np.float32)[:, None, None]
        middle = np.array([(low + high) / 2 for low, high in self.clip or [(0, 255)]], np.float32)
        return np.broadcast_to(middle, len(x))[:, None, None]

    def _declared(self, pixels: np.ndarray) -> np.ndarray:
        """Finite in all bands, and not nodata in all bands."""
        valid = np.ones(pixels.shape[1:], bool) if pixels.dtype.kind != "f" else np.isfinite(pixels).all(0)
        if self.nodata is not None:
            valid = valid & np.not_equal(pixels, self.nodata).any(0)
        return np.asarray(valid)

    def _select(self, path: str | Path, raster: Raster) -> np.ndarray:
        """The declared bands, by name where the file names them, else by their number."""
        pixels, wanted = raster.pixels, [band.upper() for band in self.bands]
        names = [str(name).upper() for name in raster.descriptions]
        if set(wanted) <= set(names):
            return pixels[[names.index(band) for band in wanted]]
        if len(pixels) == len(wanted) and not POLARISATIONS & set(names):
            return pixels
        if len(pixels) == 3 and len(wanted) == 1 and is_grey(raster):
            return pixels[:1]
        known = f"named {', '.join(map(str, raster.descriptions))}" if raster.descriptions else "without names"
        raise UserError(
            f"{path}: expected the SAR bands {', '.join(self.bands)}, found {len(pixels)} band(s) {known}; "
            f"set data.sar.bands to what the file has"
        )


def read_opt(path: str | Path, cfg: OptConfig, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The optical picture in its stored values [3,H,W]; one band counts as grey."""
    pixels = read_raster(path, max_pixels).pixels
    if not opt_bands_fit(len(pixels), cfg):
        wanted = f"bands {', '.join(map(str, cfg.bands))} (data.opt.bands)" if cfg.bands else "3 bands (or 1, grey)"
        advice = "" if cfg.bands else "; set data.opt.bands to the numbers of red, green and blue"
        raise UserError(f"{path}: expected the optical {wanted}, found {len(pixels)} band(s){advice}")
    if cfg.bands:
        pixels = pixels[[number - 1 for number in cfg.bands]]
    require_dtype(path, pixels, cfg.scale, "data.opt")
    return np.broadcast_to(pixels, (3, *pixels.shape[1:]))


def opt_bands_fit(count: int, cfg: OptConfig) -> bool:
    """Whether a file of so many bands has the optical ones."""
    return max(cfg.bands) <= count if cfg.bands else count in (1, 3)


def normalise_opt(pixels: np.ndarray, cfg: OptConfig) -> Tensor:
    """Stored values [3,H,W] -> float32 [3,H,W] in [-1, 1]."""
    x = pixels.astype(np.float32)
    if cfg.clip is None:
        return torch.from_numpy(x / np.float32(127.5) - 1)
    return torch.from_numpy(minmax(x, np.broadcast_to(np.array(cfg.clip), (3, 2))).astype(np.float32))


def to_uint8(x: Tensor) -> Tensor:
    """round((clip(x, -1, 1) + 1) 127.5), half to even: any shape in [-1, 1] -> uint8 of that shape."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def minmax(x: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """2 (clip(x, lo, hi) - lo)/(hi - lo) - 1, one pair of ``limits`` [b,2] per band of ``x`` [b,H,W]."""
    low, high = np.asarray(limits, np.float32).T[:, :, None, None]
    return 2 * (np.clip(x, low, high) - low) / (high - low) - 1


def image_percentiles(x: np.ndarray, valid: np.ndarray | None, span: float = 1 / 1024) -> np.ndarray:
    """Percentiles 1 and 99 per band of ``x`` [b,H,W] over ``valid`` (None: all finite pixels): [b,2], at least
    ``span`` apart."""
    rows = []
    for band in x:
        values = band[np.isfinite(band) if valid is None else valid].astype(np.float64)
        low, high = np.percentile(values, [1, 99]) if values.size else (0.0, 1.0)
        rows.append((low, max(high, low + span)))
    return np.array(rows)


def is_grey(raster: Raster) -> bool:
    """Three bands that hold one: exactly equal, or within the error of JPEG."""
    pixels = raster.pixels.astype(np.int32, copy=False)
    return bool((pixels.max(0) - pixels.min(0)).max() <= (GREY_JPEG if raster.lossy else 0))


def dtype_fits(dtype: str, scale: str) -> bool:
    """Whether values of ``scale`` may be stored as ``dtype``."""
    kinds = DTYPES[scale]
    return dtype in kinds.split(" or ") or ("float" in kinds and np.dtype(dtype).kind == "f")


def require_dtype(where: str | Path, pixels: np.ndarray, scale: str, key: str) -> None:
    """Refuse a wrong declaration, and name the one that would fit the values."""
    if dtype_fits(pixels.dtype.name, scale):
        return
    finite = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    raise UserError(
        f"{where}: {key}.scale: {scale} expects {DTYPES[scale]}, found {pixels.dtype.name} with values "
        f"{low:g}..{high:g}; set {key}: {{{_fitting_scale(pixels.dtype, low, high, key)}}} if that is what they are"
    )


def _fitting_scale(dtype: np.dtype, low: float, high: float, key: str) -> str:
    if dtype == np.uint8:
        return "scale: uint8"
    if key == "data.opt" or dtype.kind in "ui":
        return f"scale: uint16, clip: [{low:g}, {max(high, low + 1):g}]"
    return (
        f"scale: db, clip: [{max(low, -25):g}, {max(min(high, 5), -24):g}]"
        if low < 0
        else "scale: linear, clip: [-25, 0]"
    )
