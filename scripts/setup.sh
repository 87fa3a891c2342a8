#!/usr/bin/env bash
# Finds or makes an environment for this checkout. The path of its python goes to stdout, everything else to stderr:
#   PYTHON=$(bash scripts/setup.sh)        has what training and inference need
#   PYTHON=$(bash scripts/setup.sh dev)    has what scripts/test.sh needs, too
# An active environment that has all packages is used as it is. Otherwise .venv is made, completed or brought up to date
# with pip, as pip is configured here. Exit code 3: it could not be made.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-}

say() { echo "setup: $*" >&2; }
fail() { say "$@"; exit 3; }

# The path of python $1 if it has all packages of pyproject.toml, else what it lacks. Imports none of them: 0.2 s.
examine() {
    "$1" - "$extra" 2>/dev/null <<'END'
import sys


def refuse(reason):
    print(reason)
    sys.exit(1)


def require(text):
    need = Requirement(text)
    if not need.specifier.contains(version(need.name), prereleases=True):
        refuse(f"{need} is needed, {version(need.name)} is installed")


if sys.version_info < (3, 11):
    refuse("Python %d.%d is too old" % sys.version_info[:2])
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version

try:
    from packaging.requirements import Requirement
except ImportError:
    refuse("packaging is not installed")
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
try:
    for text in [*project["dependencies"], *project["optional-dependencies"].get(sys.argv[1], [])]:
        require(text)
    for text in requires("torchvision"):
        if Requirement(text).name == "torch":
            require(text)  # the torch that it was built for
    if len({"+cpu" in version(name) for name in ("torch", "torchvision")}) > 1:
        refuse("one of torch and torchvision is built for the CPU only")
except PackageNotFoundError as error:
    refuse(f"{error.name} is not installed")
print(sys.executable)
END
}

# The first python that runs, is new enough and can make environments; the name alone proves nothing (pyenv).
base_python() {
    local name
    for name in python3.12 python3.11 python3 python; do
        if "$name" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

# What .venv was made from; its copy in .venv is written last, and says that nothing is missing.
source_of_venv() { echo "$PWD"; cat pyproject.toml; }
complete() {
    [ -f .venv/made-from ] && [ "$(source_of_venv)" = "$(cat .venv/made-from)" ] && .venv/bin/python -c "" 2>/dev/null
}

make_venv() {
    local base start=$SECONDS
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        base=$(base_python) || fail "no Python >= 3.11 with venv on PATH (Debian: apt install python3-venv)"
        say "making .venv with $base"
        "$base" -m venv --clear .venv || fail "$base could not make .venv"
    fi
    say "installing the packages of pyproject.toml into .venv; the first time: about 6 GB, several minutes"
    # one command for torch and torchvision, so that pip chooses them as a pair
    .venv/bin/python -m pip install -q --disable-pip-version-check -e ".[dev]" >&2 ||
        fail "pip failed, see above; the same command goes on from here"
    .venv/bin/python - >&2 <<'END' || fail "does 'pip config list' name a folder with a stray torch? Then remove .venv"
import sys
from importlib.metadata import version

pair = f"torch {version('torch')}, torchvision {version('torchvision')}"
try:
    import torch
    from torchvision.ops import nms  # compiled: fails if built for another torch

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except (ImportError, OSError, RuntimeError) as error:
    sys.exit(f"setup: {pair} do not fit together: {error}")
print(f"setup: Python {sys.version.split()[0]}, {pair}, {torch.cuda.device_count()} GPU(s)")
END
    source_of_venv > .venv/made-from
    say "made .venv in $((SECONDS - start)) s"
}

for python in ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} python python3; do
    if answer=$(examine "$python"); then
        say "using $answer"
        echo "$answer"
        exit
    fi
    lacking=${lacking:-${answer:+"$python is not used: $answer"}}
done

if complete; then
    say "using .venv"
else
    say "${lacking:-no active python}"
    [ -w . ] && [ -w pyproject.toml ] || fail "$PWD is not writable: activate an environment that has the packages"
    exec 9>>pyproject.toml  # nothing is written: two setups at once shall not share a half-made .venv
    ! command -v flock >/dev/null || flock 9 2>/dev/null || true
    complete || make_venv
fi
echo "$PWD/.venv/bin/python"
