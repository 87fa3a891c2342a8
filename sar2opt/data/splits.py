"""Which pair trains and which one tests: whole scenes, places, a published list, a file, or chance. Pure functions of
names, and of places where the split is geographic."""

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..config import UserError
from .config import SPLITS, DataConfig
from .layouts import LAYOUTS, Pair, listed

RANDOM_WARNING = "random split: neighbouring tiles may share pixels; pixel overlap not checked"
NAMES = (*SPLITS, "unused")
SEASONS = {"spring": 1158, "summer": 1868, "fall": 1970, "winter": 2017}


def _scenes(**seasons: str) -> set[str]:
    return {f"ROIs{SEASONS[season]}_{season}_{n}" for season, numbers in seasons.items() for n in numbers.split()}


# scenes of val and test; all other scenes train
SCENES: dict[tuple[str, str], dict[str, set[str]]] = {
    # SEN1-2 by terrain, 16,000 patches of 30 scenes: 1,432 for test, 1,245 for validation, 13,323 for training
    ("sen12", "official"): {"test": _scenes(fall="115 133 73 121 52"), "val": _scenes(fall="113 26 144 32 27")},
    # 608, 154 and 1,315 of 2,077 tiles
    ("sar2opt", "scene"): {"test": {"6", "13"}, "val": {"3"}},
    # hold-out scenes and validation scenes of the SEN12MS toolbox, github.com/schmitt-muc/SEN12MS, splits/
    ("sen12ms", "official"): {
        "test": _scenes(
            spring="63 146 97 124 15 17", summer="43 131 19 104 72 15 79",
            fall="120 39 144 35 61 47 30 141", winter="64 146 32 107 135",
        ),
        "val": _scenes(
            spring="112 113 117 44 45 77", summer="113 26 36 55 73 89",
            fall="1 130 14 142 20 3 57 62 93", winter="103 144 69 77",
        ),
    },
}  # fmt: skip
# pairs and list hash of splits that others train and test on: scores compare on the same lists only
PUBLISHED = {
    ("sar2opt", "official"): {
        "train": (1450, "c31fc5d482e10eb1aa457f55f5a12877411b99cdd2001ed93a0855c53bd320dc"),
        "test": (627, "9fddc81b527109fde43200c0a64d5f47e2f69d05d69ba6ad40666c77f790fe1c"),
    },
    ("sar2opt", "official_guarded"): {
        "train": (1138, "895f961ebd5de520a837c02729732bd73df5ddce5ff19530d81e2826484e8fb4"),
        "test": (627, "9fddc81b527109fde43200c0a64d5f47e2f69d05d69ba6ad40666c77f790fe1c"),
    },
    ("sar2opt", "scene"): {
        "train": (1315, "1a38a4d6699d9f7371b478707cdf78064b01e2ba0656208da677005f48cd23d6"),
        "val": (154, "c99289c8117902e4f134d6de35ab321deb94ad20108cc11f004e395b7c003535"),
        "test": (608, "d136c43ce5dcca8ac18c41dd479e924c58458974a433cb76b657a7a6685a3247"),
    },
}


def uniform(seed: int, name: str) -> float:
    """int(first 8 hex digits of SHA-256 of "seed:name") / 2^32: in [0, 1), the same for all machines and versions."""
    return int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:8], 16) / 2**32


def policy(cfg: DataConfig, pairs: list[Pair]) -> str:
    """``data.split``, or its default: the table's own column, else scene where all scenes are known."""
    scenes, own = all(pair.scene for pair in pairs), cfg.layout == "csv" and any(pair.split for pair in pairs)
    default = "official" if own else "scene" if scenes else "geographic" if cfg.layout == "spacenet6" else None
    chosen = cfg.split or default
    if chosen is None or (chosen == "scene" and not scenes):
        regex = "" if cfg.layout in LAYOUTS else (
            "data.scene_regex: a pattern whose first group is the scene, such as '^(\\d+)_' for 075_r0c3; or set "
        )  # fmt: skip
        raise UserError(
            "data.split: the scenes of the pairs are not known, so nothing tells which tiles may share pixels. Set "
            f"{regex}data.split: random if no two tiles overlap, geographic if the files are GeoTIFF of one projection,"
            f" or file:PATH with your own list. First ids: {listed([pair.id for pair in pairs])}"
        )
    return chosen


def assign(cfg: DataConfig, pairs: list[Pair], chosen: str, eastings: Iterable[float] = ()) -> list[str]:
    """The split of each pair; ``eastings`` of the centres in m, for the geographic one."""
    ids, fractions = [pair.id for pair in pairs], (cfg.val_fraction, cfg.test_fraction)
    if frozen := frozen_scenes(cfg, chosen, pairs):
        where = {scene: name for name, scenes in frozen.items() for scene in scenes}
        split = [where.get(pair.scene, "train") for pair in pairs]
    elif chosen == "scene":
        split = by_scene([pair.scene for pair in pairs], cfg.split_seed, *fractions)
    elif chosen == "random":
        split = by_chance(ids, cfg.split_seed, *fractions)
    elif chosen == "geographic":
        split = by_easting(list(eastings), cfg.guard, *fractions)
    elif chosen.startswith("file:"):
        split = _from_file(Path(chosen.removeprefix("file:")), pairs)
    else:
        split = _official(pairs, cfg.layout, chosen)
    if "train" not in split:
        scenes = len({pair.scene for pair in pairs} - {""})
        raise UserError(
            f"data.split: {chosen} leaves no pair for training: {len(pairs)} pairs in {scenes or 'unknown'} scenes, "
            f"val_fraction {cfg.val_fraction:g}, test_fraction {cfg.test_fraction:g}; scenes stay whole, and a guard "
            "takes its part. Lower the fractions, or set one of them to 0"
        )
    return split


def frozen_scenes(cfg: DataConfig, chosen: str, pairs: list[Pair]) -> dict[str, set[str]]:
    """The scenes of val and test where the layout has them frozen for this split; else nothing."""
    if cfg.layout == "sen12" and not all(pair.note for pair in pairs):  # not the edition by terrain
        return {}
    return SCENES.get((cfg.layout, chosen), {})


def by_scene(scenes: list[str], seed: int, val_fraction: float, test_fraction: float) -> list[str]:
    """Scenes in the order of ``uniform`` go to test until it has its share of the pairs, then to val, then to train."""
    sizes, where = Counter(scenes), {}
    filled = Counter()
    for scene in sorted(sizes, key=lambda s: (uniform(seed, s), s)):
        name = next(
            (n for n, f in (("test", test_fraction), ("val", val_fraction)) if filled[n] < f * len(scenes)), "train"
        )
        where[scene] = name
        filled[name] += sizes[scene]
    return [where[scene] for scene in scenes]


def by_chance(ids: list[str], seed: int, val_fraction: float, test_fraction: float) -> list[str]:
    """round(n test_fraction) ids in the order of ``uniform`` are test, then round(n val_fraction) val."""
    test = round(len(ids) * test_fraction)
    val = round(len(ids) * val_fraction)
    order = sorted(ids, key=lambda i: (uniform(seed, i), i))
    where = dict.fromkeys(order, "train") | dict.fromkeys(order[test : test + val], "val")
    where |= dict.fromkeys(order[:test], "test")
    return [where[i] for i in ids]


def by_easting(eastings: list[float], guard: float, val_fraction: float, test_fraction: float) -> list[str]:
    """From the east: test until it has its share of the pairs, a band of ``guard`` m without use, val likewise, a band
    without use, train. Pairs of two splits are at least ``guard`` m apart, so tiles of that width share no ground."""
    split, border = ["train"] * len(eastings), math.inf
    for name, fraction in (("test", test_fraction), ("val", val_fraction)):
        left = sorted((e for e in eastings if e <= border), reverse=True)
        wanted = math.ceil(fraction * len(eastings))
        if not wanted or not left:
            continue
        line = left[min(wanted, len(left)) - 1]
        split = [name if line <= e <= border else s for e, s in zip(eastings, split, strict=True)]
        split = ["unused" if line - guard < e < line else s for e, s in zip(eastings, split, strict=True)]
        border = min(line - guard, math.nextafter(line, -math.inf))
    return split


def list_hash(ids: Iterable[str]) -> str:
    """SHA-256 of the sorted ids joined by newlines, without a final one."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def departures(layout: str, chosen: str, hashes: dict[str, str]) -> list[str]:
    """Which lists, by their hashes, are not the published ones."""
    return [
        f"split {chosen}: the {name} list is not the published one of {count:,} pairs: its hash is "
        f"{hashes.get(name, '-')[:8]}, expected {known[:8]}; scores do not compare"
        for name, (count, known) in PUBLISHED.get((layout, chosen), {}).items()
        if hashes.get(name) != known
    ]


def _official(pairs: list[Pair], layout: str, chosen: str) -> list[str]:
    if not any(pair.split for pair in pairs):
        own = "only its edition by terrain has one" if layout == "sen12" else "it has none"
        raise UserError(f"data.split: {chosen}: layout {layout}: {own}; use scene, geographic, random or file:PATH")
    split = [pair.split or "unused" for pair in pairs]
    if chosen == "official":
        return split
    if layout != "sar2opt":
        raise UserError(f"data.split: {chosen}: layout {layout} has none; only sar2opt has overlapping tiles")
    touching = _touching(pairs, LAYOUTS[layout][0].size)
    return [
        "unused" if name == "train" and pair.id in touching else name for name, pair in zip(split, pairs, strict=True)
    ]


def _touching(pairs: list[Pair], size: int) -> set[str]:
    """Ids of tiles that share pixels with a test tile of their scene."""
    corners: dict[str, list[tuple[int, int]]] = {}
    for pair in pairs:
        if pair.split == "test":
            corners.setdefault(pair.scene, []).append((int(pair.row), int(pair.col)))
    return {
        pair.id
        for pair in pairs
        if any(
            abs(row - int(pair.row)) < size and abs(col - int(pair.col)) < size
            for row, col in corners.get(pair.scene, [])
        )
    }


def _from_file(path: Path, pairs: list[Pair]) -> list[str]:
    """A CSV with the columns id and split, such as the manifest.csv of a prepared folder; or a folder of text lists
    train*.txt, val*.txt, test*.txt, of which each line is an id or a path of either side."""
    where = _from_lists(path, pairs) if path.is_dir() else _from_csv(path)
    if missing := sorted(where.keys() - {pair.id for pair in pairs}):
        raise UserError(f"{path}: {len(missing)} of its {len(where)} ids are not in the data: {listed(missing)}")
    return [where.get(pair.id, "unused") for pair in pairs]


def _from_csv(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise UserError(f"data.split: file:{path}: no such file or folder (current folder: {Path.cwd()})")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not {"id", "split"} <= set(rows.fieldnames or ()):
            raise UserError(f"{path}: expected a CSV with the columns id and split; found {rows.fieldnames}")
        where = {row["id"]: row["split"] for row in rows}
    if wrong := sorted({str(name) for name in where.values()} - set(NAMES)):
        raise UserError(f"{path}: column split: expected {', '.join(NAMES)}; found {listed(wrong)}")
    return where


def _from_lists(folder: Path, pairs: list[Pair]) -> dict[str, str]:
    files = _lists(folder)
    names = {name: pair.id for pair in pairs for name in (pair.id, pair.sar, pair.opt)}
    where: dict[str, str] = {}
    for split, file in files.items():
        for line in filter(None, map(str.strip, file.read_text(encoding="utf-8-sig").splitlines())):
            name = names.get(line, line)
            if where.setdefault(name, split) != split:
                raise UserError(f"{file}: {line}: it is in {files[where[name]].name} as well")
    return where


def split_files(chosen: str) -> list[Path]:
    """The files that say the split of policy file:PATH."""
    path = Path(chosen.removeprefix("file:"))
    return list(_lists(path).values()) if path.is_dir() else [path]


def _lists(folder: Path) -> dict[str, Path]:
    """The text list of each split."""
    found = {name: sorted(folder.glob(f"{name}*.txt")) for name in SPLITS}
    if not found["train"] or any(len(files) > 1 for files in found.values()):
        shown = listed(sorted(file.name for files in found.values() for file in files)) or "none"
        raise UserError(
            f"data.split: file:{folder}: expected a list train*.txt, and at most one of val*.txt and test*.txt each; "
            f"found: {shown}"
        )
    return {name: files[0] for name, files in found.items() if files}
