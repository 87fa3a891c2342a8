"""What ``infer.py --confidence`` writes of one image: the values as GeoTIFF, a heat map with numbers, a line of facts.

Heat maps of one model have one scale, so that they can be compared; each scaled to itself cannot.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import checkpoint, images
from .config import MachineError, UserError
from .data.rasters import read_georeference
from .images import INK, MARGIN, MIN_SIDE, PAPER
from .partners import MAP

FIXED = {"beta_nll": (-1.0, 3.0), "laplace2": (0.0, 1.0)}  # log10(1/var), and the weight of the narrow component
# dark to light, with steadily growing lightness; between them straight lines
COLOURS = ((13, 8, 80), (84, 2, 163), (156, 23, 158), (213, 70, 110), (245, 131, 62), (253, 199, 39), (245, 252, 160))
BAR, FONT_SIZE, TICKS = 14, 12, 5


def write(target: Path, source: Path, values: np.ndarray, kind: str, own_scale: bool) -> None:
    """``target`` is the translated image; beside it NAME_confidence.tif (float32, where ``source`` lies) and .png."""
    name = target.with_suffix("").name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.put(target.with_name(f"{name}{MAP}.png"), images.png(picture(values, kind, own_scale)))
        checkpoint.put(tiff_of(target), geotiff(values, read_georeference(source)))
    except OSError as error:
        raise MachineError(f"{target}: its confidence is not written: {error}; run the same command again") from error


def tiff_of(target: Path) -> Path:
    """The last file that ``write`` writes for ``target``."""
    return target.with_name(f"{target.with_suffix('').name}{MAP}.tif")


def require_free_names(targets: Sequence[Path]) -> None:
    """Refuse images whose translation has the name of another's heat map."""
    maps = {target.with_name(f"{target.with_suffix('').name}{MAP}.png"): target for target in targets}
    if double := sorted(set(maps) & set(targets)):
        raise UserError(f"{double[0]}: the translation of one image and the confidence of another; rename an input")


def facts(values: np.ndarray, t: int, index: int) -> dict[str, Any]:
    """For the manifest. The arithmetic mean is ruled by a few pixels; the geometric one tells good from bad images."""
    exact = values.astype(np.float64)
    means = {"confidence_mean": float(exact.mean()), "confidence_gmean": float(np.exp(np.log(exact).mean()))}
    return means | {"confidence_t": t, "confidence_step": index}


def picture(values: np.ndarray, kind: str, own_scale: bool = False) -> Image.Image:
    """[H,W] -> the heat map, and a bar with numbers at its right: powers of ten of 1/var, or weights."""
    shown = np.log10(values) if kind == "beta_nll" else values
    low, high = (float(shown.min()), float(shown.max())) if own_scale else FIXED[kind]
    high = max(high, low + 1e-6)
    heat = Image.fromarray(colours((shown - low) / (high - low)))
    zoom = max(1, -(-MIN_SIDE // min(heat.size)))
    heat = heat.resize((heat.width * zoom, heat.height * zoom), Image.Resampling.NEAREST)
    font = ImageFont.load_default(size=FONT_SIZE)
    numbers = [low + (high - low) * i / (TICKS - 1) for i in range(TICKS)]
    labels = [f"{10**number:.3g}" if kind == "beta_nll" else f"{number:.3g}" for number in numbers]
    wide = int(max(font.getlength(label) for label in labels)) + 1
    sheet = Image.new("RGB", (heat.width + BAR + wide + 4 * MARGIN, heat.height + 2 * MARGIN), PAPER)
    pen, x = ImageDraw.Draw(sheet), heat.width + 2 * MARGIN
    sheet.paste(heat, (MARGIN, MARGIN))
    ramp = np.linspace(1, 0, heat.height)[:, None].repeat(BAR, axis=1)
    sheet.paste(Image.fromarray(colours(ramp)), (x, MARGIN))
    for i, label in enumerate(labels):
        y = MARGIN + round((heat.height - 1) * (1 - i / (TICKS - 1)))
        inside = min(max(y, MARGIN + FONT_SIZE // 2), heat.height + MARGIN - FONT_SIZE // 2)
        pen.text((x + BAR + MARGIN, inside), label, INK, font, anchor="lm")
    return sheet


def colours(x: np.ndarray) -> np.ndarray:
    """[H,W], 0 dark to 1 light, clipped -> uint8 [H,W,3]."""
    table = np.array(COLOURS, np.float64)
    places = np.linspace(0, 1, len(table))
    return np.stack([np.rint(np.interp(x, places, table[:, i])) for i in range(3)], axis=2).astype(np.uint8)


def geotiff(values: np.ndarray, place: dict[str, Any]) -> bytes:
    """One float32 band; ``place`` as of ``read_georeference``."""
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    assert math.isfinite(values.sum())
    height, width = values.shape
    gcps = place.get("gcps")
    own = {key: place[key] for key in ("crs", "transform") if key in place and not gcps}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with MemoryFile() as memory:
            with memory.open(
                driver="GTiff", height=height, width=width, count=1, dtype="float32", compress="deflate", predictor=3,
                BIGTIFF="IF_SAFER", **own,
            ) as file:  # fmt: skip
                if gcps:
                    file.gcps = gcps, place["crs"]
                file.write(values.astype(np.float32), 1)
            return memory.read()
