"""Which output belongs to which target: by id, the relative path without suffix, and never by the order of files."""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .config import UserError
from .data import SarRadiometry, manifest
from .data.rasters import DECODER_ERRORS, read_header
from .data.strips import strip

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")  # of which targets and outputs are read
SUFFIXES = (*PICTURES, ".npy")
SHOWN = 5
MIN_SIDE = 11  # px: SSIM's window
MAP = "_confidence"  # ends the names of what infer.py --confidence writes beside an image
Pixels = TypeVar("Pixels", np.ndarray, Tensor)


class Item(NamedTuple):
    """One image: where its output, its truth and its SAR are; ``scene`` if the manifest knows it."""

    id: str
    pred: Path
    target: Path
    sar: Path | None = None
    scene: str = ""


class Size(NamedTuple):
    height: int
    width: int


class Pair(NamedTuple):
    """An image without an output: of the training split, for baselines, or one that a model is to translate, perhaps
    ``turned`` by 180 degrees, as in its training."""

    id: str
    sar: Path | None
    target: Path
    turned: bool = False


class Folders(NamedTuple):
    """Where things are. With ``rows`` of a manifest below ``root``, these say which images count; ``sar`` and
    ``target`` then default to the manifest's files."""

    target: Path | None
    sar: Path | None
    rows: list[manifest.Row] | None = None
    train: list[manifest.Row] | None = None
    root: Path = Path()
    southern: tuple[str, ...] = ()  # strips of SpaceNet 6 that training turns

    @property
    def scenes(self) -> dict[str, str]:
        """Of every id, where the manifest knows it."""
        return {row.id: row.scene for row in self.rows or []}


def find(pred: Path, folders: Folders, allow_missing: bool) -> tuple[list[Item], list[str]]:
    """The images by id, and warnings. Missing and extra files are an error, or with ``allow_missing`` a warning."""
    outputs = by_row(files(pred, "--pred", PICTURES), folders.rows or [])
    sides = {"--pred": outputs, "--target": _side(folders, "target", PICTURES)}
    if folders.sar or folders.rows:
        sides["--sar"] = _side(folders, "sar", SUFFIXES)
    ids, notes = _common(sides, folders.rows, allow_missing)
    sar = sides.get("--sar", {})
    return [
        Item(i, sides["--pred"][i], sides["--target"][i], sar.get(i), folders.scenes.get(i, "")) for i in ids
    ], notes


def pairs(folders: Folders) -> list[Pair]:
    """SAR and target by id. Missing and extra files are an error."""
    sides = {"--sar": _side(folders, "sar", SUFFIXES), "--target": _side(folders, "target", PICTURES)}
    return [
        Pair(i, sides["--sar"][i], sides["--target"][i], strip(i) in folders.southern)
        for i in _common(sides, folders.rows, False)[0]
    ]


def by_row(found: dict[str, Path], rows: list[manifest.Row]) -> dict[str, Path]:
    """Outputs by id. Those of infer.py bear the names of the SAR files, below the folder that it was given."""
    ids, names = {row.id for row in rows}, dict[str, set[str]]()
    for row in rows:
        parts = Path(row.sar).with_suffix("").parts
        for k in range(len(parts)):
            names.setdefault("/".join(parts[k:]), set()).add(row.id)
    known = {name: next(iter(own)) for name, own in names.items() if len(own) == 1 and name not in ids}
    return {known.get(name, name): path for name, path in found.items()}


def _common(
    sides: dict[str, dict[str, Path]], rows: list[manifest.Row] | None, allow_missing: bool
) -> tuple[list[str], list[str]]:
    """The ids that all sides have, sorted, and warnings."""
    wanted = set(sides["--target"])
    if rows is not None:
        wanted = {row.id for row in rows}
        sides = {name: found if name == "--pred" else _among(found, wanted) for name, found in sides.items()}
    problems = [line for name, found in sides.items() for line in _differences(name, set(found), wanted)]
    ids = sorted(wanted.intersection(*sides.values()))
    if problems and not (allow_missing and ids):
        counts = ", ".join(f"{name} {len(found)}" for name, found in sides.items())
        advice = "--allow-missing scores what all have" if ids else "ids are relative paths without suffix"
        raise UserError(f"{counts} images of {len(wanted)} do not match by name; {advice}\n  " + "\n  ".join(problems))
    return ids, [f"only {len(ids)} of {len(wanted)} images are scored: {line}" for line in problems]


def files(folder: Path, name: str, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, Path]:
    """Every image below ``folder`` by its id; ``name`` is what messages call it."""
    if not folder.is_dir():
        raise UserError(f"{name} {folder}: no such folder")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() in suffixes and not any(part.startswith(".") for part in relative.parts):
            found.setdefault(relative.with_suffix("").as_posix(), []).append(path)
    found = {i: paths for i, paths in found.items() if not _is_map(i, found)}
    if not found:
        raise UserError(f"{name} {folder}: no images in it; expected files ending in {', '.join(suffixes)}")
    if double := [" and ".join(map(str, paths)) for paths in found.values() if len(paths) > 1]:
        raise UserError(f"{name} {folder}: {len(double)} ids have two files; remove one of each: {listed(double)}")
    return {i: paths[0] for i, paths in found.items()}


def _is_map(name: str, among: Iterable[str]) -> bool:
    """Whether it is a map of confidence, beside its image."""
    return name.endswith(MAP) and name.removesuffix(MAP) in among


def train_pairs(sar: Path | None, target: Path | None, rows: list[manifest.Row] | None, root: Path) -> list[Pair]:
    """The training pairs of two folders, or of a manifest; sorted by id, empty where nothing is given."""
    if target is None:
        found = [Pair(row.id, root / row.sar, root / row.opt) for row in rows or []]
        paths = [path for pair in found for path in (pair.sar, pair.target) if path is not None]
        if missing := [str(path) for path in paths if not path.is_file()]:
            raise UserError(f"{len(missing)} training files of the manifest are missing: {listed(missing)}")
        return found
    targets = files(target, "--train-target", PICTURES)
    if sar is None:
        return [Pair(i, None, path) for i, path in sorted(targets.items())]
    found = files(sar, "--train-sar")
    if problems := _differences("--train-sar", set(found), set(targets)):
        raise UserError(f"{len(found)} of --train-sar and {len(targets)} of --train-target\n  " + "\n  ".join(problems))
    return [Pair(i, found[i], path) for i, path in sorted(targets.items())]


def _side(folders: Folders, side: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    folder = folders.target if side == "target" else folders.sar
    if folder is not None:
        return files(folder, f"--{side}", suffixes)
    if folders.rows is None:
        raise UserError(f"--{side}: expected a folder, or --manifest")
    found = {row.id: folders.root / (row.opt if side == "target" else row.sar) for row in folders.rows}
    if missing := [str(path) for path in found.values() if not path.is_file()]:
        raise UserError(f"{len(missing)} of {len(found)} files of the manifest are missing: {listed(missing)}")
    return found


def _among(found: dict[str, Path], wanted: set[str]) -> dict[str, Path]:
    return {i: path for i, path in found.items() if i in wanted}


def _differences(name: str, found: set[str], wanted: set[str]) -> list[str]:
    lines = []
    if missing := sorted(wanted - found):
        lines.append(f"{name} lacks {len(missing)}: {listed(missing)}")
    if extra := sorted(found - wanted):
        lines.append(f"{name} has besides {len(extra)}: {listed(extra)}")
    return lines


def listed(names: list[str]) -> str:
    """The first names of a list, for messages."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


# sizes ----------------------------------------------------------------------------------------------------------------


def sizes(items: list[Item], crop: bool) -> list[Size]:
    """The sizes at which the images are compared, those of the outputs. Another size or kind on any side is an error,
    except that with ``crop`` the target and the SAR may be larger."""
    wrong, kinds, small, found = [], [], [], []
    for item in items:
        (own, mode), (truth, truth_mode) = picture(item.pred), picture(item.target)
        sides = {"target": truth} | ({"SAR": _sar_size(item.sar)} if item.sar else {})
        if any(other != own and not (crop and min(np.subtract(other, own)) >= 0) for other in sides.values()):
            wrong.append(_measures(item.id, {"output": own, **sides}))
        if mode not in ("L", "RGB") or mode != truth_mode:
            kinds.append(f"{item.id}: output {mode}, target {truth_mode}")
        if min(own) < MIN_SIDE:
            small.append(_measures(item.id, {"output": own}))
        found.append(own)
    _refuse(
        wrong, items, "images differ in size; nothing is resized, --crop center cuts a larger target to the output's"
    )
    _refuse(kinds, items, "images are not 8-bit RGB on both sides, nor 8-bit grey on both")
    _refuse(small, items, f"images are smaller than {MIN_SIDE} px, the window of SSIM")
    return found


def pair_sizes(pairs: list[Pair]) -> list[Size]:
    """The sizes of SAR images that are to be translated and compared with their targets, 8-bit RGB of the same size."""
    wrong, kinds, small, found = [], [], [], []
    for pair in pairs:
        assert pair.sar is not None
        own, (truth, mode) = _sar_size(pair.sar), picture(pair.target)
        if own != truth:
            wrong.append(_measures(pair.id, {"SAR": own, "target": truth}))
        if mode != "RGB":
            kinds.append(f"{pair.id}: {mode}")
        if min(own) < MIN_SIDE:
            small.append(_measures(pair.id, {"SAR": own}))
        found.append(own)
    _refuse(wrong, pairs, "pairs differ in size; nothing is resized")
    _refuse(kinds, pairs, "targets are not 8-bit RGB, which the outputs are")
    _refuse(small, pairs, f"images are smaller than {MIN_SIDE} px, the window of SSIM")
    return found


def _measures(name: str, sides: dict[str, Size]) -> str:
    return f"{name}: " + ", ".join(f"{side} {size.width} x {size.height}" for side, size in sides.items())


def _refuse(names: list[str], among: Sequence[object], what: str) -> None:
    if names:
        raise UserError(f"{len(names)} of {len(among)} {what}\n  " + "\n  ".join(names[:SHOWN]))


def picture(path: Path) -> tuple[Size, str]:
    """Size and Pillow's mode."""
    try:
        with Image.open(path) as image:
            return Size(image.height, image.width), image.mode
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a picture of 8-bit RGB or grey, or damaged") from None
    except DECODER_ERRORS as error:
        raise UserError(f"{path}: damaged: {error}") from None


def _sar_size(path: Path) -> Size:
    header = read_header(path)
    return Size(header.height, header.width)


# pixels ---------------------------------------------------------------------------------------------------------------


def read_rgb(path: Path, size: Size) -> np.ndarray:
    """uint8 [H,W,3], the centre of ``size``; grey is repeated."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "RGB"):
                raise UserError(f"{path}: a picture of mode {image.mode}; expected 8-bit RGB or grey")
            pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except DECODER_ERRORS as error:
        raise UserError(f"{path}: damaged: {error}") from None
    return centre(pixels, size)


def read_sar(path: Path, size: Size, radiometry: SarRadiometry | None) -> np.ndarray:
    """The mean of the bands as the model sees them, (x + 1) 127.5: float64 [H,W], the centre of ``size``.

    Without ``radiometry`` these are the stored values of an 8-bit picture."""
    if radiometry is not None:
        return centre((radiometry.read(path)[0].double().mean(0).numpy() + 1) * 127.5, size)
    header = read_header(path)
    if header.dtype != "uint8":
        raise UserError(
            f"{path}: SAR of type {header.dtype}; --model MODEL says what such values mean, or leave --sar away"
        )
    from .data.rasters import read_raster

    return centre(read_raster(path).pixels.astype(np.float64).mean(0), size)


def centre(pixels: Pixels, size: Size) -> Pixels:
    """The middle of [H,W,...]: 600 -> 512 px begins at 44."""
    top, left = (pixels.shape[0] - size.height) // 2, (pixels.shape[1] - size.width) // 2
    if top < 0 or left < 0:
        raise UserError(f"{pixels.shape[1]} x {pixels.shape[0]} px cannot be cut to {size.width} x {size.height}")
    return pixels[top : top + size.height, left : left + size.width]


def radiometry_of(model: Path) -> SarRadiometry:
    """What SAR values mean to a model: of its folder, or of the run folder it lies in."""
    places = [model / "sar2opt.json", model / "model" / "sar2opt.json"]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise UserError(f"--model {model}: neither {places[0]} nor {places[1]} exists")
    return SarRadiometry.from_dict(json.loads(path.read_text())["sar"])


# what infer.py wrote --------------------------------------------------------------------------------------------------


def records(pred: Path, outputs: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, dict]]:
    """The lines of ``pred``/manifest.jsonl about ``outputs``, id and file; a later line replaces an earlier one."""
    file = pred / "manifest.jsonl"
    newest = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        if line.endswith("}") and isinstance(record := json.loads(line), dict) and "output" in record:
            newest[Path(record["output"])] = record
    names = {i: file.relative_to(pred).with_suffix("").as_posix() for i, file in outputs}
    by_name = {_name_of(path, pred, set(names.values())): record for path, record in newest.items()}
    return ((i, by_name[name]) for i, name in names.items() if name in by_name)


def _name_of(path: Path, pred: Path, names: set[str]) -> str | None:
    """The name below ``pred``; the longest ending that is one where the folder has moved since."""
    if path.is_relative_to(pred):
        return path.relative_to(pred).with_suffix("").as_posix()
    parts = path.with_suffix("").parts
    return next((name for k in range(len(parts)) if (name := "/".join(parts[k:])) in names), None)


def pictures(inputs: dict) -> dict[str, dict[str, Path]]:
    """SAR, output and target by id of an evaluation with these ``inputs`` of metrics.json, as far as they are there."""
    found: dict[str, dict[str, Path]] = {}
    rows: list[manifest.Row] = []
    for name, key, column in (("target", "target", "opt"), ("SAR", "sar", "sar"), ("output", "pred", "")):
        place = Path(str(inputs.get(key) or ""))
        if (place / manifest.JSON_FILE).is_file():
            made = manifest.read(place)
            root, rows = Path(made.facts["root"]), made.of(str(inputs.get("split")))
            found[name] = {row.id: root / getattr(row, column) for row in rows}
        elif place.name and place.is_dir():
            paths = (path for path in sorted(place.rglob("*")) if path.suffix.lower() in SUFFIXES)
            named = {path.relative_to(place).with_suffix("").as_posix(): path for path in paths}
            found[name] = by_row(named, rows) if name == "output" else named
    order = [name for name in ("SAR", "output", "target") if name in found]
    return {name: {i: path for i, path in found[name].items() if path.is_file()} for name in order}


def common(found: Iterable[dict], keys: tuple[str, ...]) -> dict[str, object]:
    """The values that all records share."""
    counts = {key: Counter(json.dumps(record.get(key)) for record in found) for key in keys}
    return {key: json.loads(next(iter(values))) for key, values in counts.items() if len(values) == 1}


def nearest(name: str, known: Iterable[str]) -> str:
    """Advice for a misspelt name."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
