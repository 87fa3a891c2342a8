"""The run folder: who may write in it, what it says about its run, and how its logs stay true after a crash."""

import fcntl
import json
import os
import platform
import subprocess
import sys
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

from . import checkpoint, config
from .config import Section, UserError

PACKAGES = ("sar2opt", "torch", "diffusers", "accelerate", "safetensors", "numpy", "pydantic")
LOGS = ("log.jsonl", "metrics.jsonl", "timing.jsonl")


class RunFolder:
    """``runs/<name>``, held by one run at a time. Only the main process calls anything here."""

    def __init__(self, path: Path):
        self.path, self.checkpoints = path, path / "checkpoints"
        self._lock: IO[str] | None = None

    def claim(self, cfg: Section, world: int) -> str:
        """Lock the folder for this config, clean up after crashes, and write config.yaml and env.json; returns the
        run's id for trackers. Raises UserError where the folder is in use, of another run, or cannot be written."""
        file = self.path / "config.yaml"
        if file.exists():
            config.require_same_run(cfg, file)
        try:
            for folder in (self.path / "samples", self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            for folder in (self.path, self.path / "samples", self.checkpoints):
                checkpoint.clean(folder)
            for marker in ("PREEMPTED", "DONE"):
                (self.path / marker).unlink(missing_ok=True)
            checkpoint.put(file, config.dump(cfg).encode())
            run_id = self._environment(world)
        except OSError as error:
            raise UserError(f"{self.path}: this run folder cannot be written: {error}; set run.dir") from None
        return run_id

    def release(self, marker: str, step: int) -> None:
        """Leave ``marker`` (DONE or PREEMPTED) with the step, and let others in."""
        checkpoint.put(self.path / marker, f"{step}\n".encode())
        if self._lock is not None:
            self._lock.close()

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add one line to a log, in one write."""
        with open(self.path / name, "a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The lines of a log, without a half-written last one."""
        file = self.path / name
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def steps(self, name: str) -> set[int]:
        """The steps that a log has a row of."""
        return {row["step"] for row in self.rows(name)}

    def forget_after(self, step: int) -> None:
        """Drop what was logged or drawn after the checkpoint that the run goes on from."""
        for name in LOGS:
            rows = [row for row in self.rows(name) if row["step"] <= step]
            checkpoint.put(self.path / name, "".join(json.dumps(row) + "\n" for row in rows).encode())
        for picture in (self.path / "samples").glob("*-????????.png"):
            if int(picture.stem[-8:]) > step:
                picture.unlink()

    def _take_lock(self) -> None:
        # the kernel gives the lock back when this process ends, however it ends: there are no stale locks. lockf, not
        # flock: data workers would inherit the latter and outlive a killed run by seconds
        self._lock = open(self.path / "run.lock", "a+")  # noqa: SIM115
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._lock.seek(0)
            owner = self._lock.read().strip() or "another process"
            raise UserError(f"{self.path}: {owner} is training in this folder; wait, or set run.name") from None
        except OSError as error:  # a cluster file system without locks
            print(f"warning: {self.path}: not locked: {error}", file=sys.stderr)
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {platform.node()}")
        self._lock.flush()

    def _environment(self, world: int) -> str:
        file = self.path / "env.json"
        run_id = json.loads(file.read_text())["run_id"] if file.exists() else uuid.uuid4().hex[:12]
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        env = {
            "run_id": run_id,
            "command": sys.argv,
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in PACKAGES},
            "git": _git("rev-parse", "HEAD"),
            "git_modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
            "host": platform.node(),
            "gpus": gpus,
            "processes": world,
        }
        checkpoint.put(file, json.dumps(env, indent=1).encode())
        return run_id


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:  # run from a checkout that is not installed
        return None


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
