"""Which pair trains and which one tests: whole scenes, a published list, a file, or chance. Pure functions of names."""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..config import UserError
from .config import DataConfig
from .layouts import Pair, listed

RANDOM_WARNING = "random split: neighbouring tiles may share pixels; pixel overlap not checked"
# SEN1-2 by terrain, 16,000 patches of 30 scenes: 1,432 for test, 1,245 for validation, 13,323 for training
TERRAIN = {
    "test": {f"ROIs1970_fall_{n}" for n in (115, 133, 73, 121, 52)},
    "val": {f"ROIs1970_fall_{n}" for n in (113, 26, 144, 32, 27)},
}
NAMES = ("train", "val", "test", "unused")


def uniform(seed: int, name: str) -> float:
    """int(first 8 hex digits of SHA-256 of "seed:name") / 2^32: in [0, 1), the same for all machines and versions."""
    return int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:8], 16) / 2**32


def policy(cfg: DataConfig, pairs: list[Pair]) -> str:
    """``data.split``, or its default: the table's own column, else scene where all scenes are known."""
    scenes, own = all(pair.scene for pair in pairs), any(pair.split for pair in pairs)
    chosen = cfg.split or ("official" if own else "scene" if scenes else None)
    if chosen is None or (chosen == "scene" and not scenes):
        raise UserError(
            "data.split: the scenes of the pairs are not known, so nothing tells which tiles may share pixels. Set "
            "data.scene_regex: a pattern whose first group is the scene, such as '^(\\d+)_' for 075_r0c3; or set "
            "data.split: random if no two tiles overlap, or file:PATH with your own list. "
            f"First ids: {listed([pair.id for pair in pairs])}"
        )
    return chosen


def assign(cfg: DataConfig, pairs: list[Pair], chosen: str) -> list[str]:
    """The split of each pair."""
    if chosen == "scene":
        split = by_scene([pair.scene for pair in pairs], cfg.split_seed, cfg.val_fraction, cfg.test_fraction)
    elif chosen == "random":
        split = by_chance([pair.id for pair in pairs], cfg.split_seed, cfg.val_fraction, cfg.test_fraction)
    elif chosen == "official":
        split = _official(pairs, cfg.layout)
    else:
        split = _from_file(Path(chosen.removeprefix("file:")), [pair.id for pair in pairs])
    if "train" not in split:
        scenes = len({pair.scene for pair in pairs})
        raise UserError(
            f"data.split: {chosen} leaves no pair for training: {len(pairs)} pairs in {scenes} scenes, val_fraction "
            f"{cfg.val_fraction:g}, test_fraction {cfg.test_fraction:g}; scenes stay whole. Lower the fractions, or "
            "set one of them to 0"
        )
    return split


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


def list_hash(ids: Iterable[str]) -> str:
    """SHA-256 of the sorted ids joined by newlines, without a final one."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _official(pairs: list[Pair], layout: str) -> list[str]:
    if any(pair.split for pair in pairs):
        return [pair.split or "unused" for pair in pairs]
    if layout == "sen12" and all(pair.note for pair in pairs):  # the note is the terrain
        names = {scene: name for name, scenes in TERRAIN.items() for scene in scenes}
        return [names.get(pair.scene, "train") for pair in pairs]
    own = "SEN1-2 sorted by terrain has one, SEN1-2 itself has none" if layout == "sen12" else "it has none"
    raise UserError(f"data.split: official: layout {layout}: {own}; use scene, random or file:PATH")


def _from_file(path: Path, ids: list[str]) -> list[str]:
    """A CSV with the columns id and split, such as the manifest.csv of a prepared folder."""
    if not path.is_file():
        raise UserError(f"data.split: file:{path}: no such file (current folder: {Path.cwd()})")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not {"id", "split"} <= set(rows.fieldnames or ()):
            raise UserError(f"{path}: expected a CSV with the columns id and split; found {rows.fieldnames}")
        where = {row["id"]: row["split"] for row in rows}
    if wrong := sorted({str(name) for name in where.values()} - set(NAMES)):
        raise UserError(f"{path}: column split: expected {', '.join(NAMES)}; found {listed(wrong)}")
    if missing := sorted(where.keys() - set(ids)):
        raise UserError(f"{path}: {len(missing)} of its {len(where)} ids are not in the data: {listed(missing)}")
    return [where.get(i, "unused") for i in ids]
