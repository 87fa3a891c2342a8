"""scripts/evaluate.py --model: quality against steps, as users run it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import infer
from sar2opt import sweep
from sar2opt.config import UserError
from sar2opt.data import SarRadiometry, manifest
from sar2opt.diffusion import NoiseConfig
from sar2opt.models import UNetConfig, build_unet
from sar2opt.pipeline import Card, SAR2OptPipeline
from sar2opt.samplers import build_scheduler
from scripts import evaluate
from tests.reference import T, X
from tests.test_evaluate import run_ranks, write, write_manifest

SIZE, TRAINED = (26, 36), 24  # of the images, of training


def model(folder, seed, **card):
    torch.manual_seed(seed)
    cfg = UNetConfig(
        block_out_channels=(8, 8), down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    sar = {"bands": ["VV"], "scale": "uint8"}
    card = Card(method="train", sar=sar, resolution=TRAINED, sampler="ddim", steps=2, **card)
    pipe = SAR2OptPipeline(build_unet(cfg, 1, 16).eval(), build_scheduler(NoiseConfig(), "ddim", "trailing"), card)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return model(tmp_path_factory.mktemp("student") / "model", 0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return model(tmp_path_factory.mktemp("teacher") / "model", 1, guidance=2.0, condition_dropout=0.1)


@pytest.fixture
def pairs(tmp_path):
    """--sar and --target."""
    height, width = SIZE
    write(tmp_path / "sar", X[:5, :height, :width])
    write(tmp_path / "opt", T[:5, :height, :width])
    return ["--sar", tmp_path / "sar", "--target", tmp_path / "opt"]


def run(*argv):
    evaluate.main([str(a) for a in (*argv, "--device", "cpu")])


def table(out):
    with open(out / "steps.csv", newline="") as file:
        return list(csv.DictReader(file))


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("wrong", [("--metrics", "psmr"), ("--require", "fid"), ("--set", "SAR2opt")])
def test_what_cannot_be_measured_is_said_before_the_first_translation(student, pairs, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(sweep, "_translate", lambda *_: pytest.fail("translated first"))
    own = ("--weights-dir", tmp_path / "none", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="unknown; did you mean|cannot be computed"):
        run("--model", student, *pairs, *wrong, *own)


def test_tiles_of_southern_strips_are_turned_for_the_model_and_turned_back(tmp_path, student, pairs):
    """As in training; the outputs lie as the targets do."""
    for side in ("sar", "opt"):
        for i, file in enumerate(sorted((tmp_path / side).iterdir())):
            file.rename(file.with_name(f"{i % 2}_0_tile_{i}.png"))
        turned = tmp_path / "turned" / side
        turned.mkdir(parents=True)
        for file in (tmp_path / side).iterdir():
            picture = Image.open(file)
            (picture.rotate(180) if file.name.startswith("1_0") else picture).save(turned / file.name)
    names = sorted(file.stem for file in (tmp_path / "sar").iterdir())
    rows = [manifest.Row(name, "test", f"sar/{name}.png", f"opt/{name}.png") for name in names]
    for folder, southern in ((tmp_path, ["1_0"]), (tmp_path / "turned", [])):
        write_manifest(folder, rows, southern)
        own = ("--metrics", "psnr", "--out", folder / "out")
        run("--model", student, "--manifest", folder / "manifest", "--steps", "2", *own)
    for name in names:
        one, other = (pixels(f / f"out/model-ddim-2/images/{name}.png") for f in (tmp_path, tmp_path / "turned"))
        assert np.array_equal(one, other[::-1, ::-1] if name.startswith("1_0") else other)


def test_one_row_per_setting_with_what_it_costs(student, teacher, pairs, tmp_path, capsys):
    more = ("--teacher", teacher, "--teacher-steps", "ddim:3,ddpm:2", "--metrics", "psnr,hf_energy,spectrum")
    run("--model", student, *pairs, "--steps", "4,1", *more, "--out", tmp_path / "out")
    rows = table(tmp_path / "out")
    assert [(r["model"], r["sampler"], r["steps"]) for r in rows] == [
        ("student", "ddim", "4"), ("student", "ddim", "1"), ("teacher", "ddim", "3"), ("teacher", "ddpm", "2"),
    ]  # fmt: skip
    assert [float(r["calls"]) for r in rows] == [4, 1, 6, 4]  # guidance asks the teacher twice
    assert all(0 < float(r["seconds"]) < 60 for r in rows) and len({r["psnr"] for r in rows}) == 4
    own = json.loads((tmp_path / "out" / "teacher-ddim-3" / "metrics.json").read_text())
    assert own["inputs"]["steps"] == 3 and own["inputs"]["size"] == [TRAINED, TRAINED]
    assert f"{own['metrics']['psnr']['value']:.6f}" == rows[2]["psnr"]
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if not line.startswith("written")) <= 80
    assert sum(line.startswith("teacher ddpm 2 ") for line in printed.splitlines()) == 1
    for name, least in (("steps.png", 640), ("images.png", 5 * 128)):
        assert Image.open(tmp_path / "out" / name).width >= least
    page = (tmp_path / "out" / "report.html").read_text()
    assert "high-frequency energy ratio over seconds per image" in page and 'href="teacher-ddim-3/report.html"' in page


def test_the_numbers_are_those_of_infer_and_of_the_ordinary_evaluator(student, pairs, tmp_path):
    run("--model", student, *pairs, "--seed", 3, "--resolution", 0, "--batch-size", 2, "--out", tmp_path / "out")
    argv = ["--model", student, "--input", pairs[1], "--output", tmp_path / "inferred", "--seed", 3, "--batch-size", 2]
    infer.main([str(a) for a in argv])
    run("--pred", tmp_path / "inferred", "--model", student, *pairs, "--out", tmp_path / "again")
    first, second = (
        json.loads((tmp_path / p / "metrics.json").read_text()) for p in ("out/model-ddim-2", "again")
    )  # the model's own number of steps
    assert first["metrics"] == second["metrics"] and len(first["metrics"]) > 8
    assert first["inputs"]["size"] == list(SIZE) and first["inputs"]["model"] == second["inputs"]["model"]


def test_the_centre_is_translated_as_in_training(student, pairs, tmp_path):
    run("--model", student, *pairs, "--steps", 1, "--batch-size", 1, "--metrics", "psnr", "--out", tmp_path / "out")
    pipe = SAR2OptPipeline.from_pretrained(student)
    sar, _ = SarRadiometry.from_dict(pipe.card.sar).read(pairs[1] / "0002.png")
    expected = pipe(sar[:, 1:25, 6:30], 1, 0, ["0002"], output_type="np").images[0]
    assert np.array_equal(pixels(tmp_path / "out" / "model-ddim-1" / "images" / "0002.png"), expected)


def test_one_two_and_three_processes_find_the_same(student, pairs, tmp_path):
    rows = [manifest.Row(f"{i:04}", "test", f"sar/{i:04}.png", f"opt/{i:04}.png", scene=f"s{i // 2}") for i in range(5)]
    write_manifest(tmp_path, rows)
    found = []
    for world in (1, 2, 3):
        out = tmp_path / f"world{world}"
        argv = ["--model", student, "--manifest", tmp_path / "manifest", "--steps", "1,2", "--batch-size", 2]
        argv += ["--metrics", "psnr,swd,hf_energy", "--device", "cpu", "--out", out]
        codes = run_ranks(world, [str(a) for a in argv], {}, tmp_path / "printed")
        assert codes == [0] * world, (tmp_path / "printed").read_text()
        found.append([{k: v for k, v in row.items() if k != "seconds"} for row in table(out)])
        images = {p.stem: pixels(p).tobytes() for p in (out / "model-ddim-2" / "images").glob("*.png")}
        found[-1].append(images)
        assert json.loads((out / "model-ddim-2" / "metrics.json").read_text())["metrics"]["psnr"]["ci"] == "scene"
        assert not (out / ".tmp-evaluation").exists()
    assert found[0] == found[1] == found[2] and len(found[0][-1]) == 5


def test_a_limit_spreads_over_the_images_and_says_so(student, pairs, tmp_path, capsys):
    run("--model", student, *pairs, "--steps", 1, "--limit", 2, "--metrics", "psnr", "--out", tmp_path / "out")
    folder = tmp_path / "out" / "model-ddim-1"
    assert {p.stem for p in (folder / "images").glob("*.png")} == {"0000", "0002"}
    assert "warning: --limit: 2 images" in capsys.readouterr().out
    run("--model", student, *pairs, "--steps", 1, "--limit", 1, "--metrics", "psnr", "--out", tmp_path / "out")
    assert [p.stem for p in (folder / "images").glob("*.png")] == ["0000"]  # nothing is left of the run before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps", "2000"), "2000 steps: expected 1 to 1000"),
        (("--sampler", "euler"), "sampler 'euler': expected one of"),
        (("--teacher", "TEACHER", "--teacher-steps", "euler:4"), "sampler 'euler': expected one of"),
        (("--teacher", "nowhere"), "nowhere: no such model folder"),
        (("--teacher-steps", "ddim:4"), "--teacher-steps: needs --teacher"),
        (("--resolution", "64"), r"--resolution 64: 5 images are smaller: 0000"),
        (("--baselines",), "--baselines: only with --pred"),
        (("--pred", "SAR", "--steps", "3"), "--steps: only without --pred"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(flags, message, student, teacher, pairs, tmp_path):
    flags = [{"TEACHER": teacher, "SAR": pairs[1]}.get(flag, flag) for flag in flags]
    with pytest.raises(UserError, match=message):
        run("--model", student, *pairs, "--out", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [("--steps", "1,0"), ("--steps", "x"), ("--teacher-steps", "ddim"), ("--limit", "0")])
def test_what_is_no_number_of_steps_ends_with_exit_code_2(flags, student, pairs):
    with pytest.raises(SystemExit) as caught:
        run("--model", student, *pairs, *flags)
    assert caught.value.code == 2


def test_unpaired_files_are_refused_with_their_names(student, pairs, tmp_path):
    Path(pairs[1], "0003.png").unlink()
    with pytest.raises(UserError, match="--sar lacks 1: 0003"):
        run("--model", student, *pairs)
    write(pairs[1], [X[3][:20, :30]], ["0003"])
    with pytest.raises(UserError, match="1 of 5 pairs differ in size.*\n  0003: SAR 30 x 20, target 36 x 26"):
        run("--model", student, *pairs)
    write(pairs[1], [X[3][:26, :36]], ["0003"])
    write(pairs[3], [X[3][:26, :36]], ["0003"])
    with pytest.raises(UserError, match="1 of 5 targets are not 8-bit RGB.*\n  0003: L"):
        run("--model", student, *pairs)
    with pytest.raises(UserError, match="--target: expected a folder, or --manifest"):
        run("--model", student, "--sar", pairs[1])
