"""scripts/prepare.py and scripts/generate.py as users run them, and manifests that repeat to the last byte."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sar2opt.config import UserError
from sar2opt.data import DataConfig, manifest, open_data, scan, to_uint8
from scripts import generate, prepare
from tests.test_data_pairs import write
from tests.test_data_rasters import deep_png

ROOT = Path(__file__).parents[1]


@pytest.fixture
def in_process(monkeypatch):
    """A pool of processes costs a second each; two tests here use real ones."""

    class Pool:
        def __init__(self, workers):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def imap(self, work, items, chunk):
            return map(work, items)

    monkeypatch.setattr(prepare.multiprocessing, "get_context", lambda kind: SimpleNamespace(Pool=Pool))


def prepared(root, out, *flags):
    prepare.main(["--layout", "folders", "--root", str(root), "--out", str(out), "--split", "random", *flags])
    return out


def config(folder, **keys):
    return DataConfig.model_validate_json(json.dumps({"root": folder and str(folder), "resolution": 8, **keys}))


def refused(root, out, *words, flags=()):
    with pytest.raises(UserError) as error:
        prepared(root, out, *flags)
    for word in words:
        assert word in str(error.value)
    assert not out.exists() and not list(out.parent.glob(".*"))
    return str(error.value)


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


# the manifest ---------------------------------------------------------------------------------------------------------


def test_the_bytes_repeat_for_every_number_of_workers_and_another_root(tmp_path):
    write(tmp_path / "a" / "train_s1_", count=40)
    shutil.copytree(tmp_path / "a" / "train_s1_", tmp_path / "b" / "sar_opt")
    made = []
    for name, root, workers in (("one", "a/train_s1_", 1), ("three", "a/train_s1_", 3), ("other", "b/sar_opt", 2)):
        made.append(files(prepared(tmp_path / root, tmp_path / name, "--workers", str(workers))))
    assert made[0] == made[1]
    assert made[0]["manifest.csv"] == made[2]["manifest.csv"]
    one, other = (json.loads(m["manifest.json"]) for m in (made[0], made[2]))
    assert one.pop("root") != other.pop("root") and one == other


def test_the_manifest_says_what_was_found(tmp_path, in_process, capsys):
    write(tmp_path / "data")
    out = prepared(tmp_path / "data", tmp_path / "m", "--seed", "3")
    facts, text = json.loads((out / "manifest.json").read_text()), (out / "manifest.csv").read_bytes()
    assert facts["csv_sha256"] == hashlib.sha256(text).hexdigest()
    assert text.startswith(b"id,split,sar,opt,scene,row,col,height,width,") and b"\r" not in text
    assert facts["counts"] == {"train": 8, "val": 1, "test": 1, "unused": 0}
    assert facts["split"] == {"policy": "random", "seed": 3, "val_fraction": 0.1, "test_fraction": 0.1}
    rows = manifest.read(out).rows
    assert [row.id for row in rows] == [f"p{k}" for k in range(10)]
    assert rows[4].sar_sha256 == hashlib.sha256((tmp_path / "data" / rows[4].sar).read_bytes()).hexdigest()
    assert (rows[0].height, rows[0].width, rows[0].valid, rows[0].sar_dtype) == (11, 13, "1.0000", "uint8")
    train = sorted(row.id for row in rows if row.split == "train")
    assert facts["lists"]["train"] == hashlib.sha256("\n".join(train).encode()).hexdigest()
    assert facts["statistics"]["images"] == facts["statistics"]["of"] == 8
    printed = capsys.readouterr().out
    assert "random split: neighbouring tiles may share pixels" in printed and "train           8 pairs" in printed


def test_training_reads_the_manifest_and_gets_the_same_pairs(tmp_path, in_process):
    out = prepared(write(tmp_path / "data"), tmp_path / "m")
    with_manifest = open_data(config(tmp_path / "data", layout="folders", manifest=str(out)))
    alone = open_data(config(tmp_path / "data", layout="manifest", manifest=str(out), root=None))
    scanned = open_data(config(tmp_path / "data", layout="folders", split="random"))
    for data in (alone, scanned):
        assert data.list_hashes == with_manifest.list_hashes and data.statistics == with_manifest.statistics
        assert data.radiometry == with_manifest.radiometry
        for a, b in zip(data.train.read(2, None), with_manifest.train.read(2, None), strict=True):
            assert torch.equal(a, b)


def test_a_manifest_that_does_not_fit_is_refused(tmp_path, in_process):
    root = write(tmp_path / "data")
    out = prepared(root, tmp_path / "m")
    for keys, words in [
        ({"layout": "sen12"}, "prepared as layout folders, data.layout is sen12"),
        ({"layout": "folders", "split": "scene"}, "its split is random, data.split is scene"),
        ({"layout": "folders", "sar": {"bands": ["VH"]}}, "of other SAR settings"),
        ({"layout": "folders", "root": str(tmp_path / "no")}, "no such folder"),
        ({"layout": "folders", "manifest": str(tmp_path)}, "no manifest.json there"),
    ]:
        with pytest.raises(UserError, match=words):
            open_data(config(root, **{"manifest": str(out), **keys}))


def test_changed_files_and_changed_manifests_are_found(tmp_path, in_process):
    root = write(tmp_path / "data")
    out = prepared(root, tmp_path / "m")
    cfg = config(root, layout="folders", manifest=str(out))
    before = (root / "sar" / "p3.png").read_bytes()
    Image.new("L", (13, 11), 3).save(root / "sar" / "p3.png")
    with pytest.raises(UserError, match="p3.png: changed since the manifest"):
        open_data(cfg)
    (root / "sar" / "p3.png").write_bytes(before)
    open_data(cfg)
    text = (out / "manifest.csv").read_text()
    for old, new, words in [
        ("p3,", "p3x,", "manifest.csv: changed since it was written"),
        ("sar/p3.png", "/etc/p3.png", "line 5: /etc/p3.png: leaves the root"),
        ("sar/p3.png", "../p3.png", "leaves the root"),
        ("p3,train", "p3,trial", "expected one of train"),
        ("p3,train", "p3,unused", "list hashes are not those"),
        ("\np3,", "\np1,", "sorted and unique"),
        (",11,13,", ",11,x,", "line 2: invalid literal"),
    ]:
        assert old in text
        changed = text.replace(old, new)
        (out / "manifest.csv").write_text(changed)
        if "changed since" not in words:  # by someone who knows where the hash is
            facts = json.loads((out / "manifest.json").read_text())
            facts["csv_sha256"] = hashlib.sha256(changed.encode()).hexdigest()
            (out / "manifest.json").write_text(json.dumps(facts))
        with pytest.raises(UserError, match=words):
            open_data(cfg)
    for content, words in [("[]", "format 'list'"), ("{", "not readable"), ('{"format": 9}', "reads format 1"),
                           ('{"format": 1}', "lacks csv_sha256")]:  # fmt: skip
        (out / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=words):
            open_data(cfg)


def test_a_manifest_replaces_a_manifest_and_nothing_else(tmp_path, in_process):
    root = write(tmp_path / "data")
    out = prepared(root, tmp_path / "m")
    before = files(out)
    assert files(prepared(root, tmp_path / "m")) == before
    with pytest.raises(UserError, match="exists and is no manifest"):
        prepared(root, root)
    prepared(root, tmp_path / "dry", "--dry-run")
    assert not (tmp_path / "dry").exists()


# bad inputs -----------------------------------------------------------------------------------------------------------


def test_bad_files_are_all_named_and_nothing_is_written(tmp_path, in_process):
    root, out = write(tmp_path / "data"), tmp_path / "m"
    good = (root / "sar" / "p1.png").read_bytes()
    (root / "sar" / "p1.png").write_bytes(good[: len(good) // 2])
    (root / "opt" / "p2.png").write_text("<!DOCTYPE html>")
    Image.new("RGB", (13, 11), (1, 2, 3)).save(root / "sar" / "p3.png")
    Image.new("L", (12, 11)).save(root / "sar" / "p4.png")
    deep_png(root / "sar" / "p5.png", np.arange(35, dtype=np.uint16).reshape(1, 5, 7), 0)
    Image.new("RGB", (7, 5)).save(root / "opt" / "p5.png")
    (root / "sar" / "p6.png").write_bytes(b"")
    text = refused(root, out, "6 of 10 pairs cannot be used", "p1.png: damaged PNG", "p2.png: expected a PNG, JPEG",
                   "p3.png: expected the SAR bands VV, found 3 band(s)", "unequal size", "set data.sar: {scale: uint16",
                   flags=["--workers", "2"])  # fmt: skip
    assert "p6.png" not in text  # the first five


def test_headers_alone_do_not_find_a_file_that_ends_early(tmp_path, in_process):
    root = write(tmp_path / "data", height=64, width=64)
    path = root / "opt" / "p1.png"
    path.write_bytes(path.read_bytes()[:-40])
    refused(root, tmp_path / "m", "1 of 10 pairs", "p1.png: damaged PNG")
    flags = ["--verify", "header", "--test-fraction", "0.9", "--val-fraction", "0"]  # p1 does not train
    rows = manifest.read(prepared(root, tmp_path / "m", *flags)).rows
    assert rows[1].split == "test" and rows[1].valid == "" and rows[1].height == 64


def test_bad_names_are_named(tmp_path, in_process):
    root, out = write(tmp_path / "data"), tmp_path / "m"
    (root / "opt" / "p1.png").rename(root / "opt" / "P1.png")
    refused(root, out, "P1 and p1")
    (root / "opt" / "P1.png").unlink()
    refused(root, out, "10 SAR files (sar) and 9 optical files (opt)", "p1 (looked for opt/p1.*)")
    (root / "opt" / "p1.png").symlink_to(write(tmp_path / "other") / "opt" / "p1.png")
    refused(root, out, "a link that leaves the root")
    prepared(root, out, "--allow-outside-root")
    shutil.rmtree(out)
    shutil.copy(root / "sar" / "p2.png", root / "sar" / "p2.jpg")
    refused(root, out, "two files on one side", flags=["--allow-outside-root"])


def test_suspicious_images_are_reported_and_empty_ones_not_used(tmp_path, in_process, capsys):
    root = tmp_path / "data"
    for side in ("sar", "opt"):
        (root / side).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(6):
        x = rng.normal(-12, 3, (9, 9)).astype(np.float32)
        if k == 1:
            x[2, 3] = np.nan
        if k == 2:
            x[:] = np.nan
        if k == 3:
            x[:] = -7
        np.save(root / "sar" / f"{k}.npy", x)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(root / "opt" / f"{k}.png")
    out = prepared(root, tmp_path / "m", "--sar-scale", "db", "--sar-clip", "-25", "0")
    printed = " ".join(capsys.readouterr().out.split())
    assert "1.npy: 1 values are not finite, the first at band, row, column (0, 2, 3)" in printed
    assert "2.npy: no valid SAR pixel; the pair is unused" in printed and "3.npy: constant, -7.0" in printed
    assert "(clip -25..0 keeps 100.0 %)" in printed and "VV dB p1" in printed
    rows = {row.id: row for row in manifest.read(out).rows}
    assert rows["2"].split == "unused" and rows["2"].note == "no valid SAR pixel" and rows["2"].valid == "0.0000"
    assert rows["1"].valid == "0.9877"
    data = open_data(config(root, layout="folders", manifest=str(out), sar={"scale": "db", "norm": "percentile"}))
    assert "2" not in data.train.ids and data.train.read(0, None)[0].isfinite().all()


def test_statistics_do_not_depend_on_how_the_pairs_are_cut_into_chunks(tmp_path):
    """Between the two orders of summation lie the last bits of a sum; the order is that of the ids, always."""
    cfg = config(write(tmp_path, count=70), layout="folders", split="random")
    one = scan.scan(cfg, None, hashing=False).manifest
    shuffled = scan.scan(cfg, None, hashing=False, mapper=lambda work, items: [work(i) for i in list(items)]).manifest
    assert one == shuffled


# the scripts as processes ---------------------------------------------------------------------------------------------


def script(name, *flags, cwd):
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100)


def test_generate_then_prepare_from_another_folder(tmp_path):
    done = script("generate.py", "--out", "pairs", "--count", 12, "--size", 32, "--split", "test", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = ("--layout", "folders", "--root", "pairs")
    done = script("prepare.py", *folders, "--split", "random", "--out", "made/m", "--workers", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(manifest.read(tmp_path / "made" / "m").rows) == 12
    # what is on disk is what data.layout: generated makes
    made = open_data(DataConfig(layout="generated", resolution=32)).test
    read = open_data(
        config(tmp_path / "pairs", layout="folders", split="random", test_fraction=0, val_fraction=0, resolution=32)
    )
    for a, b in zip(made.read(7, None), read.train.read(7, None), strict=True):
        assert torch.equal(a, b)
    done = script("prepare.py", *folders, "--out", "made/n", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: data.split") and "Traceback" not in done.stderr
    done = script("prepare.py", *folders, "--ou", "x", cwd=tmp_path)
    assert done.returncode == 2 and "--ou" in done.stderr


def test_generate_writes_the_mask_of_the_changes(tmp_path):
    flags = ["--count", "2", "--size", "40", "--seed", "5"]
    generate.main(["--out", str(tmp_path / "a"), *flags])
    generate.main(["--out", str(tmp_path / "b"), *flags, "--changes", "2"])
    assert not (tmp_path / "a" / "mask").exists()
    for path in sorted((tmp_path / "b" / "mask").iterdir()):
        mask, differs = np.asarray(Image.open(path)), np.zeros((40, 40), bool)
        for side in ("sar", "opt"):
            a, b = (np.asarray(Image.open(tmp_path / folder / side / path.name)) for folder in "ab")
            differs |= (a != b).reshape(40, 40, -1).any(-1)
        assert mask.dtype == bool and mask.any() and not (differs & ~mask).any()
    made = open_data(config(None, layout="generated", generated={"train": 2, "seed": 5, "changes": 2}, resolution=40))
    sar = np.asarray(Image.open(tmp_path / "b" / "sar" / "train-5-000001.png"))
    assert np.array_equal(to_uint8(made.train.read(1, None)[0])[0].numpy(), sar)
    with pytest.raises(UserError, match="mask belongs to pairs with --changes"):
        generate.main(["--out", str(tmp_path / "b"), *flags])


def test_generate_refuses_nonsense_and_foreign_folders(tmp_path):
    for flag, value in (("count", "0"), ("looks", "0"), ("size", "4"), ("seed", "-1"), ("changes", "-1")):
        with pytest.raises(UserError, match=f"--{flag} {value}"):
            generate.main(["--out", str(tmp_path / "x"), "--count", "1", f"--{flag}", value])
    write(tmp_path / "x")
    with pytest.raises(UserError, match="holds 10 other images, such as p0"):
        generate.main(["--out", str(tmp_path / "x"), "--count", "1", "--size", "16"])


def test_tables_and_sen12_go_the_same_way(tmp_path, in_process):
    root = write(tmp_path / "data")
    table = tmp_path / "t.csv"
    rows = [f"sar/p{k}.png,opt/p{k}.png,scene{k},{'test' if k == 7 else 'train'}" for k in range(10)]
    table.write_text("\n".join(["sar,opt,scene,split", *rows]) + "\n")
    flags = ["--layout", "csv", "--root", str(root), "--csv", str(table), "--out", str(tmp_path / "m")]
    prepare.main(flags)
    found = open_data(config(root, layout="csv", csv={"files": [str(table)]}))
    assert found.test.ids == ["p7"] and len(found.train) == 9
    assert found.list_hashes == manifest.read(tmp_path / "m").list_hashes
    (root / "sar" / "p7.png").unlink()
    with pytest.raises(UserError, match="1 of 10 pairs cannot be used.*\n.*p7.png: no such file"):
        prepare.main(flags)
    sen = tmp_path / "sen"
    for scene in range(6):
        for side, kind in (("s1", "sar"), ("s2", "opt")):
            path = sen / "urban" / side / f"ROIs1970_fall_{side}_{scene}_p1.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / kind / f"p{scene}.png", path)
    prepare.main(["--layout", "sen12", "--root", str(sen), "--out", str(tmp_path / "s")])
    assert [row.note for row in manifest.read(tmp_path / "s").rows] == ["urban"] * 6
