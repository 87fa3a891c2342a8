"""Checkpoints that a crash cannot spoil: safetensors and JSON, a manifest of hashes, one atomic rename.

    checkpoints/step-00000004/{unet,ema,unet.optim}.safetensors  state.json  MANIFEST.json

A folder is written under a temporary name, flushed to disk, and renamed when complete. It is valid if its manifest
matches every byte. There is no pickle: nothing in a checkpoint can run code.
"""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from .config import MachineError, UserError

FORMAT = 1
Tensors = dict[str, dict[str, Tensor]]  # file stem -> key -> tensor


class CheckpointError(UserError):
    """No usable checkpoint, or one of another network."""


def save(folder: Path, step: int, tensors: Tensors, state: dict[str, Any]) -> Path:
    """Write ``folder/step-XXXXXXXX`` completely or not at all. Raises MachineError where the disk refuses."""
    final = folder / f"step-{step:08d}"
    tmp = folder / f".tmp-{final.name}-{os.getpid()}"
    needed = sum(v.numel() * v.element_size() for group in tensors.values() for v in group.values())
    try:
        tmp.mkdir(parents=True)
        if (free := shutil.disk_usage(folder).free) < needed:
            raise OSError(f"{needed >> 20} MiB needed, {free >> 20} MiB free")
        content = json.dumps({"format": FORMAT, "step": step, **state}, indent=1).encode()
        manifest = {"state.json": write(tmp / "state.json", content)}
        for name, group in tensors.items():
            content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in group.items()})
            manifest[f"{name}.safetensors"] = write(tmp / f"{name}.safetensors", content)
        write(tmp / "MANIFEST.json", json.dumps(manifest, indent=1).encode())
        commit(tmp, final)
    except OSError as error:
        shutil.rmtree(tmp, ignore_errors=True)
        raise MachineError(f"{final}: not written: {error}; older checkpoints are intact") from error
    return final


def write(path: Path, content: bytes) -> dict[str, int | str]:
    """Write and flush one file; returns its manifest entry. The mode follows the umask (save_file's is 0600)."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def put(path: Path, content: bytes) -> None:
    """Replace one file atomically."""
    tmp = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    write(tmp, content)
    os.replace(tmp, path)


def commit(tmp: Path, final: Path) -> None:
    """Give a complete temporary folder its name, atomically and durably."""
    _sync(tmp)
    if final.exists():  # a damaged or older folder of the same name
        discard(final)
    os.replace(tmp, final)
    _sync(final.parent)


def discard(path: Path) -> None:
    """Remove a folder such that a crash half-way leaves nothing that looks like a checkpoint."""
    trash = path.with_name(f".trash-{path.name}-{os.getpid()}")
    os.replace(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def clean(folder: Path) -> None:
    """Remove what earlier crashes left behind. Only the holder of the run lock may call this."""
    for leftover in [*folder.glob(".tmp-*"), *folder.glob(".trash-*")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def rotate(folder: Path, keep: int) -> None:
    """Keep the newest ``keep`` >= 1; call it after ``save``, so that a valid one always remains."""
    for old in sorted(folder.glob("step-????????"))[:-keep]:
        try:
            discard(old)
        except OSError as error:
            warnings.warn(f"{old}: not removed: {error}", stacklevel=2)


def newest_step(folder: Path) -> int:
    """The step of the newest valid checkpoint; 0 if there are no checkpoints; an error if all are damaged."""
    found = sorted(folder.glob("step-????????"), reverse=True)
    for path in found:
        reason = damage(path)
        if reason is None:
            return int(path.name.removeprefix("step-"))
        warnings.warn(f"{path}: ignored: {reason}", stacklevel=2)
    if found:
        raise CheckpointError(f"{folder}: all {len(found)} checkpoints are damaged; move them away to start anew")
    return 0


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing is. Neither safetensors nor torch would notice a flipped bit."""
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text())
        for name, entry in {"state.json": None, **manifest}.items():
            with open(path / Path(name).name, "rb") as file:  # never outside the folder
                found = {"bytes": os.fstat(file.fileno()).st_size, "sha256": _sha256(file)}
            if entry != found:
                return f"{name} ({found['bytes']} bytes) does not match its manifest: {entry}"
    except (OSError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def load(folder: Path, step: int) -> tuple[Tensors, dict[str, Any]]:
    """All tensors of a valid checkpoint, on the CPU, and its state."""
    path = folder / f"step-{step:08d}"
    state = json.loads((path / "state.json").read_text())
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path}: has format {state['format']}; this version reads format {FORMAT}")
    return {file.stem: safetensors.torch.load_file(file) for file in path.glob("*.safetensors")}, state


def restore(net: nn.Module, name: str, tensors: Tensors, path: Path) -> None:
    """Load ``net`` strictly; keys and shapes that differ are listed, as with a checkpoint of another architecture."""
    have, want = tensors.get(name, {}), net.state_dict()
    wrong = [f"{k}: network has {list(want[k].shape)}, checkpoint lacks it" for k in want if k not in have]
    wrong += [f"{k}: checkpoint has {list(have[k].shape)}, network lacks it" for k in have if k not in want]
    wrong += [
        f"{k}: network has {list(want[k].shape)}, checkpoint has {list(have[k].shape)}"
        for k in want
        if k in have and want[k].shape != have[k].shape
    ]
    if wrong:
        listed = "\n".join(f"  {line}" for line in wrong[:5])
        raise CheckpointError(
            f"{path / name}.safetensors: of another architecture than the configured network; "
            f"{len(wrong)} tensors differ, the first:\n{listed}\nchoose another run.name, or restore the config"
        )
    net.load_state_dict(have)


def pack(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, Tensor]:
    """Optimiser state keyed ``<parameter>/<quantity>``. Rates are functions of the step and not part of it."""
    names, state = _trained_names(optimizer, net), optimizer.state_dict()["state"]
    return {f"{names[i]}/{key}": value for i, row in state.items() for key, value in row.items()}


def unpack(optimizer: torch.optim.Optimizer, net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Inverse of ``pack``."""
    rows: dict[str, dict[str, Tensor]] = {name: {} for name in _trained_names(optimizer, net)}
    for full, value in tensors.items():
        name, key = full.rsplit("/", 1)
        rows[name][key] = value
    state = {i: row for i, row in enumerate(rows.values()) if row}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _trained_names(optimizer: torch.optim.Optimizer, net: nn.Module) -> list[str]:
    """Names of the parameters that the optimiser counts; frozen ones are not among them."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _sha256(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
