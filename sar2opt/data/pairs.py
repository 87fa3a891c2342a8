"""What training reads: crops of pairs in [-1, 1], the same part and the same turn of both sides."""

import hashlib
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .. import draws
from ..config import UserError
from . import manifest, scan, statistics
from .config import SPLITS, DataConfig
from .generated import GeneratedPairs
from .layouts import SHOWN
from .manifest import Row
from .radiometry import SarRadiometry, normalise_opt, read_opt
from .strips import strip

CROP_TRIES = 10
START_IMAGES = 256  # whose statistics are taken at every start without a manifest
START_GENERATED = 64


class Pairs(Protocol):
    """The pairs of one split; it goes to data workers, so it holds names, never open files."""

    ids: list[str]

    def __len__(self) -> int: ...

    def read(self, i: int, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """sar [b,R,R] and opt [3,R,R], float32 in [-1, 1]. With ``rng`` a random crop and turn, without the centre."""
        ...


@dataclass(frozen=True)
class PairedData:
    """The splits, what the SAR values mean, and what they look like.

    ``statistics``: {"images", "of", "sar": {band: {min, max, mean, std, percentiles}}, "nodata", "nan", "opt": {mean}}
    of the training split, SAR in dB or in stored units of uint8 and uint16.
    """

    cfg: DataConfig
    train: Pairs
    val: Pairs
    test: Pairs
    list_hashes: dict[str, str]  # per split that has pairs
    radiometry: SarRadiometry
    statistics: dict[str, Any]
    facts: tuple[str, ...] = ()  # lines of the summary

    @property
    def digest(self) -> str:
        """SHA-256 of what becomes of the stored values: the radiometry, and the pairs that are turned."""
        return hashlib.sha256(json.dumps([self.radiometry.meaning(), self.turned], sort_keys=True).encode()).hexdigest()

    @property
    def turned(self) -> list[str]:
        """The ids of training pairs that are turned by 180 degrees."""
        turns = getattr(self.train, "turns", [])
        return [name for name, (quarters, _) in zip(self.train.ids, turns, strict=False) if quarters]

    @property
    def sar_percentiles(self) -> tuple[tuple[float, float, float, float], ...]:
        """Per band p0.1, p1, p99, p99.9 of the training split in [-1, 1]."""
        return self.radiometry.normed_statistics(self.statistics)

    def summary(self) -> str:
        """The table that --check prints, at most 80 columns."""
        lines = [f"{'split':8}{'pairs':>9}  list hash"]
        for name in SPLITS:
            count = len(getattr(self, name))
            lines.append(f"{name:8}{count:9,}  {self.list_hashes.get(name, '-')[:16]}")
        lines += [*self.facts, *statistics_lines(self.cfg, self.statistics)]
        return wrapped(lines)


class FilePairs:
    """Pairs on disk. Decodes the whole image, cuts, then normalises."""

    def __init__(
        self, rows: list[Row], cfg: DataConfig, radiometry: SarRadiometry, southern: list[str], crops: int = 0
    ):
        """``crops``: seeded ones of each image, each a pair of its own; 0: those that ``read`` draws."""
        side, sizes = cfg.resolution, {(row.width, row.height) for row in rows}
        # whether of what ``read`` gives nothing but the turn is random; (0, 0) is a size that nobody has looked at
        self.fixed = crops > 0 or cfg.crop != "random" or all(0 < w <= side and 0 < h <= side for w, h in sizes)
        self.crops, rows = crops, [row for row in rows for _ in range(max(crops, 1))]
        self.ids = [f"{row.id}#{n % crops}" if crops else row.id for n, row in enumerate(rows)]
        self.paths = [(row.sar, row.opt) for row in rows]
        self.turns = [(2 if strip(row.id) in southern else 0, False) for row in rows]
        self.cfg, self.radiometry = cfg, radiometry

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        cfg, radiometry = self.cfg, self.radiometry
        assert cfg.root is not None
        sar_path, opt_path = (cfg.root / path for path in self.paths[i])
        scan.require_file_inside(cfg, sar_path)
        scan.require_file_inside(cfg, opt_path)
        sar, valid = radiometry.load(sar_path, cfg.max_pixels)
        opt = read_opt(opt_path, cfg.opt, cfg.max_pixels)
        scan.require_equal_size(sar_path, opt_path, sar.shape[1:], opt.shape[1:])
        limits = radiometry.limits(sar, valid)  # of the whole image
        sar, opt, valid = (self._padded(turned(x, self.turns[i]), sar_path) for x in (sar, opt, valid))
        crop_rng = draws.rng(cfg.split_seed, "crop", self.ids[i]) if self.crops else rng
        top, left = self._corner(valid, crop_rng)
        window = np.s_[..., top : top + cfg.resolution, left : left + cfg.resolution]
        turn = None if rng is None else draw_turn(rng, cfg.flip, cfg.rotate90)
        sar, opt, valid = (turned(x[window], turn) for x in (sar, opt, valid))
        return radiometry.normalise(sar, valid, limits), normalise_opt(opt, cfg.opt)

    def sources(self) -> list[Path]:
        """All image files, once each."""
        root = self.cfg.root
        assert root is not None
        return list(dict.fromkeys(root / path for pair in self.paths for path in pair))

    def _padded(self, x: np.ndarray, path: Path) -> np.ndarray:
        height, width = x.shape[-2:]
        side = self.cfg.resolution
        if self.cfg.crop == "none" and (height, width) != (side, side):
            raise UserError(
                f"{path}: {width} x {height} px, data.resolution is {side} and data.crop is none; set "
                "data.crop: random, or data.resolution to the size of the images"
            )
        if height >= side and width >= side:
            return x
        if self.cfg.pad == "none":
            raise UserError(
                f"{path}: {width} x {height} px is smaller than data.resolution {side}; lower it, or set "
                "data.pad: reflect"
            )
        missing = [(max(side - n, 0) // 2, max(side - n, 0) - max(side - n, 0) // 2) for n in (height, width)]
        return np.pad(x, [(0, 0)] * (x.ndim - 2) + missing, mode="reflect")

    def _corner(self, valid: np.ndarray, rng: np.random.Generator | None) -> tuple[int, int]:
        """Top and left of the crop: the centre, or up to ten draws for enough valid pixels, then the best of them."""
        side, (height, width) = self.cfg.resolution, valid.shape
        if rng is None or self.cfg.crop != "random":
            return (height - side) // 2, (width - side) // 2
        whole, best, share = bool(valid.all()), (0, 0), -1.0
        for _ in range(CROP_TRIES):
            corner = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            found = 1.0 if whole else valid[corner[0] : corner[0] + side, corner[1] : corner[1] + side].mean()
            if found > share:
                best, share = corner, found
            if share >= self.cfg.min_valid:
                break
        return best


# (flip, rotate90) -> the turns that may be drawn
TURNS: dict[tuple[bool, bool], tuple[tuple[int, bool], ...]] = {
    (True, True): tuple((k % 4, k >= 4) for k in range(8)),
    (True, False): tuple((2 * (k % 2), k >= 2) for k in range(4)),  # a mirror turned by half: that of the other axis
    (False, True): tuple((k, False) for k in range(4)),
    (False, False): ((0, False),),
}


def draw_turn(rng: np.random.Generator, flip: bool, rotate90: bool) -> tuple[int, bool]:
    """A uniform element of the group that the switches generate: (quarter turns, mirrored left to right).

    flip: mirrors of both axes, 4 elements; rotate90: 4; both: the 8 symmetries of the square; none: the identity.
    """
    turns = TURNS[flip, rotate90]
    return turns[int(rng.integers(len(turns)))]


def turned(x: np.ndarray, turn: tuple[int, bool] | None) -> np.ndarray:
    """Apply the element of ``draw_turn`` to [...,H,W]."""
    if turn is None:
        return x
    quarter, mirrored = turn
    return np.ascontiguousarray(np.rot90(x[..., ::-1] if mirrored else x, quarter, (-2, -1)))


class _Turned:
    """Generated pairs, which have the size of the crop already."""

    fixed = True

    def __init__(self, pairs: GeneratedPairs, cfg: DataConfig, radiometry: SarRadiometry):
        self.ids, self.pairs, self.cfg, self.radiometry = pairs.ids, pairs, cfg, radiometry

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        sar, opt = self.pairs.pixels(i)
        turn = None if rng is None else draw_turn(rng, self.cfg.flip, self.cfg.rotate90)
        return (
            self.radiometry.normalise(turned(sar, turn)),
            torch.from_numpy(turned(opt, turn).astype(np.float32) / np.float32(127.5) - 1),
        )


def open_data(cfg: DataConfig) -> PairedData:
    """Find, pair and check the data of a config; decodes the first pair of each split. Writes nothing."""
    data = _open_generated(cfg) if cfg.layout == "generated" else _open_files(cfg)
    for pairs in (data.train, data.val, data.test):
        if len(pairs):
            pairs.read(0, None)
    return data


def _open_files(cfg: DataConfig) -> PairedData:
    notes: list[str] = []
    if cfg.manifest is not None:
        made = manifest.read(cfg.manifest, cfg.allow_outside_root)
        cfg = cfg if cfg.root else cfg.model_copy(update={"root": Path(made.facts["root"])})
        scan.require_current(cfg, made)
        notes.append(f"manifest {cfg.manifest}")
    else:
        found = scan.scan(cfg, START_IMAGES, hashing=False)
        made = found.manifest
        notes += [f"skipped: {count} files, {kind}" for kind, count in sorted(found.skipped.items())]
        notes += warning_lines(found.warnings)
    facts = made.facts
    radiometry = SarRadiometry.resolve(cfg.sar, facts["statistics"])
    crops = {"train": cfg.crops_per_image}
    splits = {name: FilePairs(made.of(name), cfg, radiometry, facts["turned"], crops.get(name, 0)) for name in SPLITS}
    return PairedData(
        cfg, **splits, list_hashes=made.list_hashes, radiometry=radiometry, statistics=facts["statistics"],
        facts=(*table_lines(cfg, made), *notes),
    )  # fmt: skip


def _open_generated(cfg: DataConfig) -> PairedData:
    g = cfg.generated
    made = {
        name: GeneratedPairs(
            name, getattr(g, name), cfg.resolution, g.seed, g.looks, cfg.sar.bands, cfg.sar.scale, g.changes
        )
        for name in SPLITS
    }
    images = []
    for i in range(min(START_GENERATED, g.train)):
        sar, opt = made["train"].pixels(i)
        images.append((scan.decoding(cfg).scaled(sar), np.ones(sar.shape[1:], bool), 0.0, opt))
    parts = [statistics.sums(images, len(cfg.sar.bands), cfg.sar.scale)]
    facts = statistics.combine(parts, cfg.sar.bands, cfg.sar.scale) | {"of": g.train}
    radiometry = SarRadiometry.resolve(cfg.sar, facts)
    splits = {name: _Turned(pairs, cfg, radiometry) for name, pairs in made.items()}
    hashes = {name: manifest.list_hash(pairs.ids) for name, pairs in made.items() if pairs.ids}
    note = f"layout generated: {cfg.resolution} px, {g.looks:g} looks, {g.changes} changes, seed {g.seed}"
    return PairedData(cfg, **splits, list_hashes=hashes, radiometry=radiometry, statistics=facts, facts=(note,))


def wrapped(lines: list[str]) -> str:
    """At 80 columns; a path or a hash is never cut."""
    kept = textwrap.TextWrapper(80, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(part for line in lines for part in kept.wrap(line))


def table_lines(cfg: DataConfig, made: manifest.Manifest) -> list[str]:
    """Layout, split, scenes, sizes and types of a manifest."""
    rows = [row for row in made.rows if row.split != "unused"]
    policy = made.facts["split"]
    scenes = ", ".join(f"{name} {count}" for name, count in made.scenes.items() if count)
    lines = [
        f"layout {made.facts['layout']} in {cfg.root}",
        "split " + ", ".join(f"{key} {_short(value)}" for key, value in policy.items()),
        f"scenes: {scenes or 'not known'}",
    ]
    if made.facts["turned"]:
        count = sum(strip(row.id) in made.facts["turned"] for row in rows)
        lines.append(f"turned by 180 degrees: {count} pairs of {len(made.facts['turned'])} strips seen from the south")
    if unused := len(made.of("unused")):
        lines.append(f"unused: {unused} pairs")
    if sizes := sorted({(row.width, row.height) for row in rows} - {(0, 0)}):
        shown = ", ".join(f"{w} x {h}" for w, h in sizes[:3]) + (f", ... ({len(sizes)} sizes)" if sizes[3:] else "")
        types = "; ".join(f"{side} {'/'.join(sorted(found))}" for side, found in _types(rows).items())
        lines.append(f"size {shown} px; {types}")
    return lines


def _short(value: Any) -> str:
    """A few scenes by name, many by their number, hashes by their first digits."""
    if isinstance(value, list):
        return " ".join(value) if len(value) <= SHOWN else f"{len(value)} scenes"
    text = str(value)
    return f"{text[:16]}..." if re.fullmatch(r"[0-9a-f]{64}", text) else text


def warning_lines(warnings: list[str]) -> list[str]:
    """The first of them, and their number."""
    more = [f"warning: {len(warnings) - SHOWN} more"] if len(warnings) > SHOWN else []
    return [f"warning: {text}" for text in warnings[:SHOWN]] + more


def _types(rows: list[Row]) -> dict[str, set[str]]:
    return {"sar": {row.sar_dtype for row in rows}, "opt": {row.opt_dtype for row in rows}}


def statistics_lines(cfg: DataConfig, facts: dict[str, Any]) -> list[str]:
    """One line per band, such as: VV dB p1 -21.3 p99 -3.9 (clip -25..0 keeps 99.2 %)."""
    unit = cfg.sar.scale if cfg.sar.scale in ("uint8", "uint16") else "dB"
    lines = [f"statistics of {facts['images']:,} of {facts['of']:,} training images:"]
    for b, band in enumerate(cfg.sar.bands):
        own = facts["sar"][band]
        line = f"  {band} {unit} p1 {own['percentiles']['1']:.4g} p99 {own['percentiles']['99']:.4g}"
        if cfg.sar.clip is not None:
            low, high = cfg.sar.clip[b if len(cfg.sar.clip) > 1 else 0]
            line += f" (clip {low:g}..{high:g} keeps {100 * statistics.kept_share(own, low, high):.1f} %)"
        lines.append(line)
    lines.append(f"  nodata {100 * facts['nodata']:.2f} %, NaN {100 * facts['nan']:.2f} %")
    lines.append("  optical mean " + " ".join(f"{c:.4g}" for c in facts["opt"]["mean"]))
    if cfg.sar.norm == "percentile_image":
        lines.append("warning: norm percentile_image differs between tiles: seams in scenes")
    return lines
