"""A data set, frozen: which pairs, of which split, with which bytes. The folder's files repeat to the last byte.

manifest.csv has one row per pair, sorted by id; manifest.json the rule, the split, the hashes and the statistics.
"""

import csv
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..config import MachineError, UserError
from .config import SPLITS
from .layouts import SHOWN, is_safe_id, listed, require_inside
from .splits import NAMES, list_hash

FORMAT = 1
CSV_FILE, JSON_FILE = "manifest.csv", "manifest.json"
FACTS = {"layout", "root", "split", "sar", "opt", "turned", "statistics", "lists", "csv_sha256"}  # all that is read


class Row(NamedTuple):
    """One pair; empty where not known. ``valid``: share of valid SAR pixels, 4 decimals."""

    id: str
    split: str
    sar: str
    opt: str
    scene: str = ""
    row: str = ""
    col: str = ""
    height: int = 0
    width: int = 0
    sar_bands: str = ""
    sar_dtype: str = ""
    opt_dtype: str = ""
    valid: str = ""
    sar_sha256: str = ""
    opt_sha256: str = ""
    note: str = ""


@dataclass(frozen=True)
class Manifest:
    """Rows sorted by id; ``facts``: layout, root, rule, split policy, SAR settings, statistics, as manifest.json."""

    rows: list[Row]
    facts: dict[str, Any] = field(default_factory=dict)

    def of(self, split: str) -> list[Row]:
        """The rows of one split."""
        return [row for row in self.rows if row.split == split]

    @property
    def list_hashes(self) -> dict[str, str]:
        """SHA-256 of the sorted ids of each split that has any."""
        return {name: list_hash(row.id for row in rows) for name in SPLITS if (rows := self.of(name))}

    @property
    def scenes(self) -> dict[str, int]:
        """Number of scenes per split."""
        return {name: len({row.scene for row in self.of(name)} - {""}) for name in NAMES}


def require_free(folder: Path) -> None:
    """A manifest may replace a manifest, and nothing else."""
    if folder.exists() and not (folder / JSON_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is no manifest; choose another folder")


def write(manifest: Manifest, folder: Path) -> None:
    """Write the folder under another name and rename it: there is a whole manifest or none."""
    require_free(folder)
    text = _csv(manifest.rows)
    scenes = {name: dict(sorted(Counter(r.scene for r in manifest.of(name) if r.scene).items())) for name in NAMES}
    facts = {
        "format": FORMAT,
        **manifest.facts,
        "counts": {name: len(manifest.of(name)) for name in NAMES},
        "scenes": scenes,
        "lists": manifest.list_hashes,
        "csv_sha256": hashlib.sha256(text).hexdigest(),
    }
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    old = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        (temporary / CSV_FILE).write_bytes(text)
        (temporary / JSON_FILE).write_bytes((json.dumps(facts, indent=1, ensure_ascii=True) + "\n").encode())
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    except OSError as error:
        raise MachineError(f"{folder}: manifest not written: {error.strerror}") from None
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)  # the new one could not take its place
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def read(folder: Path, allow_outside_root: bool = False) -> Manifest:
    """Read a folder that ``write`` wrote; everything in it is checked."""
    if not (folder / JSON_FILE).is_file():
        raise UserError(
            f"data.manifest: {folder}: no {JSON_FILE} there; write one with scripts/prepare.py --out {folder}"
        )
    facts = _facts(folder / JSON_FILE)
    path = folder / CSV_FILE
    if not path.is_file():
        raise UserError(f"{path}: missing; write the manifest again with scripts/prepare.py")
    text = path.read_bytes()
    if (found := hashlib.sha256(text).hexdigest()) != facts["csv_sha256"]:
        raise UserError(
            f"{path}: changed since it was written: SHA-256 {found[:16]}..., {JSON_FILE} says "
            f"{str(facts['csv_sha256'])[:16]}...; write the manifest again with scripts/prepare.py"
        )
    rows = _rows(path, text.decode())
    for number, row in enumerate(rows, 2):
        for side in (row.sar, row.opt):
            require_inside(side, f"{path}: line {number}", allow_outside_root)
    manifest = Manifest(rows, facts)
    if manifest.list_hashes != facts["lists"]:
        raise UserError(f"{folder / JSON_FILE}: its list hashes are not those of {CSV_FILE}; write the manifest again")
    return manifest


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else type(facts).__name__
        raise UserError(f"{path}: manifest format {found!r}; this version reads format {FORMAT}")
    if missing := sorted(FACTS - facts.keys()):
        raise UserError(f"{path}: lacks {', '.join(missing)}; write the manifest again with scripts/prepare.py")
    if not isinstance(facts["root"], str):
        raise UserError(f"{path}: root: expected a path, found {facts['root']!r:.80}")
    return facts


def _csv(rows: list[Row]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Row._fields)
    table.writerows(rows)
    return text.getvalue().encode()


def _rows(path: Path, text: str) -> list[Row]:
    lines = list(csv.reader(io.StringIO(text)))
    if not lines or tuple(lines[0]) != Row._fields:
        raise UserError(f"{path}: expected the columns {', '.join(Row._fields)}; found {lines[:1]}")
    rows = []
    for number, cells in enumerate(lines[1:], 2):
        if len(cells) != len(Row._fields):
            raise UserError(f"{path}: line {number}: {len(cells)} cells, expected {len(Row._fields)}")
        record: dict[str, Any] = dict(zip(Row._fields, cells, strict=True))
        try:
            record |= {key: int(record[key]) for key in ("height", "width")}
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}") from None
        row = Row(**record)
        if row.split not in NAMES or not is_safe_id(row.id):
            raise UserError(
                f"{path}: line {number}: id {row.id!r}, split {row.split!r}: expected one of {', '.join(NAMES)}"
            )
        rows.append(row)
    ids = [row.id for row in rows]
    if ids != sorted(set(ids)):
        wrong = [b for a, b in zip(ids, ids[1:], strict=False) if b <= a]
        raise UserError(f"{path}: ids must be sorted and unique; {len(wrong)} are not: {listed(wrong, SHOWN)}")
    return rows
