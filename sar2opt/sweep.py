"""Quality against sampler steps: one model, and perhaps its teacher, on the same images at several numbers of steps.

Every setting is a folder of its own, OUT/NAME, with its images and what the evaluator found. The outputs, and so the
numbers, do not depend on the number of processes: these share whole batches, and a batch is the same in all of them.
"""

import csv
import io
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import charts, checkpoint, evaluation, images, measure, page, partners, pixelplots, report, translate
from .config import UserError
from .data import SarRadiometry
from .evaluation import Request
from .measure import Team
from .page import Html, join, tag
from .partners import Item, Pair, Size
from .pipeline import SAR2OptPipeline, model_hash
from .validation import spread

TEACHER_STEPS = (("ddim", 50), ("ddim", 4))
SHOWN = 8  # images of the sheet and of the page


@dataclass(frozen=True)
class Plan:
    """What is to be compared. ``steps``: none are the model's own; ``resolution``: px of the centre that is translated,
    0 for whole images, None as the model was trained; ``teacher_steps``: sampler and steps."""

    request: Request  # ``model`` is the student
    steps: tuple[int, ...] = ()
    sampler: str | None = None
    seed: int = 0
    limit: int | None = None
    resolution: int | None = None
    teacher: Path | None = None
    teacher_steps: tuple[tuple[str, int], ...] | None = None  # None: TEACHER_STEPS


class Setting(NamedTuple):
    """One model at one number of steps; ``who`` tells models apart."""

    who: str
    pipe: SAR2OptPipeline
    folder: Path
    digest: str
    sampler: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.who} {self.sampler} {self.steps}"


class Row(NamedTuple):
    """What was found for one setting; ``values``: network calls and seconds per image, and metrics of one number."""

    setting: Setting
    folder: Path
    values: dict[str, float | None]
    results: dict[str, Any]  # the content of metrics.json


def sweep(plan: Plan) -> list[Row]:
    """Translate and score every setting; write steps.csv, steps.png, images.png and report.html. Empty except in the
    main process."""
    settings = _settings(plan)
    request, (pairs, sizes, scenes) = plan.request, _pairs(plan, settings[0].pipe.card.resolution)
    groups: dict[Size, list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(size, []).append(i)
    evaluation.check(request, sizes, pairs[0].sar)  # before the first translation
    step = request.batch_size
    batches = [
        [(pairs[i], size) for i in g[k : k + step]] for size, g in groups.items() for k in range(0, len(g), step)
    ]
    rows, known, notes = [], dict[str, Any](), _notes(plan, pairs)
    with evaluation.gathered(request.out, request.workers) as team:
        for setting in settings:
            folder = request.out / setting.name.replace(" ", "-")
            _translate(team, setting, plan, batches, folder / "images")
            items = [_item(pair, folder / "images", scenes) for pair in pairs]
            own = replace(request, pred=folder / "images", out=folder, crop=True)
            ready = evaluation.prepare(own, items, notes, [])
            results = evaluation.score(team, own, ready, known)
            if results is not None:
                report.evaluation_page(folder)
                rows.append(Row(setting, folder, _facts(folder / "images", pairs) | _scalars(results), results))
            team.wait()  # the next evaluation exchanges files of the same names
        if rows:
            _write(request.out, rows, pairs)
    return rows


# before any work ------------------------------------------------------------------------------------------------------


def _settings(plan: Plan) -> list[Setting]:
    """The student's, then the teacher's. Unknown samplers and impossible numbers of steps are refused."""
    assert plan.request.model is not None
    pipe = SAR2OptPipeline.from_pretrained(plan.request.model)
    sampler, who = plan.sampler or pipe.card.sampler, "student" if plan.teacher else "model"
    digest = model_hash(plan.request.model)
    own = plan.request.model
    found = [Setting(who, pipe, own, digest, sampler, steps) for steps in plan.steps or (pipe.card.steps,)]
    if plan.teacher is None and plan.teacher_steps is not None:
        raise UserError("--teacher-steps: needs --teacher, the folder of that model")
    if plan.teacher is not None:
        pipe, digest = SAR2OptPipeline.from_pretrained(plan.teacher), model_hash(plan.teacher)
        wanted = plan.teacher_steps or TEACHER_STEPS
        found += [Setting("teacher", pipe, plan.teacher, digest, name, steps) for name, steps in wanted]
    for setting in found:
        setting.pipe.scheduler_for(setting.sampler, setting.steps)
    return found


def _pairs(plan: Plan, trained: int) -> tuple[list[Pair], list[Size], dict[str, str]]:
    """The images, the sizes at which they are translated, and their scenes."""
    folders = evaluation.folders_of(plan.request)
    pairs = partners.pairs(folders)
    if plan.limit is not None:
        pairs = [pairs[i] for i in spread(len(pairs), plan.limit)]
    side = trained if plan.resolution is None else plan.resolution
    sizes = partners.pair_sizes(pairs)
    if plan.resolution and (small := [p.id for p, size in zip(pairs, sizes, strict=True) if min(size) < side]):
        raise UserError(f"--resolution {side}: {len(small)} images are smaller: {partners.listed(small)}")
    cut = [Size(*(min(length, side or length) for length in size)) for size in sizes]
    return pairs, cut, folders.scenes


def _notes(plan: Plan, pairs: list[Pair]) -> list[str]:
    found = [f"--limit: {len(pairs)} images, evenly spaced over the sorted ids"] if plan.limit is not None else []
    if len(pairs) == 1:
        found.append("one image: intervals have no width, distances between sets mean little")
    return found


def _item(pair: Pair, folder: Path, scenes: dict[str, str]) -> Item:
    return Item(pair.id, folder / f"{pair.id}.png", pair.target, pair.sar, scenes.get(pair.id, ""))


# one setting ----------------------------------------------------------------------------------------------------------


def _translate(team: Team, setting: Setting, plan: Plan, batches: list[list[tuple[Pair, Size]]], folder: Path) -> None:
    """One PNG per image, with a line in manifest.jsonl as infer.py writes it, and the network calls that it took."""
    if team.main:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    team.wait()
    pipe, calls = setting.pipe.to(plan.request.device), 0
    radiometry = SarRadiometry.from_dict(pipe.card.sar)
    settings = {"seed": plan.seed, "sampler": setting.sampler, "steps": setting.steps, "model": setting.digest}
    settings["model_folder"] = str(setting.folder.resolve())

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook, own = pipe.unet.register_forward_hook(count), team.own(batches)
    for i, batch in enumerate(measure.progress(iter(own), len(own), f"{setting.name}, batches", team.main)):
        sar, ids = torch.stack([_sar(pair, size, radiometry) for pair, size in batch]), [pair.id for pair, _ in batch]
        if i == 0:  # the first call of a shape chooses algorithms and memory: it is no measurement
            pipe(sar, 1, plan.seed, ids, setting.sampler)
        calls, start = 0, time.perf_counter()
        pictures = pipe(sar, setting.steps, plan.seed, ids, setting.sampler).images
        facts = settings | {"seconds": round((time.perf_counter() - start) / len(batch), 6), "calls": calls}
        for (pair, _), picture in zip(batch, pictures, strict=True):
            assert pair.sar is not None
            picture = picture.transpose(Image.Transpose.ROTATE_180) if pair.turned else picture  # as the target lies
            job = translate.Job(pair.id, pair.sar, folder / f"{pair.id}.png")
            translate.write(job, picture, folder / "manifest.jsonl", facts)
    hook.remove()
    pipe.to("cpu")  # the next model may need the room
    team.wait()


def _sar(pair: Pair, size: Size, radiometry: SarRadiometry) -> Tensor:
    """[b,h,w] in [-1, 1], normalised before it is cut: limits may be those of the whole image."""
    assert pair.sar is not None
    sar = partners.centre(radiometry.read(pair.sar)[0].movedim(0, -1), size).movedim(-1, 0)
    return sar.flip(-2, -1) if pair.turned else sar


def _facts(folder: Path, pairs: list[Pair]) -> dict[str, float | None]:
    """Calls of the network, and seconds, the mean over the images."""
    found = [record for _, record in partners.records(folder, [(p.id, folder / f"{p.id}.png") for p in pairs])]
    return {"calls": found[0]["calls"], "seconds": sum(record["seconds"] for record in found) / len(found)}


def _scalars(results: dict[str, Any]) -> dict[str, float | None]:
    """Metrics that say how good an output is."""
    metrics = results["metrics"]
    return {key: metrics[key]["value"] for key in metrics if key not in ("rgb_shift", "edge_sar_target")}


# all settings ---------------------------------------------------------------------------------------------------------


def summary(rows: list[Row]) -> str:
    """What is printed, at most 80 columns: the table, what was skipped, and warnings."""
    results = rows[0].results
    cells = {row.setting.name: row.values for row in rows}
    title = [evaluation.title(results), "calls: of the network; seconds: per image, in one process"]
    lines = evaluation.blocks(cells, [*rows[0].values])
    return "\n".join([*title, *lines, "", *evaluation.skips(results), *[f"warning: {w}" for w in _warnings(rows)]])


def _warnings(rows: list[Row]) -> list[str]:
    """Of all settings, each once, with the settings that it does not hold for left out."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for text in evaluation.warnings(row.results):
            found.setdefault(text, []).append(row.setting.name)
    return [text if len(names) == len(rows) else f"{', '.join(names)}: {text}" for text, names in found.items()]


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["model", "sampler", "steps", *rows[0].values])
    for row in rows:
        cells = ["" if value is None else f"{value:.6f}" for value in row.values.values()]
        table.writerow([row.setting.who, row.setting.sampler, row.setting.steps, *cells])
    return text.getvalue()


def _write(out: Path, rows: list[Row], pairs: list[Pair]) -> None:
    """steps.csv, steps.png, images.png, report.html."""
    checkpoint.put(out / "steps.csv", _csv(rows).encode())
    names = {row.setting.digest: row.setting.who for row in rows}
    plots = report.tradeoff_plots({row.setting.name: row.folder for row in rows}, names)
    if plots:
        checkpoint.put(out / "steps.png", images.png(pixelplots.sheet(plots)))
    shown = {pair.id: _pictures(pair, rows) for pair in (pairs[i] for i in spread(len(pairs), SHOWN))}
    _write_sheet(out / "images.png", shown)
    inputs = rows[0].results["inputs"]
    sections = {
        "Warnings": page.notes(_warnings(rows)),
        "Quality against steps": _table(rows),
        "Plots": charts.grid([charts.chart(*plot) for plot in plots]),
        "Images": _gallery(shown, rows),
        "Inputs": page.table(["", ""], [[key, report.number(value)] for key, value in inputs.items()]),
        "Versions": page.table(["", ""], [[key, value] for key, value in rows[0].results["versions"].items()]),
    }
    report.write(out / "report.html", "Quality against sampler steps", evaluation.title(rows[0].results), sections)


def _table(rows: list[Row]) -> Html:
    cells = []
    for row in rows:
        link = tag("a", row.setting.name, href=f"{row.folder.name}/report.html")
        found = []
        for key, value in row.values.items():
            interval = row.results["metrics"].get(key, {}).get("ci95")
            between = tag("div", report.number(interval), class_="dim") if interval else ""
            found.append(join([report.number(value), between]))
        cells.append([link, *found])
    words = "Small: 95 % intervals over images. Seconds per image are those of one process at this batch size."
    head = ["", *[report.caption(key) for key in rows[0].values]]
    return join([page.table(head, cells), tag("p", words, class_="dim")])


def _pictures(pair: Pair, rows: list[Row]) -> dict[str, np.ndarray]:
    """SAR, every output and target of one image: uint8 [h,w,3]."""
    files = {row.setting.name: row.folder / "images" / f"{pair.id}.png" for row in rows}
    sides = {"SAR": pair.sar, **files, "target": pair.target}
    found = {name: x for name, file in sides.items() if (x := report.pixels(file)) is not None}
    size = Size(*found[rows[0].setting.name].shape[:2])
    return {name: partners.centre(x, size) for name, x in found.items()}


def _write_sheet(file: Path, shown: dict[str, dict[str, np.ndarray]]) -> None:
    """Those of the size of the first one."""
    first = next(iter(shown.values()))
    same = {i: found for i, found in shown.items() if found["SAR"].shape == first["SAR"].shape}
    columns = {
        name: torch.stack([torch.from_numpy(found[name]).permute(2, 0, 1) / 127.5 - 1 for found in same.values()])
        for name in first
    }
    checkpoint.put(file, images.png(images.contact_sheet(columns, [*same])))


def _gallery(shown: dict[str, dict[str, np.ndarray]], rows: list[Row]) -> Html:
    lines = dict.fromkeys(shown, [""])
    found = [(i, lines[i], report.pictures(dict(sides), "target")) for i, sides in shown.items()]
    return page.gallery(found, rows[0].setting.name, "target")
