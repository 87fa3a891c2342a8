"""Latents of the training pairs, computed once: encoding both images costs as much as a step of the network.

    DIR/index.json  what the latents are of      DIR/files.json  size, time and SHA-256 of every image
    DIR/<key>-00000.npy  [pairs, turns, (sar, opt), 4, h, w], memory-mapped; key: SHA-256 of index.json

A turn of the image is not a turn of its latent: every turn is encoded by itself, and no latent is ever turned. A cache
of other images, another codec or other settings is an error. A build that was killed goes on.
"""

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import checkpoint
from .config import MachineError, UserError
from .data import PairedData, Pairs
from .data.pairs import TURNS, draw_turn, turned
from .models import LatentSpace
from .models.latent import LATENT_CHANNELS, digest

SHARD = 256  # pairs a file
DTYPES = {"fp16": np.float16, "fp32": np.float32}
# what of the data's settings decides which numbers reach the codec
READER = {
    "layout", "resolution", "crop", "crops_per_image", "pad", "min_valid", "split_seed", "opt", "generated",
}  # fmt: skip


class Plan(NamedTuple):
    """One cache: where, and arrays of which shape."""

    folder: Path
    turns: tuple[tuple[int, bool], ...]
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    side: int
    dtype: str

    @property
    def bytes(self) -> int:
        """Of all shards."""
        each = 2 * LATENT_CHANNELS * self.side**2 * np.dtype(DTYPES[self.dtype]).itemsize
        return self.count * len(self.turns) * each

    def shape(self, shard: int) -> tuple[int, ...]:
        rows = min(SHARD, self.count - shard * SHARD)
        return rows, len(self.turns), 2, LATENT_CHANNELS, self.side, self.side


class LatentPairs:
    """The training pairs of a complete cache: with ``rng`` latents (z_sar, z_opt) of one turn, without the pixels."""

    def __init__(self, pairs: Pairs, plan: Plan, key: str, flip: bool, rotate90: bool):
        self.ids, self.pairs, self.plan, self.key = pairs.ids, pairs, plan, key
        self.flip, self.rotate90 = flip, rotate90

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        if rng is None:
            return self.pairs.read(i, None)
        turn = self.plan.turns.index(draw_turn(rng, self.flip, self.rotate90))
        shard, row = divmod(i, SHARD)
        z = torch.from_numpy(_mapped(_file(self.plan, self.key, shard))[row, turn].astype(np.float32))
        return z[0], z[1]


def plan(data: PairedData, factor: int) -> Plan:
    """The cache that a config asks for; UserError where there can be none."""
    cfg = data.cfg
    assert cfg.cache_dir is not None
    if not getattr(data.train, "fixed", False):
        raise UserError(
            f"data.cache_latents: {cfg.cache_latents} with data.crop: random of images larger than {cfg.resolution} "
            "px: there is no end of crops; set data.crops_per_image to how many of each image are drawn once, or "
            "cache_latents: off"
        )
    turns = TURNS[cfg.flip, cfg.rotate90] if cfg.cache_latents == "dihedral" else ((0, False),)
    return Plan(cfg.cache_dir, turns, len(data.train), cfg.resolution // factor, cfg.cache_precision)


def describe(made: Plan) -> str:
    """One line for --check."""
    state = "complete or in part" if (made.folder / "index.json").exists() else "not yet computed"
    return f"latents in {made.folder}: {made.count:,} x {len(made.turns)}, {made.bytes / 2**30:.2f} GiB, {state}"


def claim(data: PairedData, space: LatentSpace, made: Plan) -> str:
    """The cache's key, once its folder is known to be of these images, this codec and these settings; one process."""
    facts = {
        "codec": digest(space.vae.state_dict()),
        "channels": list(space.three),
        "reader": json.loads(data.cfg.model_dump_json(include=READER)) | {"sar": data.radiometry.to_dict()},
        "turns": [list(turn) for turn in made.turns],
        "turned": hashlib.sha256("\n".join(data.turned).encode()).hexdigest(),
        "precision": made.dtype,
        "pairs": hashlib.sha256("\n".join(data.train.ids).encode()).hexdigest(),
    }
    index, files = made.folder / "index.json", made.folder / "files.json"
    try:
        made.folder.mkdir(parents=True, exist_ok=True)
        known = json.loads(files.read_text()) if files.exists() else {}
        hashes = _hashes(data.train, known)
        facts["files"] = hashlib.sha256(json.dumps([v[2] for v in hashes.values()]).encode()).hexdigest()
        facts = json.loads(json.dumps(facts))
        if index.exists():
            _require_same(made.folder, json.loads(index.read_text()), facts)
        else:
            checkpoint.put(index, json.dumps(facts, indent=1).encode())
        checkpoint.put(files, json.dumps(hashes).encode())
    except OSError as error:
        raise MachineError(f"{made.folder}: the cache of latents is not written: {error}") from error
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def build(data: PairedData, space: LatentSpace, made: Plan, key: str, rank: int, world: int) -> None:
    """This process's share of the shards that are not there yet."""
    shards = -(-made.count // SHARD)
    missing = [n for n in range(rank, shards, world) if not _file(made, key, n).exists()]
    with _lock(made.folder, f"builder-{rank}.lock"):
        for n in tqdm(missing, unit="shard", disable=rank > 0 or None, desc="encoding"):
            array = np.empty(made.shape(n), DTYPES[made.dtype])
            for row in range(len(array)):
                sar, opt = data.train.read(n * SHARD + row, None)
                with np.errstate(over="ignore"):  # refused below
                    array[row] = _encoded(space, sar, opt, made.turns)
            if not np.isfinite(array).all():
                raise UserError(
                    f"{made.folder}: latents of shard {n} leave {made.dtype}; set data.cache_precision: fp32"
                )
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            try:
                checkpoint.put(_file(made, key, n), content.getvalue())
            except OSError as error:
                raise MachineError(f"{made.folder}: not written: {error}; run the same command again") from error


def opened(data: PairedData, made: Plan, key: str) -> LatentPairs:
    """The complete cache, after every process has built its share."""
    for n in range(-(-made.count // SHARD)):
        file = _file(made, key, n)
        try:
            found = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: damaged: {error}; remove it, and it is computed again") from None
        if found.shape != made.shape(n) or found.dtype != DTYPES[made.dtype]:
            raise UserError(
                f"{file}: expected {list(made.shape(n))} {made.dtype}, found {list(found.shape)} {found.dtype}"
            )
    return LatentPairs(data.train, made, key, data.cfg.flip, data.cfg.rotate90)


def _encoded(space: LatentSpace, sar: Tensor, opt: Tensor, turns: Sequence[tuple[int, bool]]) -> np.ndarray:
    """[turns,2,4,h,w]: every turn of the pair, encoded."""
    device = space.prompt.device
    sars, opts = (
        torch.stack([torch.from_numpy(turned(x.numpy(), turn)) for turn in turns]).to(device) for x in (sar, opt)
    )
    return torch.stack(space.encode(sars, opts), dim=1).cpu().numpy()


def _file(made: Plan, key: str, shard: int) -> Path:
    return made.folder / f"{key}-{shard:05d}.npy"


@lru_cache(maxsize=4096)
def _mapped(file: Path) -> np.ndarray:
    return np.load(file, mmap_mode="r", allow_pickle=False)


def _hashes(pairs: Pairs, known: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """{file: [bytes, mtime_ns, SHA-256]}; a file of the known size and time is not read again."""
    found: dict[str, list[Any]] = {}
    for path in getattr(pairs, "sources", list)():
        stat = os.stat(path)
        stamp, before = [stat.st_size, stat.st_mtime_ns], known.get(str(path))
        if before is not None and before[:2] == stamp:
            found[str(path)] = before
            continue
        with open(path, "rb") as file:
            found[str(path)] = [*stamp, hashlib.file_digest(file, "sha256").hexdigest()]
    return found


def _require_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    def lines(key: str) -> Iterator[str]:
        a, b = old.get(key), new[key]
        if isinstance(a, dict) and isinstance(b, dict):
            yield from (f"  {key}.{k}: cache has {a.get(k)}, now {b.get(k)}" for k in b if a.get(k) != b.get(k))
        elif a != b:
            yield f"  {key}: cache has {a}, now {b}"

    if wrong := [line for key in new for line in lines(key)]:
        raise UserError(
            f"{folder}: holds latents of something else; choose another data.cache_dir, or remove this one\n"
            + "\n".join(wrong)
        )


@contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    """Two builders of one share would write the same files twice; the kernel gives the lock back, however this ends."""
    with open(folder / name, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"{folder}: another run is computing these latents; wait for it") from None
        yield
