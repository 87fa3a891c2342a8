"""Run entry scripts as real processes, on 1..N ranks, and kill them where a test says.

Children are forked from a server that has imported the scripts once: a run starts in a fraction of a second, and is
still a process of its own that SIGKILL ends as it ends any other.
"""

import atexit
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = {  # entry script -> its smoke config
    "train": "train/smoke",
    "lcm_train": "lcm/smoke",
    "lcm_adv_train": "lcm_adv/smoke",
    "cdiff_train": "cdiff/smoke",
    "scripts.baseline": "baseline/smoke",
}
TAUGHT = {"lcm_train", "lcm_adv_train"}  # need the model of another training
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(list(CONFIGS))
os.environ["PYTHONPATH"] = str(ROOT)  # for the server and for torchrun
os.environ["OMP_NUM_THREADS"] = "1"


@dataclass(frozen=True)
class Die:
    """SIGKILL ``rank`` (all by default) at a place of the run."""

    at: str  # step: between optimiser step ``nth`` and its save; write: inside the nth file; rename, discard: before it
    nth: int
    rank: int | None = None


def start(script: str, folder: Path, world: int = 1, die: Die | None = None, **settings: object) -> list:
    """Processes of one run in ``folder``; ``settings`` are config overrides, ``run__max_steps`` for run.max_steps."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    overrides: dict[str, object] = {"run.dir": folder.parent, "run.name": folder.name}
    if script in TAUGHT:
        overrides["model.init_from"] = teacher()
    overrides |= {key.replace("__", "."): value for key, value in settings.items()}
    argv = [f"{ROOT}/configs/{CONFIGS[script]}.yaml", *[f"{key}={value}" for key, value in overrides.items()]]
    folder.parent.mkdir(parents=True, exist_ok=True)
    output = folder.parent / f"{folder.name}.output"
    ranks = [FORK.Process(target=_rank, args=(script, argv, r, world, port, die, output)) for r in range(world)]
    for process in ranks:
        process.start()
    return ranks


@functools.cache
def teacher() -> Path:
    """The smoke run of train.py, made once and removed at exit."""
    folder = Path(tempfile.mkdtemp(prefix="sar2opt-teacher-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run("train", folder / "teacher", run__sample_every=0, run__validate_every=0)
    return folder / "teacher"


@functools.cache
def tiny_base() -> Path:
    """A Stable Diffusion folder of scripts/make_tiny_sd.py, made once and removed at exit."""
    from scripts import make_tiny_sd

    folder = Path(tempfile.mkdtemp(prefix="sar2opt-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_tiny_sd.main([str(folder / "tiny-sd")])
    return folder / "tiny-sd"


@functools.cache
def latent_teacher() -> Path:
    """The smoke run of cdiff_train.py, made once and removed at exit."""
    folder = teacher().parent / "latent"
    run("cdiff_train", folder, run__sample_every=0, run__validate_every=0, cdiff__loss="beta_nll")
    return folder


def finish(ranks: list, timeout: float = 120) -> list[int]:
    """Exit codes; a rank that hangs is killed and fails the test."""
    for process in ranks:
        process.join(timeout)
        assert process.exitcode is not None or process.kill(), "a rank hangs"
    return [process.exitcode for process in ranks]


def run(script: str, folder: Path, world: int = 1, die: Die | None = None, **settings: object) -> list[int]:
    """``start`` and ``finish``. Without ``die`` every rank must exit with 0."""
    codes = finish(start(script, folder, world, die, **settings))
    if die is None:
        assert codes == [0] * world, printed(folder)[-3000:]
    return codes


@dataclass(frozen=True)
class Done:
    """What a command left: exit code and everything it printed."""

    code: int
    out: str
    err: str


def call(script: str, *argv: str) -> Done:
    """One command, in a process of its own, as ``python SCRIPT ARGV`` would run it."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = FORK.Process(target=_main, args=(script, list(argv), out, err))
        process.start()
        (code,) = finish([process])
        return Done(code, out.read_text(), err.read_text())


def printed(folder: Path) -> str:
    """All that the processes of ``folder`` wrote to their terminals, over all starts."""
    return (folder.parent / f"{folder.name}.output").read_text()


def fingerprint(folder: Path) -> dict:
    """Hashes of everything that must not depend on how often a run was interrupted."""
    newest = max((folder / "checkpoints").glob("step-*"))
    exported = [*(folder / "model").rglob("*.*")]
    return {
        "step": newest.name,
        "checkpoint": json.loads((newest / "MANIFEST.json").read_text()),
        "log": rows(folder),
        "validation": rows(folder, "metrics"),
        "samples": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "samples").iterdir()},
        "model": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in exported},
    }


def rows(folder: Path, log: str = "log") -> list[dict]:
    """The rows of a log of the run."""
    return [json.loads(line) for line in (folder / f"{log}.jsonl").read_text().splitlines()]


def _rank(script: str, argv: list[str], rank: int, world: int, port: int, die: Die | None, output: Path) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of data workers; forkserver would import torch again
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in where.items()} if world > 1 else {})
    if die and die.rank in (None, rank):
        _plant(die)
    _main(script, argv, output, output)


def _main(script: str, argv: list[str], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(ROOT)
    module = importlib.import_module(script)
    sys.argv = [script, *argv]
    module.config.command_line(module.main)


def _plant(die: Die) -> None:
    """Replace one function by one that kills this process at the right call."""
    from sar2opt import checkpoint
    from sar2opt.run import Run

    owner, name = {
        "step": (Run, "_anywhere"),
        "write": (checkpoint, "write"),
        "rename": (checkpoint, "commit"),
        "discard": (checkpoint.shutil, "rmtree"),
    }[die.at]
    original, calls = getattr(owner, name), 0

    def fatal(*args, **kwargs):
        nonlocal calls
        calls = args[0].step if die.at == "step" else calls + 1
        if calls == die.nth:
            if die.at == "write":
                args[0].write_bytes(args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, fatal)
