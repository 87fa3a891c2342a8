"""What goes wrong in a run is said once, with the right exit code, and nothing of the run is lost."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import load_file

import train
from sar2opt import config
from sar2opt.data import open_data
from sar2opt.run import Run

from .launch import ROOT, Die, fingerprint, finish, printed, rows, run, start


def refused(folder, **settings):
    """The message of a run that must end with exit code 2 on its one process."""
    assert finish(start("train", folder, **settings)) == [2]
    text = printed(folder)
    assert "Traceback" not in text
    return text


def test_another_config_in_the_same_folder_is_refused_and_nothing_is_lost(tmp_path):
    run("train", tmp_path / "run")
    before = fingerprint(tmp_path / "run")
    message = refused(tmp_path / "run", data__batch_size=2, run__max_steps=6)
    assert "belongs to another run" in message and "data.batch_size: was 4, now 2" in message
    assert "max_steps" not in message
    assert fingerprint(tmp_path / "run") == before


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    run("train", tmp_path / "small")
    run("train", tmp_path / "wide", model__block_out_channels="[16,16]")
    (tmp_path / "wide" / "checkpoints").rename(tmp_path / "aside")
    (tmp_path / "small" / "checkpoints").rename(tmp_path / "wide" / "checkpoints")
    message = refused(tmp_path / "wide", model__block_out_channels="[16,16]", run__max_steps=6)
    assert "of another architecture" in message and "conv_in.weight: network has [16, 4, 3, 3]" in message


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(tmp_path / "run", run__dir=tmp_path / "file")
    assert "file/run: this run folder cannot be written" in message and "set run.dir" in message


def test_a_second_process_in_the_folder_is_refused(tmp_path):
    first = start("train", tmp_path / "run", run__max_steps=10_000, run__sample_every=0, run__validate_every=0)
    while not (tmp_path / "run" / "log.jsonl").exists():
        pass
    assert "is training in this folder" in refused(tmp_path / "run")
    os.kill(first[0].pid, signal.SIGKILL)
    first[0].join()
    run("train", tmp_path / "run", run__max_steps=2, run__sample_every=0, run__validate_every=0)  # no stale lock


@pytest.mark.parametrize("world, advice", [(1, "1, 2, 4"), (2, "1, 2")])
def test_a_batch_that_does_not_divide_is_refused_with_what_would(tmp_path, world, advice):
    assert finish(start("train", tmp_path / "run", world, data__micro_batch=3)) == [2] * world
    message = f"data.batch_size=4 is not a multiple of data.micro_batch=3 x {world} process(es)"
    assert printed(tmp_path / "run").count(f"{message}; data.micro_batch could be {advice}\n") == 1
    assert not (tmp_path / "run").exists()


def test_fp16_without_a_gpu_is_refused(tmp_path):
    assert "fp16 needs a GPU" in refused(tmp_path / "run", run__precision="fp16")


@pytest.mark.parametrize("world", [1, 2])
def test_divergence_stops_every_rank_and_saves_nothing(tmp_path, world):
    codes = finish(start("train", tmp_path / "run", world, run__checkpoint_every=1, optim__lr="1e30"))
    assert codes == [2] * world
    assert "the gradient norm of 'unet' is nan" in printed(tmp_path / "run")
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert saved and saved[-1].name < "step-00000004"


def test_skipped_steps_are_counted_and_bounded(tmp_path):
    message = refused(tmp_path / "run", optim__lr="1e30", run__skip_nonfinite=2, run__max_steps=20)
    assert "(3 in a row, run.skip_nonfinite allows 2)" in message
    assert rows(tmp_path / "run")[-1]["skipped"] == 2


def test_the_export_loads_in_diffusers_and_holds_the_averaged_weights(tmp_path):
    run("train", tmp_path / "run")
    unet = UNet2DModel.from_pretrained(tmp_path / "run/model/unet")
    ema = load_file(tmp_path / "run/checkpoints/step-00000004/ema.safetensors")
    assert ema.keys() == unet.state_dict().keys()
    assert all(torch.equal(value, ema[key]) for key, value in unet.state_dict().items())
    assert not torch.equal(ema["conv_in.weight"], load_file(
        tmp_path / "run/checkpoints/step-00000004/unet.safetensors")["conv_in.weight"])  # fmt: skip


def test_the_run_folder_holds_what_it_promises(tmp_path):
    run("train", tmp_path / "run")
    found = {p.name for p in (tmp_path / "run").iterdir()}
    assert found == {
        "config.yaml", "env.json", "log.jsonl", "metrics.jsonl", "timing.jsonl", "samples", "checkpoints", "model",
        "run.lock", "DONE", "report.html",
    }  # fmt: skip
    assert [p.name for p in sorted((tmp_path / "run" / "samples").iterdir())] == [
        "step-00000002.png",
        "step-00000004.png",
    ]
    row = rows(tmp_path / "run", "metrics")[0]
    assert row["step"] == 4 and row["split"] == "val" and row["n"] == 3
    assert {"psnr", "ssim", "error/t100", "error/t900"} <= row.keys()
    logged = rows(tmp_path / "run")[-1]
    assert {"step", "samples", "loss", "lr", "grad_norm/unet"} <= logged.keys()
    assert any(key.startswith("error/t") for key in logged) and any(key.startswith("x0_error/t") for key in logged)


def test_tensorboard_when_asked_for(tmp_path):
    pytest.importorskip("tensorboard")
    run("train", tmp_path / "run", run__trackers="[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((tmp_path / "run").rglob("events.*")).parent)).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([r["loss"] for r in rows(tmp_path / "run")])


def test_two_processes_through_torchrun(tmp_path):
    """The command of the README: two processes, launched as users launch them."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    argv = ["train.py", "configs/train/smoke.yaml", f"run.dir={tmp_path}", "run.name=two"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    subprocess.run([*launch, *argv], cwd=ROOT, check=True, capture_output=True, timeout=180, env=environment)
    run("train", tmp_path / "forked", 2)
    assert fingerprint(tmp_path / "two") == fingerprint(tmp_path / "forked")


def folder_pairs(root, count=6):
    """Small pairs on disk; returns config overrides that read them."""
    rng = np.random.default_rng(0)
    for side, shape in (("sar", (40, 40)), ("opt", (40, 40, 3))):
        (root / side).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root / side / f"a_{i}.png")
    return {"data__layout": "folders", "data__root": root, "data__split": "random", "data__generated": "{}"}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_while_training_is_named_and_the_run_goes_on_after_its_repair(tmp_path, workers):
    data = folder_pairs(tmp_path / "pairs") | {"data__workers": workers, "run__checkpoint_every": 1}
    victims = sorted((tmp_path / "pairs" / "opt").iterdir())
    whole = {path: path.read_bytes() for path in victims}
    run("train", tmp_path / "run", run__max_steps=2, optim__schedule="constant", **data)
    for path in victims:
        path.write_bytes(whole[path][: len(whole[path]) // 2])  # the header is still right
    message = refused(tmp_path / "run", optim__schedule="constant", **data)
    assert "error: " in message and "/opt/a_" in message
    for path in victims:
        path.write_bytes(whole[path])
    run("train", tmp_path / "run", optim__schedule="constant", **data)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_run_on_files_resumes_bitwise(tmp_path):
    data = folder_pairs(tmp_path / "pairs") | {"data__workers": 2}
    run("train", tmp_path / "straight", **data)
    assert run("train", tmp_path / "broken", 1, Die("step", 3), **data) == [-signal.SIGKILL]
    run("train", tmp_path / "broken", **data)
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "straight")


def test_a_pair_that_goes_missing_is_another_list_and_refused_on_resume(tmp_path):
    data = folder_pairs(tmp_path / "pairs", count=12)
    run("train", tmp_path / "run", **data)
    for side in ("sar", "opt"):
        (tmp_path / "pairs" / side / "a_3.png").unlink()
    message = refused(tmp_path / "run", run__max_steps=6, **data)
    assert "trained on another list of pairs" in message and "train: was " in message


@pytest.mark.parametrize(("shared", "expected"), [(False, 1.5), (True, 1.25)])
def test_each_optimiser_has_a_loss_scaler_of_its_own(shared, expected, monkeypatch):
    """fp16 with accumulation 2: the critic's gradient is (1 + 2) / 2. With one scaler for both, the student's update
    doubles the scale between the critic's two backward passes."""
    cfg = config.load(train.Config, ROOT / "configs/train/smoke.yaml", ["data.batch_size=2", "data.micro_batch=1"])
    run = Run(cfg, open_data(cfg.data))
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    nets = {name: torch.nn.Linear(1, 1, bias=False) for name in ("student", "critic")}
    for name in nets:
        nets[name] = run.trainable(name, nets[name])
    assert len({id(scaler) for scaler in run.scalers.values()}) == 2
    if shared:
        one = run.scalers["student"]
        run.scalers["critic"] = run.trained[nets["critic"]][1].scaler = one
    seen = []

    def norm(parameters, _limit):
        seen.extend(p.grad.item() for p in parameters)
        return torch.tensor(1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", norm)
    monkeypatch.setattr(type(run.accelerator), "mixed_precision", "fp16")  # which needs a GPU
    run.accelerator.native_amp = True
    for factor in (1.0, 2.0):
        with run.accelerator.accumulate(*run.trained):
            for net in nets.values():
                run.update(net(torch.tensor([[factor]])).sum(), net)
    assert seen[-1] == pytest.approx(expected)
