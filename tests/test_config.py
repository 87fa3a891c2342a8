"""Every mistake in a config is named with its place; nothing is silently ignored."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from sar2opt import config
from sar2opt.config import ConfigError

from .launch import ROOT

GOOD = """\
run: {name: x, max_steps: 4}
data:
  layout: generated
  resolution: 32
  batch_size: 4
  micro_batch: 1
optim:
  lr: 8e-6
model:
  block_out_channels: [32, 64]
  down_block_types: [DownBlock2D, DownBlock2D]
  up_block_types: [UpBlock2D, UpBlock2D]
"""


def load(folder, text, *overrides):
    (folder / "c.yaml").write_text(text)
    try:
        return config.load(train.Config, folder / "c.yaml", list(overrides))
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{folder}/", "")) from None


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("  lr: 8", "  lrr: 8", "c.yaml:8:3: optim.lrr: unknown key; did you mean 'optim.lr'?"),
        ("optim:", "clip_norm: 1\noptim:", "c.yaml:7:1: clip_norm: unknown key; did you mean 'optim.clip_norm'?"),
        ("max_steps: 4", "max_steps: many", "c.yaml:1:16: run.max_steps: Input should be a valid integer (got 'many')"),
        ("max_steps: 4", "max_steps: 4.0", "c.yaml:1:16: run.max_steps: Input should be a valid integer (got 4.0)"),
        ("max_steps: 4", "max_steps: 012", "c.yaml:1:16: run.max_steps: Input should be a valid integer (got '012')"),
        ("max_steps: 4", "max_steps: 0", "c.yaml:1:16: run.max_steps: Input should be greater than 0 (got 0)"),
        ("max_steps: 4", "max_steps: true", "c.yaml:1:16: run.max_steps: Input should be a valid integer (got True)"),
        (", max_steps: 4", "", "c.yaml:1:1: run.max_steps: Field required"),
        ("lr: 8e-6", "lr: .nan", "c.yaml:8:3: optim.lr: Input should be a valid number (got '.nan')"),
        ("lr: 8e-6", "schedule: no",
         "c.yaml:8:3: optim.schedule: Input should be 'constant', 'cosine' or 'linear' (got 'no')"),
        ("[32, 64]", "[32, x]", "c.yaml:10:28: model.block_out_channels.1: Input should be a valid integer (got 'x')"),
        ("optim:", "optim: {}\noptim:", "c.yaml:8:1: duplicate or complex key 'optim'"),
        ("name: x", "name: ../x",
         "c.yaml:1:7: run.name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$' (got '../x')"),
        ("lr: 8e-6", "lr: &a 1\n  eps: *a", "c.yaml:9: YAML aliases and more than 16 levels are refused; use 'base'"),
        ("lr: 8e-6", "lr: !!python/name:os.x", "c.yaml:8:3: tag 'tag:yaml.org,2002:python/name:os.x' is refused"),
        ("[32, 64]", "[32", "c.yaml:11:19: not valid YAML: expected ',' or ']', but got ':'"),
        ("  lr: 8", "\tlr: 8", "c.yaml:8:1: not valid YAML: found character '\\t' that cannot start any token"),
        ("run:", "base: c.yaml\nrun:", "c.yaml: inheritance cycle through 'base'"),
        ("run:", "base: d.yaml\nrun:", "d.yaml: no such config file"),
        ("run:", "base: 7\nrun:", "c.yaml:1:1: base: expected the path of another config (got 7)"),
    ],
)  # fmt: skip
def test_message(tmp_path, old, new, message):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert message in str(caught.value).splitlines()


@pytest.mark.parametrize(
    "override, message",
    [
        ("optim.lrr=1", "command line 'optim.lrr=1': optim.lrr: unknown key; did you mean 'optim.lr'?"),
        ("optim.lr=fast", "command line 'optim.lr=fast': optim.lr: Input should be a valid number (got 'fast')"),
        ("max_steps", "command line 'max_steps': expected key=value"),
        ("=1", "command line '=1': expected key=value"),
    ],
)
def test_override_message(tmp_path, override, message):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD, override)
    assert message in str(caught.value).splitlines()


def test_all_errors_come_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace("max_steps: 4", "steps: x").replace("8e-6", "-1"), "run.seed=x")
    assert len(str(caught.value).splitlines()) == 4  # max_steps missing, steps unknown, lr negative, seed no integer


def test_relations_between_keys_are_refused_where_they_stand(tmp_path):
    with pytest.raises(ConfigError, match=r"^c.yaml:13:1: noise: zero_terminal_snr with prediction=epsilon"):
        load(tmp_path, GOOD + "noise: {prediction: epsilon}\n")
    with pytest.raises(ConfigError, match="min_snr with noise.zero_terminal_snr"):
        load(tmp_path, GOOD + "ddpm: {weighting: min_snr}\n")
    with pytest.raises(ConfigError, match="sample.guidance=2.0 needs"):
        load(tmp_path, GOOD + "sample: {guidance: 2.0}\n")


def test_precedence_base_file_override(tmp_path):
    (tmp_path / "base.yaml").write_text(GOOD)
    cfg = load(
        tmp_path, "base: base.yaml\nrun: {max_steps: 5}\noptim: {clip_norm: 2}\n", "run.max_steps=6",
        "model.block_out_channels=[32, 32]",
    )  # fmt: skip
    found = (cfg.run.max_steps, cfg.optim.lr, cfg.optim.clip_norm, cfg.model.block_out_channels, cfg.run.name)
    assert found == (6, 8e-6, 2.0, (32, 32), "x")


def test_error_in_an_inherited_key_names_the_base(tmp_path):
    (tmp_path / "base.yaml").write_text(GOOD.replace("lr: 8e-6", "lr: fast"))
    with pytest.raises(ConfigError, match=r"^base.yaml:8:3: optim.lr"):
        load(tmp_path, "base: base.yaml\n")


def test_yaml_1_1_traps_are_neutralised(tmp_path):
    cfg = load(tmp_path, GOOD.replace("name: x", "name: no"), "optim.weight_decay=1e-2", "run.dir=3:30")
    assert (cfg.run.name, cfg.optim.lr, cfg.optim.weight_decay, str(cfg.run.dir)) == ("no", 8e-6, 0.01, "3:30")


@pytest.mark.parametrize(
    "text",
    ["a: &x [1]\nb: *x", "[" * 250_000, "- " * 100_000 + "x", "\x00", "[1, 2]", "", "{[a]: b}", "x: !!binary aaaa"],
)
def test_hostile_yaml_is_a_config_error(tmp_path, text):
    with pytest.raises(ConfigError):
        load(tmp_path, text)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_random_trees_are_config_errors(tmp_path_factory, tree):
    with pytest.raises(ConfigError):
        load(tmp_path_factory.mktemp("c"), yaml.safe_dump({"run": tree, "data": tree}))


def test_dump_reads_back_equal(tmp_path):
    cfg = load(tmp_path, GOOD)
    assert load(tmp_path, config.dump(cfg)) == cfg


def test_a_resumed_run_may_change_some_keys_and_no_others(tmp_path):
    cfg = load(tmp_path, GOOD)
    (tmp_path / "config.yaml").write_text(config.dump(cfg))
    allowed = load(tmp_path, GOOD, "run.max_steps=9", "data.micro_batch=2", "data.workers=7", "run.log_every=3")
    config.require_same_run(allowed, tmp_path / "config.yaml")
    assert config.digest(allowed) == config.digest(cfg)
    other = load(tmp_path, GOOD, "optim.lr=1e-3", "data.batch_size=8", "run.max_steps=9")
    with pytest.raises(ConfigError) as caught:
        config.require_same_run(other, tmp_path / "config.yaml")
    lines = str(caught.value).splitlines()
    assert lines[1:] == ["  data.batch_size: was 4, now 8", "  optim.lr: was 8e-06, now 0.001"]
    assert config.digest(other) != config.digest(cfg)


def corruption(text: str, dice: random.Random) -> str | None:
    """One edit that makes a config wrong: a misspelt, doubled or foreign key, a value of another kind, broken YAML."""
    lines = text.splitlines()
    keyed = [i for i, line in enumerate(lines) if re.match(r"\s*[a-z_0-9]+:", line)]
    i = dice.choice(keyed)
    line, indent = lines[i], re.match(r"\s*", lines[i]).group()
    keys = re.findall(r"[a-z_0-9]+(?=:)", line)
    key = dice.choice(keys)
    kind = dice.choice(["misspell", "double", "foreign", "value", "bracket", "tab"])
    if kind == "misspell":
        lines[i] = re.sub(rf"\b{key}:", f"{key}{dice.choice('xyz')}q:", line, count=1)
    elif kind == "double":
        lines[i] = f"{line}\n{indent}{keys[0]}: 1"
    elif kind == "foreign":
        lines[i] = f"{indent}nonsense_{dice.randrange(99)}: 1\n{line}"
    elif kind == "value":
        lines[i] = re.sub(rf"\b{key}:.*", f"{key}: [[{{what: ever}}]]", line, count=1)
        lines[i] += "}" if line.count("{") > line[: line.index(f"{key}:")].count("}") + line.count("}") else ""
    elif kind == "bracket":
        lines[i] = f"{indent}{keys[0]}: ]"
    else:
        lines[i] = f"\t{line}"
    return "\n".join(lines) + "\n"


def test_two_hundred_one_edit_corruptions_give_the_line_and_never_a_traceback(tmp_path, capsys, monkeypatch):
    original = (ROOT / "configs/train/smoke.yaml").read_text()
    dice = random.Random(0)
    for _ in range(200):
        text = corruption(original, dice)
        (tmp_path / "bad.yaml").write_text(text)
        monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "bad.yaml"), "--print-config"])
        with pytest.raises(SystemExit) as caught:
            config.command_line(train.main)
        message = capsys.readouterr().err
        assert caught.value.code == 2, text
        assert re.match(r"error: .*bad\.yaml:\d+", message) and "Traceback" not in message, (text, message)


def test_the_command_line_prints_one_message_and_exits_2():
    command = [sys.executable, "train.py", "configs/train/smoke.yaml", "optim.lrr=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: command line 'optim.lrr=1': optim.lrr: unknown key; did you mean 'optim.lr'?\n"


def test_every_field_is_read_somewhere():
    code = "".join(p.read_text() for p in [*ROOT.glob("*.py"), *ROOT.glob("sar2opt/**/*.py")])
    whole = ["noise", "optim", "model"]  # sections that are handed on as a whole are covered by their own functions
    for keys in config._keys(train.Config):
        if len(keys) > 1:
            assert re.search(rf"\.{keys[-1]}\b|\"{keys[-1]}\"", code) or keys[0] in whole, ".".join(keys)


def test_paths_are_relative_to_the_caller_not_to_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path, GOOD).run.folder == Path("runs/x")
