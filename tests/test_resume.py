"""A run that is interrupted, anywhere and often, is the run that never was: same weights, optimisers and logs."""

import os
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file

from .launch import Die, fingerprint, finish, printed, rows, run, start, tiny_base

KILLED = -signal.SIGKILL


def interrupt(folder, world, steps, **settings):
    """Kill every process after each of ``steps``, between the update and its save, and let the run end at last."""
    for step in steps:
        assert run("train", folder, world, Die("step", step), **settings) == [KILLED] * world
    run("train", folder, world, **settings)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_killed_at_every_step(tmp_path, world, accumulation, workers):
    size = {"data__batch_size": 2 * world * accumulation, "data__micro_batch": 2, "data__workers": workers}
    run("train", tmp_path / "straight", world, **size)
    interrupt(tmp_path / "broken", world, (1, 2, 3, 4), **size)
    said = printed(tmp_path / "broken")
    # killed at 1 and 2 before the first save; at 3 and 4 after the save at 2; the last start goes on from there too
    assert said.count("starts at step 0") == 2 + 1 and said.count("resumed at step 2") == 2
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "straight")


def test_bf16_resumes_bitwise(tmp_path):
    run("train", tmp_path / "straight", run__precision="bf16")
    interrupt(tmp_path / "broken", 1, (3,), run__precision="bf16")
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "straight")


def test_every_option_of_the_loss_resumes_bitwise(tmp_path):
    options = {
        "ddpm__noise_offset": 0.1, "ddpm__input_perturbation": 0.1, "ddpm__condition_dropout": 0.5,
        "ddpm__weighting": "min_snr_plus_one", "ddpm__colour__weight": 1.0, "sample__sampler": "ddpm",
    }  # fmt: skip
    run("train", tmp_path / "straight", **options)
    interrupt(tmp_path / "broken", 1, (3,), **options)
    assert "colour" in rows(tmp_path / "straight")[0]
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "straight")


SEVERAL = {  # script, settings, trained networks: what must survive beside one network and its average
    "pix2pix": ("scripts.baseline", {"baseline__kind": "pix2pix"}, {"unet", "critic"}),
    "lcm": ("lcm_train", {"ema__decay": 0.9}, {"student"}),
    "lcm_adv": ("lcm_adv_train", {"lcm_adv__ramp_steps": 6, "lcm_adv__critic__lr": 1e-3}, {"student", "critic"}),
    "late critic": (
        "lcm_adv_train",
        {"lcm_adv__critic_start_step": 2, "lcm_adv__start_step": 3, "lcm_adv__critic__train": "head"},
        {"student", "critic"},
    ),
}


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("case", SEVERAL)
def test_several_networks_resume_bitwise(tmp_path, world, case):
    script, settings, trained = SEVERAL[case]
    settings = {"data__batch_size": 2 * world, **settings}
    run(script, tmp_path / "straight", world, **settings)
    assert run(script, tmp_path / "broken", world, Die("step", 3), **settings) == [KILLED] * world
    run(script, tmp_path / "broken", world, **settings)
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "straight")
    assert {f"grad_norm/{name}" for name in trained} <= rows(tmp_path / "straight")[-1].keys()


@pytest.mark.parametrize("case", ["pix2pix", "lcm_adv"])
def test_several_networks_agree_on_one_and_two_processes(tmp_path, case):
    script, settings, _ = SEVERAL[case]
    settings |= {"model__dropout": 0.0} if case == "pix2pix" else {}
    for world in (1, 2):
        run(script, tmp_path / f"world{world}", world, **settings)
    for a, b in zip(*(rows(tmp_path / f"world{world}") for world in (1, 2)), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("cache", ["off", "dihedral"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_latent_training_resumes_bitwise(tmp_path, world, cache):
    settings = {"data__batch_size": 2 * world, "cdiff__loss": "beta_nll", "data__cache_latents": cache}
    for name in ("straight", "broken"):
        own = settings | {"data__cache_dir": tmp_path / f"{name}-latents"}
        if name == "broken":
            assert run("cdiff_train", tmp_path / name, world, Die("step", 3), **own) == [KILLED] * world
        run("cdiff_train", tmp_path / name, world, **own)
    assert printed(tmp_path / "broken").count("resumed at step 2") == 1
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "straight")
    assert {"calibration", "var", "error"} <= rows(tmp_path / "straight")[0].keys()


def test_killed_while_latents_are_written(tmp_path):
    settings = {"data__cache_latents": "dihedral", "run__max_steps": 2, "run__validate_every": 0}
    run("cdiff_train", tmp_path / "straight", **settings, data__cache_dir=tmp_path / "a")
    for nth in (1, 2, 3):  # index, files, the shard
        own = settings | {"data__cache_dir": tmp_path / f"b{nth}"}
        assert run("cdiff_train", tmp_path / f"broken{nth}", 1, Die("write", nth), **own) == [KILLED]
        run("cdiff_train", tmp_path / f"broken{nth}", **own)
        assert fingerprint(tmp_path / f"broken{nth}") == fingerprint(tmp_path / "straight")


def test_a_resumed_run_reads_its_prompt_and_needs_the_base_that_it_began_with(tmp_path):
    shutil.copytree(tiny_base(), tmp_path / "base")
    settings = {"cdiff__base": tmp_path / "base", "run__validate_every": 0}
    run("cdiff_train", tmp_path / "straight", **settings)
    assert run("cdiff_train", tmp_path / "broken", 1, Die("step", 3), **settings) == [KILLED]
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(tmp_path / "base" / part)
    run("cdiff_train", tmp_path / "broken", **settings)
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "straight")
    scheduler = tmp_path / "base/scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"steps_offset": 1', '"steps_offset": 0'))
    assert finish(start("cdiff_train", tmp_path / "broken", **settings, run__max_steps=6)) == [2]
    assert "trained on other data or networks" in printed(tmp_path / "broken")


def test_killed_inside_every_write(tmp_path):
    run("train", tmp_path / "straight")
    for nth in range(1, 100):
        broken = tmp_path / f"write{nth}"
        if run("train", broken, 1, Die("write", nth), run__keep_checkpoints=1) == [0]:
            break
        run("train", broken, run__keep_checkpoints=1)
        assert fingerprint(broken) == fingerprint(tmp_path / "straight"), nth
    # claim 2, trimmed logs 3; twice checkpoint 5 and picture 1; marker 1: at least these, and then one more run
    assert nth > 2 + 3 + 2 * 6 + 1


@pytest.mark.parametrize("die", [Die("rename", 1), Die("rename", 2), Die("discard", 1)], ids=lambda d: f"{d.at}{d.nth}")
def test_killed_while_committing_or_rotating(tmp_path, die):
    run("train", tmp_path / "straight")
    assert run("train", tmp_path / "broken", 1, die, run__keep_checkpoints=1) == [KILLED]
    run("train", tmp_path / "broken", run__keep_checkpoints=1)
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "straight")
    assert not [*(tmp_path / "broken").rglob(".t*")]


def test_one_dead_rank_ends_the_others(tmp_path):
    codes = finish(start("train", tmp_path / "run", 2, Die("step", 2, rank=1)), timeout=30)
    assert codes[1] == KILLED and codes[0] != 0


def test_workers_samples_and_saving_do_not_change_the_stream(tmp_path):
    run("train", tmp_path / "a", 1)
    run(
        "train", tmp_path / "b", 1, data__workers=2, run__sample_every=1, run__validate_every=1, run__checkpoint_every=1
    )
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_one_and_two_processes_agree_after_20_steps(tmp_path):
    """Same samples and noise for the same data.batch_size; what differs is the order of summation."""
    settings = {"run__max_steps": 20, "data__micro_batch": 2, "model__dropout": 0.0, "run__validate_every": 20}
    for world in (1, 2):
        run("train", tmp_path / f"world{world}", world, **settings)
    one, two = (rows(tmp_path / f"world{world}") for world in (1, 2))
    assert len(one) == 20 and one[0]["loss"] != one[1]["loss"]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    first, second = ((tmp_path / f"world{w}" / "checkpoints/step-00000020/ema.safetensors") for w in (1, 2))
    a, b = load_file(first), load_file(second)
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-5
    a, b = (rows(tmp_path / f"world{world}", "metrics")[-1] for world in (1, 2))
    assert a.pop("split") == b.pop("split")
    assert a == pytest.approx(b, rel=1e-2, abs=1e-2)  # 8-bit rounding of the outputs may differ in single pixels


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
@pytest.mark.parametrize("world", [1, 2])
def test_signal_saves_marks_and_continues(tmp_path, world, number):
    settings = {"run__max_steps": 40, "run__checkpoint_every": 100, "run__sample_every": 0, "run__validate_every": 40}
    run("train", tmp_path / "straight", world, **settings)
    ranks = start("train", tmp_path / "broken", world, **settings)
    log = tmp_path / "broken" / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.02)
    os.kill(ranks[-1].pid, number)  # to one rank; all stop together
    assert finish(ranks) == [75] * world
    step = int((tmp_path / "broken" / "PREEMPTED").read_text())
    assert 3 <= step < 40
    assert [p.name for p in (tmp_path / "broken" / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    run("train", tmp_path / "broken", world, **settings)
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "straight")
    assert not (tmp_path / "broken" / "PREEMPTED").exists()
    assert (tmp_path / "broken" / "DONE").read_text() == "40\n"


def test_a_finished_run_finds_nothing_to_do_and_a_longer_one_goes_on(tmp_path):
    run("train", tmp_path / "run", optim__schedule="constant")
    before = fingerprint(tmp_path / "run")
    run("train", tmp_path / "run", optim__schedule="constant")
    assert fingerprint(tmp_path / "run") == before
    run("train", tmp_path / "run", optim__schedule="constant", run__max_steps=6)
    run("train", tmp_path / "straight", optim__schedule="constant", run__max_steps=6)
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "straight")
