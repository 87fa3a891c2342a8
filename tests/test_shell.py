"""The shell scripts as users call them. A stand-in for python, srun or scontrol says what it was asked to do."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [ROOT / "train.sh", ROOT / ".ci/run", *sorted((ROOT / "scripts").glob("*.s[hb]*"))]
PLAIN_PATH = "/usr/bin:/bin"

# a python with $GPUS devices; runs nothing, and prints command and settings
PYTHON = """#!/bin/bash
case "$*" in
    *device_count*) echo "$GPUS" ;;
    *--help*) echo "$TORCHRUN_HELP" ;;
    *--print-config*) [ -z "$BAD_CONFIG" ] || { echo "error: bad config" >&2; exit 2; } ;;
    *) echo "$@"; echo "pid=$$ omp=$OMP_NUM_THREADS cpu=$ACCELERATE_USE_CPU"; exit "${CODE:-0}" ;;
esac
"""
HELP = "--signals-to-handle SIGNALS --shutdown-timeout SECONDS"


def executable(path, text):
    """A script at ``path``; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def environment(**settings):
    """This process's environment without what steers the scripts, and with ``settings``."""
    steering = ("PYTHON", "NPROC", "NNODES", "NODE_RANK", "MASTER_", "SLURM_", "OMP_", "ACCELERATE_", "VIRTUAL_ENV")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(steering)}
    return kept | {key: str(value) for key, value in settings.items()}


def bash(*command, cwd=ROOT, **settings):
    """The finished process of ``bash command``."""
    command = ["bash", *map(str, command)]
    return subprocess.run(command, cwd=cwd, env=environment(**settings), capture_output=True, text=True, timeout=120)


@pytest.fixture
def train(tmp_path):
    """``train.sh`` with a stand-in for python: arguments and settings -> finished process."""
    python = executable(tmp_path / "python", PYTHON)

    def call(*arguments, **settings):
        defaults = {"PYTHON": python, "GPUS": 0, "TORCHRUN_HELP": HELP}
        return bash(ROOT / "train.sh", *arguments, **(defaults | settings))

    return call


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_every_script(script):
    assert bash("-n", script).returncode == 0


# train.sh ------------------------------------------------------------------------------------------------------------


def test_usage_fits_a_terminal_and_names_the_entries(train):
    done = train("--help")
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80
    names = ["train", *[path.name.removesuffix("_train.py") for path in sorted(ROOT.glob("*_train.py"))], "baseline"]
    assert f"one of: {', '.join(names)}\n" in done.stdout


def test_an_unknown_entry_is_refused_with_those_that_exist(train):
    done = train("lmc_adv", "configs/train/smoke.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'lmc_adv'" in done.stderr and "train" in done.stderr and "baseline" in done.stderr


def test_no_argument_starts_the_demonstration(train):
    assert train(GPUS=4).stdout.splitlines()[0] == str(ROOT / "scripts/demo.py")


def test_one_process_is_plain_python(train):
    done = train("train", "configs/train/smoke.yaml", "run.name=two words")
    command, settings = done.stdout.splitlines()
    assert command == f"{ROOT}/train.py configs/train/smoke.yaml run.name=two words"
    assert "omp= cpu=" in settings  # torch knows best; and one process needs no hint


def test_the_entry_baseline_is_in_scripts(train):
    assert train("baseline", "c.yaml").stdout.splitlines()[0] == f"{ROOT}/scripts/baseline.py c.yaml"


def test_two_processes_without_a_gpu(train):
    command, settings = train("train", "c.yaml", "a.b=1", NPROC=2).stdout.splitlines()
    signals = "--signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout 120"
    launcher = f"-m torch.distributed.run --nproc-per-node 2 --standalone {signals}"
    assert command == f"{launcher} {ROOT}/train.py c.yaml a.b=1"
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"omp={threads} cpu=true" in settings


def test_one_process_per_visible_gpu(train):
    command, settings = train("train", "c.yaml", GPUS=8, OMP_NUM_THREADS=3).stdout.splitlines()
    assert "--nproc-per-node 8 --standalone" in command and settings.endswith("omp=3 cpu=")


def test_two_nodes_meet_at_the_first(train):
    slurm = {"SLURM_STEP_NUM_NODES": 2, "SLURM_NODEID": 1, "SLURM_JOB_ID": 77, "MASTER_ADDR": "node-a"}
    command = train("train", "c.yaml", GPUS=4, MASTER_PORT=20077, **slurm).stdout.splitlines()[0]
    meeting = "--rdzv-backend c10d --rdzv-endpoint node-a:20077 --rdzv-id 77 --rdzv-conf is_host=0"
    assert f"--nproc-per-node 4 --nnodes 2 {meeting} " in command and "--standalone" not in command
    first = train("train", "c.yaml", NNODES=2, NODE_RANK=0, MASTER_ADDR="node-a").stdout.splitlines()[0]
    assert "node-a:29500" in first and "is_host=1" in first


@pytest.mark.parametrize("given", [{}, {"MASTER_ADDR": "node-a"}, {"NODE_RANK": 0}])
def test_several_nodes_need_a_meeting_place(train, given):
    done = train("train", "c.yaml", NNODES=2, **given)
    assert (done.returncode, done.stdout) == (2, "") and "MASTER_ADDR" in done.stderr


def test_an_allocation_alone_is_not_several_nodes(train):
    command = train("train", "c.yaml", SLURM_JOB_NUM_NODES=2, SLURM_NNODES=2, SLURM_NODEID=0).stdout.splitlines()[0]
    assert "--nnodes" not in command  # not under srun: the other machine would never come


def test_an_old_torchrun_gets_no_unknown_option(train):
    command = train("train", "c.yaml", NPROC=2, TORCHRUN_HELP="--standalone").stdout.splitlines()[0]
    assert "--signals" not in command and "--shutdown" not in command


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"NPROC": "two"}, "NPROC=two"),
        ({"NPROC": "0"}, "NPROC=0"),
        ({"NPROC": "4", "GPUS": "2"}, "2 GPU(s) visible"),
        ({"NPROC": "2", "BAD_CONFIG": "yes"}, "error: bad config"),
    ],
)
def test_mistakes_end_before_torchrun(train, settings, message):
    done = train("train", "c.yaml", **settings)
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr


ENTRY = """
import os, sys
import torch.distributed as dist

if "--print-config" not in sys.argv:
    dist.init_process_group("gloo")
    sizes = [None] * dist.get_world_size()
    dist.all_gather_object(sizes, os.environ["GROUP_RANK"])
    print("nodes", *sorted(sizes), os.environ["ACCELERATE_USE_CPU"], sys.argv[1:])
    dist.destroy_process_group()  # or gloo's threads may abort the process at its end
"""


def test_two_real_nodes_meet(tmp_path):
    shutil.copy(ROOT / "train.sh", tmp_path)
    (tmp_path / "toy_train.py").write_text(ENTRY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = {"NNODES": 2, "NPROC": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    settings = [environment(PYTHON=sys.executable, NODE_RANK=node, CUDA_VISIBLE_DEVICES="", **where) for node in (0, 1)]
    command = ["bash", str(tmp_path / "train.sh"), "toy", "c.yaml", "a=b"]
    nodes = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for env in settings]
    try:
        assert [node.communicate(timeout=100)[0] for node in nodes] == ["nodes 0 1 true ['c.yaml', 'a=b']\n"] * 2
    finally:
        for node in nodes:
            node.kill()


def test_the_training_takes_the_place_of_the_shell(train, tmp_path):
    command = ["bash", str(ROOT / "train.sh"), "train", "c.yaml"]
    settings = environment(PYTHON=tmp_path / "python", GPUS=0, CODE=75)
    with subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True) as process:
        printed = process.communicate(timeout=60)[0]
    assert f"pid={process.pid} " in printed and process.returncode == 75  # signals and exit codes pass unchanged


# train.sbatch --------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    """A SLURM job in a copy of the repository: what its training leaves behind -> (finished process, calls)."""
    for name in ("train.sh", "train.py", "scripts/train.sbatch"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    real = shlex.quote(sys.executable)
    chosen = 'case "$*" in *device_count*) echo 0 ;; *--print-config*) echo "run: {dir: runs, name: x}" ;;'
    python = executable(tmp_path / "bin/python", f'#!/bin/bash\n{chosen} *) exec {real} "$@" ;; esac\n')
    executable(tmp_path / "scripts/setup.sh", f"echo {python}\n")
    reply = 'if [ "$1" = show ]; then printf "node-a\\nnode-b\\n"; else echo "scontrol $*" >> calls; fi'
    executable(tmp_path / "bin/scontrol", f"#!/bin/bash\n{reply}\n")
    (tmp_path / "runs/x").mkdir(parents=True)

    def call(leave, job_id="4711"):
        log = 'echo "srun $* at $MASTER_ADDR:$MASTER_PORT with $SRUN_CPUS_PER_TASK" >> calls'
        executable(tmp_path / "bin/srun", f"#!/bin/bash\n{log}\n{leave}\nexit 1\n")
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        slurm = {"SLURM_JOB_ID": job_id, "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_CPUS_PER_TASK": 6}
        done = bash(tmp_path / "scripts/train.sbatch", "train", "c.yaml", "a=b", cwd=tmp_path, PATH=path, **slurm)
        return done, (tmp_path / "calls").read_text().splitlines()

    (tmp_path / "calls").touch()
    return call


def test_a_stopped_job_queues_again(job):
    done, calls = job("echo 12 > runs/x/PREEMPTED")
    step = "srun --kill-on-bad-exit=1 bash train.sh train c.yaml a=b at node-a:24711 with 6"
    assert calls == [step, "scontrol requeue 4711"] and done.returncode == 0, done.stderr


def test_a_failed_job_does_not(job, tmp_path):
    (tmp_path / "runs/x/PREEMPTED").write_text("8\n")  # of the job before: this one did not get that far
    done, calls = job("true")
    assert len(calls) == 1 and done.returncode == 1


@pytest.mark.parametrize("job_id", ["", "12x", "12 --all", "12_", "12\n13"])
def test_only_a_job_id_is_queued_again(job, job_id):
    done, calls = job("echo 12 > runs/x/PREEMPTED", job_id)
    assert (done.returncode, calls) == (2, []) and "not a job id" in done.stderr


def test_a_task_of_an_array_is_queued_again(job):
    assert job("echo 12 > runs/x/PREEMPTED", "4711_3")[1][-1] == "scontrol requeue 4711_3"


def test_the_job_asks_for_what_a_stop_needs():
    lines = (ROOT / "scripts/train.sbatch").read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    # USR1@180 without "B:": to the processes that srun starts, not to the shell
    assert {"--requeue", "--open-mode=append", "--signal=USR1@180", "--ntasks-per-node=1"} <= set(options)


# setup.sh ------------------------------------------------------------------------------------------------------------

# a python that can make environments of its own kind; pip fails as long as the file "offline" exists
BASE = """#!/bin/bash
echo "python $*" >> "$CALLS"
case "$*" in
    "-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
    "-m pip install"*) [ ! -e offline ] ;;
    "- ") cat > /dev/null; exit 1 ;;
    "-") cat > /dev/null; [ ! -e mismatch ] ;;
esac
"""


def needing(folder, package):
    """A pyproject.toml with one dependency."""
    text = f'[project]\ndependencies = ["{package}"]\noptional-dependencies = {{}}\n'
    (folder / "pyproject.toml").write_text(text)


@pytest.fixture
def checkout(tmp_path):
    """A checkout with setup.sh alone, and a machine whose only usable python is a stand-in."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["no-such-package"]\noptional-dependencies={}\n'
    )
    executable(tmp_path / "bin/python3.12", "#!/bin/bash\necho 'pyenv: python3.12: command not found' >&2; exit 127\n")
    executable(tmp_path / "bin/python3.11", BASE)

    def call(**settings):
        path = {"PATH": f"{tmp_path / 'bin'}:{PLAIN_PATH}", "CALLS": tmp_path / "calls"}
        (tmp_path / "calls").write_text("")
        done = bash("scripts/setup.sh", cwd=tmp_path, **(path | settings))
        made = ("python -m venv", "python -m pip install")
        return done, [line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith(made)]

    return call


def test_setup_makes_an_environment_once(checkout, tmp_path):
    done, calls = checkout()
    assert done.returncode == 0 and done.stdout == f"{tmp_path}/.venv/bin/python\n", done.stderr
    assert calls == [
        "python -m venv --clear .venv",
        "python -m pip install -q --disable-pip-version-check -e .[dev]",
    ]
    start = time.perf_counter()
    done, calls = checkout()
    assert calls == [] and time.perf_counter() - start < 2
    assert done.stderr.splitlines() == ["setup: using .venv"]


def test_setup_goes_on_where_pip_failed(checkout, tmp_path):
    (tmp_path / "offline").touch()
    done, _ = checkout()
    assert (done.returncode, done.stdout) == (3, "") and "pip failed" in done.stderr
    (tmp_path / "offline").unlink()
    done, calls = checkout()
    assert done.returncode == 0 and calls == ["python -m pip install -q --disable-pip-version-check -e .[dev]"]


def test_setup_refuses_a_torch_that_does_not_fit(checkout, tmp_path):
    (tmp_path / "mismatch").touch()
    for _ in range(2):  # and says so again, until it is put right
        done, _ = checkout()
        assert (done.returncode, done.stdout) == (3, "") and "pip config list" in done.stderr


def test_setup_installs_changed_dependencies(checkout, tmp_path):
    checkout()
    with open(tmp_path / "pyproject.toml", "a") as file:
        file.write("# one more\n")
    done, calls = checkout()
    assert done.returncode == 0 and len([call for call in calls if "pip install" in call]) == 1


def test_setup_replaces_an_environment_whose_python_is_gone(checkout, tmp_path):
    checkout()
    executable(tmp_path / ".venv/bin/python", "#!/no/such/python\n")
    done, calls = checkout()
    assert done.returncode == 0 and "python -m venv --clear .venv" in calls


def test_setup_says_when_there_is_no_python(checkout, tmp_path):
    executable(tmp_path / "bin/python3.11", "#!/bin/bash\nexit 1\n")
    for name in ("python3", "python"):
        executable(tmp_path / "bin" / name, "#!/bin/bash\nexit 1\n")
    done, _ = checkout()
    assert (done.returncode, done.stdout) == (3, "") and "Python >= 3.11" in done.stderr


def test_setup_uses_an_active_environment_that_has_everything(checkout, tmp_path):
    needing(tmp_path, "numpy>=2")
    done, calls = checkout(VIRTUAL_ENV=sys.prefix)
    assert done.stdout == f"{sys.executable}\n" and calls == [] and not (tmp_path / ".venv").exists(), done.stderr


@pytest.mark.parametrize(
    ("need", "reason"),
    [("no-such-package", "no-such-package is not installed"), ("numpy>=1000", "numpy>=1000 is needed")],
)
def test_setup_says_why_an_active_environment_is_not_used(checkout, tmp_path, need, reason):
    needing(tmp_path, need)
    done, _ = checkout(VIRTUAL_ENV=sys.prefix)
    assert done.stdout == f"{tmp_path}/.venv/bin/python\n" and reason in done.stderr


# README.md -----------------------------------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text()


def commands():
    """What README.md tells to run: lines of fenced bash blocks, and commands between backticks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    quoted = re.findall(r"(?<!`)`((?:bash|python|sbatch) [^`]+)`(?!`)", README)
    lines = [*"".join(blocks).replace("\\\n", " ").splitlines(), *quoted]
    return sorted({line for line in lines if line.strip() and "NAME" not in line})


@pytest.mark.parametrize("line", commands())
def test_what_the_readme_runs_exists(line):
    words = shlex.split(line, comments=True)
    for word in words:
        if re.fullmatch(r"[\w./-]+\.(py|sh|sbatch)|configs/\S+\.yaml", word):
            assert (ROOT / word).is_file(), word
    if "train.sh" in words or "scripts/train.sbatch" in words:
        after = words[words.index("train.sh" if "train.sh" in words else "scripts/train.sbatch") + 1 :]
        assert not after or after[0] in ("train", "baseline") or (ROOT / f"{after[0]}_train.py").is_file()


def test_the_readme_names_every_file():
    tree = README.partition("## What is where")[2].partition("```")[2].partition("```")[0]
    named = {name for name in re.findall(r"^ *(\S+)  ", tree, re.MULTILINE) if re.fullmatch(r"\w+\.\w+", name)}
    found = [*ROOT.glob("*.py"), ROOT / "train.sh", *(ROOT / "sar2opt").glob("*.py"), *(ROOT / "scripts").glob("*.*")]
    assert named == {path.name for path in found} - {"__init__.py"}
