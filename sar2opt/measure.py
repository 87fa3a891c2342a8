"""The numbers of a set of images, shared among processes: image i belongs to process i mod world.

Every process computes what belongs to single images; the first one gathers it by index and computes the rest. So no
image counts twice, and the numbers are those of one process.
"""

import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from tqdm import tqdm

from . import distances, recipes, scoring
from .data import SarRadiometry
from .networks import FEATURE, PERCEPTUAL, Judges
from .partners import Item, Size
from .progress import clock
from .scoring import Slice, Spool, Task, Work

Arrays = dict[str, np.ndarray]
T = TypeVar("T")
CHUNK = 4  # images that a worker takes at once
LINE_SECONDS = 10  # until the first line of progress; the next ones come at twice the time
# workers are as many as there are cores; arrays of an image come from kept memory: new pages cost half of the time
WORKERS = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": f"{1 << 28}", "MALLOC_MMAP_THRESHOLD_": f"{1 << 28}"}
LONGEST = timedelta(days=2)  # that processes wait for the first one


class Team:
    """The processes of one evaluation, their folder for exchange, and the workers of this process."""

    def __init__(self, folder: Path, workers: int):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        self.workers = workers or max(1, len(os.sched_getaffinity(0)) // local)
        self.folder, self._pool = folder, None
        self._meetings = 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> Self:
        if self.world > 1:
            import torch.distributed as dist

            dist.init_process_group("gloo", timeout=LONGEST)
        if self.main:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        self.wait()
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if kind is None:
            self.wait()
        if self.main:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.world > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()

    def own(self, items: list[T]) -> list[T]:
        """The share of this process."""
        return items[self.rank :: self.world]

    def gather(self, arrays: Arrays, n: int) -> Arrays | None:
        """Rows [n_r,...] of every process -> rows [n,...] in the order of the set, in the main process."""
        if self.world == 1:
            return arrays
        self._meetings += 1
        path = self.folder / f"share-{self._meetings}"
        if not self.main:
            np.savez(f"{path}-{self.rank}.npz", allow_pickle=False, **arrays)
        self.wait()
        if not self.main:
            return None
        whole = {key: np.empty((n, *rows.shape[1:]), rows.dtype) for key, rows in arrays.items()}
        for rank in range(min(self.world, n)):
            part = np.load(f"{path}-{rank}.npz", allow_pickle=False) if rank else arrays
            for key, rows in whole.items():
                rows[rank :: self.world] = part[key]
        return whole

    def map(self, function: Callable[..., T], jobs: Iterable[tuple], parallel: bool) -> Iterator[T]:
        """``function`` of every job, in order; by the workers if it is worth their start."""
        if not parallel or self.workers == 1:
            return (function(*job) for job in jobs)
        if self._pool is None:
            for name, value in WORKERS.items():
                os.environ.setdefault(name, value)
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(self.workers, context)
        return self._pool.map(function, *zip(*jobs, strict=True))


class Wanted(NamedTuple):
    """What is to be computed for a set; ``metrics``: keys of ``recipes.METRICS`` that are not skipped."""

    metrics: frozenset[str]
    radiometry: SarRadiometry | None
    judges: Judges | None
    batch_size: int  # of the networks
    floor: bool  # also swd between the target's halves

    def any(self, *keys: str) -> bool:
        return bool(self.metrics.intersection(keys))


class Measured(NamedTuple):
    """Of a whole set. ``columns`` [n] by name; ``rings`` [n,2,k] of target and output; features [n,2048] by kind;
    ``swd``: values of the levels by metric, and as ``floor`` those between the target's halves."""

    columns: Arrays
    rings: np.ndarray
    target: Arrays
    output: Arrays
    swd: dict[str, list[float]]


def measure(
    team: Team, name: str, items: list[Item], sizes: list[Size], wanted: Wanted, known: Arrays
) -> Measured | None:
    """The numbers of ``items``, in the main process; None in the others.

    ``known`` keeps the features of this process's targets from one call to the next. ``name`` is what progress shows.
    """
    tasks = team.own([Task(i, item, size) for i, (item, size) in enumerate(zip(items, sizes, strict=True))])
    folder = team.folder / name
    folder.mkdir(exist_ok=True)
    work = _work(team, folder, items, sizes, wanted)
    rows = _scored(team, name, tasks, work) | _judged(team, name, tasks, wanted, known)
    gathered = team.gather(rows, len(items))
    if gathered is None:
        return None
    columns = {column: gathered["values"][:, i] for i, column in enumerate(scoring.names(work))}
    columns |= {key: gathered[key] for key in PERCEPTUAL if key in gathered}
    target, output = (
        {kind: gathered[f"{side}/{kind}"] for kind in FEATURE if f"{side}/{kind}" in gathered}
        for side in ("target", "output")
    )
    swd = _swd(team, work.spool, sizes[0], gathered["sums"], wanted) if work.spool else {}
    shutil.rmtree(folder)
    return Measured(columns, gathered["rings"], target, output, swd)


def _work(team: Team, folder: Path, items: list[Item], sizes: list[Size], wanted: Wanted) -> Work:
    """What workers do; distances between sets need images of one size."""
    equal = len(set(sizes)) == 1
    columns = [key for key in scoring.SINGLE if key in wanted.metrics]
    groups = [key for key, (names, _) in scoring.GROUPS.items() if wanted.any(key, *names)]
    if "cdiffset" not in groups:
        columns.append("mae")
    spool, corners = None, ()
    if equal and wanted.any("swd", "swd_own"):
        n = len(items)
        levels = distances.plans(n, *sizes[0])
        halves = [distances.plans(n // 2, *sizes[0])] if wanted.floor and n > 1 else []
        spool = Spool(folder, n, team.world, len(levels))
        corners = tuple(folder / f"corners-{team.rank}-{i}.npy" for i in range(1 + len(halves)))
        for path, plans in zip(corners, [levels, *halves], strict=True):
            np.save(path, np.stack([(plan.y, plan.x) for plan in plans]))
    rings = equal and wanted.any(*recipes.RINGS)
    return Work(tuple(columns), tuple(groups), rings, wanted.radiometry, spool, corners)


def _scored(team: Team, name: str, tasks: list[Task], work: Work) -> Arrays:
    chunks = [tasks[i : i + CHUNK] for i in range(0, len(tasks), CHUNK)]
    done = team.map(scoring.score, [(work, chunk) for chunk in chunks], parallel=len(chunks) > 4 * team.workers)
    scored = [row for rows in progress(done, len(chunks), f"{name}, batches", team.main) for row in rows]
    return {key: np.array([getattr(row, key) for row in scored]) for key in ("values", "rings", "sums")}


def _judged(team: Team, name: str, tasks: list[Task], wanted: Wanted, known: Arrays) -> Arrays:
    """LPIPS and features of this process's images."""
    if wanted.judges is None or not tasks:
        return {}
    rows: dict[str, list[np.ndarray]] = {}
    fresh = not known
    batches = list(_batches(tasks, wanted.batch_size))
    for batch in progress(iter(batches), len(batches), f"{name}, network batches", team.main):
        pixels = [scoring.read(task.item._replace(sar=None), task.size, None) for task in batch]
        target, output = (np.stack([getattr(x, side) for x in pixels]) for side in ("target", "output"))
        found = wanted.judges.distances(target, output)
        found |= {f"output/{kind}": x for kind, x in wanted.judges.features(output).items()}
        if fresh:
            found |= {f"target/{kind}": x for kind, x in wanted.judges.features(target).items()}
        for key, part in found.items():
            rows.setdefault(key, []).append(part)
    joined = {key: np.concatenate(parts) for key, parts in rows.items()}
    known |= {key: part for key, part in joined.items() if key.startswith("target/")}
    return joined | known


def _batches(tasks: list[Task], size: int) -> Iterator[list[Task]]:
    """Neighbours of one size, at most ``size`` of them."""
    batch: list[Task] = []
    for task in tasks:
        if batch and (len(batch) == size or batch[0].size != task.size):
            yield batch
            batch = []
        batch.append(task)
    yield batch


def _swd(team: Team, spool: Spool, size: Size, sums: np.ndarray, wanted: Wanted) -> dict[str, list[float]]:
    """1e3 x the sliced Wasserstein distance of every level."""
    n, half = spool.n, spool.n // 2
    found: dict[str, list[float]] = {}
    whole = (("target", 0, n), ("output", 0, n))
    for key, ranges, own_norm in (
        ("swd", whole, False),
        ("swd_own", whole, True),
        ("floor", (("half", 0, half), ("half", half, 2 * half)), False),
    ):
        if key not in wanted.metrics and not (key == "floor" and wanted.floor and half):
            continue
        slices = []
        for level, plan in enumerate(distances.plans(ranges[0][2], *size)):
            norms = [
                distances.moments(sums[first:last, level, scoring.SIDES.index(side)]) for side, first, last in ranges
            ]
            pair = (norms[0], norms[1] if own_norm else norms[0])
            slices += [Slice(spool, level, ranges, pair, d) for d in scoring.blocks(plan.directions, ranges[0][2])]
        done = team.map(scoring.slice_distances, [(s,) for s in slices], parallel=n > 64)
        values = [[0.0] * 0 for _ in range(spool.levels)]
        for part, result in zip(slices, progress(done, len(slices), f"{key}, shares", team.main), strict=True):
            values[part.level] += result
        found[key] = [1e3 * distances.mean(level) for level in values]
    return found


def progress(steps: Iterator[T], total: int, name: str, shown: bool) -> Iterator[T]:
    """A bar on a terminal; otherwise a line after 10, 20, 40, 80, ... seconds, with rate and remaining time."""
    if sys.stderr.isatty() or not shown:
        yield from tqdm(steps, name, total, disable=not shown, leave=False, dynamic_ncols=True)
        return
    begin, due = time.perf_counter(), LINE_SECONDS
    for done, step in enumerate(steps, start=1):
        yield step
        spent = time.perf_counter() - begin
        if spent > due and done < total:
            rate, due = done / spent, 2 * spent
            print(f"{name}: {done}/{total}, {rate:.1f}/s, {clock((total - done) / rate)} left", flush=True)
