"""Pairs named by a table: one CSV whose rows are pairs, or two lists of one column as earlier code has them.

Rows of two lists pair by their order; their names must say the same, row by row.
"""

import csv
import re
import unicodedata
from pathlib import Path, PurePosixPath

from ..config import UserError
from .config import RASTER_SUFFIXES, DataConfig
from .layouts import Pair, listed, require_inside, scenes_of

SPLIT_NAMES = ("train", "val", "test", "unused", "")
SIDE = re.compile(r"(^|[_\-.])(?:s1|s2|sar|opt|optical)(?=$|[_\-.])", re.IGNORECASE)


def read_csv(cfg: DataConfig) -> list[Pair]:
    """The pairs of ``cfg.csv``, sorted by id; paths relative to the root."""
    tables = [_rows(file) for file in cfg.csv.files]
    headers = [_header(rows, cfg.csv.header) for rows in tables]
    bodies = [rows[1:] if header else rows for rows, header in zip(tables, headers, strict=True)]
    records = _two_lists(cfg, bodies) if len(tables) == 2 else _one_table(cfg.csv.files[0], bodies[0], headers[0])
    if not records:
        raise UserError(f"{cfg.csv.files[0]}: no rows")
    for number, record in enumerate(records, 1):
        for side in ("sar", "opt"):
            require_inside(record[side], f"{cfg.csv.files[0]}: row {number} of the pairs", cfg.allow_outside_root)
    ids = [record.get("id") or _stem(record["sar"]) for record in records]
    _require_unique(cfg.csv.files[0], ids, records)
    scenes = [record.get("scene", "") for record in records]
    if cfg.scene_regex is not None:
        scenes = scenes_of(ids, cfg.scene_regex)
    pairs = [
        Pair(i, record["sar"], record["opt"], scene, *(record.get(key, "") for key in ("note", "split", "row", "col")))
        for i, record, scene in zip(ids, records, scenes, strict=True)
    ]
    if wrong := sorted({pair.split for pair in pairs} - set(SPLIT_NAMES)):
        raise UserError(
            f"{cfg.csv.files[0]}: column split: expected {', '.join(SPLIT_NAMES[:-1])}; found {listed(wrong)}"
        )
    return sorted(pairs)


def _rows(file: Path) -> list[list[str]]:
    if not file.is_file():
        raise UserError(f"data.csv.files: {file}: no such file (current folder: {Path.cwd()})")
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:  # a table saved by Excel begins with a BOM
            return [[cell.strip() for cell in row] for row in csv.reader(lines) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: not a UTF-8 CSV file: {error}") from None


def _header(rows: list[list[str]], header: bool | str) -> list[str] | None:
    """The first row if it is one; ``auto``: it names no image."""
    if not rows or header is False:
        return None
    if header == "auto" and any(PurePosixPath(cell).suffix.lower() in RASTER_SUFFIXES for cell in rows[0]):
        return None
    return [cell.lower() for cell in rows[0]]


def _one_table(file: Path, rows: list[list[str]], header: list[str] | None) -> list[dict[str, str]]:
    if header is None or not {"sar", "opt"} <= set(header):
        width = len(header or (rows or [[]])[0])
        if width != 2:
            found = f"header {header}" if header else f"{width} columns and no header"
            raise UserError(f"{file}: expected the columns sar and opt, or exactly two columns; found {found}")
        header = ["sar", "opt"]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(
                f"{file}: row {number} after the header: {len(row)} cells, expected {len(header)}: {row[:3]}"
            )
    return [dict(zip(header, row, strict=True)) for row in rows]


def _two_lists(cfg: DataConfig, bodies: list[list[list[str]]]) -> list[dict[str, str]]:
    names = " and ".join(map(str, cfg.csv.files))
    for file, rows in zip(cfg.csv.files, bodies, strict=True):
        if wide := [row for row in rows if len(row) != 1]:
            raise UserError(f"{file}: two lists have one column each; this one has rows like {wide[0][:3]}")
    sar, opt = ([row[0] for row in rows] for rows in bodies)
    if len(sar) != len(opt):
        raise UserError(f"{names}: {len(sar)} and {len(opt)} rows; expected equal numbers (header: {cfg.csv.header})")
    wrong = [f"row {n}: {a} | {b}" for n, (a, b) in enumerate(zip(sar, opt, strict=True), 1) if _key(a) != _key(b)]
    if wrong and not cfg.csv.trust_order:
        shown = "".join(f"\n  {line}" for line in wrong[:5])
        raise UserError(
            f"{names}: {len(wrong)} of {len(sar)} rows do not name the same patch (after _s1_/_s2_, sar/opt); check "
            f"csv.header, or set data.csv.trust_order: true if the order is right:{shown}"
        )
    return [{"sar": a, "opt": b} for a, b in zip(sar, opt, strict=True)]


def _require_unique(file: Path, ids: list[str], records: list[dict[str, str]]) -> None:
    seen: dict[str, str] = {}
    for i, record in zip(ids, records, strict=True):
        if i in seen:
            raise UserError(f"{file}: id {i} twice: {seen[i]} and {record['sar']}; give the table a column id")
        seen[i] = record["sar"]


def _key(path: str) -> str:
    """The name of a patch without the word for its side."""
    return SIDE.sub(r"\1*", _stem(path))


def _stem(path: str) -> str:
    return unicodedata.normalize("NFC", PurePosixPath(path.replace("\\", "/")).stem)
