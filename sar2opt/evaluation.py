"""From folders of images to metrics.json and per_image.csv: what is asked for, what is possible, and what it means.

A number without its recipe is not a result: every value stands beside its recipe, library, n and warnings.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from . import checkpoint, distances, measure, networks, partners, recipes, report, trivial
from .config import MachineError, UserError
from .data import manifest
from .data.splits import list_hash
from .measure import Arrays, Measured, Team, Wanted
from .networks import PERCEPTUAL, Judges, Missing
from .partners import Folders, Item, Size

COLUMNS = (
    "psnr", "ssim", "scc", "lpips_alex", "lpips_vgg", "edge_sar", "edge_sar_target", "mae",
    "rgb_r", "rgb_g", "rgb_b",
)  # fmt: skip
FROM_INFERENCE = ("seconds", "confidence_gmean")
RECORDED = ("model", "model_folder", "sampler", "steps", "seed")  # settings of infer.py
WIDTH = 80


@dataclass(frozen=True)
class Request:
    """The command line of scripts/evaluate.py."""

    pred: Path
    out: Path
    target: Path | None = None
    sar: Path | None = None
    manifest: Path | None = None
    split: str = "test"
    set: str | None = None
    train_sar: Path | None = None
    train_target: Path | None = None
    model: Path | None = None
    metrics: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    legacy: Literal["cdiffset"] | None = None
    baselines: bool = False
    crop: bool = False
    allow_missing: bool = False
    force: bool = False
    weights_dir: Path | None = None
    device: torch.device = torch.device("cpu")
    workers: int = 0
    batch_size: int = 16


@dataclass(frozen=True)
class Prepared:
    """All that can be wrong with a request has been checked."""

    items: list[Item]
    sizes: list[Size]
    chosen: tuple[str, ...]
    skipped: dict[str, dict[str, str | None]]
    paths: dict[str, Path]  # of weights
    train: list[partners.Pair]
    wanted: Wanted
    notes: list[str] = field(default_factory=list)


def evaluate(request: Request) -> dict[str, Any] | None:
    """Score a folder: per_image.csv and metrics.json in ``request.out``, whose content is returned. None except in the
    main process."""
    folders = folders_of(request)
    items, notes = partners.find(request.pred, folders, request.allow_missing)
    ready = prepare(request, items, notes, _train(request, folders, has_sar=items[0].sar is not None))
    with gathered(request.out, request.workers) as team:
        return score(team, request, ready, {})


@contextmanager
def gathered(out: Path, workers: int) -> Iterator[Team]:
    """The processes of this evaluation, which writes into ``out``."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Team(out / ".tmp-evaluation", workers) as team:
            yield team
    except OSError as error:
        raise MachineError(f"{out}: {error}; start again when there is room") from error


def score(team: Team, request: Request, ready: Prepared, known: Arrays) -> dict[str, Any] | None:
    """``evaluate`` what is prepared; ``known`` keeps the features of the targets for other outputs of these images."""
    measured = measure.measure(team, "output", ready.items, ready.sizes, ready.wanted, known)
    baselines = _baselines(team, request, ready, known)
    if measured is None:
        return None
    results = _results(request, ready, measured, baselines)
    checkpoint.put(request.out / "per_image.csv", _table(request, ready.items, measured.columns).encode())
    text = json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False)
    checkpoint.put(request.out / "metrics.json", text.encode())
    return results


# before any work ------------------------------------------------------------------------------------------------------


def folders_of(request: Request) -> Folders:
    """Where the truth is."""
    made = manifest.read(request.manifest) if request.manifest else None
    if made is None:
        return Folders(request.target, request.sar)
    if not (rows := made.of(request.split)):
        raise UserError(f"--split {request.split}: {request.manifest} has no pair of this split")
    southern = tuple(made.facts.get("turned", ()))
    return Folders(request.target, request.sar, rows, made.of("train"), Path(made.facts["root"]), southern)


def _train(request: Request, folders: Folders, has_sar: bool) -> list[partners.Pair]:
    """The pairs that baselines learn from."""
    if not request.baselines:
        return []
    train = partners.train_pairs(request.train_sar, request.train_target, folders.train, folders.root)
    if not train and not has_sar:
        raise UserError(
            "--baselines: needs --train-target (and --train-sar), a --manifest with a train split, or --sar"
        )
    return train


def prepare(request: Request, items: list[Item], notes: list[str], train: list[partners.Pair]) -> Prepared:
    """Check all that can be wrong, before any work."""
    sizes = partners.sizes(items, request.crop)
    chosen, skipped, paths = check(request, sizes, items[0].sar)
    metrics = frozenset(chosen) - skipped.keys()
    unread = bool(_unread(request, items[0].sar))
    if unread or not (request.baselines or metrics.intersection(recipes.SAR)):  # nobody looks at it
        items = [item._replace(sar=None) for item in items]
        train = [pair._replace(sar=None) for pair in train]
    radiometry = partners.radiometry_of(request.model) if request.model else None
    kinds = {recipes.FEATURES[key] for key in metrics if key in recipes.FEATURES} | (metrics & PERCEPTUAL.keys())
    judges = Judges(kinds, paths, request.device) if kinds else None
    wanted = Wanted(metrics, radiometry, judges, request.batch_size, floor="swd" in metrics)
    return Prepared(items, sizes, chosen, skipped, paths, train, wanted, notes)


def check(
    request: Request, sizes: list[Size], sar: Path | None
) -> tuple[tuple[str, ...], dict[str, dict[str, str | None]], dict[str, Path]]:
    """The metrics asked for, those of them that cannot be computed, and the weights; ``sar``: the first image's."""
    if request.set and request.set not in (known := report.published_sets()):
        raise UserError(
            f"--set {request.set}: unknown{partners.nearest(request.set, known)}. Known: {', '.join(known)}"
        )
    chosen = _chosen(request, has_sar=sar is not None)
    skipped, paths = _skipped(request, chosen, len(sizes), sizes)
    if unread := _unread(request, sar):
        if asked := [key for key in request.metrics if key in recipes.SAR]:
            raise UserError(f"--metrics {', '.join(asked)}: {sar}: {unread}; add --model MODEL")
        skipped |= {key: _reason(unread, "add --model MODEL") for key in chosen if key in recipes.SAR}
    if wrong := [key for key in request.require if key in skipped]:
        reasons = "\n".join(f"  {key}: {skipped[key]['reason']}; {skipped[key]['command']}" for key in wrong)
        raise UserError(f"--require: {len(wrong)} metrics cannot be computed\n{reasons}")
    return chosen, skipped, paths


def _unread(request: Request, sar: Path | None) -> str:
    """Why the SAR has no grey values; empty where it has."""
    if sar is None or request.model is not None or (kind := partners.read_header(sar).dtype) == "uint8":
        return ""
    return f"SAR of type {kind}, and no model says what its values mean"


def _chosen(request: Request, has_sar: bool) -> tuple[str, ...]:
    """Metrics in the table's order."""
    asked = dict.fromkeys([*request.metrics, *request.require])
    allowed = recipes.LEGACY if request.legacy else (*recipes.STANDARD, *recipes.NAMED)
    if unknown := [key for key in asked if key not in allowed]:
        reason = "; lpips_alex or lpips_vgg: a number without its network is none" if "lpips" in unknown else ""
        near = reason or partners.nearest(unknown[0], allowed)
        raise UserError(f"--metrics {', '.join(unknown)}: unknown{near}. Known: {', '.join(allowed)}")
    if not has_sar and (blind := [key for key in asked if key in recipes.SAR]):
        raise UserError(f"--metrics {', '.join(blind)}: needs the SAR input; add --sar DIR")
    default = recipes.LEGACY if request.legacy else recipes.STANDARD
    if request.set and not request.legacy:
        default = (*default, "ssim_torchmetrics")  # the SSIM of the published rows
    picked = asked if request.metrics else {*default, *asked}
    return tuple(key for key in recipes.METRICS if key in picked and (has_sar or key not in recipes.SAR))


def _skipped(
    request: Request, chosen: Sequence[str], n: int, sizes: list[Size]
) -> tuple[dict[str, dict[str, str | None]], dict[str, Path]]:
    """Metrics that cannot be computed, each with its reason and the one command that changes it; paths of weights."""
    skipped: dict[str, dict[str, str | None]] = {}
    folder = networks.weights_dir(request.weights_dir)
    needed = dict.fromkeys(key for metric in chosen if (key := networks.needed_by(metric)))
    found = {key: networks.locate(key, folder) for key in needed}
    for metric in chosen:
        place = found.get(networks.needed_by(metric) or "")
        if isinstance(place, Missing):
            skipped[metric] = dict(place._asdict())
        elif (side := min(map(min, sizes))) < networks.SMALLEST.get(metric, 0):
            reason = f"images of {side} px; its network needs {networks.SMALLEST[metric]}"
            skipped[metric] = _reason(reason, "evaluate larger images")
        elif metric in recipes.FIDS and n < recipes.FID_SMALLEST and not request.force:
            reason = f"n = {n} < {recipes.FID_SMALLEST}: FID has no meaning; kid, swd and spectrum have"
            skipped[metric] = _reason(reason, "add --force")
        elif metric in recipes.FEATURES and n < 2:
            skipped[metric] = _reason("one image has no covariance", "evaluate more images")
        elif metric in recipes.SET and len(set(sizes)) > 1:
            reason = f"images have {len(set(sizes))} sizes, the largest {max(sizes)[1]} x {max(sizes)[0]} px"
            skipped[metric] = _reason(reason, "evaluate images of one size at once")
    return skipped, {key: place for key, place in found.items() if isinstance(place, Path)}


def _reason(reason: str, command: str) -> dict[str, str | None]:
    return {"reason": reason, "expected": None, "command": command}


# baselines ------------------------------------------------------------------------------------------------------------


def _baselines(team: Team, request: Request, ready: Prepared, known: Arrays) -> dict[str, Any]:
    """Metrics of trivial outputs; empty except in the main process."""
    if not request.baselines:
        return {}
    same = ready.sizes[0] if len(set(ready.sizes)) == 1 else None
    fitted = None
    radiometry = ready.wanted.radiometry
    if ready.train:
        parts = [ready.train[i : i + trivial.CHUNK] for i in range(0, len(ready.train), trivial.CHUNK)]
        done = team.map(trivial.sums, [(part, same, radiometry) for part in parts], parallel=len(parts) > 4)
        fitted = trivial.fit(ready.train, measure.progress(done, len(parts), "training pairs, batches", team.main))
    found = {}
    for name, baseline in trivial.baselines(fitted, ready.items[0].sar is not None, radiometry).items():
        folder = team.folder / f"{name}-png"
        items = [item._replace(pred=folder / f"{item.id}.png") for item in ready.items]
        for item, size in team.own(list(zip(items, ready.sizes, strict=True))):
            trivial.write(baseline, item, size, radiometry, item.pred)
        wanted = ready.wanted._replace(floor=False)
        if measured := measure.measure(team, name, items, ready.sizes, wanted, known):
            values = _values(measured, ready, recipes.versions())
            short = ("value", "ci95", "ci", "n")
            found[name] = {key: {k: record[k] for k in short} for key, record in values.items()}
            found[name]["recipe"] = baseline.recipe
    return found


# records --------------------------------------------------------------------------------------------------------------


def _results(request: Request, ready: Prepared, measured: Measured, baselines: dict[str, Any]) -> dict[str, Any]:
    """The content of metrics.json."""
    versions = recipes.versions()
    ids = [item.id for item in ready.items]
    size = list(ready.sizes[0]) if len(set(ready.sizes)) == 1 else None
    inputs: dict[str, Any] = {
        "pred": str(request.pred),
        "target": str(request.target or request.manifest),
        "sar": str(request.sar or request.manifest) if request.sar or request.manifest else None,
        "set": request.set,
        "split": request.split,
        "n": len(ids),
        "size": size,
        "crop": "center" if request.crop else None,
        "list_hash": list_hash(ids),
        **partners.common([record for _, record in partners.records(request.pred, _outputs(ready.items))], RECORDED),
        "notes": ready.notes,
    }
    return {
        "metrics": _values(measured, ready, versions),
        "skipped": ready.skipped,
        "baselines": baselines,
        "inputs": inputs,
        "curves": _curves(measured, ready.sizes[0]),
        "convention": f"legacy:{request.legacy}" if request.legacy else "standard",
        "versions": versions,
    }


def _values(measured: Measured, ready: Prepared, versions: dict[str, str]) -> dict[str, dict[str, Any]]:
    """One record per metric, in the table's order."""
    scenes = [item.scene for item in ready.items] if all(item.scene for item in ready.items) else []
    found: dict[str, dict[str, Any]] = {}
    for key in ready.chosen:
        if key not in ready.skipped:
            metric, n = recipes.METRICS[key], len(ready.items)
            value, interval, more = _value(key, measured, scenes)
            found[key] = {
                "value": value,
                "ci95": interval,
                "ci": None if interval is None else "scene" if scenes else "image",
                "n": n,
                **more,
                "unit": metric.unit,
                "better": metric.better,
                "recipe": metric.recipe,
                "library": recipes.library(key, versions),
                "weights": _weights(key, ready.paths),
                "warnings": recipes.warnings(key, n, value),
            }
    return found


def _weights(metric: str, paths: dict[str, Path]) -> str | None:
    key = networks.needed_by(metric)
    return f"{paths[key].name}, SHA-256 {networks.WEIGHTS[key].sha256}" if key else None


def _value(key: str, measured: Measured, scenes: Sequence[str]) -> tuple[Any, Any, dict[str, Any]]:
    """Value, interval or None, and further fields of one metric."""
    columns = measured.columns
    if key in columns:
        values = columns[key]
        more = {"identical": int((values == 100).sum())} if key.startswith("psnr") else {}
        return distances.mean(values), distances.bootstrap(values[:, None], scenes=scenes)[0], more
    if key == "rgb_shift":
        values = np.column_stack([columns[f"rgb_{c}"] for c in "rgb"])
        return [distances.mean(v) for v in values.T], distances.bootstrap(values, scenes=scenes), {}
    if key == "copy_ratio":
        to_sar, to_target = columns["to_sar"], columns["to_target"]
        total = distances.mean(to_target)
        interval = distances.bootstrap(to_sar[:, None], to_target, scenes)[0]
        return (distances.mean(to_sar) / total, interval, {}) if total else (None, None, {})
    if key == "hf_energy":
        target, output = distances.high_frequencies(measured.rings).T
        if not (total := distances.mean(target)):
            return None, None, {}
        return distances.mean(output) / total, distances.bootstrap(output[:, None], target, scenes)[0], {}
    if key == "spectrum":
        return distances.spectrum(*_mean_rings(measured)), None, {}
    if key in ("swd", "swd_own"):
        more: dict[str, Any] = {"levels": measured.swd[key]}
        if key == "swd" and "floor" in measured.swd:
            more["floor"] = distances.mean(measured.swd["floor"])
        return distances.mean(measured.swd[key]), None, more
    target, output = (side[recipes.FEATURES[key]] for side in (measured.target, measured.output))
    if key == "kid":
        return distances.kid(target, output), None, {"std": distances.kid_std(target, output)}
    return distances.frechet(target, output), None, {}


def _mean_rings(measured: Measured) -> np.ndarray:
    """Mean power of target and output on every ring: [2,k]."""
    rings = measured.rings.reshape(len(measured.rings), -1)
    return np.array([distances.mean(column) for column in rings.T]).reshape(measured.rings.shape[1:])


def _curves(measured: Measured, size: Size) -> dict[str, Any]:
    """What the report draws beside the numbers: mean power per frequency in cycles per px."""
    if not measured.rings.size:
        return {}
    target, output = _mean_rings(measured)
    frequency = (np.arange(len(target)) + 1) / min(size)
    return {"spectrum": {"frequency": frequency.tolist(), "target": target.tolist(), "pred": output.tolist()}}


def _outputs(items: list[Item]) -> list[tuple[str, Path]]:
    return [(item.id, item.pred) for item in items]


def _table(request: Request, items: list[Item], columns: Arrays) -> str:
    """per_image.csv: worst PSNR first, ties by id; empty where not computed."""
    legacy = (*recipes.LEGACY[:3], "lpips_vgg_cdiffset")
    extra = [key for key in recipes.NAMED if key in columns]
    names = [*(legacy if request.legacy else COLUMNS), *extra]
    ids = [item.id for item in items]
    known = dict(partners.records(request.pred, _outputs(items)))
    order = columns.get(names[0], np.zeros(len(ids)))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", *names[: len(names) - len(extra)], *FROM_INFERENCE, *extra])
    for i in sorted(range(len(ids)), key=lambda k: (order[k], ids[k])):
        cells = {name: columns[name][i] for name in names if name in columns}
        cells |= {name: known.get(ids[i], {}).get(name) for name in FROM_INFERENCE}
        header = [*names[: len(names) - len(extra)], *FROM_INFERENCE, *extra]
        table.writerow([ids[i], *["" if cells.get(h) is None else f"{cells[h]:.6f}" for h in header]])
    return text.getvalue()


# what is printed ------------------------------------------------------------------------------------------------------


def summary(results: dict[str, Any]) -> str:
    """One line per metric, at most 80 columns; then baselines, what was skipped, and warnings."""
    width = max(map(len, [*results["metrics"], "metric"]))
    lines = [f"{title(results)}; 95 % intervals"]
    lines.append(f"{'metric':{width}} {'value':>9} {'interval':19} {'n':>5}  recipe")
    for key, record in results["metrics"].items():
        if isinstance(record["value"], list):
            middle = f"{' '.join(number(v) for v in record['value']):>29}"
        else:
            middle = f"{number(record['value']):>9} {_interval(record):19}"
        lines.append(f"{key:{width}} {middle} {record['n']:>5}  {recipes.METRICS[key].short}"[:WIDTH])
    lines += _baseline_lines(results)
    lines += skips(results)
    lines += [f"warning: {text}" for text in warnings(results)]
    return "\n".join(lines)


def title(results: dict[str, Any]) -> str:
    """What was measured, in half a line."""
    inputs = results["inputs"]
    size = f", {inputs['size'][1]} x {inputs['size'][0]} px" if inputs["size"] else ""
    return f"{inputs['n']} images{size}; convention {results['convention']}"


def skips(results: dict[str, Any]) -> list[str]:
    """Two lines per reason: the metrics, and the command that brings them."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key, skip in results["skipped"].items():
        groups.setdefault((skip["reason"], skip["command"]), []).append(key)
    return [
        line
        for (reason, command), keys in groups.items()
        for line in (f"skipped {', '.join(keys)}: {reason}", f"  {command}")
    ]


def number(value: float | None) -> str:
    """About five digits."""
    if value is None or isinstance(value, int):
        return "-" if value is None else str(value)
    size = abs(value)
    return f"{value:.{4 if size < 10 else 3 if size < 100 else 2 if size < 1000 else 1}f}"


def _interval(record: dict[str, Any]) -> str:
    if record["ci95"] is not None:
        return "[{}, {}]".format(*map(number, record["ci95"]))
    if record.get("std") is not None:
        return f"std {number(record['std'])}"
    return f"floor {number(record['floor'])}" if "floor" in record else ""


def _baseline_lines(results: dict[str, Any]) -> list[str]:
    if not results["baselines"]:
        return []
    keys = [k for k in results["metrics"] if k not in ("rgb_shift", "edge_sar_target")]
    rows = {"this output": results["metrics"], **results["baselines"]}
    return [*blocks({name: {k: values[k]["value"] for k in keys} for name, values in rows.items()}, keys), ""]


def blocks(rows: dict[str, dict[str, float | None]], keys: list[str]) -> list[str]:
    """A table in parts of as many columns as fit in 80, an empty line before each."""
    lines = []
    for start in range(0, len(keys), 6):
        block = keys[start : start + 6]
        lines += ["", f"{'':20}" + "".join(f"{key[:9]:>10}" for key in block)]
        for name, values in rows.items():
            lines.append(f"{name[:20]:20}" + "".join(f"{number(values[key]):>10}" for key in block))
    return lines


def warnings(results: dict[str, Any]) -> list[str]:
    found = [f"{key}: {text}" for key, record in results["metrics"].items() for text in record["warnings"]]
    return [*results["inputs"]["notes"], *dict.fromkeys(found)]
