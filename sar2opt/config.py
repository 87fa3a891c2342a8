"""Typed configs: one pydantic model per entry script, one YAML per run, no silent keys.

Errors name file, line, column and key, suggest the nearest valid key, and come all at once.
"""

import argparse
import difflib
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import ValidationError as PydanticError

from .yamlfile import ConfigError, Loc, Marks, UserError, merge, parse, read

__all__ = ["ConfigError", "UserError"]  # the rest of the package finds them here


class MachineError(Exception):
    """The machine failed, not the user and not the code: disk full, folder not writable. Exit code 3."""


class Section(BaseModel):
    """Base of every config model: unknown keys, wrong types, NaN and later assignment are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RunConfig(Section):
    """``run:`` what the loop needs. Steps are optimiser steps; ``*_every: 0`` switches that work off."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dir: Path = Path("runs")
    seed: NonNegativeInt = 3407
    max_steps: PositiveInt
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the GPU has it, else fp32
    device: Literal["auto", "cpu"] = "auto"
    compile: bool = False
    deterministic: bool = False
    skip_nonfinite: NonNegativeInt = 0  # updates in a row that may be skipped for a non-finite gradient
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    log_every: NonNegativeInt = 50
    sample_every: NonNegativeInt = 1000
    validate_every: NonNegativeInt = 5000
    checkpoint_every: PositiveInt = 1000
    keep_checkpoints: PositiveInt = 3  # newest ones

    @property
    def folder(self) -> Path:
        """The run folder, ``dir/name``."""
        return self.dir / self.name


class OptimConfig(Section):
    """``optim:`` AdamW, linear warm-up, then a rate that is a function of the step."""

    lr: PositiveFloat = 1e-4
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: NonNegativeInt = 500
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    clip_norm: PositiveFloat | None = 1.0  # null: the gradient as it is


class EMAConfig(Section):
    """``ema:`` average <- d average + (1 - d) weights. With ``ramp``, d = min(decay, (1 + n)/(10 + n)) at update n.
    With decay null there is no average: what is exported are the weights themselves."""

    decay: float | None = Field(default=0.9999, ge=0, lt=1)
    ramp: bool = True


T = TypeVar("T", bound=Section)

# a resumed run may change these; everything else makes it another run
MAY_CHANGE: dict[str, set[str]] = {
    "run": {
        "name", "dir", "max_steps", "device", "trackers", "keep_checkpoints",
        "log_every", "sample_every", "validate_every", "checkpoint_every",
    },
    # the checkpoint holds the hash of the list of pairs
    "data": {"root", "manifest", "cache_dir", "workers", "micro_batch"},
}  # fmt: skip


def load(cls: type[T], path: str | Path, overrides: list[str] | None = None) -> T:
    """Read ``path`` as ``cls``; ``a.b=value`` overrides win over the file, the file over its ``base``."""
    tree, marks = read(Path(path))
    for item in overrides or []:
        dotted, equals, text = item.partition("=")
        keys, where = tuple(dotted.split(".")), f"command line {item!r}"
        if not equals or not all(keys):
            raise ConfigError(f"{where}: expected key=value")
        value = parse(text, where, {})
        for key in reversed(keys):
            value = {key: value}
        tree = merge(tree, value)
        marks = {loc: mark for loc, mark in marks.items() if loc[: len(keys)] != keys} | {keys: where}
    try:  # JSON mode is strict, and still reads a list as a tuple and a string as a Path
        return cls.model_validate_json(json.dumps(tree))
    except PydanticError as error:
        # a misspelt key is also a missing one: first what stands in the file, then what does not
        errors = sorted(error.errors(), key=lambda e: e["type"] == "missing")
        messages = [_message(cls, dict(e), marks, str(path)) for e in errors]
        raise ConfigError("\n".join(dict.fromkeys(messages))) from None


def dump(cfg: Section) -> str:
    """The resolved config as YAML; ``load`` reads it back to an equal config."""
    return yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False, width=120)


def digest(cfg: Section) -> str:
    """SHA-256 of everything in ``cfg`` that makes a run what it is."""
    kept = cfg.model_dump(mode="json", exclude=MAY_CHANGE)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def require_same_run(cfg: Section, file: Path) -> None:
    """Refuse to continue the run described by ``file`` as a different one; lists every key that differs."""
    old, new = (_flat(c.model_dump(mode="json", exclude=MAY_CHANGE)) for c in (load(type(cfg), file), cfg))
    keys = sorted(old.keys() | new.keys())
    changed = [f"  {k}: was {old.get(k)!r}, now {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]
    if changed:
        advice = "choose another run.name, or restore these values to go on"
        raise ConfigError(f"{file}: this folder belongs to another run; {advice}\n" + "\n".join(changed))


def command_line(main: Callable[[list[str]], None]) -> None:
    """Run ``main`` on sys.argv. A user's mistake ends with one message and exit code 2, a failing machine with 3; a
    bug keeps its traceback and exit code 1."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        # every process finds the same mistake in a config; one of them says so
        if not (isinstance(error, ConfigError) and int(os.environ.get("RANK", 0)) > 0):
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(3)


def positive(text: str) -> int:
    """A type of argparse: 1 or more."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


def natural(text: str) -> int:
    """A type of argparse: 0 or more."""
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 or more")
    return value


def _message(cls: type[Section], error: dict[str, Any], marks: Marks, path: str) -> str:
    loc, text = tuple(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
    name, known = ".".join(loc), _keys(cls)
    at = next((marks[loc[:i]] for i in range(len(loc), 0, -1) if loc[:i] in marks), path)
    if error["type"] == "extra_forbidden":
        siblings = {key[-1]: key for key in known if key[:-1] == loc[:-1]}
        near = [siblings[leaf] for leaf in difflib.get_close_matches(loc[-1], siblings, n=1)]
        near += [key for key in known if key[-1] == loc[-1]]
        text = "unknown key; " + (f"did you mean {'.'.join(near[0])!r}?" if near else f"known: {', '.join(siblings)}")
    elif loc and error["type"] != "missing" and not isinstance(error["input"], dict):
        text += f" (got {error['input']!r:.80})"
    return f"{at}: {name}: {text}" if loc else f"{at}: {text}"


def _keys(cls: Any, root: Loc = ()) -> list[Loc]:
    fields = {name: field.annotation for name, field in getattr(cls, "model_fields", {}).items()}
    return [key for name, kind in fields.items() for key in [(*root, name), *_keys(kind, (*root, name))]]


def _flat(tree: dict, root: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{root}{key}.") if isinstance(value, dict) else {f"{root}{key}": value}
    return leaves
