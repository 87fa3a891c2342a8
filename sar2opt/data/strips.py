"""SpaceNet 6 was flown in strips, some seen from the north and some from the south: houses lean one way or the other.
A list that comes with the data says which (SummaryData/SAR_orientations.txt); tiles of southern strips are turned by
180 degrees, as the CosmiQ baseline does, so that all lean one way."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..config import UserError
from .layouts import listed

LINE = re.compile(r"(\d+_\d+) ([01])")  # strip, 0 north or 1 south


def strip(name: str) -> str:
    """The strip in the id of a pair."""
    return name.split("_tile_")[0]


def southern(path: Path, ids: Iterable[str]) -> list[str]:
    """The strips of ``ids`` that ``path`` calls southern, sorted; every strip must be in the list."""
    if not path.is_file():
        raise UserError(f"data.orientations: {path}: no such file (current folder: {Path.cwd()})")
    known: dict[str, str] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise UserError(f"{path}: line {number}: expected <t0>_<t1> and 0 or 1, found {line.strip()!r:.60}")
        known[match[1]] = match[2]
    strips = sorted({strip(name) for name in ids})
    if missing := [name for name in strips if name not in known]:
        raise UserError(f"{path}: {len(missing)} of {len(strips)} strips of the data are not in it: {listed(missing)}")
    return [name for name in strips if known[name] == "1"]
