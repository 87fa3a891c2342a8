"""infer.py as users run it: what lands on disk, what is skipped, what is refused, and that nothing else matters."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import infer
from sar2opt import translate
from sar2opt.config import UserError
from sar2opt.diffusion import NoiseConfig
from sar2opt.models import UNetConfig, build_unet
from sar2opt.pipeline import Card, SAR2OptPipeline, model_hash
from sar2opt.samplers import build_scheduler

ROOT = Path(__file__).parent.parent
REAL = Path(os.environ.get("SAR2OPT_REAL_DATA", ROOT.parent / "shared" / "data"))
FILES = {
    "a.png": (16, 24),
    "city/b.png": (16, 24),
    "city/north/c.tif": (16, 24),
    "d.jpg": (9, 13),
    "city/e.png": (9, 13),
}
NAMES = {"a", "city/b", "city/north/c", "d", "city/e"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    cfg = UNetConfig(
        block_out_channels=(8, 8), down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    card = Card(
        method="train", sar={"bands": ["VV"], "scale": "uint8"}, resolution=16, sampler="ddim", steps=2,
        sar_percentiles=((-1.0, -0.99, 0.99, 1.0),),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("run") / "model"
    scheduler = build_scheduler(NoiseConfig(), "ddim", "trailing")
    SAR2OptPipeline(build_unet(cfg, 1, 16).eval(), scheduler, card).save_pretrained(folder)
    return folder


@pytest.fixture
def sar(tmp_path):
    for k, (name, size) in enumerate(FILES.items()):
        path = tmp_path / "sar" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, size, dtype=np.uint8)).save(path)
    return tmp_path / "sar"


def run(model, sar, out, *flags):
    infer.main(["--model", str(model), "--input", str(sar), "--output", str(out), *flags])


def outputs(out):
    return {p.relative_to(out).with_suffix("").as_posix(): np.asarray(Image.open(p)) for p in out.rglob("*.png")}


def lines(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines() if line.endswith("}")]


def same(one, other, levels=0):
    return one.keys() == other.keys() and all(
        np.abs(one[k].astype(int) - other[k].astype(int)).max() <= levels for k in one
    )


def test_a_folder_becomes_a_folder_of_the_same_names(model, sar, tmp_path, capsys):
    out = tmp_path / "out"
    run(model, sar, out, "--seed", "7", "--grid")
    made = outputs(out)
    assert made.keys() == NAMES
    assert all(made[Path(n).with_suffix("").as_posix()].shape == (*size, 3) for n, size in FILES.items())
    assert not list(out.rglob(".*"))
    record = next(r for r in lines(out) if r["input"] == str(sar / "city" / "b.png"))
    seconds = record.pop("seconds")
    assert 0 < seconds < 60 and record == {
        "input": str(sar / "city" / "b.png"),
        "output": str(out / "city" / "b.png"),
        "input_sha256": hashlib.sha256((sar / "city" / "b.png").read_bytes()).hexdigest(),
        "seed": 7,
        "sampler": "ddim",
        "steps": 2,
        "model": model_hash(model),
        "model_folder": str(model.resolve()),
    }
    assert len(lines(out)) == 5
    assert Image.open(tmp_path / "out-grid.png").width > 2 * 128
    text = capsys.readouterr().out
    assert "VV in [-1, 1]: input p1/p99 =" in text and "training p1/p99 = -0.990/0.990" in text
    assert "5/5" in text and "images/s, 0:00 left" in text and "warning" not in text


def test_batch_order_and_processes_do_not_matter(model, sar, tmp_path, monkeypatch):
    run(model, sar, tmp_path / "one", "--batch-size", "1")
    run(model, sar, tmp_path / "three", "--batch-size", "3")
    expected = outputs(tmp_path / "one")
    assert same(outputs(tmp_path / "three"), expected, levels=1)  # another batch, other rounding in the convolutions
    run(model, sar / "a.png", tmp_path / "single")
    assert same(outputs(tmp_path / "single"), {"a": expected["a"]}, levels=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        run(model, sar, tmp_path / "two", "--batch-size", "1")
        if rank == 1:  # no file has two owners
            assert outputs(tmp_path / "two").keys() == set(sorted(NAMES)[1::2])
    assert same(outputs(tmp_path / "two"), expected)
    assert sorted(r["output"] for r in lines(tmp_path / "two")) == sorted(
        str(tmp_path / "two" / f"{name}.png") for name in NAMES
    )
    run(model, sar, tmp_path / "seed", "--seed", "1")
    assert not same(outputs(tmp_path / "seed"), expected, levels=20)


def test_equal_images_get_different_noise(model, tmp_path):
    (tmp_path / "sar").mkdir()
    for name in "ab":
        Image.new("L", (16, 16), 128).save(tmp_path / "sar" / f"{name}.png")
    run(model, tmp_path / "sar", tmp_path / "out")
    made = outputs(tmp_path / "out")
    assert not np.array_equal(made["a"], made["b"])


def test_finished_outputs_are_kept_and_overwritten_on_request(model, sar, tmp_path, capsys):
    out = tmp_path / "out"
    run(model, sar, out)
    expected = outputs(out)
    (out / "d.png").unlink()
    Image.new("RGB", (24, 16)).save(out / "a.png")
    with open(out / "manifest.jsonl", "a") as file:
        file.write('{"half a li\n')  # what a full disk leaves
    run(model, sar, out)
    assert same(outputs(out), expected | {"a": np.zeros((16, 24, 3), np.uint8)}) and len(lines(out)) == 6
    capsys.readouterr()
    run(model, sar, out, "--steps", "3")
    assert "5 kept outputs have other settings" in (text := capsys.readouterr().out) and "steps 2, now 3" in text
    run(model, sar, out, "--overwrite")
    assert same(outputs(out), expected) and len(lines(out)) == 11
    run(model, sar, out)
    assert "warning" not in capsys.readouterr().out.split("5 of them")[-1]  # the newest line of an output counts


def test_bad_files_are_listed_and_the_others_are_done(model, sar, tmp_path):
    content = (sar / "a.png").read_bytes()
    (sar / "city" / "broken.png").write_bytes(content[: len(content) // 2])
    (sar / "empty.tif").write_bytes(b"")
    (sar / "page.png").write_text("<html>")
    with pytest.raises(UserError, match="3 of 8 images failed, all others are done") as caught:
        run(model, sar, tmp_path / "out", "--batch-size", "2", "--grid")
    assert all(str(sar / name) in str(caught.value) for name in ("city/broken.png", "empty.tif", "page.png"))
    assert outputs(tmp_path / "out").keys() == NAMES


def test_inputs_that_would_clash_or_vanish_are_refused(model, sar, tmp_path):
    for source, target, message in [
        (sar / "nothing", tmp_path / "out", "no such file or folder"),
        (sar, sar / "out", "lies inside --input"),
        (sar, sar, "lies inside --input"),
        (sar / "a.png", sar, "would overwrite the input"),
    ]:
        with pytest.raises(UserError, match=message):
            run(model, source, target)
    Image.new("L", (8, 8)).save(sar / "a.tif")
    with pytest.raises(UserError, match=r"1 outputs would each have two inputs.*\n.*a.png and .*a.tif"):
        run(model, sar, tmp_path / "out")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no images"):
        run(model, tmp_path / "bare", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sampler_steps_and_device_are_checked_before_any_work(model, sar, tmp_path):
    for flags, message in [
        (("--sampler", "euler"), "expected one of"),
        (("--steps", "1001"), "1001 steps"),
        (("--device", "cuda:77"), "--device cuda:77"),
        (("--device", "toaster"), "--device toaster"),
    ]:
        with pytest.raises(UserError, match=message):
            run(model, sar, tmp_path / "out", *flags)
    for flags in (("--steps", "0"), ("--batch-size", "x"), ("--seed", "-1"), ("--step", "3")):  # no abbreviations
        with pytest.raises(SystemExit) as caught:
            run(model, sar, tmp_path / "out", *flags)
        assert caught.value.code == 2
    assert not (tmp_path / "out").exists()


def test_unlike_inputs_are_warned_about(model, sar, tmp_path, capsys):
    for path in sar.rglob("*.*"):
        path.unlink()
    Image.new("L", (16, 16), 255).save(sar / "saturated.png")
    run(model, sar, tmp_path / "out")
    assert "warning: VV is unlike the training's" in capsys.readouterr().out


def test_groups_are_of_one_size_and_few_images_wait():
    shapes = [(1, 8, 8), (1, 8, 9), (1, 8, 8), (1, 8, 8), (1, 8, 9)] + [(1, 9, 8 + i) for i in range(20)]
    jobs = [translate.Job(str(i), Path(), Path()) for i in range(len(shapes))]
    taken = 0

    def source():
        nonlocal taken
        for job, shape in zip(jobs, shapes, strict=True):
            taken += 1
            yield job, torch.zeros(shape)

    given: list[str] = []
    for group in translate.equal_sizes(source(), 2):
        assert len({picture.shape for _, picture in group}) == 1 and len(group) <= 2
        given += [job.name for job, _ in group]
        assert taken - len(given) < 8
    assert sorted(given, key=int) == [job.name for job in jobs] and given[:2] == ["0", "2"]


def test_the_command_line_ends_with_code_2_and_one_message(model, sar, tmp_path):
    (sar / "page.png").write_text("<html>")
    command = [sys.executable, str(ROOT / "infer.py"), "--model", str(model), "--input", str(sar)]
    done = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: 1 of 6 images failed") and "page.png" in done.stderr
    assert outputs(tmp_path / "out").keys() == NAMES


@pytest.mark.skipif(not REAL.is_dir(), reason="real images are not here")
def test_real_sentinel_1_images_are_translated(model, tmp_path):
    source = REAL / "s1s2_cities" / "test" / "sar"
    (tmp_path / "sar").mkdir()
    for path in sorted(source.glob("*.png"))[:3]:
        (tmp_path / "sar" / path.name).symlink_to(path)
    run(model, tmp_path / "sar", tmp_path / "out", "--steps", "1")
    assert all(image.shape == (256, 256, 3) for image in outputs(tmp_path / "out").values())
    assert len(outputs(tmp_path / "out")) == 3
