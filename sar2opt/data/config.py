"""The ``data:`` section of every config: which pairs, read how, cut how. Checked before any file is opened."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)  # fmt: skip

from ..config import Section

SPLITS = ("train", "val", "test")
SPLIT_POLICIES = "scene|random|geographic|official|official_guarded|file:.+"
RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
Range = tuple[float, float]


def _ranges(value: Any) -> Any:
    """[lo, hi] stands for [[lo, hi]]; anything else than pairs of numbers is refused in the user's words."""
    if value is None:
        return None
    pairs = (
        [value] if isinstance(value, list | tuple) and not any(isinstance(x, list | tuple) for x in value) else value
    )
    if not isinstance(pairs, list | tuple) or not pairs or any(not _is_range(pair) for pair in pairs):
        raise ValueError("expected [low, high] with low < high, or one such pair per band")
    return tuple((float(low), float(high)) for low, high in pairs)


def _is_range(pair: Any) -> bool:
    numbers = isinstance(pair, list | tuple) and all(type(x) in (int, float) for x in pair)
    return numbers and len(pair) == 2 and pair[0] < pair[1]


Ranges = Annotated[tuple[Range, ...] | None, BeforeValidator(_ranges)]
AS_TUPLE = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
# what the files of a layout hold: defaults of data.sar and data.opt
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # intensity as delivered; the ranges in dB are those of GeoSET, which has none for VH: as HV
    "spacenet6": {"sar": {
        "bands": ["HH", "HV", "VH", "VV"], "scale": "linear", "nodata": 0.0,
        "clip": [[10.875, 16.82], [13.251, 17.045], [13.251, 17.045], [9.707, 16.598]],
    }},
    "sen12ms": {
        "sar": {"bands": ["VV", "VH"], "scale": "db", "clip": [-25.0, 0.0]},
        "opt": {"bands": [4, 3, 2], "scale": "uint16", "clip": [0.0, 3000.0]},
    },
}  # fmt: skip


class SarConfig(Section):
    """``data.sar:`` what the stored SAR values are, and how they become [-1, 1].

    scale: ``uint8`` 0..255; ``uint16`` 0..65535; ``db``; ``linear`` power; ``amplitude``, root of power. The last two
    become dB above ``floor`` (a power). norm: ``minmax`` of ``clip``; ``meanstd``, ``percentile``: of the training
    split; ``percentile_image``: of each image, which discards radiometry and differs between neighbouring tiles.
    """

    bands: Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], ...], AS_TUPLE] = ("VV",)
    scale: Literal["uint8", "uint16", "db", "linear", "amplitude"] = "uint8"
    clip: Ranges = None  # stored units of uint16, else dB; one [low, high], or one per band
    norm: Literal["minmax", "meanstd", "percentile", "percentile_image"] = "minmax"
    floor: PositiveFloat = 1e-3  # -30 dB: below the noise of the sensors
    nodata: float | None = None  # pixels with this value in all bands are invalid
    include_nodata: bool = False  # as earlier code: counted in the percentiles of an image, and left as it is

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.bands or len(set(self.bands)) < len(self.bands):
            raise ValueError(f"bands: expected different names, at least one (got {list(self.bands)})")
        if self.clip is not None and len(self.clip) not in (1, len(self.bands)):
            raise ValueError(
                f"clip: expected one pair, or {len(self.bands)} for {list(self.bands)}; got {len(self.clip)}"
            )
        if self.scale == "uint8" and (self.clip is not None or self.norm != "minmax"):
            raise ValueError("scale: uint8 maps 0..255 to [-1, 1] by itself; remove clip and norm")
        if self.scale != "uint8" and self.norm == "minmax" and self.clip is None:
            example = "[0, 4000]" if self.scale == "uint16" else "[-25, 0]"
            raise ValueError(f"clip: required by scale {self.scale}, e.g. clip: {example}")
        if self.include_nodata and self.norm != "percentile_image":
            raise ValueError("include_nodata: only norm percentile_image knows it")
        return self


class OptConfig(Section):
    """``data.opt:`` the optical side: three bands of 8 bit, or of 16 bit within ``clip``; one band counts as grey."""

    # numbers of red, green and blue in the file, from 1; null: these are all that it has
    bands: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt] | None, AS_TUPLE] = None
    scale: Literal["uint8", "uint16"] = "uint8"
    clip: Ranges = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.scale == "uint16") != (self.clip is not None):
            raise ValueError("clip: scale uint16 needs it, e.g. [0, 3000]; scale uint8 has none")
        if self.clip is not None and len(self.clip) not in (1, 3):
            raise ValueError(f"clip: expected one pair, or three for R, G, B; got {len(self.clip)}")
        return self


class CsvConfig(Section):
    """``data.csv:`` one CSV with the columns sar, opt (and any of the manifest), or two lists of one column."""

    files: tuple[Path, ...] = ()
    header: Literal["auto", True, False] = "auto"  # auto: a first row without an image's suffix is a header
    trust_order: bool = False  # two lists whose names do not tell that their rows belong together


class GeneratedConfig(Section):
    """``data.generated:`` how many pairs of each split, their speckle, and what differs between their two sides."""

    train: NonNegativeInt = 4096
    val: NonNegativeInt = 32
    test: NonNegativeInt = 64
    looks: PositiveFloat = 4.0  # 4.4 are the looks of a Sentinel-1 GRD product
    changes: NonNegativeInt = 0  # houses, clearings, ships that only one image of a pair shows
    seed: NonNegativeInt = 0


class DataConfig(Section):
    """``data:`` pairs on disk, or generated ones, and the crops that training sees."""

    layout: Literal["folders", "csv", "sen12", "sar2opt", "qxs", "spacenet6", "sen12ms", "generated", "manifest"]
    root: Path | None = None
    manifest: Path | None = None  # a folder written by scripts/prepare.py; without: scanned at every start
    sar_dir: str = "sar"
    opt_dir: str = "opt"
    csv: CsvConfig = CsvConfig()
    generated: GeneratedConfig = GeneratedConfig()
    scene_regex: str | None = None  # its first group, searched in the id, is the scene
    split: str | None = None  # null: scene where scenes are known, else the layout's own, as far as it has one
    split_seed: NonNegativeInt = 0
    val_fraction: float = Field(0.1, ge=0, lt=1)
    test_fraction: float = Field(0.1, ge=0, lt=1)
    guard: NonNegativeFloat = 450.0  # m between the splits of a geographic one; at least the side of a tile
    orientations: Path | None = None  # SAR_orientations.txt of SpaceNet 6: tiles seen from the south are turned by 180
    allow_outside_root: bool = False
    max_pixels: PositiveInt = 2**27  # a Sentinel-2 tile has 1.2e8
    verify: Literal["header", "full", "off"] = "header"
    resolution: PositiveInt = 256  # side of the crops in px; 256 is the patch of SEN1-2
    crop: Literal["random", "center", "none"] = "random"  # of training; validation and test are centre crops
    pad: Literal["reflect", "none"] = "none"  # images smaller than the crop
    crops_per_image: NonNegativeInt = 0  # random crops of each image that are drawn once; 0: new ones for ever
    min_valid: float = Field(0.5, ge=0, le=1)  # share of valid SAR pixels that a random crop should have
    flip: bool = True  # harmless at 10 m; at 1 m it changes the look direction of the SAR and the side of the sun
    rotate90: bool = True  # as flip
    sar: SarConfig = Field(SarConfig(), validate_default=True)
    opt: OptConfig = Field(OptConfig(), validate_default=True)
    # latent models: encode the training pairs once. dihedral: in every turn of flip and rotate90; plain: as they are
    cache_latents: Literal["off", "plain", "dihedral"] = "off"
    cache_dir: Path | None = None
    cache_precision: Literal["fp16", "fp32"] = "fp16"
    workers: NonNegativeInt = 4
    batch_size: PositiveInt = 16  # of one optimiser step, over all processes and accumulation
    micro_batch: PositiveInt = 8  # what one process computes at once

    @field_validator("sar", "opt", mode="before")
    @classmethod
    def _as_the_layout_has_it(cls, value: Any, info: ValidationInfo) -> Any:
        """What is not said about the pixels is what the layout has."""
        preset = PRESETS.get(info.data.get("layout", ""), {}).get(info.field_name or "", {})
        given = {} if isinstance(value, Section) and not value.model_fields_set else value
        return preset | given if preset and isinstance(given, dict) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in (_source_problem(self), _split_problem(self), _cache_problem(self)):
            if problem:
                raise ValueError(problem)
        return self


def _source_problem(cfg: DataConfig) -> str | None:
    """What is wrong with where the pairs come from."""
    if cfg.layout == "generated":
        keys = ("root", "manifest", "split", "scene_regex", "orientations")
        if used := [key for key in keys if getattr(cfg, key) is not None]:
            return f"{used[0]}: layout generated has none; remove it"
        if cfg.opt != OptConfig():
            return "opt: layout generated makes uint8 pictures of three bands; remove it"
        if not cfg.generated.train:
            return "generated.train: at least one pair"
        if cfg.sar.scale not in ("uint8", "db") or not {*cfg.sar.bands} <= {"VV", "VH"}:
            return "sar: layout generated knows the bands VV and VH, as scale uint8 or db"
        return None
    if cfg.orientations is not None and cfg.layout != "spacenet6":
        return f"orientations: only layout spacenet6 has strips, this is layout {cfg.layout}; remove it"
    if cfg.layout == "manifest":
        return None if cfg.manifest else "manifest: layout manifest needs the folder that scripts/prepare.py wrote"
    if cfg.root is None:
        return f"root: layout {cfg.layout} needs the folder of the data; set data.root=/path/to/it"
    if cfg.layout == "csv" and len(cfg.csv.files) not in (1, 2):
        return f"csv.files: one CSV with the columns sar and opt, or two lists; got {len(cfg.csv.files)} files"
    if cfg.layout == "folders" and cfg.sar_dir == cfg.opt_dir:
        return f"opt_dir: the same folder as sar_dir, {cfg.sar_dir!r}"
    return None


def _cache_problem(cfg: DataConfig) -> str | None:
    if cfg.crops_per_image and (cfg.crop != "random" or cfg.layout == "generated"):
        return "crops_per_image: only images larger than crop: random has room in have several crops; set it to 0"
    if cfg.cache_latents == "off":
        return None
    if cfg.cache_dir is None:
        return "cache_dir: cache_latents needs a folder that the runs with the same data and codec can share"
    if cfg.cache_latents == "plain" and (cfg.flip or cfg.rotate90):
        return "cache_latents: plain has no turns: set flip and rotate90 to false, or cache_latents to dihedral"
    return None


def _split_problem(cfg: DataConfig) -> str | None:
    if cfg.split is not None and not re.fullmatch(SPLIT_POLICIES, cfg.split):
        return f"split: expected {SPLIT_POLICIES.replace('|', ', ').replace('.+', 'PATH')} (got {cfg.split!r})"
    if cfg.val_fraction + cfg.test_fraction >= 1:
        return f"val_fraction + test_fraction = {cfg.val_fraction + cfg.test_fraction:g} leaves no pair for training"
    if cfg.scene_regex is None:
        return None
    if cfg.layout not in ("folders", "csv"):
        return f"scene_regex: layout {cfg.layout} has its own rule for names; remove it"
    try:
        re.compile(cfg.scene_regex)
    except re.error as error:
        return f"scene_regex: not a regular expression: {error} (got {cfg.scene_regex!r})"
    return None
