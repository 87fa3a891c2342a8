"""Which file belongs to which: pairs are formed by name, never by the order of a listing.

A rule is a regular expression on the path relative to the root, anchored at both ends. Two files form a pair if they
have one id and the two values of the group ``side``, which returns as (?P=side) in the name of the file.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..config import UserError
from .config import RASTER_SUFFIXES, DataConfig

SHOWN = 5  # names in a message
ID_LENGTH = 200


class Pair(NamedTuple):
    """Two files with one name; paths are relative to the root. ``split`` only where the layout's own list says it;
    ``row`` and ``col``: px of the upper left corner in the scene, where the name says them."""

    id: str
    sar: str
    opt: str
    scene: str = ""
    note: str = ""
    split: str = ""
    row: str = ""
    col: str = ""


class Rule(NamedTuple):
    """One pattern of names; ``id``, ``scene``, ``note`` are formats of its groups, ``words`` the pattern in words,
    ``size`` the side of its images in px. Groups part, row, col become split, row and col of the pair."""

    pattern: re.Pattern[str]
    id: str
    scene: str
    note: str
    words: str
    size: int
    sides: tuple[str, str] = ("s1", "s2")


PATCH = (  # of SEN1-2 and SEN12MS
    r"(?P<season>ROIs(?:1158_spring|1868_summer|1970_fall|2017_winter))/(?P<side>s1|s2)_(?P<scene>\d+)"
    r"/(?P=season)_(?P=side)_(?P=scene)_p(?P<patch>\d+)"
)
LAYOUTS: dict[str, tuple[Rule, ...]] = {
    "sen12": (
        Rule(
            re.compile(rf"(?:v_2/)?{PATCH}\.png"),
            "{season}_{scene}_p{patch}", "{season}_{scene}", "",
            "ROIs<season>/s1_<scene>/ROIs<season>_s1_<scene>_p<patch>.png", 256,
        ),
        Rule(
            re.compile(
                r"(?:v_2/)?(?P<terrain>agri|barrenland|grassland|urban)/(?P<side>s1|s2)"
                r"/(?P<season>ROIs\d+_[a-z]+)_(?P=side)_(?P<scene>\d+)_p(?P<patch>\d+)\.png"
            ),
            "{terrain}/{season}_{scene}_p{patch}", "{season}_{scene}", "{terrain}",
            "<terrain>/s1/ROIs<season>_s1_<scene>_p<patch>.png", 256,
        ),
    ),
    "sar2opt": (
        Rule(
            re.compile(r"(?P<part>train|test)(?P<side>A|B)/(?P<scene>\d+)_(?P<row>\d+)_(?P<col>\d+)\.jpg"),
            "{scene}_{row}_{col}", "{scene}", "",
            "trainA/<scene>_<row>_<col>.jpg (also testA; B: optical)", 600, ("A", "B"),
        ),
    ),
    "qxs": (
        Rule(
            re.compile(r"(?P<side>sar|opt)_256_oc_0\.2/(?P<number>\d+)\.png"),
            "{number}", "", "",
            "sar_256_oc_0.2/<n>.png", 256, ("sar", "opt"),
        ),
    ),
    "spacenet6": (
        Rule(
            re.compile(
                r"(?:train/)?(?:AOI_11_Rotterdam/)?(?P<side>SAR-Intensity|PS-RGB)"
                r"/SN6_Train_AOI_11_Rotterdam_(?P=side)_(?P<strip>\d+_\d+)_tile_(?P<tile>\d+)\.tif"
            ),
            "{strip}_tile_{tile}", "", "strip {strip}",
            "train/AOI_11_Rotterdam/SAR-Intensity/SN6_Train_AOI_11_Rotterdam_SAR-Intensity_<t0>_<t1>_tile_<n>.tif",
            900, ("SAR-Intensity", "PS-RGB"),
        ),
    ),
    "sen12ms": (
        Rule(
            re.compile(rf"{PATCH}\.tif"),
            "{season}_{scene}_p{patch}", "{season}_{scene}", "",
            "ROIs<season>/s1_<scene>/ROIs<season>_s1_<scene>_p<patch>.tif", 256,
        ),
    ),
}  # fmt: skip


class Found(NamedTuple):
    """Pairs sorted by id, and how many files were skipped: hidden, without an image's suffix, or not of the layout."""

    pairs: list[Pair]
    skipped: dict[str, int]


def find_pairs(cfg: DataConfig) -> Found:
    """The pairs of ``cfg.layout`` below ``cfg.root``."""
    assert cfg.root is not None
    require_root(cfg.root)
    if cfg.layout == "csv":
        from .csvlists import read_csv  # it needs this module

        found = Found(read_csv(cfg), {})
    else:
        found = _by_folders(cfg) if cfg.layout == "folders" else _by_rules(cfg)
    _require_ids(found.pairs)
    return found


def require_root(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"data.root: {root}: no such folder (current folder: {Path.cwd()})")


def walk(top: Path, root: Path, outside: bool, skipped: Counter[str]) -> Iterator[str]:
    """The image files below ``top``, relative to it. Links are followed inside ``root``; leaving it is an error unless
    ``outside``."""
    home = root.resolve()
    ancestors = [(top, frozenset({top.resolve()}))]
    while ancestors:
        folder, above = ancestors.pop()
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if entry.name.startswith(".") or entry.name == "Thumbs.db":
                skipped["hidden"] += 1
                continue
            path = Path(entry.path)
            if entry.is_symlink():
                target = path.resolve()
                if not target.is_relative_to(home) and not outside:
                    raise UserError(
                        f"{path}: a link that leaves the root {root}: it points to {target}; "
                        f"set data.allow_outside_root: true to follow it"
                    )
                if target in above:
                    continue  # a loop
            if entry.is_dir():
                ancestors.append((path, above | {path.resolve()}))
            elif path.suffix.lower() in RASTER_SUFFIXES:
                yield path.relative_to(top).as_posix()
            else:
                skipped["no image"] += 1


# folders --------------------------------------------------------------------------------------------------------------


def _by_folders(cfg: DataConfig) -> Found:
    """The same relative path without suffix on both sides is the id."""
    assert cfg.root is not None
    skipped: Counter[str] = Counter()
    sides = {}
    for key, name in (("sar_dir", cfg.sar_dir), ("opt_dir", cfg.opt_dir)):
        require_inside(name, f"data.{key}", cfg.allow_outside_root)
        if not (cfg.root / name).is_dir():
            there = sorted(p.name for p in cfg.root.iterdir() if p.is_dir())[:SHOWN]
            raise UserError(
                f"data.{key}: {cfg.root / name}: no such folder; layout folders expects ROOT/{cfg.sar_dir} and "
                f"ROOT/{cfg.opt_dir}. Folders in {cfg.root}: {', '.join(there) or 'none'}{_nearest(cfg)}"
            )
        files = [f"{name}/{p}" for p in walk(cfg.root / name, cfg.root, cfg.allow_outside_root, skipped)]
        sides[name] = {_stem(PurePosixPath(p).relative_to(name).as_posix()): [] for p in files}
        for p in files:
            sides[name][_stem(PurePosixPath(p).relative_to(name).as_posix())].append(p)
    matched = _match(sides, lambda i, side: f"{side}/{i}.*")
    ids = [i for i, _, _ in matched]
    scenes = scenes_of(ids, cfg.scene_regex)
    return Found(
        [Pair(i, sar, opt, scene) for (i, sar, opt), scene in zip(matched, scenes, strict=True)], dict(skipped)
    )


def scenes_of(ids: list[str], regex: str | None) -> list[str]:
    """The scene of each id: the first group of ``regex``, or the first folder; empty where there is none."""
    if regex is None:
        return [i.split("/")[0] if "/" in i else "" for i in ids]
    matches = [re.search(regex, i) for i in ids]
    if missing := [i for i, match in zip(ids, matches, strict=True) if match is None]:
        raise UserError(
            f"data.scene_regex: {regex!r} does not match {len(missing)} of {len(ids)} ids: {listed(missing)}"
        )
    return [(match.group(1) if match.re.groups else match.group(0)) or "" for match in matches if match]


# layouts with rules ---------------------------------------------------------------------------------------------------


def _by_rules(cfg: DataConfig) -> Found:
    assert cfg.root is not None
    rules, skipped = LAYOUTS[cfg.layout], Counter()
    left, right = rules[0].sides
    sides: dict[str, dict[str, list[str]]] = {left: {}, right: {}}
    facts: dict[str, tuple[str, str, str, str, str]] = {}
    strangers = []
    for path in walk(cfg.root, cfg.root, cfg.allow_outside_root, skipped):
        rule, match = _first_match(rules, path)
        if rule is None or match is None:
            strangers.append(path)
            continue
        groups = match.groupdict()
        name = rule.id.format(**groups)
        sides[groups["side"]].setdefault(name, []).append(path)
        known = (rule.scene.format(**groups), rule.note.format(**groups))
        known += (groups.get("part", ""), groups.get("row", ""), groups.get("col", ""))
        if facts.setdefault(name, known) != known:
            there = [p for files in sides.values() for p in files.get(name, [])]
            raise UserError(f"{cfg.root}: id {name} is in train and in test: {' and '.join(there[:2])}; remove one")
    if not facts:
        raise UserError(
            f"data.layout: {cfg.layout}: no file below {cfg.root} has a name of this layout: "
            + " or ".join(rule.words for rule in rules)
            + f". Found {len(strangers)} image files: {listed(sorted(strangers), 3)}{_nearest(cfg)}"
        )
    if strangers:
        skipped["other names"] = len(strangers)
    matched = _match(sides, lambda i, side: _partner(rules, i, side, sides))
    return Found([Pair(i, sar, opt, *facts[i]) for i, sar, opt in matched], dict(skipped))


def _first_match(rules: tuple[Rule, ...], path: str) -> tuple[Rule | None, re.Match[str] | None]:
    for rule in rules:
        if match := rule.pattern.fullmatch(path):
            return rule, match
    return None, None


def _partner(rules: tuple[Rule, ...], name: str, side: str, sides: dict[str, dict[str, list[str]]]) -> str:
    """The path that the missing file of pair ``name`` should have."""
    other = next(s for s in sides if s != side)
    path = sides[other][name][0]
    _, match = _first_match(rules, path)
    assert match is not None
    start, end = match.span("side")
    return path[:start] + side + path[end:].replace(f"_{other}_", f"_{side}_", 1)


def _nearest(cfg: DataConfig) -> str:
    """Advice: the layout whose names the files have."""
    assert cfg.root is not None
    found = []
    for path in walk(cfg.root, cfg.root, True, Counter()):
        found.append(path)
        if len(found) == 2000:
            break
    for layout, rules in LAYOUTS.items():
        if layout != cfg.layout and any(_first_match(rules, path)[0] for path in found):
            return f". The names fit layout {layout}"
    tops = {path.split("/")[0] for path in found if "/" in path}
    if cfg.layout != "folders" and {cfg.sar_dir, cfg.opt_dir} <= tops:
        return f". The folders {cfg.sar_dir} and {cfg.opt_dir} fit layout folders"
    return ""


# matching -------------------------------------------------------------------------------------------------------------


def _match(sides: dict[str, dict[str, list[str]]], expected) -> list[tuple[str, str, str]]:
    """(id, SAR path, optical path) sorted by id; every other outcome is an error. ``expected(id, side)`` is the path
    looked for."""
    (left, sar), (right, opt) = sides.items()
    for files in (sar, opt):
        if double := {i: paths for i, paths in sorted(files.items()) if len(paths) > 1}:
            pairs = [" and ".join(paths[:2]) for paths in double.values()]
            raise UserError(f"{len(double)} ids have two files on one side; remove one of each: {listed(pairs)}")
    if not sar and not opt:
        raise UserError(f"no image files ({', '.join(RASTER_SUFFIXES)}) in {left} and {right}")
    _require_one_case(sar.keys(), opt.keys())
    problems = []
    for side, files, others in ((left, sar, opt), (right, opt, sar)):
        if missing := sorted(others.keys() - files.keys()):
            wanted = [f"{i} (looked for {expected(i, side)})" for i in missing]
            problems.append(f"{len(missing)} files have no partner in {side}: {listed(wanted)}")
    if problems:
        raise UserError(
            f"{len(sar)} SAR files ({left}) and {len(opt)} optical files ({right}) do not pair: " + "; ".join(problems)
        )
    return [(i, sar[i][0], opt[i][0]) for i in sorted(sar)]


def _require_one_case(left, right) -> None:
    """Names that differ in case only pair on one file system and not on the next."""
    groups: dict[str, set[str]] = {}
    for name in [*left, *right]:
        groups.setdefault(name.casefold(), set()).add(name)
    if clashes := [" and ".join(sorted(names)) for _, names in sorted(groups.items()) if len(names) > 1]:
        raise UserError(f"{len(clashes)} names differ in upper and lower case only; rename: {listed(clashes)}")


def _require_ids(pairs: list[Pair]) -> None:
    """Ids name outputs: no control characters, no escape from a folder, no look of a flag."""
    bad = [p.id for p in pairs if not is_safe_id(p.id)]
    if bad:
        raise UserError(
            f"{len(bad)} ids cannot name output files (control characters, backslash, '..', '//', a leading '/' or "
            f"'-', or more than {ID_LENGTH} characters): {listed([repr(i) for i in bad])}"
        )


def is_safe_id(name: str) -> bool:
    plain = name.isprintable() and "\\" not in name  # bytes that are no UTF-8 are not printable
    return plain and 0 < len(name) <= ID_LENGTH and name[0] != "-" and not {"", ".", ".."} & set(name.split("/"))


def require_inside(path: str, where: str, outside: bool) -> None:
    """Refuse absolute paths and those with '..', unless the config allows them."""
    if not outside and (path.startswith(("/", "\\")) or ".." in PurePosixPath(path.replace("\\", "/")).parts):
        raise UserError(f"{where}: {path}: leaves the root; set data.allow_outside_root: true if this is meant")


def listed(names: list[str], count: int = SHOWN) -> str:
    """The first names of a list, for messages."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _stem(path: str) -> str:
    """Relative path without suffix, in Unicode NFC: macOS writes NFD."""
    return unicodedata.normalize("NFC", PurePosixPath(path).with_suffix("").as_posix())
