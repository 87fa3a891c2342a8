"""Imports go downwards only, side effects have one owner, and files stay readable."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sar2opt"
# a module imports modules of earlier rows only; data and models are packages, free inside
LAYERS = [
    {"yamlfile"},
    {"config"},
    {"draws"},
    {"losses", "checkpoint", "confidence", "schedules"},
    {"data"},
    {"models"},
    {"latents"},
    {"diffusion"},
    {"samplers"},
    {"consistency", "adversarial"},
    {"metrics", "images", "distances", "networks", "partners", "recipes"},
    {"scoring", "trivial"},
    {"page"},
    {"charts"},
    {"pixelplots"},
    {"report"},
    {"comparison"},
    {"pipeline"},
    {"cdiff"},
    {"convert", "folder", "heatmap", "progress", "translate", "validation"},
    {"measure"},
    {"evaluation", "vaebound"},
    {"sweep"},
    {"run"},
    {"distill", "launch"},
]
ENTRIES = sorted([ROOT / "train.py", *ROOT.glob("*_train.py")])
SOURCES = sorted([*PACKAGE.rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")])
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
OPTIONAL = ("tensorboard", "wandb", "lpips", "torchmetrics", "torch_fidelity", "skimage", "rasterio")


def name(path):
    """How a failing test calls a file."""
    return str(path.relative_to(ROOT))


def tree(path):
    """The syntax tree of a file."""
    return ast.parse(path.read_text(), str(path))


def imports(path):
    """Absolute dotted names of everything that a file imports anywhere, ``from a import b`` as a.b."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def functions(path):
    """All functions and methods of a file."""
    return (node for node in ast.walk(tree(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def length(node):
    """Lines from def to the last one."""
    return node.end_lineno - node.lineno + 1


def test_the_list_of_layers_is_complete():
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__"} == set().union(*LAYERS), "name each module of sar2opt/ in one row of LAYERS"
    assert sum(map(len, LAYERS)) == len(set().union(*LAYERS))


def test_modules_import_only_lower_layers():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        row = next((i for i, names in enumerate(LAYERS) if own in names), len(LAYERS))
        allowed = {own, "__version__"}.union(*LAYERS[:row])
        used = {found.split(".")[1] for found in imports(path) if found.startswith("sar2opt.")}
        wrong += [f"{name(path)} imports sar2opt.{other}" for other in sorted(used - allowed)]
    assert not wrong


def test_relative_imports_are_resolved():
    assert "sar2opt.config.UserError" in set(imports(PACKAGE / "checkpoint.py"))
    assert "sar2opt.config.Section" in set(imports(PACKAGE / "models/unet.py"))
    assert {"sar2opt.draws", "sar2opt.data.pairs.Pairs"} < set(imports(PACKAGE / "data/stream.py"))


def test_scripts_do_not_import_each_other():
    scripts = [path for path in SOURCES if PACKAGE not in path.parents]
    ours = {"scripts", *[path.stem for path in scripts]}
    assert [name(path) for path in scripts if ours & {found.split(".")[0] for found in imports(path)}] == []


def test_only_run_knows_accelerate():
    users = {name(path) for path in SOURCES if any(found.split(".")[0] == "accelerate" for found in imports(path))}
    assert users == {"sar2opt/run.py"}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_unpickles_or_evaluates(path):
    assert not UNPICKLERS & {found.split(".")[0] for found in imports(path)}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"eval", "exec", "__import__"}, f"line {node.lineno}"
            if ast.unparse(node.func) == "torch.load":  # of published weights: pinned by hash, or to be converted
                safe = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "weights_only"]
                assert name(path) in ("sar2opt/networks.py", "sar2opt/convert.py") and safe == ["True"], (
                    f"line {node.lineno}"
                )
            allowed = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "allow_pickle"]
            assert allowed in ([], ["False"]), f"line {node.lineno}"


@pytest.mark.parametrize("path", ENTRIES, ids=name)
def test_an_entry_script_is_one_screen(path):
    assert len(path.read_text().splitlines()) <= 100
    assert [length(node) for node in functions(path) if node.name == "step" and length(node) > 30] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_functions_are_short(path):
    assert {node.name: length(node) for node in functions(path) if length(node) > 50} == {}


def test_sources_are_ascii():
    kinds = ("*.py", "*.sh", "*.md", "*.toml", "*.sbatch", "scripts/*", "sar2opt/**/*.py", "tests/*.py", "configs/**/*")
    files = {path for kind in kinds for path in ROOT.glob(kind) if path.is_file()}
    assert [name(path) for path in sorted(files) if not path.read_bytes().isascii()] == []


IMPORT_ALL = """
import importlib, importlib.machinery, pathlib, socket, sys

class Hiding(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in %r else super().find_spec(name, path, target)

def refuse(*_args, **_kwargs):
    raise AssertionError("an import opens a socket")

sys.meta_path = [Hiding if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
for path in sorted(pathlib.Path("sar2opt").rglob("*.py")):
    importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
for path in [*pathlib.Path().glob("*.py"), *pathlib.Path("scripts").glob("*.py")]:
    importlib.import_module(".".join(path.with_suffix("").parts))
import torch
assert not torch.cuda.is_initialized()
found = [name for name in %r if name in sys.modules]
assert not found, found
"""


def test_imports_need_no_network_no_home_and_no_optional_package(tmp_path):
    home = tmp_path / "home"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_", "TORCH"))}
    env |= {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", IMPORT_ALL % (OPTIONAL, OPTIONAL)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not home.exists()
