"""The entry scripts and their configs, as users run them."""

import pytest
import yaml

import cdiff_train
import lcm_adv_train
import lcm_train
import train
from sar2opt import config
from scripts import baseline

from .launch import ROOT, TAUGHT, call, teacher, tiny_base

SCRIPTS = {
    "train": ("train", train.Config),
    "lcm": ("lcm_train", lcm_train.Config),
    "lcm_adv": ("lcm_adv_train", lcm_adv_train.Config),
    "cdiff": ("cdiff_train", cdiff_train.Config),
    "baseline": ("scripts.baseline", baseline.Config),
}
ALONE = {  # run on generated pairs
    "train/smoke", "train/demo", "baseline/smoke", "lcm/smoke", "lcm/demo", "lcm_adv/smoke", "lcm_adv/demo",
    "cdiff/smoke", "cdiff/demo", "cdiff/trial",
}  # fmt: skip
REAL = {
    "train/cities",
    "train/terrain",
    "baseline/cities",
    "baseline/terrain",
    "lcm/cities",
    "lcm_adv/cities",
}  # on real pairs, where they are
THEIRS = {
    "train/sen12",
    "train/published",
    "train/folders",
    "lcm/sen12",
    "lcm_adv/sen12",
    "lcm_adv/published",
    "cdiff/sar2opt-stage1",
    "cdiff/sar2opt-stage2",
    "cdiff/sar2opt-scratch",
    "cdiff/sar2opt-onestage",
    "cdiff/qxs-stage1",
    "cdiff/qxs-stage2",
    "cdiff/spacenet6-stage1",
    "cdiff/spacenet6-stage2",
}  # on data that everyone has elsewhere
CONFIGS = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in ROOT.glob("configs/*/*.yaml")}


def command(name, *arguments):
    """The entry script of a config in a process of its own."""
    module = SCRIPTS[name.split("/")[0]][0]
    taught = [f"model.init_from={teacher()}"] if module in TAUGHT else []
    based = [f"cdiff.base={tiny_base()}"] if name in ("cdiff/demo", "cdiff/trial") else []
    return call(module, f"configs/{name}.yaml", *taught, *based, *arguments)


def test_every_config_is_known_here():
    assert CONFIGS == ALONE | REAL | THEIRS


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_config_is_valid_and_its_dump_reads_back_equal(name, tmp_path):
    kind = SCRIPTS[name.split("/")[0]][1]
    cfg = config.load(kind, ROOT / "configs" / f"{name}.yaml")
    (tmp_path / "dump.yaml").write_text(config.dump(cfg))
    assert config.load(kind, tmp_path / "dump.yaml") == cfg


@pytest.mark.parametrize("name", sorted(ALONE | REAL))
def test_check_passes(name):
    if name in REAL and not (ROOT.parent / "shared" / "data").is_dir():
        pytest.skip("no real pairs here")
    bands = ["data.sar.bands=[VV]"] if name in REAL and name.startswith("lcm") else []  # those of the tests' teacher
    done = command(name, "--check", *bands)
    assert done.code == 0 and done.out.endswith("check passed\n"), done.err
    assert max(len(line) for line in done.out.splitlines()) <= 80


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_check_names_the_data_that_it_needs(name, tmp_path):
    done = command(name, "--check", f"data.root={tmp_path / 'none'}")
    assert done.code == 2 and done.err.startswith("error: ") and "data.root" in done.err
    assert f"{tmp_path / 'none'}" in done.err and "Traceback" not in done.err


def test_print_config_is_a_complete_config_in_the_documented_order(tmp_path):
    done = command("train/smoke", "--print-config", "optim.lr=1e-5")
    resolved = yaml.safe_load(done.out)
    assert list(resolved) == ["run", "data", "model", "noise", "optim", "ema", "ddpm", "sample"]
    (tmp_path / "again.yaml").write_text(done.out)
    assert config.load(train.Config, tmp_path / "again.yaml").optim.lr == 1e-5


def test_print_schema_knows_every_section():
    done = command("train/smoke", "--print-schema")
    assert '"DDPMConfig"' in done.out and '"zero_terminal_snr"' in done.out


def test_help_states_the_objective():
    done = command("train/smoke", "--help")
    assert done.code == 0 and "L   = mean_b" in done.out and "--check" in done.out


def test_a_mistaken_flag_is_exit_code_2_and_not_a_guess():
    for argument in ("--chec", "--no-such-flag"):
        done = command("train/smoke", argument)
        assert done.code == 2 and "unrecognized arguments" in done.err


def test_check_writes_nothing(tmp_path):
    assert command("train/smoke", "--check", f"run.dir={tmp_path}").code == 0
    assert not list(tmp_path.iterdir())
