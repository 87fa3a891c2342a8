"""scripts/evaluate.py on files, as users run it: one process or several, and every mistake in the folders."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sar2opt import distances, evaluation, metrics, networks, partners, recipes
from sar2opt.config import UserError
from sar2opt.data import manifest
from scripts import evaluate
from scripts import report as remake
from tests.launch import FORK, ROOT
from tests.reference import G, T, X, blurred, make, random_backbone, random_inception

REAL = Path(os.environ.get("SAR2OPT_REAL_DATA") or ROOT.parent / "shared" / "data")


def write(folder, images, ids=None):
    """Pictures as PNG; by default 0000, 0001, ..."""
    for name, image in zip(ids or [f"{i:04}" for i in range(len(images))], images, strict=True):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.fixture
def folders(tmp_path):
    """--pred, --target and --sar of the eight reference images."""
    return [write(tmp_path / name, images) for name, images in (("out", G), ("opt", T), ("sar", X))]


def arguments(folders, *more):
    names = ("--pred", "--target", "--sar")
    pairs = [(name, str(folder)) for name, folder in zip(names, folders, strict=False)]
    return [*(part for pair in pairs for part in pair), "--device", "cpu", *map(str, more)]


def write_manifest(root, rows, southern=()):
    """``root``/manifest: of files below ``root``."""
    facts = {"layout": "folders", "root": str(root), "turned": list(southern)}
    facts |= dict.fromkeys(("split", "sar", "opt", "statistics"), {})
    manifest.write(manifest.Manifest(rows, facts), root / "manifest")
    return root / "manifest"


def run(folders, *more):
    """The content of metrics.json."""
    evaluate.main(arguments(folders, *more))
    out = Path(more[more.index("--out") + 1]) if "--out" in more else Path(f"{folders[0]}-evaluation")
    return json.loads((out / "metrics.json").read_text())


def table(out):
    with open(out / "per_image.csv", newline="") as file:
        return list(csv.DictReader(file))


# numbers --------------------------------------------------------------------------------------------------------------


def test_the_reference_set_has_its_values_when_read_from_files(folders):
    found = run(folders)
    values = {key: record["value"] for key, record in found["metrics"].items()}
    expected = {
        "psnr": 26.677219, "ssim": 0.763758, "scc": 0.533957, "edge_sar": 0.341355, "edge_sar_target": 0.364217,
        "copy_ratio": 3.934565, "spectrum": 4.466000,
    }  # fmt: skip
    assert {key: values[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert values["rgb_shift"] == pytest.approx([-0.021301, -0.036621, -0.047516], abs=1e-6)
    assert values["swd"] == pytest.approx(210.7824, abs=1e-3)
    assert found["metrics"]["swd"]["levels"] == pytest.approx([580.535, 36.238, 15.574], abs=1e-3)
    assert found["metrics"]["swd"]["floor"] == pytest.approx(143.450, abs=1e-3)
    assert found["metrics"]["psnr"]["ci95"] == pytest.approx([26.661384, 26.692965], abs=1e-5)
    assert found["metrics"]["ssim"]["ci95"] == pytest.approx([0.755432, 0.771951], abs=1e-5)
    assert found["metrics"]["psnr"]["ci"] == "image" and found["metrics"]["psnr"]["identical"] == 0
    assert list(found)[0] == "metrics" and found["convention"] == "standard"
    assert found["inputs"]["n"] == 8 and found["inputs"]["size"] == [64, 64]
    for key, record in found["metrics"].items():
        assert record["recipe"] and record["library"] and "{" not in record["library"], key
        assert record["n"] == 8 and record["better"] in ("higher", "lower", "target", "zero", "one")


def test_the_table_of_images_is_sorted_by_psnr_and_complete(folders):
    run(folders, "--metrics", "psnr,edge_sar,rgb_shift")
    rows = table(Path(f"{folders[0]}-evaluation"))
    assert list(rows[0]) == [
        "id",
        "psnr",
        "ssim",
        "scc",
        "lpips_alex",
        "lpips_vgg",
        "edge_sar",
        "edge_sar_target",
        "mae",
        "rgb_r",
        "rgb_g",
        "rgb_b",
        "seconds",
        "confidence_gmean",
    ]
    assert [row["id"] for row in rows] == ["0006", "0000", "0003", "0002", "0004", "0005", "0001", "0007"]
    assert rows[1]["psnr"] == "26.650588" and rows[1]["ssim"] == "" and rows[1]["seconds"] == ""
    assert rows[1]["edge_sar"] == "0.355517" and rows[1]["edge_sar_target"] == "0.377648"


def test_identical_pairs_are_counted_and_ordered_by_name(folders):
    found = run([folders[1], folders[1]], "--metrics", "psnr,swd,spectrum", "--out", folders[1].parent / "same")
    assert found["metrics"]["psnr"]["value"] == 100 and found["metrics"]["psnr"]["identical"] == 8
    assert found["metrics"]["swd"]["value"] == 0 and found["metrics"]["spectrum"]["value"] == 0
    assert [row["id"] for row in table(folders[1].parent / "same")] == [f"{i:04}" for i in range(8)]


def test_names_and_folders_of_images_change_no_mean(folders, tmp_path):
    ids = [f"scene {9 - i}/tile" for i in range(8)]
    other = [write(tmp_path / "other" / f.name, images, ids) for f, images in zip(folders, (G, T, X), strict=True)]
    first, second = run(folders, "--metrics", "psnr,ssim,copy_ratio"), run(other, "--metrics", "psnr,ssim,copy_ratio")
    for key in first["metrics"]:
        assert first["metrics"][key]["value"] == second["metrics"][key]["value"]
    assert first["inputs"]["list_hash"] != second["inputs"]["list_hash"]


def test_optional_metrics_come_by_name(folders):
    found = run(folders, "--metrics", "ssim_uniform7,ssim_torchmetrics,sam,ergas,swd_own")["metrics"]
    assert found["swd_own"]["value"] == pytest.approx(31.3597, abs=1e-3)
    assert found["ssim_uniform7"]["value"] == pytest.approx(
        np.mean([metrics.ssim_uniform7(a, b) for a, b in zip(T, G, strict=True)]), abs=1e-12
    )
    assert list(found) == ["ssim_uniform7", "ssim_torchmetrics", "swd_own", "sam", "ergas"]
    assert "sam" in table(Path(f"{folders[0]}-evaluation"))[0]


def test_the_legacy_convention_shares_no_key_with_the_standard_one(folders):
    found = run(folders, "--legacy", "cdiffset")
    assert found["convention"] == "legacy:cdiffset"
    assert set(found["metrics"]) | set(found["skipped"]) == set(recipes.LEGACY)
    assert found["metrics"]["psnr_cdiffset"]["value"] == pytest.approx(
        np.mean([metrics.legacy_cdiffset(a, b).psnr for a, b in zip(T, G, strict=True)]), abs=1e-9
    )
    rows = table(Path(f"{folders[0]}-evaluation"))
    assert "psnr" not in rows[0] and rows[0]["psnr_cdiffset"] < rows[-1]["psnr_cdiffset"]
    with pytest.raises(UserError, match="psnr: unknown"):
        run(folders, "--legacy", "cdiffset", "--metrics", "psnr")


def test_images_of_several_sizes_have_no_set_distances(folders):
    for folder, images in zip(folders, (G, T, X), strict=True):
        write(folder, [images[0][:40, :30]], ["small"])
    found = run(folders)
    assert found["inputs"]["size"] is None and found["metrics"]["psnr"]["n"] == 9
    assert "2 sizes" in found["skipped"]["swd"]["reason"] and "2 sizes" in found["skipped"]["spectrum"]["reason"]


# several processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of random weights, and the pinned hashes that they need."""
    folder = tmp_path_factory.mktemp("weights")
    hashes = {}
    for key, state in (("alexnet", random_backbone("alex")), ("inception", random_inception())):
        path = folder / networks.WEIGHTS[key].files[0]
        torch.save(state, path)
        hashes[key] = networks.file_hash(path)
    return folder, hashes


def trust(hashes):
    for key, digest in hashes.items():
        networks.WEIGHTS[key] = networks.WEIGHTS[key]._replace(sha256=digest)


@pytest.fixture
def trusted(weights, monkeypatch):
    """``weights`` in this process."""
    monkeypatch.setattr(networks, "WEIGHTS", dict(networks.WEIGHTS))
    trust(weights[1])
    return weights[0]


def _rank(argv, rank, world, port, hashes, output):
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in where.items()})
    trust(hashes)
    sys.argv = ["evaluate.py", *argv]
    evaluate.config.command_line(evaluate.main)


def run_ranks(world, argv, hashes, output):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [FORK.Process(target=_rank, args=(argv, r, world, port, hashes, output)) for r in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode is not None or process.kill(), "a rank hangs"
    return [process.exitcode for process in ranks]


def test_one_two_and_three_processes_find_the_same_numbers(folders, tmp_path):
    results, tables = [], []
    for world in (1, 2, 3):
        out = tmp_path / f"world{world}"
        argv = arguments(folders, "--metrics", "psnr,ssim,scc,swd,spectrum,rgb_shift,copy_ratio,edge_sar", "--out", out)
        assert run_ranks(world, argv, {}, tmp_path / "printed") == [0] * world, (tmp_path / "printed").read_text()
        results.append(json.loads((out / "metrics.json").read_text()))
        tables.append((out / "per_image.csv").read_bytes())
        assert not (out / ".tmp-evaluation").exists()
    assert results[0] == results[1] == results[2] and tables[0] == tables[1] == tables[2]
    assert len({line.split(b",")[1] for line in tables[0].splitlines()}) == 9  # header and eight different PSNR


def test_processes_share_the_networks_work(tmp_path, weights):
    folder, hashes = weights
    folders = [write(tmp_path / name, images[:5]) for name, images in (("out", G), ("opt", T))]
    found = []
    for world in (1, 2):
        out = tmp_path / f"world{world}"
        more = ("--metrics", "lpips_alex,fid,kid", "--force", "--weights-dir", folder, "--batch-size", 3, "--out", out)
        assert run_ranks(world, arguments(folders, *more), hashes, tmp_path / "printed") == [0] * world
        metrics_ = json.loads((out / "metrics.json").read_text())["metrics"]
        found.append([metrics_[key]["value"] for key in ("lpips_alex", "fid", "kid")])
    assert found[0] == pytest.approx(found[1], rel=1e-6, abs=1e-9)
    assert min(found[0][:2]) > 0


def test_fewer_images_than_processes_is_no_special_case(tmp_path):
    folders = [write(tmp_path / name, images[:2]) for name, images in (("out", G), ("opt", T))]
    one, three = tmp_path / "one", tmp_path / "three"
    run(folders, "--metrics", "psnr,swd,spectrum", "--out", one)
    argv = arguments(folders, "--metrics", "psnr,swd,spectrum", "--out", three)
    assert run_ranks(3, argv, {}, tmp_path / "printed") == [0, 0, 0], (tmp_path / "printed").read_text()
    assert (one / "metrics.json").read_bytes() == (three / "metrics.json").read_bytes()


def test_workers_change_no_number(tmp_path):
    images = [make(100 + i) for i in range(37)]
    folders = [write(tmp_path / n, [i[k][:24, :32] for i in images]) for k, n in ((1, "out"), (0, "opt"), (2, "sar"))]
    for workers in (1, 2):
        run(folders, "--workers", workers, "--out", tmp_path / str(workers))
    assert (tmp_path / "1" / "metrics.json").read_bytes() == (tmp_path / "2" / "metrics.json").read_bytes()
    assert (tmp_path / "1" / "per_image.csv").read_bytes() == (tmp_path / "2" / "per_image.csv").read_bytes()


def test_batches_of_the_networks_change_no_number(folders, trusted, tmp_path):
    values = []
    for size in (1, 16):
        more = (
            "--weights-dir",
            trusted,
            "--batch-size",
            size,
            "--metrics",
            "lpips_alex",
            "--out",
            tmp_path / str(size),
        )
        values.append(run(folders, *more)["metrics"]["lpips_alex"]["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-6)


# mistakes -------------------------------------------------------------------------------------------------------------


def test_missing_and_extra_images_end_with_exit_code_2_and_their_names(folders):
    (folders[0] / "0003.png").unlink()
    (folders[1] / "0005.png").rename(folders[1] / "elsewhere.png")
    command = [sys.executable, "scripts/evaluate.py", *arguments(folders)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--pred lacks 2: 0003, elsewhere" in done.stderr and "--pred has besides 1: 0005" in done.stderr
    assert "--sar lacks 1: elsewhere" in done.stderr


def test_allow_missing_scores_the_intersection_and_says_so(folders, capsys):
    whole = run(folders, "--metrics", "psnr")
    (folders[0] / "0003.png").unlink()
    found = run(folders, "--metrics", "psnr", "--allow-missing")
    assert found["metrics"]["psnr"]["n"] == 7 and found["inputs"]["n"] == 7
    assert found["inputs"]["list_hash"] != whole["inputs"]["list_hash"]
    assert "only 7 of 8 images are scored: --pred lacks 1: 0003" in capsys.readouterr().out
    for path in folders[0].iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(UserError, match="lacks 8"):
        run(folders, "--allow-missing")


def test_other_sizes_and_kinds_are_refused_with_names(folders):
    write(folders[0], [G[2][:60]], ["0002"])
    with pytest.raises(UserError, match=r"1 of 8 images differ in size.*\n  0002: output 64 x 60, target 64 x 64"):
        run(folders)
    Image.fromarray(G[2]).convert("RGBA").save(folders[0] / "0002.png")
    with pytest.raises(UserError, match=r"not 8-bit RGB.*\n  0002: output RGBA, target RGB"):
        run(folders)
    write(folders[0], [G[2][..., 0]], ["0002"])
    with pytest.raises(UserError, match="0002: output L, target RGB"):
        run(folders)
    Image.fromarray(G[2][..., 0].astype(np.uint16) * 256).save(folders[0] / "0002.png")
    with pytest.raises(UserError, match="0002: output I;16"):
        run(folders)


def test_tiny_and_damaged_images_are_refused(tmp_path, folders):
    small = [write(tmp_path / "small" / name, [x[0][:10, :20]]) for name, x in (("out", G), ("opt", T))]
    with pytest.raises(UserError, match=r"smaller than 11 px.*\n  0000: output 20 x 10"):
        run(small)
    path = folders[0] / "0004.png"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"0004\.png: damaged"):
        run(folders)
    assert not Path(f"{folders[0]}-evaluation", "metrics.json").exists()


def test_grey_on_both_sides_counts_as_repeated_bands(tmp_path):
    grey = [write(tmp_path / "grey" / name, [i[..., 0] for i in x[:3]]) for name, x in (("out", G), ("opt", T))]
    bands = [
        write(tmp_path / "rgb" / name, [np.repeat(i[..., :1], 3, 2) for i in x[:3]])
        for name, x in (("out", G), ("opt", T))
    ]
    assert run(grey)["metrics"] == run(bands)["metrics"]


def test_cropping_takes_the_centre_of_the_target_and_the_sar(tmp_path):
    folders = [
        write(tmp_path / name, images)
        for name, images in (("out", G[:2, 6:58, 12:52]), ("opt", T[:2]), ("sar", X[:2]), ("cut", T[:2, 6:58, 12:52]))
    ]
    with pytest.raises(UserError, match="--crop center"):
        run(folders[:3])
    cut = write(tmp_path / "cut_sar", X[:2, 6:58, 12:52])
    expected = run([folders[0], folders[3], cut], "--out", tmp_path / "expected")
    assert run(folders[:3], "--crop", "center")["metrics"] == expected["metrics"]


def test_unknown_metrics_and_impossible_ones_are_refused(folders):
    with pytest.raises(UserError, match="did you mean 'spectrum'"):
        run(folders, "--metrics", "psnr,spectrun")
    with pytest.raises(UserError, match="lpips: unknown; lpips_alex or lpips_vgg"):
        run(folders, "--metrics", "lpips")
    with pytest.raises(UserError, match="copy_ratio: needs the SAR input"):
        run(folders[:2], "--metrics", "copy_ratio")
    with pytest.raises(UserError, match="expected either --pred"):
        evaluate.main(["--target", str(folders[1])])
    with pytest.raises(UserError, match="no such folder"):
        run([folders[0].parent / "nowhere", folders[1]])


def test_sar_in_other_units_needs_the_model_that_saw_it(folders, tmp_path):
    decibel = tmp_path / "decibel"
    decibel.mkdir()
    for i, x in enumerate(X):
        np.save(decibel / f"{i:04}.npy", x.astype(np.float32) / 255 * 25 - 25)
    with pytest.raises(UserError, match=r"SAR of type float32, .*; add --model"):
        run([*folders[:2], decibel], "--metrics", "edge_sar")
    card = {"sar": {"bands": ["VV"], "scale": "db", "clip": [[-25, 0]]}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "sar2opt.json").write_text(json.dumps(card))
    found = run([*folders[:2], decibel], "--metrics", "edge_sar,copy_ratio", "--model", tmp_path)
    assert found["metrics"]["edge_sar"]["value"] == pytest.approx(0.341355, abs=1e-4)  # float32 decibels
    assert found["metrics"]["copy_ratio"]["value"] == pytest.approx(3.934565, abs=1e-4)


# weights --------------------------------------------------------------------------------------------------------------


def test_metrics_without_weights_are_skipped_with_the_command_that_brings_them(folders, tmp_path, capsys):
    found = run(folders, "--weights-dir", tmp_path)
    assert set(found["skipped"]) == {"lpips_alex", "lpips_vgg", "fid", "kid"}
    skip = found["skipped"]["fid"]
    assert skip["reason"] == "weights not found" and skip["sha256"].startswith("6726825d")
    assert skip["expected"] == str(tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    assert skip["command"] == f"python scripts/weights.py --fetch fid --weights-dir {tmp_path}"
    assert skip["command"] in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--require: 1 metrics cannot be computed\n  kid: weights not found"):
        run(folders, "--weights-dir", tmp_path, "--require", "kid")


def test_lpips_of_tiny_images_is_skipped(tmp_path, trusted):
    folders = [write(tmp_path / name, x[:2, :20, :50]) for name, x in (("out", G), ("opt", T))]
    found = run(folders, "--weights-dir", trusted, "--metrics", "psnr,lpips_alex")
    assert found["skipped"]["lpips_alex"]["reason"] == "images of 20 px; its network needs 31"


def test_fid_of_few_images_needs_force_and_warns(folders, trusted):
    found = run(folders, "--weights-dir", trusted, "--metrics", "fid,kid")
    assert "n = 8 < 50" in found["skipped"]["fid"]["reason"] and found["metrics"]["kid"]["std"] > 0
    assert found["metrics"]["kid"]["weights"].startswith("pt_inception-2015-12-05-6726825d.pth, SHA-256 ")
    forced = run(folders, "--weights-dir", trusted, "--metrics", "fid", "--force")["metrics"]["fid"]
    assert forced["value"] > 0 and forced["ci95"] is None and len(forced["warnings"]) == 2


def test_warnings_of_fid_depend_on_the_number_of_images():
    assert recipes.warnings("fid", 2048, 20.0) == []
    assert len(recipes.warnings("fid", 2047, 20.0)) == 1 and len(recipes.warnings("fid", 499, 20.0)) == 2
    assert recipes.warnings("kid", 60, 0.1) == [] and len(recipes.warnings("scc", 60, 0.01)) == 1


# baselines, manifest, records -----------------------------------------------------------------------------------------


def test_baselines_stand_beside_the_numbers(folders, capsys):
    train = folders[1:][::-1]  # sar, opt: the test set itself
    found = run(folders, "--baselines", "--train-sar", train[0], "--train-target", train[1])["baselines"]
    assert set(found) == {"mean_colour", "mean_image", "linear", "nearest_neighbour", "sar_copy"}
    assert found["nearest_neighbour"]["psnr"]["value"] == 100  # its own pair is the nearest
    assert found["sar_copy"]["copy_ratio"]["value"] == 0 and found["sar_copy"]["edge_sar"]["value"] == pytest.approx(1)
    mean = np.rint(T.astype(float).mean(0)).astype(np.uint8)
    assert found["mean_image"]["psnr"]["value"] == pytest.approx(np.mean([metrics.psnr(t, mean) for t in T]), abs=1e-12)
    colour = np.broadcast_to(np.rint(T.astype(float).mean((0, 1, 2))), T[0].shape).astype(np.uint8)
    expected = np.mean([metrics.ssim(t, colour) for t in T])
    assert found["mean_colour"]["ssim"]["value"] == pytest.approx(expected, abs=1e-12)
    assert "nearest_neighbour" in capsys.readouterr().out


def test_the_linear_baseline_is_exact_where_the_truth_is_linear(tmp_path):
    random = np.random.RandomState(0)
    sar = random.randint(0, 120, (6, 40, 48)).astype(np.uint8)
    opt = np.stack([2 * sar + 10, 200 - sar, np.full_like(sar, 33)], axis=-1).astype(np.uint8)
    folders = [write(tmp_path / name, x) for name, x in (("out", opt), ("opt", opt), ("sar", sar))]
    found = run(folders, "--baselines", "--train-sar", folders[2], "--train-target", folders[1], "--metrics", "psnr")
    assert found["baselines"]["linear"]["psnr"]["value"] == 100


def test_baselines_without_training_pairs_need_the_sar(folders):
    assert set(run(folders, "--baselines", "--metrics", "psnr")["baselines"]) == {"sar_copy"}
    with pytest.raises(UserError, match="--baselines: needs --train-target"):
        run(folders[:2], "--baselines")


@pytest.fixture
def prepared(folders, tmp_path):
    """A manifest of the eight images: three tests scenes of two, and two pairs to train on."""
    rows = [
        manifest.Row(f"{i:04}", "test" if i < 6 else "train", f"sar/{i:04}.png", f"opt/{i:04}.png", scene=f"s{i // 2}")
        for i in range(8)
    ]
    return write_manifest(tmp_path, rows)


def test_a_manifest_names_the_images_their_scenes_and_the_training_pairs(folders, prepared):
    for i in (6, 7):
        (folders[0] / f"{i:04}.png").unlink()
    found = run([folders[0]], "--manifest", prepared, "--baselines", "--metrics", "psnr,copy_ratio")
    record = found["metrics"]["psnr"]
    values = np.array([metrics.psnr(a, b) for a, b in zip(T[:6], G[:6], strict=True)])[:, None]
    assert record["ci"] == "scene" and record["n"] == 6
    assert record["ci95"] == distances.bootstrap(values, scenes=["s0", "s0", "s1", "s1", "s2", "s2"])[0]
    assert found["inputs"]["list_hash"] == manifest.read(prepared).list_hashes["test"]
    mean = np.rint(T[6:].astype(float).mean(0)).astype(np.uint8)
    assert found["baselines"]["mean_image"]["psnr"]["value"] == pytest.approx(
        np.mean([metrics.psnr(t, mean) for t in T[:6]]), abs=1e-12
    )
    with pytest.raises(UserError, match="--split val: .* has no pair of this split"):
        run([folders[0]], "--manifest", prepared, "--split", "val")


def test_outputs_beside_the_split_are_extra(folders, prepared):
    with pytest.raises(UserError, match="--pred has besides 2: 0006, 0007"):
        run([folders[0]], "--manifest", prepared)


def test_what_inference_recorded_stands_in_the_results(folders):
    lines = [
        {"output": f"/old/place/out/{i:04}.png", "seconds": 0.25 + i, "sampler": "ddim", "steps": 50, "model": "abc"}
        for i in range(8)
    ]
    (folders[0] / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    found = run(folders, "--metrics", "psnr")
    assert {key: found["inputs"][key] for key in ("sampler", "steps", "model")} == {
        "sampler": "ddim", "steps": 50, "model": "abc",
    }  # fmt: skip
    assert table(Path(f"{folders[0]}-evaluation"))[1]["seconds"] == "0.250000"  # image 0000


def test_maps_of_confidence_beside_the_outputs_are_no_outputs(folders):
    expected = run(folders[:2], "--metrics", "psnr")["metrics"]
    for suffix in ("png", "tif"):
        Image.fromarray(G[0]).save(folders[0] / f"0000_confidence.{suffix}")
    assert run(folders[:2], "--metrics", "psnr")["metrics"] == expected
    (folders[0] / "0000.png").unlink()
    with pytest.raises(UserError, match="1 ids have two files.*0000_confidence"):  # without the image they are
        run(folders[:2], "--metrics", "psnr")


def test_outputs_may_bear_the_names_of_the_sar_files(folders, tmp_path):
    """As infer.py writes them below the folder that it was given."""
    rows, out = [], tmp_path / "translated"
    for i in range(8):
        rows.append(
            manifest.Row(f"s_{i}", "test", f"a/s1_{i // 4}/x_s1_p{i}.png", f"opt/{i:04}.png", scene=f"{i // 4}")
        )
        place = tmp_path / rows[-1].sar
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(X[i]).save(place)
        write(out / f"s1_{i // 4}", [G[i]], [f"x_s1_p{i}"])
    record = {"output": str(out / "s1_0/x_s1_p3.png"), "seconds": 0.5}
    (out / "manifest.jsonl").write_text(json.dumps(record) + "\n")
    write_manifest(tmp_path, rows)
    found = run([out], "--manifest", tmp_path / "manifest", "--metrics", "psnr,edge_sar")
    assert found["metrics"]["psnr"]["value"] == pytest.approx(26.677219, abs=1e-5)
    assert {r["id"]: r["seconds"] for r in table(Path(f"{out}-evaluation"))}["s_3"] == "0.500000"
    assert {i: path.name for i, path in partners.pictures(found["inputs"])["output"].items()}["s_3"] == "x_s1_p3.png"


def test_a_page_shows_the_config_of_the_run_that_made_the_outputs(folders, tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("run: {name: the-run-of-these}\n")
    lines = [{"output": str(folders[0] / f"{i:04}.png"), "model_folder": str(tmp_path / "run/model")} for i in range(8)]
    (folders[0] / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    run(folders[:2], "--metrics", "psnr")
    assert "the-run-of-these" in Path(f"{folders[0]}-evaluation/report.html").read_text()


def test_baselines_see_larger_training_images_as_the_outputs_are_cut(folders, tmp_path):
    pad = [(4, 4), (4, 4), (0, 0)]
    write(tmp_path / "large-sar", [np.pad(x, pad[:2]) for x in X])
    write(tmp_path / "large-opt", [np.pad(x, pad) for x in T])
    own = ("--metrics", "psnr", "--baselines")
    expected = run(folders, *own, "--train-sar", folders[2], "--train-target", folders[1])["baselines"]
    large = ("--train-sar", tmp_path / "large-sar", "--train-target", tmp_path / "large-opt")
    assert run(folders, *own, *large)["baselines"] == expected and "nearest_neighbour" in expected
    write(tmp_path / "small-sar", [x[:40, :40] for x in X])
    write(tmp_path / "small-opt", [x[:40, :40] for x in T])
    small = ("--train-sar", tmp_path / "small-sar", "--train-target", tmp_path / "small-opt")
    assert {*run(folders, *own, *small)["baselines"]} == {"mean_colour", "linear", "sar_copy"}


def test_float_sar_without_a_model_costs_the_metrics_of_sar_only(folders, tmp_path):
    for i, x in enumerate(X):
        (tmp_path / "decibel").mkdir(exist_ok=True)
        np.save(tmp_path / "decibel" / f"{i:04}.npy", x.astype(np.float32) / 255 * 25 - 25)
    found = run([*folders[:2], tmp_path / "decibel"])
    assert found["metrics"]["psnr"]["value"] == pytest.approx(26.677219, abs=1e-5)
    assert "edge_sar" not in found["metrics"] and "SAR of type float32" in found["skipped"]["edge_sar"]["reason"]
    run([*folders[:2], tmp_path / "decibel"], "--legacy", "cdiffset", "--metrics", "psnr_cdiffset")


def test_the_current_folder_has_a_name_and_unknown_sets_are_refused(folders, monkeypatch):
    monkeypatch.chdir(folders[0])
    evaluate.main(["--pred", ".", "--target", str(folders[1]), "--metrics", "psnr", "--device", "cpu"])
    assert Path(f"{folders[0]}-evaluation/metrics.json").is_file()
    with pytest.raises(UserError, match="--set SAR2opt: unknown; did you mean 'SAR2Opt'"):
        run(folders[:2], "--set", "SAR2opt")


def test_records_belong_to_the_image_of_their_name(tmp_path):
    pred = tmp_path / "out"
    write(pred, G[:2], ["a", "out/a"])  # a folder below --pred may have its name
    for place in (pred, Path("/old/place")):  # also after the folder has moved
        lines = [{"output": str(place / f"{i}.png"), "seconds": s} for i, s in (("a", 1), ("out/a", 2), ("gone", 3))]
        (pred / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        outputs = [(i, pred / f"{i}.png") for i in ("a", "b", "out/a")]
        found = {i: record["seconds"] for i, record in partners.records(pred, outputs)}
        assert found == {"a": 1, "out/a": 2}


def test_a_page_is_made_anew_from_its_folder(prepared, folders, tmp_path):
    for i in (6, 7):
        (folders[0] / f"{i:04}.png").unlink()
    evaluate.main([*arguments([folders[0]]), "--manifest", str(prepared), "--out", str(tmp_path / "eval")])
    first = (tmp_path / "eval" / "report.html").read_bytes()
    assert first.count(b'data-name="target"') == first.count(b'data-name="SAR"') == 6 and b"mean power" in first
    (tmp_path / "eval" / "report.html").unlink()
    remake.main([str(tmp_path / "eval")])
    assert (tmp_path / "eval" / "report.html").read_bytes() == first


def test_the_printed_table_fits_80_columns(folders, capsys):
    for more in (
        (),
        ("--legacy", "cdiffset"),
        ("--baselines", "--train-target", folders[1], "--train-sar", folders[2]),
    ):
        results = run(folders, *more)
        text = evaluation.summary(results)
        assert text in capsys.readouterr().out
        lines = [line for line in text.splitlines() if not line.startswith(("  python", "warning"))]
        assert max(map(len, lines)) <= 80
        for key in results["metrics"]:
            assert sum(line.startswith(f"{key} ") for line in lines) == 1, key
    assert max(len(metric.short) for metric in recipes.METRICS.values()) <= 23


def test_the_bound_of_a_codec_is_scored_like_an_output(tmp_path):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    AutoencoderKL(**blocks, **kinds).save_pretrained(tmp_path / "base" / "vae")
    target = write(tmp_path / "opt", [T[0][:45, :51], T[1][:45, :51]])  # no multiple of the codec's stride of 4
    argv = [
        "--vae-bound",
        "--base",
        tmp_path / "base",
        "--target",
        target,
        "--out",
        tmp_path / "bound",
        "--metrics",
        "psnr",
    ]
    evaluate.main([str(a) for a in [*argv, "--device", "cpu"]])
    found = json.loads((tmp_path / "bound" / "metrics.json").read_text())
    assert found["inputs"]["size"] == [45, 51] and 3 < found["metrics"]["psnr"]["value"] < 40
    evaluate.main([*map(str, argv), "--resolution", "32", "--device", "cpu"])  # of the centre, as models are scored
    assert json.loads((tmp_path / "bound" / "metrics.json").read_text())["inputs"]["size"] == [32, 32]
    with pytest.raises(UserError, match=r"no vae/config\.json"):
        evaluate.main(["--vae-bound", "--base", str(tmp_path), "--target", str(target)])
    (target / "0001.png").write_bytes(b"<html>")
    with pytest.raises(UserError, match="0001.png: not a picture"):
        evaluate.main([*map(str, argv), "--device", "cpu"])


# published results ----------------------------------------------------------------------------------------------------


def test_published_rows_keep_their_convention():
    rows = json.loads((ROOT / "sar2opt" / "published.json").read_text())["rows"]
    keys = {"method", "set", "split", "n", "size", "convention", "values", "source"}
    assert len(rows) == 10 * 3 + 18 * 2 + 5 + 4
    for row in rows:
        assert keys <= row.keys() <= keys | {"note"}
        legacy = row["convention"] == "legacy:cdiffset"
        known = recipes.LEGACY if legacy else (*recipes.STANDARD, *recipes.NAMED, "dists")
        assert set(row["values"]) <= set(known), row
    assert len({(row["method"], row["set"], row["convention"]) for row in rows}) == len(rows)

    def value(method, name, convention, key):
        same = [r for r in rows if (r["method"], r["set"], r["convention"]) == (method, name, convention)]
        return same[0]["values"][key]

    assert value("C-DiffSET", "QXS-SAROPT", "legacy:cdiffset", "fid_cdiffset") == 18.15
    assert value("C-DiffSET", "QXS-SAROPT", "standard", "fid") == 19.9
    assert value("GeoSET full", "SAR2Opt", "standard", "psnr") == 15.66
    assert value("HI-Diff", "SpaceNet6 (geographic split)", "standard", "ssim_torchmetrics") == 0.589


# real pairs -----------------------------------------------------------------------------------------------------------

CITIES = {  # psnr, ssim, scc, edge_sar, copy_ratio, swd, spectrum
    "mean_colour": (15.198, 0.1925, 0.0000, 0.0000, 1.212, 902.4, 69.7),
    "mean_image": (15.189, 0.1898, -0.0005, 0.0015, 1.211, 839.3, 21.8),
    "linear": (15.501, 0.1927, -0.0003, 0.1725, 1.323, 838.2, 34.3),
    "sar_copy": (10.841, 0.0713, 0.0018, 1.0000, 0, 735.7, 2.3),
    "roll": (14.191, 0.0906, 0.0008, 0.0007, 1.625, 32.3, 0.0),
    "blur": (20.717, 0.2878, 0.0393, 0.0614, 3.233, 389.9, 35.6),
    "shift": (19.416, 0.3376, 0.1063, 0.0886, 3.152, 21.6, 0.0),
    "noise": (26.671, 0.8078, 0.6730, 0.0725, 6.522, 56.6, 1.1),
}
TOLERANCES = {
    "psnr": 6e-4,
    "ssim": 6e-5,
    "scc": 6e-5,
    "edge_sar": 6e-5,
    "copy_ratio": 6e-4,
    "swd": 0.06,
    "spectrum": 0.06,
}


def require_row(name, record):
    for (key, tolerance), expected in zip(TOLERANCES.items(), CITIES[name], strict=True):
        assert record[key]["value"] == pytest.approx(expected, abs=tolerance), (name, key)


@pytest.mark.skipif(not (REAL / "s1s2_cities").is_dir(), reason="needs the real pairs: set SAR2OPT_REAL_DATA")
def test_real_pairs_have_their_published_baselines(tmp_path):
    test, train = REAL / "s1s2_cities" / "test", REAL / "s1s2_cities" / "train"
    ids = sorted(path.stem for path in (test / "opt").iterdir())
    t = np.stack([np.asarray(Image.open(test / "opt" / f"{i}.png")) for i in ids])
    noise = 12 * np.random.RandomState(0).standard_normal(t.shape)
    outputs = {
        "roll": np.roll(t, 1, axis=0), "blur": blurred(t, 4), "shift": np.roll(t, 2, axis=2),
        "noise": np.clip(np.rint(t + noise), 0, 255).astype(np.uint8),
    }  # fmt: skip
    for name, images in outputs.items():
        folders = [write(tmp_path / name, images, ids), test / "opt", test / "sar"]
        more = ("--baselines", "--train-sar", train / "sar", "--train-target", train / "opt") if name == "roll" else ()
        found = run(folders, "--metrics", ",".join(TOLERANCES), *more)
        require_row(name, found["metrics"])
        for baseline in CITIES.keys() & found["baselines"].keys():
            require_row(baseline, found["baselines"][baseline])


@pytest.mark.skipif(not (REAL / "sen12_terrain").is_dir(), reason="needs the real pairs: set SAR2OPT_REAL_DATA")
@pytest.mark.parametrize(("folder", "true"), [("sen12_terrain/train", 0.194), ("s1s2_cities/test", 0.076)])
def test_true_pairs_share_edges_and_shuffled_pairs_do_not(folder, true):
    names = sorted(path.name for path in (REAL / folder / "opt").iterdir())
    opt = [np.asarray(Image.open(REAL / folder / "opt" / name).convert("RGB")) for name in names]
    sar = [np.asarray(Image.open(REAL / folder / "sar" / name)).astype(float) for name in names]
    found = [metrics.edge_correlations(a, b, s) for a, b, s in zip(opt, np.roll(opt, 7, axis=0), sar, strict=True)]
    shuffled, paired = np.mean(found, 0)
    assert paired == pytest.approx(true, abs=6e-4) and abs(shuffled) < 0.02
