"""Generated pairs obey the laws that they claim: speckle, geometry, and one ground under two sensors."""

import time

import numpy as np
import pytest
import torch

from sar2opt.data import DataConfig, SarConfig, open_data
from sar2opt.data import generated as g


def pairs(split="train", count=6, size=48, seed=0, looks=4.0, bands=("VV",), scale="uint8", changes=0):
    return g.GeneratedPairs(split, count, size, seed, looks, bands, scale, changes)


def ground(cover, height=0.0, relief=0.0):
    """Without wetness and texture."""
    flat = np.zeros(cover.shape, np.float32)
    return g.Ground(cover, flat + height, flat, flat + relief, flat)


@pytest.mark.parametrize("looks", [1, 4, 9.5])
def test_speckle_has_mean_1_and_variance_1_over_looks(looks):
    x = g.speckle(np.random.default_rng(0), looks, (400, 400)).astype(np.float64)
    assert x.min() > 0
    assert x.mean() == pytest.approx(1, abs=5 * looks**-0.5 / 400)
    # the variance of a sample variance is (mu4 - var^2)/n; a gamma has mu4 = 3 var^2 (1 + 2/looks)
    assert x.var() == pytest.approx(1 / looks, rel=5 * (2 + 6 / looks) ** 0.5 / 400)


def test_speckle_in_the_image_has_its_number_of_looks():
    """On open water nothing but speckle varies: ENL = mean^2 / variance of the power above the noise floor."""
    from scipy.ndimage import binary_erosion

    for looks in (2.0, 8.0):
        enl = []
        for i in range(40):
            sar, opt = g.scene(0, "train", i, 64, looks)
            water = np.abs(opt.astype(int) - np.array(g.COLOUR[g.WATER])[:, None, None]).max(0) < 14
            water = binary_erosion(water, iterations=7)  # houses on the shore lean over the water
            if water.sum() > 200:
                power = 10 ** (sar[0].astype(np.float64) / 10) - 10 ** (g.NOISE_FLOOR / 10)
                enl.append(power[water].mean() ** 2 / power[water].var())
        assert len(enl) > 3 and np.mean(enl) == pytest.approx(looks, rel=0.1)


def test_a_pair_is_a_function_of_seed_split_and_index_only():
    whole, few = pairs(), pairs(count=3)
    for a, b in zip(whole.pixels(2), few.pixels(2), strict=True):
        assert np.array_equal(a, b)
    others = [pairs(seed=1), pairs(split="val"), pairs(split="test")]
    seen = {p.pixels(i)[1].tobytes() for p in [whole, *others] for i in range(6)}
    assert len(seen) == 24
    assert len({name for p in [whole, *others] for name in p.ids}) == 24


def test_fewer_bands_are_a_part_of_more_and_8_bit_is_the_stretched_db():
    both, sar_vh = pairs(bands=("VV", "VH"), scale="db").pixels(1)[0], pairs(bands=("VH",), scale="db").pixels(1)[0]
    assert np.array_equal(both[1:], sar_vh) and both.dtype == np.float32
    assert np.array_equal(pairs().pixels(1)[0], g.stretched(both[:1]))
    assert g.stretched(np.array([-30.0, -25, -12.5, 0, 9])).tolist() == [0, 0, 128, 255, 255]  # 127.5 -> 128
    assert np.median(both[0] - both[1]) == pytest.approx(7, abs=1.5)  # VH is weaker than VV


def test_classes_scatter_as_their_table_says():
    """Without houses, slope, wetness and texture, sigma0 is the table's."""
    cover = np.tile(np.arange(8, dtype=np.uint8), (5, 1))
    power = g.backscatter(ground(cover))
    table = np.array([g.BACKSCATTER[c] for c in range(8)]).T
    assert np.allclose(10 * np.log10(power), np.repeat(table[:, None], 5, 1), rtol=0, atol=1e-4)


def test_a_slope_towards_the_radar_is_brighter():
    cover = np.full((3, 4), g.GRASS, np.uint8)
    rising = g.backscatter(ground(cover, relief=0.1 * np.arange(4, dtype=np.float32)))  # the radar is on the left
    assert np.allclose(10 * np.log10(rising / g.backscatter(ground(cover))), 1, rtol=0, atol=1e-4)


def test_changes_show_in_one_image_only_and_leave_the_rest_its_bits():
    both = {"bands": ("VV", "VH"), "scale": "db"}
    plain, planted = pairs(**both, count=20), pairs(**both, count=20, changes=3)
    shares, one_sided = [], 0
    for i in range(20):
        mask, sides = planted.mask(i), planted.sides(i)
        (sar, opt), (sar_then, opt_then) = planted.pixels(i), plain.pixels(i)
        in_sar, in_opt = (sar != sar_then).any(0), (opt != opt_then).any(0)
        differs = in_sar | in_opt
        assert not (differs & ~mask).any() and in_sar.any() and in_opt.any()
        assert not (in_sar & ~sides[0]).any() and not (in_opt & ~sides[1]).any() and (mask == sides.any(0)).all()
        shares.append(differs.sum() / mask.sum())
        one_sided += (in_sar & ~in_opt).sum() + (in_opt & ~in_sar).sum()
    assert np.mean(shares) > 0.97  # the rest is lost in the noise floor or in rounding
    assert one_sided > 0.8 * sum(planted.mask(i).sum() for i in range(20))  # objects may touch


def test_one_change_is_on_one_side_and_either_side_has_its_turn():
    sides = set()
    for i in range(12):
        (sar, opt), (sar_then, opt_then) = pairs(count=12, changes=1).pixels(i), pairs(count=12).pixels(i)
        shows = (not np.array_equal(sar, sar_then), not np.array_equal(opt, opt_then))
        assert sum(shows) == 1
        sides.add(shows)
    assert len(sides) == 2


def test_changes_are_a_function_of_seed_split_and_index():
    masks = [p.mask(i) for p in (pairs(changes=3), pairs(changes=3, seed=1), pairs("val", changes=3)) for i in (0, 1)]
    assert len({mask.tobytes() for mask in masks}) == 6 and all(0 < mask.mean() < 0.6 for mask in masks)
    again = pairs(count=1, changes=3, looks=1.0)  # neither speckle nor the number of pairs moves them
    assert np.array_equal(again.mask(0), masks[0])
    assert np.array_equal(pairs(changes=3).pixels(1)[0], pairs(changes=3).pixels(1)[0])
    assert not pairs().mask(0).any()


def test_each_kind_of_change_stands_where_it_belongs():
    """On water a ship, never soil; houses with height on open land; bare soil in forest and town; and a house keeps off
    the water beside it."""
    seen = {}
    for cover in (g.WATER, g.FOREST, g.GRASS):
        before = ground(np.full((48, 48), cover, np.uint8))
        after = [g.change(np.random.default_rng(k), before, before) for k in range(20)]
        seen[cover] = {int(c) for a in after for c in np.unique(a.cover)} - {cover}
        assert all((a.cover != cover).any() and ((a.height > 0) == (a.cover == g.ROOF)).all() for a in after)
    assert seen == {g.WATER: {g.ROOF}, g.FOREST: {g.SOIL}, g.GRASS: {g.ROOF, g.ROAD}}
    town = ground(np.full((48, 48), g.ROOF, np.uint8))._replace(height=np.full((48, 48), 10, np.float32))
    after = g.change(np.random.default_rng(0), town, town)
    gone = after.cover == g.SOIL
    assert gone.any() and ((after.height == 0) == gone).all()
    shore = ground(np.where(np.arange(48) < 24, g.WATER, g.GRASS).astype(np.uint8)[None].repeat(48, 0))
    for k in range(40):
        after = g.change(np.random.default_rng(k), shore, shore)
        new = after.cover != shore.cover
        assert len(np.unique(shore.cover[new])) == 1  # a ship stays on the water, a house off it


@pytest.mark.parametrize("height", [8.0, 24.0, 40.0])
def test_houses_throw_shadow_away_from_the_radar_and_lean_towards_it(height):
    map_ = np.zeros((9, 40), np.float32)
    map_[3:6, 20:24] = height
    shadow, overlaid, corner = g.house_geometry(map_)
    length = height * np.tan(g.INCIDENCE) / g.PIXEL  # of the shadow on flat ground, px
    behind = np.flatnonzero(shadow[4])
    assert behind.size == int(np.ceil(length)) - 1  # whole pixels whose far edge the wall still hides
    assert (behind == 24 + np.arange(behind.size)).all()
    assert overlaid[4].sum() == pytest.approx(height / np.tan(g.INCIDENCE) / g.PIXEL, rel=1e-6)  # layover, px
    assert overlaid[4, 19] > 0 and not overlaid[4, 20:].any()
    assert np.flatnonzero(corner[4]).tolist() == [19]
    for picture in (shadow, overlaid, corner):
        assert not picture[:3].any() and not picture[6:].any()


def test_the_optical_picture_can_be_told_from_the_sar_image():
    """What a lookup by local mean backscatter explains is far more than nothing, and far less than everything."""
    from scipy.ndimage import uniform_filter

    drawn = [pairs(count=60, size=64).pixels(i) for i in range(60)]
    opt = np.stack([o for _, o in drawn]).astype(np.float64)
    level = uniform_filter(np.stack([s[0] for s, _ in drawn]).astype(np.float64), (0, 3, 3)).astype(int).ravel()
    count = np.maximum(np.bincount(level, minlength=256), 1)
    guess = np.stack([(np.bincount(level, c, 256) / count)[level] for c in opt.swapaxes(0, 1).reshape(3, -1)])
    rest = np.mean((guess - opt.swapaxes(0, 1).reshape(3, -1)) ** 2)
    colour = np.mean((opt - opt.mean((0, 2, 3), keepdims=True)) ** 2)  # what the mean colour leaves
    assert 0.4 < rest / colour < 0.75


def test_a_pair_takes_milliseconds():
    for size, limit in ((64, 5), (256, 40)):
        made, spent = pairs(count=12, size=size), []
        for i in range(12):
            start = time.process_time()
            made.pixels(i)
            spent.append(time.process_time() - start)
        assert min(spent) * 1000 < limit * 2  # of processor time, on a slower machine


@pytest.mark.parametrize("sar", [SarConfig(), SarConfig(bands=("VV", "VH"), scale="db", clip=((-25.0, 0.0),)),
                                 SarConfig(scale="db", norm="meanstd")])  # fmt: skip
def test_open_data_reads_them_through_the_same_radiometry(sar):
    data = open_data(DataConfig(layout="generated", resolution=24, sar=sar))
    made, opt = data.train.read(5, None)
    raw = g.GeneratedPairs("train", 6, 24, 0, 4.0, sar.bands, sar.scale).pixels(5)
    assert torch.equal(made, data.radiometry.normalise(raw[0]))
    assert torch.equal(opt, torch.from_numpy(raw[1].astype(np.float32)) / 127.5 - 1)
    assert made.shape == (len(sar.bands), 24, 24) and made.abs().max() <= 1
    turned = [data.train.read(5, np.random.default_rng(s))[1] for s in range(30)]
    assert len({x.numpy().tobytes() for x in turned}) == 8
    assert len(data.list_hashes) == 3 and len(set(data.list_hashes.values())) == 3
    assert (len(data.train), len(data.val), len(data.test)) == (4096, 32, 64)
    assert max(map(len, data.summary().splitlines())) <= 80
