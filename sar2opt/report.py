"""Reports: one self-contained HTML page per run, evaluation or comparison, made from the files on disk alone."""

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from . import charts, checkpoint, images, page, partners, yamlfile
from .charts import COLOURS, Plot, Series
from .config import MachineError, UserError
from .data.rasters import read_raster
from .page import Html, join, tag

FRAMES, FRAME_SIDE, FRAME_BYTES = 24, 1100, 20_000_000  # of the scrubber: pictures, px, characters in all
SHOWN = 20  # rows of pictures from each of the worst, the middle and the best
ERROR_TOP = 128  # grey values at the bright end of the error maps
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # dark to bright
RGB = dict(zip("rgb", (COLOURS[5], COLOURS[2], COLOURS[0]), strict=True))
PUBLISHED = Path(__file__).with_name("published.json")
BETTER = {"zero": "near 0", "one": "near 1", "target": "near the target's"}
QUALITY = ("psnr", "ssim", "lpips_alex", "lpips_vgg", "fid", "kid", "swd", "spectrum", "hf_energy")
LABELS = {
    "psnr": "PSNR (dB)", "ssim": "SSIM", "scc": "SCC", "lpips_alex": "LPIPS (alex)", "lpips_vgg": "LPIPS (vgg)",
    "fid": "FID", "kid": "KID", "swd": "SWD x 1000", "spectrum": "spectrum distance (dB)",
    "hf_energy": "high-frequency energy ratio", "calls": "network calls",
    "copy_ratio": "copy ratio",
    "edge_sar": "edge correlation with SAR", "edge_sar_target": "the target's edge correlation with SAR",
    "mae": "mean absolute error (grey values)", "rgb_r": "red shift (grey values)",
    "rgb_g": "green shift (grey values)", "rgb_b": "blue shift (grey values)", "seconds": "seconds per image",
    "confidence_gmean": "confidence (geometric mean)", "loss": "loss (no unit)", "lr": "learning rate",
    "images_per_second": "images per second", "data_wait": "share of time waiting for data",
    "memory_gib": "GPU memory (GiB, maximum so far)", "seconds_per_step": "seconds per step",
}  # fmt: skip
FAINT_AND_STRONG = "Faint: logged values. Strong: their running median over a tenth of the run (from 40 values on)."
Row = dict[str, Any]


# a run ---------------------------------------------------------------------------------------------------------------


def run_page(run_folder: Path) -> None:
    """Write ``run_folder/report.html``: what the logs, the pictures and the config of a run say, however far it got."""
    logs = {name: read_log(run_folder / f"{name}.jsonl") for name in ("log", "metrics", "timing")}
    rows, validation, timing = (good for good, _ in logs.values())
    frames, unreadable = sample_pictures(run_folder / "samples", "step")
    behind, lost = sample_pictures(run_folder / "samples", "behind")
    sections = {
        "Notes": page.notes([*_complaints(logs), *unreadable, *lost]),
        "Validation": join([_last_and_best(validation), charts.grid(_validation(validation))]),
        "Training": join([charts.grid(_training(rows)), tag("p", FAINT_AND_STRONG, class_="dim")]) if rows else Html(),
        "Loss by noise level": charts.grid([*_levels(rows, "training"), *_levels(validation, "validation")]),
        "Samples": page.scrubber(frames),
        "Behind the loss": page.scrubber(behind),
        "Time": charts.grid([_one(timing, key) for key in _scalars(timing)]),
        **_settings(run_folder),
    }
    write(run_folder / "report.html", f"Run {run_folder.resolve().name}", _state(run_folder, rows, timing), sections)


def read_log(file: Path) -> tuple[list[Row], int]:
    """The rows of a log, and how many lines are damaged: a run that was killed leaves half a line."""
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows, len(lines) - len(rows)


def _complaints(logs: dict[str, tuple[list[Row], int]]) -> list[str]:
    """What the reader of the curves has to know."""
    found = [f"{name}.jsonl: {bad} unreadable lines are left out" for name, (_, bad) in logs.items() if bad]
    found += [f"{name}.jsonl: nothing yet" for name, (rows, _) in logs.items() if not rows]
    rows = logs["log"][0]
    odd = Counter(k for row in rows for k, v in row.items() if isinstance(v, float) and not math.isfinite(v))
    found += [f"log.jsonl: {count} values of {key} are not finite and not drawn" for key, count in odd.items()]
    if rows and rows[-1].get("skipped"):
        found.append(f"{rows[-1]['skipped']} updates were skipped because their gradient was not finite")
    return found


def _state(folder: Path, rows: list[Row], timing: list[Row]) -> str:
    steps = [row["step"] for row in timing]
    spent = sum(row.get("seconds_per_step", 0) * (b - a) for row, a, b in zip(timing, [0, *steps], steps, strict=False))
    marker = next((name for name in ("DONE", "PREEMPTED") if (folder / name).exists()), "not finished")
    limit = config_of(folder).get("run.max_steps", "?")
    last = rows[-1] if rows else {}
    seen = f", {last['samples']} training images" if "samples" in last else ""
    hours = f", {spent / 60:.1f} minutes in logged steps" if spent else ""
    return f"{marker}; last logged step {last.get('step', 0)} of {limit}{seen}{hours}. Steps are optimiser steps."


def _last_and_best(rows: list[Row]) -> Html:
    kept = [row for row in rows if "psnr" in row and "ssim" in row]
    if not kept:
        return Html()
    body = []
    for key in ("psnr", "ssim"):
        best = max(kept, key=lambda row: row[key])
        body.append([LABELS[key], number(kept[-1][key]), number(best[key]), best["step"]])
    last = kept[-1]
    head = ["", f"last (step {last['step']})", "best", "at step"]
    note = f"Mean over {last.get('n', '?')} fixed images of the split {last.get('split', '?')!r}, averaged weights."
    return join([page.table(head, body), tag("p", note, class_="dim")])


def _validation(rows: list[Row]) -> list[Html]:
    figures = [lines(LABELS[key], rows, {key: key}, LABELS[key]) for key in ("psnr", "ssim")]
    for prefix, words in (("", "sampled as configured"), ("one_step/", "one-step output")):
        for gauge, unit in (("shift", "output - target (grey values)"), ("contrast", "std output / std target")):
            keys = {f"{prefix}{gauge}_{c}": name for c, name in zip("rgb", ("red", "green", "blue"), strict=True)}
            figures.append(lines(f"Colour {gauge}, {words}", rows, keys, unit, [*RGB.values()]))
    return figures


def _training(rows: list[Row]) -> list[Html]:
    norms = {key: key.removeprefix("grad_norm/") for key in _keys(rows) if key.startswith("grad_norm/")}
    curves = [
        c
        for (key, name), hue in zip(norms.items(), COLOURS, strict=False)
        for c in charts.curve(name, *xy(rows, key), hue)
    ]
    losses = [_one(rows, key) for key in _scalars(rows) if key != "lr"]
    # a function of the step: a median would bend it
    rate = charts.curve("lr", *xy(rows, "lr"))[0]._replace(mark="line")
    losses += [charts.chart("learning rate", [rate], "step", "learning rate")] if rate.x else []
    gradient = [charts.switchable("gradient norm, before clipping", curves, "step", "L2 norm")] if curves else []
    return [*losses, *gradient]


def _levels(rows: list[Row], where: str) -> list[Html]:
    """One figure per logged ``name/t<level>``, one curve per noise level, from clean (cold) to noise (hot)."""
    groups: dict[str, list[int]] = {}
    for name, slash, level in (key.rpartition("/t") for key in _keys(rows)):
        if slash and level.isdigit():
            groups.setdefault(name, []).append(int(level))
    figures = []
    for name, levels in groups.items():
        curves = [
            charts.curve(f"t = {t}" if where == "validation" else f"from t = {t}", *xy(rows, f"{name}/t{t}"), hue)[-1]
            for t, hue in zip(sorted(levels), charts.ramp(len(levels)), strict=True)
        ]
        figures.append(charts.switchable(f"{name}, {where}", curves, "step", f"{name} (mean square)"))
    return figures


def _one(rows: list[Row], key: str) -> Html:
    return charts.switchable(key, charts.curve(key, *xy(rows, key)), "step", LABELS.get(key, key))


def lines(title: str, rows: list[Row], keys: dict[str, str], unit: str, hues: Sequence[str] = COLOURS) -> Html:
    drawn = [Series(name, *xy(rows, key), hue, "dots") for (key, name), hue in zip(keys.items(), hues, strict=False)]
    return charts.chart(title, drawn, "step", unit) if any(s.x for s in drawn) else Html()


def _keys(rows: list[Row]) -> list[str]:
    return [*dict.fromkeys(key for row in rows for key in row)]


def _scalars(rows: list[Row]) -> list[str]:
    """Logged quantities with a figure of their own."""
    return [key for key in _keys(rows) if "/" not in key and key not in ("step", "samples", "skipped")]


def xy(rows: list[Row], key: str) -> tuple[list[float], list[float]]:
    kept = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    return [a for a, _ in kept], [b for _, b in kept]


def sample_pictures(folder: Path, kind: str) -> tuple[dict[str, str], list[str]]:
    """The pictures KIND-STEP.png by caption, evenly thinned to what a page can hold, the newest kept; and what is
    unreadable."""
    files, bad = sorted(folder.glob(f"{kind}-????????.png")), []
    encoded: dict[str, str] = {}
    for file in _spread(files, FRAMES):
        try:
            encoded[f"step {int(file.stem.removeprefix(f'{kind}-'))}"] = sheet(file)
        except OSError as error:
            bad.append(f"samples/{file.name}: left out: {error}")
    names = [*encoded]
    while sum(len(encoded[name]) for name in names) > FRAME_BYTES:
        names = _spread(names, len(names) - 1)
    return {f"{name} ({len(names)} of {len(files)} pictures)": encoded[name] for name in names}, bad


def sheet(file: Path) -> str:
    """The address of one sample picture."""
    with Image.open(file) as picture:
        return page.embed(picture.convert("RGB"), FRAME_SIDE)


def _spread(items: list, count: int) -> list:
    """At most ``count`` items, evenly spaced, the last one among them."""
    n, kept = len(items), min(count, len(items))
    return [items[n - 1 - i * n // kept] for i in reversed(range(kept))]


# an evaluation -------------------------------------------------------------------------------------------------------


def evaluation_page(out: Path) -> None:
    """Write ``out/report.html`` from ``out/metrics.json``, ``out/per_image.csv`` and the pictures that they name."""
    results, per_image = read_evaluation(out)
    inputs, metrics = results["inputs"], results["metrics"]
    shown = _worst_median_best([*per_image])
    places = partners.pictures(inputs)
    sections = {
        "Warnings": page.notes(
            [*inputs.get("notes", []), *(f"{key}: {w}" for key, m in metrics.items() for w in m.get("warnings", []))]
        ),
        "Summary": _summary(metrics, results.get("skipped", {})),
        "Where this stands": _standing(results),
        "Distributions": charts.grid(_histograms(per_image)),
        "Power spectrum": _spectrum(results.get("curves", {}).get("spectrum")),
        "Images": _rows(shown, per_image, places),
        "Inputs": page.table(["", ""], [[key, number(value)] for key, value in inputs.items()]),
        "Versions": page.table(["", ""], [[key, value] for key, value in results.get("versions", {}).items()]),
        **_settings(run_of(inputs)),
    }
    subtitle = f"{inputs.get('n', len(per_image))} images; convention: {results.get('convention', 'not stated')}"
    write(out / "report.html", f"Evaluation of {inputs.get('pred')}", subtitle, sections)


def read_evaluation(folder: Path) -> tuple[Row, dict[str, dict[str, float]]]:
    """metrics.json, and the numbers of per_image.csv by id and column, in the file's order."""
    for name in ("metrics.json", "per_image.csv"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; expected the --out folder of scripts/evaluate.py")
    results = json.loads((folder / "metrics.json").read_text())
    with open(folder / "per_image.csv", newline="", encoding="utf-8") as file:
        rows = {row.pop("id"): row for row in csv.DictReader(file)}
    return results, {i: {key: float(v) for key, v in row.items() if v} for i, row in rows.items()}


def number(value: Any) -> str:
    """Four significant digits; lists element by element, lists in lists in brackets."""
    if isinstance(value, list | tuple):
        return ", ".join(f"[{number(v)}]" if isinstance(v, list | tuple) else number(v) for v in value)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


class Point(NamedTuple):
    """One evaluation among several: sampler steps, mean seconds per image (NaN: unknown), label, metrics."""

    steps: float
    seconds: float
    label: str
    metrics: Row


def tradeoff(evaluations: dict[str, Path]) -> Html:
    """``tradeoff_plots``, or nothing for less than two evaluations."""
    return charts.grid([charts.chart(*plot) for plot in tradeoff_plots(evaluations, {})])


def tradeoff_plots(evaluations: dict[str, Path], names: dict[str, str]) -> list[Plot]:
    """Quality over sampler steps and over seconds per image; one point an evaluation, one curve a model and sampler.

    ``names``: of models by hash, for curves whose points are told by their steps; by default the hash begins the name,
    and points are told by their labels."""
    curves: dict[str, list[Point]] = {}
    for label, folder in evaluations.items():
        results, per_image = read_evaluation(folder)
        inputs, seconds = results["inputs"], _column(per_image, "seconds")
        if steps := inputs.get("steps"):
            told = (f"{steps} steps" if steps > 1 else "1 step") if names else label
            point = Point(steps, float(np.mean(seconds)) if seconds else math.nan, told, results["metrics"])
            model = str(inputs.get("model") or "")
            curves.setdefault(f"{names.get(model, model[:8])} {inputs.get('sampler', '')}", []).append(point)
    plots: list[Plot] = []
    if sum(map(len, curves.values())) < 2:
        return plots
    for key in QUALITY:
        for axis, words in (("steps", "sampler steps"), ("seconds", "seconds per image")):
            drawn = [_path(name, p, axis, key, hue) for (name, p), hue in zip(curves.items(), COLOURS, strict=False)]
            if drawn := [s for s in drawn if s.x]:
                ends = [end(x for s in drawn for x in s.x) for end in (min, max)]
                truth = [Series("target", ends, [1.0, 1.0], COLOURS[-1])] if key == "hf_energy" else []
                plots.append(Plot(f"{caption(key)} over {words}", [*drawn, *truth], words, caption(key), "x"))
    return plots


def _path(name: str, points: list[Point], axis: str, key: str, hue: str) -> Series:
    rows = [(getattr(p, axis), p.metrics[key]["value"], p) for p in points if key in p.metrics]
    kept = sorted([row for row in rows if row[0] > 0 and row[1] is not None], key=lambda row: row[0])
    bars = [p.metrics[key].get("ci95") or (value, value) for _, value, p in kept]
    return Series(
        name, [x for x, _, _ in kept], [v for _, v, _ in kept], hue, "dots", bars, [p.label for *_, p in kept]
    )


def caption(key: str) -> str:
    return LABELS.get(key, key)


def _summary(metrics: Row, skipped: Row) -> Html:
    head = ["metric", "value", "95 % interval", "n", "better", "recipe", "computed with"]
    known = {"value", "ci95", "ci", "n", "unit", "better", "recipe", "library", "weights", "warnings"}
    rows = []
    for key, m in metrics.items():
        more = [tag("div", f"{name}: {number(v)}", class_="dim") for name, v in m.items() if name not in known]
        value = join([f"{number(m['value'])} {m.get('unit') or ''}", *more])
        better = BETTER.get(str(m.get("better")), m.get("better"))
        means = join([number(m.get("library")), tag("div", number(m.get("weights")), class_="dim")])
        facts = [number(m.get("ci95")), number(m.get("n")), number(better), number(m.get("recipe")), means]
        rows.append([tag("b", key), value, *facts])
    kinds = sorted({m["ci"] for m in metrics.values() if m.get("ci")})
    note = f"Intervals: percentile bootstrap, resampled by {' and '.join(kinds)}." if kinds else ""
    absent = [
        [k, s["reason"], number(s.get("expected")), tag("code", number(s.get("command")))] for k, s in skipped.items()
    ]
    lacking = page.table(["skipped", "why", "expected", "what brings it"], absent)
    return join([page.table(head, rows), tag("p", note, class_="dim"), lacking])


def _standing(results: Row) -> Html:
    """This output beside its baselines and the published rows of the same convention, set, split and n."""
    about, rows = published_rows(results)
    sources = [*dict.fromkeys(row["source"] for row in rows)]
    own = {k: m for k, m in results["metrics"].items() if isinstance(m["value"], int | float)}
    lines = [(f"{name}: {v.get('recipe', 'baseline')}", v) for name, v in results.get("baselines", {}).items()]
    lines += [(f"{row['method']} [{sources.index(row['source']) + 1}]", row["values"]) for row in rows]
    if not lines:
        return Html()
    # a published value of another recipe has a key, and so a column, of its own
    keys = dict.fromkeys(key for values in (own, *[row["values"] for row in rows]) for key in values)
    cells = [
        [name, *[number(v["value"] if isinstance(v := values.get(key), dict) else v) for key in keys]]
        for name, values in [("this output", own), *lines]
    ]
    cited = [tag("p", f"[{i}] {source}", class_="dim") for i, source in enumerate(sources, start=1)]
    return join([page.table(["", *keys], cells, own=1), tag("p", about, class_="dim"), *cited])


def published_sets() -> list[str]:
    """The data sets that ``published_rows`` knows."""
    return sorted({row["set"] for row in json.loads(PUBLISHED.read_text())["rows"]})


def published_rows(results: Row) -> tuple[str, list[Row]]:
    """What the literature reports under the convention, set, split and n of this evaluation, and how to read it."""
    inputs = results["inputs"]
    table = json.loads(PUBLISHED.read_text()) if inputs.get("set") and PUBLISHED.exists() else {"rows": []}
    same = {"convention": results.get("convention"), **{key: inputs.get(key) for key in ("set", "split", "n")}}
    rows = [row for row in table["rows"] if all(row.get(key) == value for key, value in same.items())]
    return str(table["about"]) if rows else "", rows


def _histograms(per_image: dict[str, dict[str, float]]) -> list[Html]:
    columns = [*dict.fromkeys(key for row in per_image.values() for key in row)]
    figures = []
    for key in columns:
        samples = {"output": _column(per_image, key)}
        if key == "edge_sar_target":
            continue
        if key == "edge_sar" and "edge_sar_target" in columns:
            samples["target"] = _column(per_image, "edge_sar_target")
        figures.append(charts.histogram(caption(key), samples, caption(key)))
    return figures


def _spectrum(curve: Row | None) -> Html:
    """``curve``: {"frequency": cycles per px, "pred": mean power, "target": mean power}."""
    if not curve:
        return Html()
    drawn = [
        Series(name, curve["frequency"], [10 * math.log10(p + 1) for p in curve[key]], hue)
        for name, key, hue in (("output", "pred", COLOURS[1]), ("target", "target", COLOURS[0]))
    ]
    words = "Luma, Hann window, mean over rings. Output below target at high frequencies: blur; above: noise."
    figure = charts.chart("mean power", drawn, "frequency (cycles per px)", "10 log10(power + 1) (dB)")
    return join([charts.grid([figure]), tag("p", words, class_="dim")])


def _column(per_image: dict[str, dict[str, float]], key: str) -> list[float]:
    return [row[key] for row in per_image.values() if key in row]


# pictures ------------------------------------------------------------------------------------------------------------


def _worst_median_best(ids: list[str]) -> dict[str, str]:
    """Ids to show, worst first, each with its place."""
    n, middle = len(ids), (len(ids) - SHOWN) // 2
    places = range(n) if n <= 3 * SHOWN else [*range(SHOWN), *range(middle, middle + SHOWN), *range(n - SHOWN, n)]
    return {ids[i]: f"{i + 1} of {n} from the worst" for i in places}


def _rows(shown: dict[str, str], per_image: dict[str, dict[str, float]], folders: dict[str, dict[str, Path]]) -> Html:
    rows = []
    for name, place in shown.items():
        values = [f"{key} {number(value)}" for key, value in per_image[name].items()]
        found = {kind: pixels(files.get(name)) for kind, files in folders.items()}
        rows.append((name, [place, *values], pictures(found, "output")))
    part = f"the {SHOWN} worst, {SHOWN} around the median and {SHOWN} best of {len(per_image)}"
    which = f"All {len(per_image)} images" if len(shown) == len(per_image) else f"Only {part} images"
    colours = ", ".join(f"rgb{c}" for c in HEAT)
    legend = tag("span", class_="ramp", style=f"background: linear-gradient(90deg, {colours})")
    words = f"{which}, lowest PSNR first, as JPEG of at most {page.EMBED_SIDE} px; measured were the files themselves. "
    error = ["Error: mean over channels of abs(output - target), 0 ", legend, f" {ERROR_TOP} grey values or more."]
    return join([tag("p", words, *error, class_="dim"), page.gallery(rows, "output", "target")]) if rows else Html()


def pictures(found: dict[str, np.ndarray | None], smallest: str) -> dict[str, str | None]:
    """Addresses of uint8 [H,W,3] pictures, cut in the centre to the size of ``smallest``; with their error map."""
    reference = found.get(smallest)
    if reference is not None:
        found = {name: x if x is None else _centre(x, reference.shape) for name, x in found.items()}
    target = found.get("target")
    if smallest == "output" and reference is not None and target is not None and target.shape == reference.shape:
        error = np.abs(reference.astype(float) - target).mean(2)
        at = error / ERROR_TOP * (len(HEAT) - 1)
        heat = [np.interp(at, range(len(HEAT)), channel) for channel in np.transpose(HEAT)]
        found = {**found, "error": np.stack(heat, -1).round().astype(np.uint8)}
    return {name: None if x is None else page.embed(Image.fromarray(x)) for name, x in found.items()}


def _centre(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    top, left = (max(0, (x.shape[i] - shape[i]) // 2) for i in (0, 1))
    return x[top : top + shape[0], left : left + shape[1]]


def pixels(file: Path | None) -> np.ndarray | None:
    """uint8 [H,W,3] for the eye: 8-bit pictures as they are, others from their 1st to their 99th percentile."""
    if file is None:
        return None
    pixels, valid, *_ = read_raster(file)
    if pixels.dtype != np.uint8:
        known = pixels[:, valid] if valid.any() else np.zeros((1, 1))
        low, high = np.percentile(known, [1, 99])
        pixels = np.where(valid, (pixels - low) / max(high - low, 1e-12), 0).clip(0, 1) * 255
    return images.rgb(torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1).numpy()


# what all pages share ------------------------------------------------------------------------------------------------


def _settings(run_folder: Path | None) -> dict[str, Html]:
    """Config and environment of a run, where there is one."""
    if run_folder is None:
        return {}
    config, environment = run_folder / "config.yaml", run_folder / "env.json"
    facts = _flat(json.loads(environment.read_text())) if environment.exists() else {}
    return {
        "Config": tag("pre", config.read_text()) if config.exists() else Html(),
        "Environment": page.table(["", ""], [[key, str(value)] for key, value in facts.items()]),
    }


def run_of(inputs: Row) -> Path | None:
    """The run folder that ``inputs.model_folder`` names, itself or by its model folder."""
    model = Path(str(inputs.get("model_folder") or ""))
    return next((p for p in (model, model.parent) if (p / "config.yaml").is_file()), None) if model.name else None


def config_of(run_folder: Path | None) -> Row:
    """Dotted keys and values of a run's config; none if it has none."""
    file = run_folder / "config.yaml" if run_folder else None
    return _flat(yamlfile.parse(file.read_text(), str(file), {})) if file and file.exists() else {}


def _flat(tree: Row, root: str = "") -> Row:
    leaves: Row = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{root}{key}.") if isinstance(value, dict) else {f"{root}{key}": value}
    return leaves


def write(file: Path, title: str, subtitle: str, sections: Mapping[str, Html]) -> None:
    try:
        checkpoint.put(file, page.document(title, subtitle, sections))
    except OSError as error:
        raise MachineError(f"{file}: not written: {error}; everything else is") from error
