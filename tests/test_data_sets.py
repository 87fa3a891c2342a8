"""The published data sets: names, pixels and splits as they are on disk, and their traps, named with the file."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from sar2opt import config as configs
from sar2opt.config import UserError
from sar2opt.data import DataConfig, open_data, scan, splits, to_uint8
from sar2opt.data.config import PRESETS
from sar2opt.data.layouts import LAYOUTS, Pair, find_pairs
from scripts import prepare
from tests import fake_sets
from tests.fake_sets import EAST, NORTH, SOUTH
from tests.test_data_rasters import tiff
from tests.test_prepare import in_process

pytestmark = pytest.mark.usefixtures(in_process.__name__)


def config(layout, root, **keys):
    tree = {"layout": layout, "root": str(root), "resolution": 8, "crop": "center", "flip": False, "rotate90": False}
    return DataConfig.model_validate_json(json.dumps(tree | keys))


def prepared(layout, root, out, *flags):
    prepare.main(["--layout", layout, "--root", str(root), "--out", str(out), *map(str, flags)])
    return out


def refused(cfg, *words):
    with pytest.raises(UserError) as error:
        open_data(cfg)
    for word in words:
        assert word in str(error.value)


def sar_side(root, layout, n=0):
    return root / find_pairs(config(layout, root)).pairs[n].sar


def test_every_layout_with_a_rule_can_be_chosen_and_presets_belong_to_layouts():
    choices = set(DataConfig.model_fields["layout"].annotation.__args__)
    assert choices == {*LAYOUTS, "folders", "csv", "generated", "manifest"} and set(PRESETS) <= set(LAYOUTS)


def test_a_config_says_what_the_layout_has_and_keeps_what_is_said(tmp_path):
    cfg = config("sen12ms", tmp_path)
    assert (cfg.sar.bands, cfg.sar.clip, cfg.opt.bands) == (("VV", "VH"), ((-25.0, 0.0),), (4, 3, 2))
    assert DataConfig.model_validate_json(cfg.model_dump_json()) == cfg
    dsen2cr = config("sen12ms", tmp_path, sar={"clip": [[-25, 0], [-32.5, 0]]})
    assert dsen2cr.sar.clip == ((-25.0, 0.0), (-32.5, 0.0)) and dsen2cr.sar.bands == ("VV", "VH")
    assert config("folders", tmp_path).sar.bands == ("VV",) and config("spacenet6", tmp_path).sar.nodata == 0
    with pytest.raises(ValueError, match="sar.bandz"):
        config("spacenet6", tmp_path, sar={"bandz": ["HH"]})


# SAR2Opt --------------------------------------------------------------------------------------------------------------


def sar2opt_pairs():
    names = [name.split("/") for name in fake_sets.sar2opt_names()]
    pairs = [Pair(i, "", "", *(s := i.split("_"))[:1], "", side[:-1], s[1], s[2]) for side, i in names]
    return sorted(pairs)


@pytest.mark.parametrize("chosen", ["official", "official_guarded", "scene"])
def test_the_splits_of_sar2opt_are_the_published_ones(tmp_path, chosen):
    pairs, cfg = sar2opt_pairs(), config("sar2opt", tmp_path)
    where = splits.assign(cfg, pairs, chosen)
    hashes = {
        name: splits.list_hash(p.id for p, s in zip(pairs, where, strict=True) if s == name) for name in set(where)
    }
    assert len(pairs) == 2077 and splits.departures("sar2opt", chosen, hashes) == []
    for name, (count, _) in splits.PUBLISHED["sar2opt", chosen].items():
        assert where.count(name) == count
    test = [p.id for p, s in zip(pairs, where, strict=True) if s == "test" and p.id != "6_3120_5040"]
    (said,) = splits.departures("sar2opt", chosen, hashes | {"test": splits.list_hash(test)})
    assert "the test list is not the published one" in said and f"{len(test) + 1} pairs" in said


def test_the_guard_takes_the_training_tiles_that_share_pixels_with_the_test_and_no_other(tmp_path):
    """By drawing the test tiles of each scene on a canvas of 24-px cells."""
    pairs, cells = sar2opt_pairs(), 24
    where = splits.assign(config("sar2opt", tmp_path), pairs, "official_guarded")
    canvas = {p.scene: np.zeros((400, 400), bool) for p in pairs}
    windows = [(slice(r := int(p.row) // cells, r + 25), slice(c := int(p.col) // cells, c + 25)) for p in pairs]
    for pair, window in zip(pairs, windows, strict=True):
        canvas[pair.scene][window] |= pair.split == "test"
    for pair, window, name in zip(pairs, windows, where, strict=True):
        if pair.split == "train":
            assert (name == "unused") == canvas[pair.scene][window].any()
    assert where.count("unused") == 312


def test_sar2opt_from_disk(tmp_path, capsys):
    root = fake_sets.sar2opt(tmp_path / "data", scenes=(3, 6, 11))
    (root / "trainA" / "readme.jpg").touch()
    out = prepared("sar2opt", root, tmp_path / "m")
    rows = fake_sets.rows(out)
    assert rows["11_240_480"]["split"] == "train" and rows["3_0_240"]["split"] == "val"
    assert {row["split"] for name, row in rows.items() if name.startswith("6_")} == {"test"}
    one = rows["6_3120_5040"]
    assert (one["sar"], one["opt"]) == ("testA/6_3120_5040.jpg", "testB/6_3120_5040.jpg")
    assert (one["scene"], one["row"], one["col"]) == ("6", "3120", "5040")
    printed = " ".join(capsys.readouterr().out.split())
    assert "do not have the 600 x 600 px of layout sar2opt" in printed and "skipped: 1 files, other names" in printed
    assert "split policy scene, test 13 6, val 3" in printed and "is not the published one" in printed
    data = open_data(config("sar2opt", root, manifest=str(out)))
    assert data.test.ids[0].startswith("6_") and len(data.train) == 49
    official = open_data(config("sar2opt", root, split="official"))
    assert len(official.val) == 0 and len(official.train) + len(official.test) == len(rows)


def test_a_tile_of_sar2opt_in_both_parts_or_without_its_partner_is_named(tmp_path):
    root = fake_sets.sar2opt(tmp_path, scenes=(11,))
    (root / "testB" / "11_1440_1440.jpg").rename(root / "testB" / "11_1440_1440.jpeg")
    refused(config("sar2opt", root, split="official"), "11_1440_1440 (looked for testB/11_1440_1440.jpg)")
    (root / "testB" / "11_1440_1440.jpeg").rename(root / "trainB" / "11_1440_1440.jpg")
    refused(config("sar2opt", root), "11_1440_1440 is in train and in test", "testA/11_1440_1440.jpg", "trainB/11")
    refused(config("sar2opt", root, split="geographic"), "is in train and in test")


def test_guarded_and_geographic_splits_are_refused_where_they_mean_nothing(tmp_path):
    root = fake_sets.sar2opt(tmp_path / "a", scenes=(11,))
    refused(config("sar2opt", root, split="geographic"), "49 of 49 pairs", "a JPEG file does not say where it lies")
    refused(config("qxs", fake_sets.qxs(tmp_path / "b"), split="official_guarded"), "layout qxs", "it has none")
    with pytest.raises(ValueError, match="expected scene, random, geographic, official, official_guarded, file:PATH"):
        config("qxs", root, split="geographical")


# QXS-SAROPT -----------------------------------------------------------------------------------------------------------


def test_qxs_takes_the_lists_that_others_trained_on(tmp_path, capsys):
    root = fake_sets.qxs(tmp_path / "data")
    refused(config("qxs", root), "the scenes of the pairs are not known", "data.split: random", "First ids: 1, 10, 2")
    train, test = [f"opt_256_oc_0.2/{n}.png" for n in (1, 2, 3, 10)], [f"opt_256_oc_0.2/{n}.png" for n in (4, 5)]
    lists = fake_sets.lists(tmp_path / "lists", train=train, test=test)
    out = prepared("qxs", root, tmp_path / "m", "--split", f"file:{lists}")
    assert {n: row["split"] for n, row in fake_sets.rows(out).items()} == (
        {str(n): "unused" for n in range(6, 10)}
        | dict.fromkeys("45", "test")
        | dict.fromkeys(["1", "2", "3", "10"], "train")
    )
    facts = json.loads((out / "manifest.json").read_text())
    assert facts["split"]["train_eo_list.txt sha256"] == scan.file_hash(lists / "train_eo_list.txt")
    data = open_data(config("qxs", root, manifest=str(out)))
    assert data.train.ids == ["1", "10", "2", "3"] and data.test.ids == ["4", "5"]
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines)  # a path is not cut


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({"train": ["1", "2"], "test": ["sar_256_oc_0.2/2.png"]}, "sar_256_oc_0.2/2.png: it is in train_eo_list.txt"),
        ({"train": ["1", "opt_256_oc_0.2/77.png"]}, "1 of its 2 ids are not in the data: opt_256_oc_0.2/77.png"),
        ({"test": ["1"]}, "expected a list train*.txt"),
        ({"train": [], "test": ["1"]}, "leaves no pair for training: 10 pairs in unknown scenes"),
    ],
)
def test_lists_that_contradict_are_refused(tmp_path, lines, words):
    root = fake_sets.qxs(tmp_path / "data")
    refused(config("qxs", root, split=f"file:{fake_sets.lists(tmp_path / 'lists', **lines)}"), words)


# SpaceNet 6 -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rotterdam(tmp_path_factory):
    return fake_sets.spacenet6(tmp_path_factory.mktemp("spacenet6") / "SN6")


def test_spacenet6_pairs_four_bands_with_rgb(rotterdam):
    found = find_pairs(config("spacenet6", rotterdam))
    assert len(found.pairs) == 12 and found.skipped == {"other names": 13, "no image": 1}
    assert found.pairs[0].id == f"{NORTH}_tile_8000" and found.pairs[0].note == f"strip {NORTH}"
    assert found.pairs[0].opt.endswith(f"/PS-RGB/SN6_Train_AOI_11_Rotterdam_PS-RGB_{NORTH}_tile_8000.tif")
    deeper = find_pairs(config("spacenet6", rotterdam / "train" / "AOI_11_Rotterdam"))
    assert [p.id for p in deeper.pairs] == [p.id for p in found.pairs]


def test_spacenet6_is_normalised_per_band_in_db_and_black_is_nodata(rotterdam):
    data = open_data(config("spacenet6", rotterdam, resolution=20))
    sar, opt = data.train.read(0, None)
    decibel = np.array([11, 12, 12, 10])[:, None, None] + 5 * fake_sets.place(20) / 255
    low, high = np.array([(10.875, 16.82), (13.251, 17.045), (13.251, 17.045), (9.707, 16.598)]).T[:, :, None, None]
    expected = 2 * (np.clip(decibel, low, high) - low) / (high - low) - 1
    valid = np.ones((20, 20), bool)
    valid[:10, :10] = False
    assert np.allclose(sar.numpy()[:, valid], expected[:, valid], rtol=0, atol=1e-5)
    middle = [np.median(decibel[b][valid]) for b in range(4)]  # invalid pixels have the median of the valid ones
    filled = 2 * (np.clip(middle, low[:, 0, 0], high[:, 0, 0]) - low[:, 0, 0]) / (high - low)[:, 0, 0] - 1
    assert np.allclose(sar.numpy()[:, 2, 3], filled, rtol=0, atol=1e-5)
    assert np.array_equal(to_uint8(opt)[1].numpy(), fake_sets.place(20).astype(np.uint8))
    assert data.statistics["nodata"] == 0.25


def test_tiles_of_two_splits_share_no_ground(rotterdam):
    """Tiles of 450 m every 225 m: each shares ground with its neighbour."""
    data = open_data(config("spacenet6", rotterdam, test_fraction=0.2, val_fraction=0.1))
    where = {
        name: {EAST + 225 * (int(i[-4:]) - 8000) for i in getattr(data, name).ids} for name in ("train", "val", "test")
    }
    assert where["test"] == {EAST + 225 * n for n in (9, 10, 11)} and len(where["val"]) == 2
    assert min(where["test"]) - max(where["val"]) >= 450 and min(where["val"]) - max(where["train"]) >= 450
    assert len(data.train) == 12 - 3 - 2 - 2
    assert any("guard 450.0" in line and "geographic" in line for line in data.facts)


@pytest.mark.parametrize("guard", [0.0, 10.0, 450.0])
def test_a_geographic_split_keeps_its_distance_and_reaches_its_shares(guard):
    rng = np.random.default_rng(0)
    for n in (1, 7, 200):
        eastings = rng.integers(0, 60, n).astype(float) * 50
        where = np.array(splits.by_easting(eastings.tolist(), guard, 0.1, 0.2))
        assert (where == "test").sum() >= 0.2 * n
        assert set(where) <= {"train", "val", "test", "unused"} and (guard or "unused" not in where)
        for a, b in (("test", "val"), ("val", "train"), ("test", "train")):
            if (where == a).any() and (where == b).any():
                assert eastings[where == a].min() - eastings[where == b].max() >= max(guard, 50 - 1e-9)
    assert splits.by_easting([3.0, 1.0, 2.0], 0.5, 0.0, 0.0) == ["train"] * 3
    assert splits.by_easting([1.0, 2.0, 3.0], 0.5, 0.3, 0.3) == ["train", "val", "test"]


def test_southern_strips_are_turned_on_both_sides(rotterdam, tmp_path):
    orientations = rotterdam / "train/AOI_11_Rotterdam/SummaryData/SAR_orientations.txt"
    keys = {"split": "random", "val_fraction": 0, "test_fraction": 0.1, "resolution": 20}
    plain = open_data(config("spacenet6", rotterdam, **keys)).train
    data = open_data(config("spacenet6", rotterdam, **keys, orientations=str(orientations)))
    for i, name in enumerate(plain.ids):
        for before, after in zip(plain.read(i, None), data.train.read(i, None), strict=True):
            assert torch.equal(after, before.flip(-1, -2) if name.startswith(SOUTH) else before)
    assert any(line.startswith("turned by 180 degrees: 6 pairs of 1 strips") for line in data.facts)
    flags = ["--split", "random", "--val-fraction", 0, "--orientations", orientations, "--verify", "header"]
    out = prepared("spacenet6", rotterdam, tmp_path / "m", *flags)
    made = open_data(config("spacenet6", rotterdam, manifest=str(out), resolution=20))  # without naming the list again
    assert made.train.ids == data.train.ids
    for a, b in zip(made.train.read(5, None), data.train.read(5, None), strict=True):
        assert torch.equal(a, b)
    other = tmp_path / "other.txt"
    other.write_text(f"{NORTH} 1\n{SOUTH} 1\n")
    refused(config("spacenet6", rotterdam, manifest=str(out), orientations=str(other)), "other strips turned")


def test_a_list_of_orientations_is_checked(rotterdam, tmp_path):
    path = tmp_path / "o.txt"
    cfg = config("spacenet6", rotterdam, orientations=str(path))
    refused(cfg, "data.orientations", "no such file")
    path.write_text(f"{NORTH} 0\n")
    refused(cfg, f"1 of 2 strips of the data are not in it: {SOUTH}")
    path.write_text(f"{NORTH} 0\n\n{SOUTH} 2\n")
    refused(cfg, "o.txt: line 3: expected <t0>_<t1> and 0 or 1")
    with pytest.raises(ValueError, match="orientations: only layout spacenet6"):
        config("qxs", rotterdam, orientations=str(path))


def test_spacenet6_files_that_are_not_as_delivered_are_named(tmp_path):
    root = fake_sets.spacenet6(tmp_path, count=4)
    paths = [sar_side(root, "spacenet6", n) for n in range(4)]
    cfg = config("spacenet6", root, split="random", val_fraction=0)
    good = np.ones((4, 20, 20), np.float32)
    tiff(paths[0], good[:1])
    tiff(paths[1], good.astype(np.int32))
    tiff(paths[2], good[:, :-1])
    refused(cfg, "3 of 4 pairs", f"{paths[0].name}: expected the SAR bands HH, HV, VH, VV, found 1 band(s)",
            "scale: linear expects float or uint16, found int32", "unequal size", "20 x 19 px")  # fmt: skip
    geographic = config("spacenet6", root)
    refused(geographic, "3 of 4 pairs", f"{paths[0].name}: a geographic split needs a projection in metres, found none")
    for n, path in enumerate(paths):
        tiff(path, good, crs=f"EPSG:3263{1 + n % 2}")
    refused(geographic, "geographic needs one projection, the files have 2: EPSG:32631, EPSG:32632")
    for path in paths:
        tiff(path, good, crs="EPSG:4326")
    refused(geographic, "projection in metres, found EPSG:4326")


# SEN12MS --------------------------------------------------------------------------------------------------------------


def test_sen12ms_red_green_blue_are_bands_4_3_2_of_reflectance(tmp_path, capsys):
    root = fake_sets.sen12ms(tmp_path / "data")
    out = prepared("sen12ms", root, tmp_path / "m", "--split", "official")
    where = {name: row["split"] for name, row in fake_sets.rows(out).items()}
    assert where["ROIs1158_spring_63_p30"] == "test" and where["ROIs1158_spring_112_p31"] == "val"
    assert where["ROIs1158_spring_1_p30"] == where["ROIs1868_summer_146_p202"] == "train"
    printed = " ".join(capsys.readouterr().out.split())
    assert "146_p202.tif: 2 values are not finite, the first at band, row, column (0, 3, 4)" in printed
    assert "VH dB" in printed and "skipped: 7 files, other names" in printed
    data = open_data(config("sen12ms", root, manifest=str(out), resolution=16))
    sar, opt = data.train.read(0, None)
    assert np.allclose(opt[:, 5, 5], [2 * 100 * n / 3000 - 1 for n in (4, 3, 2)], rtol=0, atol=1e-6)
    assert np.allclose(sar[0], 2 * (5 + 15 * fake_sets.place(16) / 255) / 25 - 1, rtol=0, atol=1e-5)
    nan = data.train.read(data.train.ids.index("ROIs1868_summer_146_p202"), None)[0]
    assert nan.isfinite().all() and data.statistics["nan"] > 0


def test_sen12ms_has_the_scenes_of_its_toolbox():
    scenes = splits.SCENES["sen12ms", "official"]
    assert {name: len(found) for name, found in scenes.items()} == {"test": 26, "val": 25}
    assert not scenes["test"] & scenes["val"] and {"ROIs2017_winter_64", "ROIs1970_fall_141"} <= scenes["test"]
    assert "ROIs2017_winter_77" in scenes["val"]


def test_sen12ms_traps_are_named(tmp_path):
    root = fake_sets.sen12ms(tmp_path)
    s2 = root / "ROIs1158_spring" / "s2_1" / "ROIs1158_spring_s2_1_p30.tif"
    good = np.full((13, 16, 16), 900, np.uint16)
    cfg = config("sen12ms", root, split="official")
    for pixels, words in [
        (good[:3], ("expected the optical bands 4, 3, 2 (data.opt.bands), found 3 band(s)",)),
        (good.astype(np.float32), ("scale: uint16 expects uint16, found float32 with values 900..900",)),
        (good[:, :8], ("unequal size", "ROIs1158_spring_s1_1_p30.tif: 16 x 16 px", "16 x 8 px")),
    ]:
        tiff(s2, pixels)
        refused(cfg, "1 of 7 pairs", "ROIs1158_spring_s2_1_p30.tif", *words)
    s2.unlink()
    refused(cfg, "7 SAR files (s1) and 6 optical files (s2)", f"looked for {s2.relative_to(root)}")
    Image.new("RGB", (16, 16)).save(s2, format="PNG")  # a PNG that is named .tif
    refused(cfg, "expected the optical bands 4, 3, 2")


def test_13_bands_need_to_be_named(tmp_path):
    root = fake_sets.sen12ms(tmp_path)
    for old, new in (("s1_1", "sar"), ("s2_1", "opt")):
        (root / "ROIs1158_spring" / old).rename(root / new)
        for k, path in enumerate(sorted((root / new).iterdir())):
            path.rename(root / new / f"{k}.tif")
    sar, opt = {"bands": ["VV", "VH"], "scale": "db", "clip": [-25, 0]}, {"scale": "uint16", "clip": [0, 3000]}
    keys = {"split": "random", "val_fraction": 0, "test_fraction": 0, "sar": sar}
    refused(config("folders", root, **keys, opt=opt), "expected the optical 3 bands", "13 band(s); set data.opt.bands")
    data = open_data(config("folders", root, **keys, opt=opt | {"bands": [13, 1, 4]}))
    assert np.allclose(data.train.read(0, None)[1][:, 2, 2], [2 * n / 30 - 1 for n in (13, 1, 4)], rtol=0, atol=1e-6)


def test_a_mistake_ends_prepare_with_2_and_one_message(tmp_path, monkeypatch, capsys):
    root = fake_sets.sen12ms(tmp_path / "data")
    flags = ["--layout", "sen12", "--root", str(root), "--out", str(tmp_path / "m")]
    monkeypatch.setattr(sys, "argv", ["prepare.py", *flags])
    with pytest.raises(SystemExit) as ended:
        configs.command_line(prepare.main)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: data.layout: sen12") and "fit layout sen12ms" in said
    assert not (tmp_path / "m").exists()
