"""What training reads: the same part and the same turn of both sides, a function of the generator alone."""

import json
import os
import pickle
import re
from collections import Counter
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sar2opt.config import UserError
from sar2opt.data import DataConfig, open_data, to_uint8
from sar2opt.data.pairs import draw_turn, turned
from tests.test_data_rasters import deep_png

REAL = Path(os.environ.get("SAR2OPT_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def config(root, **keys):
    tree = {"layout": "folders", "root": str(root), "resolution": 8, "split": "random", "val_fraction": 0.2, **keys}
    return DataConfig.model_validate_json(json.dumps(tree))


def write(root, count=10, height=11, width=13):
    """Pairs whose pixels say where they are: SAR = row * 16 + column, red = the same, green = the pair's number."""
    for side in ("sar", "opt"):
        (root / side).mkdir(parents=True, exist_ok=True)
    place = (np.arange(height)[:, None] * 16 + np.arange(width)).astype(np.uint8)
    for k in range(count):
        Image.fromarray(place).save(root / "sar" / f"p{k}.png")
        Image.fromarray(np.stack([place, np.full_like(place, k), place // 2], -1)).save(root / "opt" / f"p{k}.png")
    return root


def levels(pair):
    return [to_uint8(x).numpy() for x in pair]


def refused(cfg, *words, read=False):
    with pytest.raises(UserError) as error:
        data = open_data(cfg)
        if read:
            for pairs in (data.train, data.val, data.test):
                for i in range(len(pairs)):
                    pairs.read(i, None)
    for word in words:
        assert word in str(error.value)
    return str(error.value)


# crops and turns ------------------------------------------------------------------------------------------------------


def test_both_sides_show_the_same_ground_after_every_crop_and_turn(tmp_path):
    data = open_data(config(write(tmp_path)))
    corners, seen = set(), set()
    for seed in range(200):
        sar, opt = levels(data.train.read(seed % len(data.train), np.random.default_rng(seed)))
        assert np.array_equal(sar[0], opt[0])
        assert (opt[1] == int(data.train.ids[seed % len(data.train)][1:])).all()
        corners.add(int(sar.min()))
        step = int(sar[0, 0, 1]) - int(sar[0, 0, 0]), int(sar[0, 1, 0]) - int(sar[0, 0, 0])
        seen.add(step)
    assert len(corners) == 4 * 6  # every corner of the crop: (11 - 8 + 1) x (13 - 8 + 1)
    assert seen == {(a, b) for x, y in ((1, 16), (16, 1)) for a in (x, -x) for b in (y, -y)}


def test_the_same_generator_gives_the_same_crop_and_none_the_centre(tmp_path):
    data = open_data(config(write(tmp_path)))
    for a, b in zip(*(data.train.read(1, np.random.default_rng(4)) for _ in range(2)), strict=True):
        assert torch.equal(a, b)
    sar, _ = levels(data.train.read(1, None))
    assert sar[0, 0, 0] == 1 * 16 + 2 and sar[0, -1, -1] == 8 * 16 + 9  # (11 - 8) // 2, (13 - 8) // 2
    sar, _ = levels(
        open_data(config(tmp_path, crop="center", flip=False, rotate90=False)).train.read(1, np.random.default_rng(0))
    )
    assert sar[0, 0, 0] == 18


@pytest.mark.parametrize(
    ("flip", "rotate90", "order"), [(True, True, 8), (True, False, 4), (False, True, 4), (False, False, 1)]
)
def test_turns_are_uniform_on_the_group_that_the_switches_generate(flip, rotate90, order):
    rng, square = np.random.default_rng(0), np.arange(4).reshape(2, 2)
    draws = 80_000 if order == 8 else 4_000
    drawn = Counter(draw_turn(rng, flip, rotate90) for _ in range(draws))
    images = {turn: turned(square, turn).tobytes() for turn in drawn}
    assert len(drawn) == len(set(images.values())) == order
    assert all(abs(n / draws - 1 / order) < (0.006 if order == 8 else 0.04) for n in drawn.values())  # 5 deviations
    for a in drawn:  # a group: closed
        for b in drawn:
            assert turned(turned(square, a), b).tobytes() in images.values()
    mirrors = square[::-1].tobytes(), square[:, ::-1].tobytes()
    assert all((mirror in images.values()) == flip for mirror in mirrors)


def test_a_crop_has_enough_valid_pixels_where_ten_draws_find_one(tmp_path):
    column = np.tile(np.arange(32, dtype=np.uint8), (32, 1))
    for side, pixels in (("sar", np.where(column < 20, 0, 100).astype(np.uint8)), ("opt", column)):
        (tmp_path / side).mkdir()
        Image.fromarray(pixels).save(tmp_path / side / "p.png")
    mean = {}
    for least in (0, 0.9):  # a crop of 8 columns has 90 % from column 20 on: 5 of its 25 places
        keys = {"test_fraction": 0, "val_fraction": 0, "min_valid": least, "sar": {"nodata": 0}}
        train = open_data(config(tmp_path, **keys)).train
        shares = [(levels(train.read(0, np.random.default_rng(seed)))[1][0] >= 20).mean() for seed in range(200)]
        mean[least] = np.mean(np.array(shares) >= 0.9)
    assert mean[0] == pytest.approx(0.2, abs=0.085)  # 3 deviations
    assert mean[0.9] == pytest.approx(1 - 0.8**10, abs=0.066)


def test_smaller_images_are_an_error_or_reflected(tmp_path):
    write(tmp_path, height=6, width=13)
    refused(config(tmp_path), "13 x 6 px is smaller than data.resolution 8", "data.pad: reflect")
    sar, opt = levels(open_data(config(tmp_path, pad="reflect")).train.read(0, None))
    assert np.array_equal(sar[0], opt[0])
    assert (sar[0, :, 0] // 16).tolist() == [1, 0, 1, 2, 3, 4, 5, 4]
    refused(config(tmp_path, crop="none"), "13 x 6 px, data.resolution is 8 and data.crop is none")


def test_pairs_travel_to_workers_of_every_kind(tmp_path):
    for data in (open_data(config(write(tmp_path))), open_data(DataConfig(layout="generated", resolution=16))):
        again = pickle.loads(pickle.dumps(data.train))
        rows = [pairs.read(3, np.random.default_rng(1)) for pairs in (data.train, again)]
        with get_context("spawn").Pool(1) as pool:
            rows.append(tuple(map(torch.from_numpy, pool.apply(read_arrays, (data.train, 3, 1)))))
        for sar, opt in rows[1:]:
            assert torch.equal(sar, rows[0][0]) and torch.equal(opt, rows[0][1])


def read_arrays(pairs, i, seed):
    return tuple(x.numpy() for x in pairs.read(i, np.random.default_rng(seed)))


# what is wrong with files ---------------------------------------------------------------------------------------------


def test_open_data_refuses_bad_files_by_name(tmp_path):
    write(tmp_path)
    good = (tmp_path / "sar" / "p3.png").read_bytes()

    def spoiled(content, *words, side="sar", **keys):
        path = tmp_path / side / "p3.png"
        before = path.read_bytes()
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
        refused(config(tmp_path, **keys), str(path), *words, read=True)
        path.write_bytes(before)

    spoiled(b"<html>", "1 of 10 pairs cannot be used", "begins with b'<html>'")
    spoiled(b"", "is empty")
    spoiled(good[: len(good) // 2], "damaged PNG")
    spoiled(good[: len(good) // 2], "1 of 10 pairs", "damaged PNG", verify="full")
    spoiled(Image.new("RGB", (13, 11), (1, 2, 3)), "expected the SAR bands VV, found 3 band(s)")
    spoiled(Image.new("L", (12, 11)), "1 of 10 pairs cannot be used", "unequal size", "12 x 11 px", "13 x 11 px")
    spoiled(Image.new("L", (12, 11)), "unequal size", side="opt", verify="off")
    spoiled(Image.new("LA", (13, 11)), "no valid SAR pixel among 143")
    deep = deep_png(tmp_path / "deep.png", np.arange(35, dtype=np.uint16).reshape(1, 5, 7) * 100, 0).read_bytes()
    spoiled(Image.new("RGB", (13, 11)).resize((7, 5)), "unequal size")
    (tmp_path / "deep.png").unlink()
    for side in ("sar", "opt"):
        (tmp_path / side / "p3.png").write_bytes(deep)
    refused(config(tmp_path), "found uint16 with values 0..3400; set data.sar: {scale: uint16, clip: [0, 3400]}")


def test_all_bad_files_are_counted_and_five_named(tmp_path):
    write(tmp_path)
    for k in range(7):
        (tmp_path / "sar" / f"p{k}.png").write_bytes(b"x")
    text = refused(config(tmp_path), "7 of 10 pairs cannot be used")
    assert "p4.png" in text and "p5.png" not in text


def test_a_link_that_leaves_the_root_later_is_not_followed(tmp_path):
    data = open_data(config(write(tmp_path / "data")))
    path = tmp_path / "data" / data.train.paths[0][0]
    (tmp_path / "secret.png").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="lies outside the root"):
        data.train.read(0, None)


# what open_data says --------------------------------------------------------------------------------------------------


def test_the_summary_fits_a_terminal_and_says_what_counts(tmp_path):
    data = open_data(config(write(tmp_path)))
    text = data.summary()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("train           7", "val             2", "test            1", "random split: neighbouring",
                  "13 x 11 px", "sar uint8", "statistics of 7 of 7", "VV uint8 p1 "):  # fmt: skip
        assert words in text, words
    assert data.list_hashes.keys() == {"train", "val", "test"}
    assert sorted([*data.train.ids, *data.val.ids, *data.test.ids]) == sorted(f"p{k}" for k in range(10))


def test_statistics_are_those_of_the_training_pixels(tmp_path):
    for side in ("sar", "opt"):
        (tmp_path / side).mkdir()
    rng, images = np.random.default_rng(0), []
    for k in range(40):
        x = rng.normal(-12, 4, (9, 9)).astype(np.float32)
        x[0, :3] = np.nan
        np.save(tmp_path / "sar" / f"{k}.npy", x)
        Image.new("RGB", (9, 9), (k, 100, 7)).save(tmp_path / "opt" / f"{k}.png")
        images.append(x)
    keys = {"test_fraction": 0, "val_fraction": 0, "sar": {"scale": "db", "clip": [-20, -4]}}
    data = open_data(config(tmp_path, **keys))
    facts, values = data.statistics["sar"]["VV"], np.stack(images).astype(np.float64)
    values = values[np.isfinite(values)]
    assert facts["mean"] == pytest.approx(values.mean(), abs=1e-6) and facts["std"] == pytest.approx(
        values.std(), abs=1e-6
    )
    assert (facts["min"], facts["max"]) == (
        pytest.approx(values.min(), abs=1e-6),
        pytest.approx(values.max(), abs=1e-6),
    )
    for q, found in facts["percentiles"].items():  # a bin of 0.01 dB, and the rule between two pixels
        assert found == pytest.approx(np.percentile(values, float(q), method="inverted_cdf"), abs=0.0051)
    assert data.statistics["nodata"] == data.statistics["nan"] == pytest.approx(3 / 81, abs=1e-6)
    assert data.statistics["opt"]["mean"] == pytest.approx([19.5, 100, 7])
    kept = 100 * np.mean((values >= -20) & (values <= -4))
    said = data.summary().split("(clip -20..-4 keeps ")[1].split(" %")[0]
    assert float(said) == pytest.approx(kept, abs=1.0)  # interpolated between stored percentiles
    p = data.sar_percentiles[0]
    assert p == pytest.approx(
        np.clip((np.array([facts["percentiles"][q] for q in ("0.1", "1", "99", "99.9")]) + 12) / 8, -1, 1), abs=1e-6
    )


def test_grey_optical_pictures_count_as_three_equal_bands(tmp_path):
    write(tmp_path)
    for k in range(10):
        Image.fromarray(np.full((11, 13), 50 + k, np.uint8)).save(tmp_path / "opt" / f"p{k}.png")
    _, opt = levels(open_data(config(tmp_path)).train.read(0, None))
    assert opt.shape == (3, 8, 8) and len(np.unique(opt)) == 1


def test_two_band_db_tiles_end_to_end(tmp_path):
    for side in ("sar", "opt"):
        (tmp_path / side).mkdir()
    x = np.random.default_rng(0).uniform(-25, 0, (9, 9, 2)).astype(np.float32)
    for k in range(3):
        np.save(tmp_path / "sar" / f"{k}.npy", x)
        Image.new("RGB", (9, 9)).save(tmp_path / "opt" / f"{k}.png")
    keys = {
        "resolution": 9,
        "test_fraction": 0,
        "sar": {"bands": ["VV", "VH"], "scale": "db", "clip": [[-25, 0], [-50, 0]]},
    }
    sar, _ = open_data(config(tmp_path, **keys)).train.read(0, None)
    expected = np.moveaxis(x, 2, 0) / np.array([12.5, 25])[:, None, None] + 1
    assert np.allclose(sar.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data")
@pytest.mark.parametrize(
    ("name", "regex", "count", "scenes"),
    [("s1s2_cities", r"^(\d+)_", 160, 10), ("sen12_terrain", r"^(ROIs\d+_[a-z]+_\d+)_p\d+$", 60, 4)],
)
def test_real_data(name, regex, count, scenes):
    data = open_data(config(REAL / name / "train", resolution=128, scene_regex=regex, split="scene"))
    splits = (data.train, data.val, data.test)
    assert sum(map(len, splits)) == count and all(map(len, splits))
    found = [{re.match(regex, i)[1] for i in pairs.ids} for pairs in splits]
    assert sum(map(len, found)) == len(set().union(*found)) == scenes
    for pairs in splits:
        sar, opt = pairs.read(len(pairs) - 1, np.random.default_rng(0))
        assert sar.shape == (1, 128, 128) and opt.shape == (3, 128, 128) and sar.std() > 0.05 and opt.std() > 0.02
    path = sorted((REAL / name / "train" / "sar").iterdir())[0]
    assert torch.equal(
        data.radiometry.read(path)[0], torch.from_numpy(np.asarray(Image.open(path), np.float32) / 127.5 - 1)[None]
    )


def test_the_digest_of_the_data_knows_turned_pairs_and_the_stretch_and_not_the_fill():
    """What a resume compares beside the lists of ids."""
    cfg = {"layout": "generated", "resolution": 32, "generated": {"train": 4, "val": 0, "test": 0}}
    data = open_data(DataConfig.model_validate(cfg))
    plain, southern = (SimpleNamespace(ids=["a", "b"], turns=[(0, False), (n, False)]) for n in (0, 2))
    assert replace(data, train=plain).digest == data.digest != replace(data, train=southern).digest
    assert replace(data, train=southern).turned == ["b"]
    median = data.radiometry.model_copy(update={"median": (1.0,)})
    assert replace(data, radiometry=median).digest == data.digest
    stretch = data.radiometry.model_copy(update={"percentiles": ((0.0, 1.0),)})
    assert replace(data, radiometry=stretch).digest != data.digest
