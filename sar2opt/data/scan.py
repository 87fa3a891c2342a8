"""From files to a manifest: pair, look at every file, split, count. One message names all that is wrong."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from .. import __version__
from ..config import UserError
from . import splits, statistics
from .config import DataConfig
from .layouts import LAYOUTS, SHOWN, Pair, find_pairs, listed, require_root
from .manifest import Manifest, Row
from .radiometry import SarRadiometry, dtype_fits, opt_bands_fit, read_opt
from .rasters import Header, read_easting, read_header, safe_file
from .strips import southern

A = TypeVar("A")
B = TypeVar("B")
SAMPLED = 16  # files of a manifest whose bytes are compared at every start


class Mapper(Protocol):
    """``map``, or that of a pool of processes."""

    def __call__(self, work: Callable[[A], B], items: Iterable[A], /) -> Iterable[B]: ...


class Look(NamedTuple):
    """One pair as found: its row, or what is wrong with it; ``remarks`` are no errors."""

    row: Row | None
    problem: str = ""
    remarks: tuple[str, ...] = ()


class Place(NamedTuple):
    """Where a pair lies, or why that is not known."""

    projection: str
    easting: float  # of the centre, m
    problem: str = ""


class Scan(NamedTuple):
    manifest: Manifest
    skipped: dict[str, int]
    warnings: list[str]


def scan(cfg: DataConfig, images: int | None, hashing: bool, mapper: Mapper = map) -> Scan:
    """The manifest of ``cfg``; statistics of at most ``images`` training pairs, evenly spaced (None: of all)."""
    assert cfg.root is not None
    found = find_pairs(cfg)
    chosen = splits.policy(cfg, found.pairs)  # before the long part
    eastings = _eastings(cfg, found.pairs, mapper) if chosen == "geographic" else []
    names = splits.assign(cfg, found.pairs, chosen, eastings)
    facts = describe(cfg, chosen, found.pairs)
    looks = list(mapper(partial(look, cfg, hashing), found.pairs))
    _require_none([seen.problem for seen in looks])
    rows = [
        seen.row if seen.row.split == "unused" else seen.row._replace(split=name)
        for seen, name in zip(looks, names, strict=True)
        if seen.row
    ]
    manifest = Manifest(rows, facts)
    train = manifest.of("train")
    if not train:
        raise UserError("no pair is left for training: all SAR images of the training split are nodata")
    taken = [train[k * len(train) // n] for n in [min(images or len(train), len(train))] for k in range(n)]
    parts = mapper(partial(chunk_sums, cfg), list(statistics.in_chunks(taken)))
    facts["statistics"] = statistics.combine(parts, cfg.sar.bands, cfg.sar.scale) | {"of": len(train)}
    warnings = [splits.RANDOM_WARNING] if chosen == "random" else []
    warnings += splits.departures(cfg.layout, chosen, manifest.list_hashes) + _unusual_sizes(cfg, rows)
    return Scan(manifest, found.skipped, [*warnings, *(text for seen in looks for text in seen.remarks)])


def _require_none(problems: list[str]) -> None:
    if found := [text for text in problems if text]:
        shown = "".join(f"\n  {text}" for text in found[:SHOWN])
        raise UserError(f"{len(found)} of {len(problems)} pairs cannot be used; the first:{shown}")


def _eastings(cfg: DataConfig, pairs: list[Pair], mapper: Mapper) -> list[float]:
    """Of the SAR images, which must have one projection."""
    places = list(mapper(partial(place, cfg), pairs))
    _require_none([found.problem for found in places])
    if len(projections := sorted({found.projection for found in places})) > 1:
        raise UserError(
            f"data.split: geographic needs one projection, the files have {len(projections)}: {listed(projections)}; "
            "use scene, or file:PATH"
        )
    return [found.easting for found in places]


def place(cfg: DataConfig, pair: Pair) -> Place:
    assert cfg.root is not None
    try:
        require_file_inside(cfg, cfg.root / pair.sar)
        return Place(*read_easting(cfg.root / pair.sar))
    except UserError as error:
        return Place("", 0.0, str(error))


def _unusual_sizes(cfg: DataConfig, rows: list[Row]) -> list[str]:
    """A copy at another size is another data set: its pixels are not those that others measured on."""
    rules = LAYOUTS.get(cfg.layout, ())
    unusual = [row for row in rows if rules and row.height and (row.height, row.width) != (rules[0].size,) * 2]
    if not unusual:
        return []
    first, size = unusual[0], rules[0].size
    return [
        f"{len(unusual)} of {len(rows)} pairs do not have the {size} x {size} px of layout {cfg.layout}, such as "
        f"{first.sar}: {first.width} x {first.height} px"
    ]


def describe(cfg: DataConfig, chosen: str, pairs: list[Pair]) -> dict[str, Any]:
    """How a manifest came about, and what its statistics mean."""
    assert cfg.root is not None
    rules = " or ".join(rule.pattern.pattern for rule in LAYOUTS.get(cfg.layout, ()))
    words = {"folders": f"{cfg.sar_dir}/ID.* and {cfg.opt_dir}/ID.*", "csv": "one row, one pair"}.get(cfg.layout, rules)
    split: dict[str, Any] = {"policy": chosen}
    if frozen := splits.frozen_scenes(cfg, chosen, pairs):
        split |= {name: sorted(scenes) for name, scenes in frozen.items()}
    elif chosen in ("scene", "random", "geographic"):
        split |= {"guard": cfg.guard} if chosen == "geographic" else {"seed": cfg.split_seed}
        split |= {"val_fraction": cfg.val_fraction, "test_fraction": cfg.test_fraction}
    elif chosen.startswith("file:"):
        split |= {f"{file.name} sha256": file_hash(file) for file in splits.split_files(chosen)}
    facts: dict[str, Any] = {"layout": cfg.layout, "root": cfg.root.resolve().as_posix(), "rule": words}
    if cfg.scene_regex is not None:
        facts["scene_regex"] = cfg.scene_regex
    if cfg.layout == "csv":
        facts["trust_order"] = cfg.csv.trust_order
    facts["turned"] = southern(cfg.orientations, [pair.id for pair in pairs]) if cfg.orientations else []
    return facts | {"split": split, "verify": cfg.verify, **pixel_facts(cfg), "tool": f"sar2opt {__version__}"}


def pixel_facts(cfg: DataConfig) -> dict[str, Any]:
    """The settings that the statistics depend on."""
    return {
        "sar": cfg.sar.model_dump(mode="json", include={"bands", "scale", "floor", "nodata"}),
        "opt": cfg.opt.model_dump(mode="json", include={"bands", "scale"}),
    }


# one pair -------------------------------------------------------------------------------------------------------------


def look(cfg: DataConfig, hashing: bool, pair: Pair) -> Look:
    """Check one pair by its headers, or by its pixels with ``verify: full``."""
    assert cfg.root is not None
    sar, opt = (cfg.root / path for path in (pair.sar, pair.opt))
    try:
        require_file_inside(cfg, sar)
        require_file_inside(cfg, opt)
        row = Row(
            pair.id, "", pair.sar, pair.opt, pair.scene, pair.row, pair.col, sar_bands=";".join(cfg.sar.bands),
            note=pair.note,
        )  # fmt: skip
        if cfg.verify != "off":
            row = _headers(cfg, row, sar, opt)
        remarks: tuple[str, ...] = ()
        if cfg.verify == "full":
            row, remarks = _pixels(cfg, row, sar, opt)
        if hashing:
            row = row._replace(sar_sha256=file_hash(sar), opt_sha256=file_hash(opt))
    except UserError as error:
        return Look(None, str(error))
    return Look(row, "", remarks)


def require_file_inside(cfg: DataConfig, path: Path) -> None:
    """A link may not lead out of the root, and a name must be a plain file."""
    assert cfg.root is not None
    safe_file(path)
    if not cfg.allow_outside_root and not path.resolve().is_relative_to(resolved(cfg.root)):
        raise UserError(f"{path}: lies outside the root {cfg.root}; set data.allow_outside_root: true if this is meant")


@lru_cache(maxsize=4)
def resolved(root: Path) -> Path:
    return root.resolve()


def _headers(cfg: DataConfig, row: Row, sar: Path, opt: Path) -> Row:
    left, right = read_header(sar, cfg.max_pixels), read_header(opt, cfg.max_pixels)
    require_equal_size(sar, opt, left[:2], right[:2])
    if not _bands_may_fit(cfg, left) or not dtype_fits(left.dtype, cfg.sar.scale):
        decoding(cfg).decode(sar, cfg.max_pixels)
    if not opt_bands_fit(right.bands, cfg.opt) or not dtype_fits(right.dtype, cfg.opt.scale):
        read_opt(opt, cfg.opt, cfg.max_pixels)
    size = {"height": left.height, "width": left.width, "sar_dtype": left.dtype, "opt_dtype": right.dtype}
    turned = [
        f"{name} EXIF orientation {h.orientation}" for name, h in (("sar", left), ("opt", right)) if h.orientation > 1
    ]
    return row._replace(**size, note="; ".join(filter(None, [row.note, *turned])))


def _bands_may_fit(cfg: DataConfig, header: Header) -> bool:
    """Three bands may hold one, and named bands may be more than needed: then only reading tells."""
    return header.bands == len(cfg.sar.bands) and not header.descriptions


def _pixels(cfg: DataConfig, row: Row, sar: Path, opt: Path) -> tuple[Row, tuple[str, ...]]:
    pixels, valid = decoding(cfg).decode(sar, cfg.max_pixels)
    remarks = []
    if pixels.dtype.kind == "f" and not (finite := np.isfinite(pixels)).all():
        first = tuple(int(k) for k in np.argwhere(~finite)[0])
        remarks.append(f"{sar}: {int((~finite).sum())} values are not finite, the first at band, row, column {first}")
    for path, picture in ((sar, pixels), (opt, read_opt(opt, cfg.opt, cfg.max_pixels))):
        if picture.min() == picture.max():
            remarks.append(f"{path}: constant, {picture.flat[0]}")
    row = row._replace(valid=f"{valid.mean():.4f}")
    if not valid.any():
        remarks.append(f"{sar}: no valid SAR pixel; the pair is unused")
        row = row._replace(split="unused", note="; ".join(filter(None, [row.note, "no valid SAR pixel"])))
    return row, tuple(remarks)


def decoding(cfg: DataConfig) -> SarRadiometry:
    """What decodes and scales before the statistics are known; it does not normalise."""
    kept = pixel_facts(cfg)["sar"]
    return SarRadiometry.from_dict(kept if cfg.sar.scale == "uint8" else kept | {"norm": "percentile_image"})


def require_equal_size(sar: Path, opt: Path, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    if tuple(left) != tuple(right):
        raise UserError(
            f"unequal size: {sar}: {left[1]} x {left[0]} px, {opt}: {right[1]} x {right[0]} px; a pair covers one area "
            "with one pixel spacing"
        )


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chunk_sums(cfg: DataConfig, rows: list[Row]) -> statistics.Sums:
    """The statistics of some pairs."""
    return statistics.sums(_images(cfg, rows), len(cfg.sar.bands), cfg.sar.scale)


def _images(cfg: DataConfig, rows: list[Row]) -> Iterator[tuple[np.ndarray, np.ndarray, float, np.ndarray]]:
    assert cfg.root is not None
    radiometry = decoding(cfg)
    for row in rows:
        pixels, valid = radiometry.load(cfg.root / row.sar, cfg.max_pixels)
        nan = float(np.isnan(pixels).any(0).mean()) if pixels.dtype.kind == "f" else 0.0
        yield radiometry.scaled(pixels), valid, nan, read_opt(cfg.root / row.opt, cfg.opt, cfg.max_pixels)


# an existing manifest -------------------------------------------------------------------------------------------------


def require_current(cfg: DataConfig, manifest: Manifest) -> None:
    """The manifest fits the config, and the bytes of its files (a sample of them, or all with ``verify: full``)."""
    assert cfg.root is not None
    require_root(cfg.root)
    facts, here = manifest.facts, cfg.manifest
    if cfg.layout not in ("manifest", facts["layout"]):
        raise UserError(f"{here}: prepared as layout {facts['layout']}, data.layout is {cfg.layout}")
    if cfg.split is not None and cfg.split != facts["split"]["policy"]:
        raise UserError(f"{here}: its split is {facts['split']['policy']}, data.split is {cfg.split}; set it to null")
    for side, said in pixel_facts(cfg).items():
        if facts[side] != said:
            raise UserError(
                f"{here}: its statistics are of other {side.upper()} settings; expected {facts[side]}, data.{side} "
                f"says {said}; change data.{side}, or prepare again"
            )
    if cfg.orientations and southern(cfg.orientations, [row.id for row in manifest.rows]) != facts["turned"]:
        raise UserError(f"{here}: prepared with other strips turned than {cfg.orientations} says; prepare again")
    rows = [row for row in manifest.rows if row.split != "unused" and row.sar_sha256]
    count = {"off": 0, "header": min(SAMPLED, len(rows)), "full": len(rows)}[cfg.verify]
    for row in (rows[k * len(rows) // count] for k in range(count)):
        for path, known in ((row.sar, row.sar_sha256), (row.opt, row.opt_sha256)):
            require_file_inside(cfg, cfg.root / path)
            if (found := file_hash(cfg.root / path)) != known:
                raise UserError(
                    f"{cfg.root / path}: changed since the manifest {here} was written: SHA-256 was {known[:16]}..., "
                    f"now {found[:16]}...; prepare again"
                )
