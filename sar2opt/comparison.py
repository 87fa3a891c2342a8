"""Several runs, or several evaluations, on one page. The first one is the reference; images are compared by id."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import charts, distances, page, partners, report
from .charts import COLOURS
from .config import UserError
from .page import Html, join, tag

ROWS = 12  # rows of pictures from each end
DIRECTIONS = {"mae": "lower", "seconds": "lower"}  # of columns that are no metric
Row = dict[str, Any]
Scores = dict[str, dict[str, float]]  # id -> column -> value


def comparison_page(out: Path, folders: Sequence[Path]) -> None:
    """Write ``out``: differences to the first folder, curves or pictures side by side, differing config keys."""
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise UserError(f"expected two different folders or more, found {', '.join(map(str, folders))}")
    root = os.path.commonpath([folder.resolve().parent for folder in folders])
    sources = {os.path.relpath(folder.resolve(), root): folder for folder in folders}
    kinds = {"metrics.json": _evaluations, "config.yaml": _runs}
    for file, sections in kinds.items():
        if all((folder / file).is_file() for folder in folders):
            names = ", ".join(sources)
            return report.write(out, f"Comparison of {names}", f"Reference: {folders[0].resolve()}", sections(sources))
    lacking = [f"{folder}: " + ", ".join(f for f in kinds if (folder / f).is_file()) for folder in folders]
    listed = "\n  ".join(lacking)
    raise UserError(
        "expected evaluations alone (each with metrics.json) or runs alone (each with config.yaml); found\n  " + listed
    )


# evaluations ---------------------------------------------------------------------------------------------------------


def _evaluations(sources: dict[str, Path]) -> dict[str, Html]:
    loaded = {name: report.read_evaluation(folder) for name, folder in sources.items()}
    results = {name: result for name, (result, _) in loaded.items()}
    scores = {name: score for name, (_, score) in loaded.items()}
    if len(conventions := {str(r.get("convention")) for r in results.values()}) > 1:
        raise UserError(f"different conventions cannot be compared: {', '.join(sorted(conventions))}")
    ids = _common_ids(scores)
    settings = {name: {f"inputs.{k}": report.number(v) for k, v in r["inputs"].items()} for name, r in results.items()}
    for name, result in results.items():
        settings[name] |= report.config_of(report.run_of(result["inputs"]))
    return {
        "Warnings": page.notes(_warnings(results, scores, ids)),
        "Differences": join([_paired(results, scores, ids), _sets(results, scores)]),
        "Steps, quality and time": report.tradeoff(sources) if _equal(scores) else Html(),
        "Images": _pictures(results, scores, ids),
        "What differs in the settings": _differing(settings),
    }


def _common_ids(scores: dict[str, Scores]) -> list[str]:
    """The ids that all have, sorted."""
    common = set.intersection(*[set(s) for s in scores.values()])
    if not common:
        lines = [f"{name}: {len(s)} ids, such as {', '.join(sorted(s)[:5])}" for name, s in scores.items()]
        raise UserError(
            "no image is common to all evaluations; expected the same ids (relative path without suffix), found\n  "
            + "\n  ".join(lines)
        )
    return sorted(common)


def _warnings(results: dict[str, Row], scores: dict[str, Scores], ids: list[str]) -> list[str]:
    found = []
    for name, score in scores.items():
        if extra := sorted(score.keys() - set(ids)):
            first = ", ".join(extra[:5])
            found.append(f"{name}: {len(extra)} of {len(score)} images are left out, the others lack them: {first}")
    if len(targets := {str(r["inputs"].get("target")) for r in results.values()}) > 1:
        found.append(f"The targets are not from one folder: {', '.join(sorted(targets))}")
    if any(m.get("ci") == "scene" for r in results.values() for m in r["metrics"].values()):
        found.append("The evaluations resample scenes; here images are resampled, which makes intervals too narrow.")
    return found


def _paired(results: dict[str, Row], scores: dict[str, Scores], ids: list[str]) -> Html:
    (first, reference), *others = scores.items()
    known = {key: m.get("better") for r in results.values() for key, m in r["metrics"].items()} | DIRECTIONS
    rows = []
    for key in dict.fromkeys(k for i in ids for k in reference[i] if k != "edge_sar_target"):
        for name, score in others:
            both = [(reference[i][key], score[i][key]) for i in ids if key in reference[i] and key in score[i]]
            if both:
                a, b = np.array(both).T
                low, high = distances.bootstrap(b - a)[0]
                means = [report.number(float(v)) for v in (a.mean(), b.mean())]
                interval = f"{b.mean() - a.mean():+.4g}", f"{low:+.4g}, {high:+.4g}"
                verdict = _verdict(low, high, known.get(key))
                rows.append([tag("b", report.caption(key)), name, *means, *interval, len(both), verdict])
    head = ["per image", "", f"reference {first}", "this one", "difference", "95 % interval", "n", "verdict"]
    words = (
        "Paired: the mean over the same images of (this one - reference), with the percentile bootstrap of that mean "
        f"over images, {distances.RESAMPLES} resamples. Neighbouring tiles are not independent."
    )
    return join([page.table(head, rows), tag("p", words, class_="dim")])


def _verdict(low: float, high: float, better: str | None) -> str:
    if low <= 0 <= high:
        return "no clear difference"
    sign = {"higher": 1, "lower": -1}.get(better or "", 0) * (1 if low > 0 else -1)
    return {1: "better", -1: "worse"}.get(sign, "different")


def _sets(results: dict[str, Row], scores: dict[str, Scores]) -> Html:
    """Metrics of whole sets: comparable between equal sets only, and without an interval."""
    columns = {key for score in scores.values() for row in score.values() for key in row}
    equal, rows = _equal(scores), []
    for key in dict.fromkeys(k for r in results.values() for k in r["metrics"] if k not in columns):
        first, *others = values = [r["metrics"].get(key, {}).get("value") for r in results.values()]
        plain = equal and isinstance(first, float)
        differences = [f"{v - first:+.4g}" if plain and isinstance(v, float) else "" for v in others]
        rows.append([tag("b", report.caption(key)), *map(report.number, values), *differences])
    words = "Metrics of whole sets have no interval." if equal else "Metrics of unequal sets cannot be compared."
    head = ["per set", *results, *[f"difference of {name}" for name in [*results][1:]]]
    return join([page.table(head, rows), tag("p", words, class_="dim")]) if rows else Html()


def _equal(scores: dict[str, Scores]) -> bool:
    return len({frozenset(score) for score in scores.values()}) == 1


def _pictures(results: dict[str, Row], scores: dict[str, Scores], ids: list[str]) -> Html:
    (first, reference), (second, other), *_ = scores.items()
    key = next((k for k in other[ids[0]] if k in reference[ids[0]]), None)
    gain = {i: other[i].get(key, 0) - reference[i].get(key, 0) for i in ids} if key else dict.fromkeys(ids, 0.0)
    order = sorted(ids, key=lambda i: (gain[i], i))
    chosen = order if len(order) <= 2 * ROWS else [*order[:ROWS], *order[-ROWS:]]
    found = {name: partners.pictures(result["inputs"]) for name, result in results.items()}
    if "output" not in found[second]:
        place = results[second]["inputs"].get("pred")
        return tag("p", f"The pictures are not where they were evaluated: {place}", class_="warn")
    folders = {"SAR": found[first].get("SAR"), "target": found[first].get("target")}
    folders |= {name: sides.get("output") for name, sides in found.items()}
    rows = []
    for i in chosen:
        lines = [f"{name}: {report.caption(key)} {report.number(s[i].get(key))}" for name, s in scores.items() if key]
        shown = {name: report.pixels(files.get(i)) for name, files in folders.items() if files}
        rows.append((i, lines, report.pictures(shown, second)))
    words = f"{len(chosen)} of {len(ids)} images, from the largest loss of {second} in {key} to its largest gain."
    return join([tag("p", words, class_="dim"), page.gallery(rows, first, second)])


# runs ----------------------------------------------------------------------------------------------------------------


def _runs(sources: dict[str, Path]) -> dict[str, Html]:
    logs = {name: report.read_log(folder / "log.jsonl")[0] for name, folder in sources.items()}
    checks = {name: report.read_log(folder / "metrics.jsonl")[0] for name, folder in sources.items()}
    figures = []
    for key, words, rows, drawn in (
        ("loss", ", running median", logs, -1),
        ("psnr", "", checks, 0),
        ("ssim", "", checks, 0),
    ):
        curves = [
            charts.curve(name, *report.xy(log, key), hue)[drawn]._replace(mark="line")
            for (name, log), hue in zip(rows.items(), COLOURS, strict=False)
        ]
        if any(curve.x for curve in curves):
            figures.append(charts.switchable(report.caption(key) + words, curves, "step", report.caption(key)))
    return {
        "Validation": join([_other_lists(sources), _last(checks)]),
        "Curves": charts.grid(figures),
        "Samples": _sheets(sources),
        "What differs in the settings": _differing({name: report.config_of(f) for name, f in sources.items()}),
    }


def _other_lists(sources: dict[str, Path]) -> Html:
    """A warning where the exported models name different lists of images."""
    cards = [folder / "model" / "sar2opt.json" for folder in sources.values()]
    lists = [json.loads(card.read_text()).get("lists", {}) for card in cards if card.is_file()]
    changed = sorted({name for known in lists for name in known if known[name] != lists[0].get(name)})
    text = f"These runs do not have the same images: their lists differ in {', '.join(changed)}."
    return page.notes([text] if changed else [])


def _last(checks: dict[str, list[Row]]) -> Html:
    """All validation values at the last step that all runs validated."""
    steps = set.intersection(*[{row["step"] for row in rows} for rows in checks.values()])
    if not steps:
        return tag("p", "There is no step at which all of these runs were validated.", class_="warn")
    at = {name: next(row for row in rows if row["step"] == max(steps)) for name, rows in checks.items()}
    first, *others = at.values()
    keys = [k for k in first if k != "step" and all(k in row for row in others)]
    rows = []
    for key in keys:
        differences = [f"{o[key] - first[key]:+.4g}" if isinstance(first[key], float) else "" for o in others]
        rows.append([report.caption(key), *[report.number(row[key]) for row in at.values()], *differences])
    words = (
        "A training keeps no values per image, so these differences have no interval: evaluate the models with "
        "scripts/evaluate.py and compare those folders."
    )
    head = [f"at step {max(steps)}", *at, *[f"difference of {name}" for name in [*at][1:]]]
    return join([page.table(head, rows), tag("p", words, class_="dim")])


def _sheets(sources: dict[str, Path]) -> Html:
    """The newest sample picture of each run; of the newest common step if there is one."""
    found = {name: {p.name: p for p in (f / "samples").glob("step-????????.png")} for name, f in sources.items()}
    common = set.intersection(*[set(files) for files in found.values()])
    newest = {name: files[max(common or files)] for name, files in found.items() if files}
    figures = [
        tag(
            "figure",
            tag("img", src=report.sheet(file), alt=name),
            tag("figcaption", f"{name}, {file.stem}"),
            class_="frame",
        )
        for name, file in newest.items()
    ]
    return charts.grid(figures)


def _differing(settings: dict[str, Row]) -> Html:
    keys = sorted({key for values in settings.values() for key in values})
    rows = [[key, *[str(values.get(key, "(absent)")) for values in settings.values()]] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return page.table(["key", *settings], rows) or tag("p", "Nothing, as far as the folders tell.")
