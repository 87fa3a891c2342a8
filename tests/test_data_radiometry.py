"""SAR values become [-1, 1] by the declared rule, and back; a wrong declaration is refused with the one that fits."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sar2opt.config import UserError
from sar2opt.data import DataConfig, OptConfig, SarConfig, SarRadiometry, to_uint8
from sar2opt.data.radiometry import image_percentiles, normalise_opt
from tests.test_data_rasters import tiff

RNG = np.random.default_rng(1)


def make(**settings):
    return SarRadiometry.from_dict({"bands": ["VV"], **settings})


def row(*values, dtype=np.float32):
    return np.array(values, dtype)[None, None]


def test_minmax_of_db():
    found = make(scale="db", clip=[-25, 0]).normalise(row(-30, -25, -12.5, -5, 0, 3))
    assert torch.allclose(found[0, 0], torch.tensor([-1, -1, 0, 0.6, 1, 1]), rtol=0, atol=1e-6)  # float32


def test_uint8_is_exact_and_its_round_trip_as_well():
    found = make().normalise(row(0, 127, 128, 255, dtype=np.uint8))[0, 0]
    assert torch.allclose(found, torch.tensor([-1, -0.0039215686, 0.0039215686, 1]), rtol=0, atol=1e-7)
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert np.array_equal(to_uint8(make().normalise(every)).numpy(), every)


def test_outputs_are_rounded_half_to_even_and_never_wrap():
    halves = torch.tensor([0.5, 1.5, 2.5, 253.5]) / 127.5 - 1
    exact = ((halves + 1) * 127.5).double()
    assert torch.equal(to_uint8(halves).double(), exact.round())
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 1.0, 7.0])).tolist() == [0, 0, 128, 255, 255]  # 127.5 -> 128


def test_linear_and_amplitude_become_db_above_the_floor():
    power = row(0, 1e-3, 0.1, 1)
    expected = np.array([-30, -30, -10, 0])
    assert np.allclose(make(scale="linear", clip=[-25, 0]).scaled(power), expected, rtol=0, atol=1e-5)
    assert np.allclose(make(scale="amplitude", clip=[-25, 0]).scaled(np.sqrt(power)), expected, rtol=0, atol=1e-5)
    db = make(scale="db", clip=[-25, 0]).normalise(row(-30, -30, -10, 0))
    assert torch.allclose(make(scale="linear", clip=[-25, 0]).normalise(power), db, rtol=0, atol=1e-6)


def test_percentiles_of_an_image_with_and_without_its_zeros():
    values = np.concatenate([np.zeros(4000), np.arange(1, 6001) / 100]).reshape(1, 100, 100)
    assert np.allclose(image_percentiles(values, None), [[0, 59.0001]], rtol=0, atol=1e-9)
    assert np.allclose(image_percentiles(values, values[0] > 0), [[0.6099, 59.4001]], rtol=0, atol=1e-9)
    for included, low, high in ((True, 0, 59.0001), (False, 0.6099, 59.4001)):
        # declared as dB: taken as it is
        r = make(scale="db", norm="percentile_image", nodata=0.0, include_nodata=included)
        assert np.allclose(r.limits(values.astype(np.float32)), [[low, high]], rtol=0, atol=1e-5)


def test_a_constant_image_stays_finite():
    found = make(scale="db", norm="percentile_image").normalise(np.full((1, 3, 4), -7, np.float32))
    assert torch.equal(found, torch.full((1, 3, 4), -1.0))


def test_each_band_has_its_own_clip():
    r = make(bands=["VV", "VH"], scale="db", clip=[[-25, 0], [-32.5, 0]])
    found = r.normalise(np.array([[[-25, 0.0]], [[-32.5, -16.25]]], np.float32))
    assert torch.equal(found, torch.tensor([[[-1.0, 1]], [[-1, 0]]]))
    one = make(bands=["VV", "VH"], scale="db", clip=[-25, 0]).normalise(np.full((2, 1, 1), -12.5, np.float32))
    assert torch.equal(one, torch.zeros(2, 1, 1))


def statistics(**facts):
    quantiles = {"0.1": -28.0, "1": -25.0, "2": -24.0, "50": -12.0, "98": -3.0, "99": -1.0, "99.9": 1.0}
    return {"sar": {"VV": {"mean": -12.0, "std": 4.0, "percentiles": quantiles, **facts}}}


def test_norms_of_the_training_split():
    r = SarRadiometry.resolve(SarConfig(scale="db", norm="meanstd"), statistics())
    found = r.normalise(row(-12, -8, 0, 4, -80))[0, 0]
    assert torch.allclose(found, torch.tensor([0, 1 / 3, 1, 1, -1]), rtol=0, atol=1e-6)
    r = SarRadiometry.resolve(SarConfig(scale="db", norm="percentile"), statistics())
    assert torch.allclose(r.normalise(row(-25, -13, -1, 5))[0, 0], torch.tensor([-1.0, 0, 1, 1]), rtol=0, atol=1e-6)
    assert r.normed_statistics(statistics()) == ((-1, -1, 1, 1),)
    with pytest.raises(UserError, match="norm: meanstd needs the statistics"):
        SarRadiometry.resolve(SarConfig(scale="db", norm="meanstd"), None)


def test_invalid_pixels_take_the_median_of_the_valid_ones():
    r = make(bands=["VV", "VH"], scale="db", clip=[-20, 0])
    pixels = np.array([[[-2, -4, -6, np.nan]], [[-10, np.nan, -14, -12]]], np.float32)
    found = r.normalise(pixels)  # column 1 and 3 are invalid: a pixel needs both bands
    assert torch.allclose(found[0, 0], torch.tensor([0.8, 0.6, 0.4, 0.6]), rtol=0, atol=1e-6)
    assert torch.allclose(found[1, 0], torch.tensor([0, -0.2, -0.4, -0.2]), rtol=0, atol=1e-6)
    alone = SarRadiometry.resolve(SarConfig(scale="db", clip=((-20.0, 0.0),)), statistics())
    assert torch.allclose(alone.normalise(row(np.nan, np.nan)), torch.tensor(-0.2), rtol=0, atol=1e-6)  # of training


def test_declared_nodata_is_a_pixel_with_that_value_in_all_bands():
    r = make(bands=["VV", "VH"], scale="uint8", nodata=0.0)
    pixels = np.array([[[0, 0, 100, 200]], [[0, 50, 100, 200]]], np.uint8)
    assert to_uint8(r.normalise(pixels)).tolist() == [[[100, 0, 100, 200]], [[100, 50, 100, 200]]]


@pytest.mark.parametrize(
    "cfg",
    [
        SarConfig(),
        SarConfig(bands=("VV", "VH"), scale="db", clip=((-25.0, 0.0), (-32.5, 0.0)), nodata=-99.0),
        SarConfig(scale="linear", norm="meanstd", floor=1e-4),
        SarConfig(scale="uint16", norm="percentile"),
    ],
)
def test_the_model_folder_keeps_every_number(cfg):
    facts = {"sar": {band: statistics()["sar"]["VV"] for band in cfg.bands}}
    r = SarRadiometry.resolve(cfg, facts)
    again = SarRadiometry.from_dict(json.loads(json.dumps(r.to_dict())))
    pixels = RNG.integers(0, 200, (len(cfg.bands), 4, 5)).astype("uint16" if cfg.scale == "uint16" else "float32")
    pixels = pixels.astype("uint8") if cfg.scale == "uint8" else pixels
    assert again == r and torch.equal(again.normalise(pixels), r.normalise(pixels))


def test_a_damaged_card_is_refused():
    for values, words in [
        ({"bands": ["VV"], "scale": "db", "norm": "meanstd"}, "lacks its numbers"),
        ({"bands": ["VV"], "scale": "sigma"}, "sar.scale"),
        ({"bands": [], "scale": "uint8"}, "at least one"),
        ({"bands": ["VV"], "what": 1}, "sar.what"),
    ]:
        with pytest.raises(UserError, match=words):
            SarRadiometry.from_dict(values)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale": "db"}, "clip: required by scale db"),
        ({"scale": "uint16"}, "clip: required by scale uint16"),
        ({"clip": [0, 255]}, "uint8 maps 0..255"),
        ({"scale": "db", "clip": [0, -25]}, "low < high"),
        ({"scale": "db", "clip": [-25]}, "low < high"),
        ({"scale": "db", "clip": [[-25, 0], [-25, 0]]}, "one pair, or 1"),
        ({"bands": ["VV", "VV"]}, "different names"),
        ({"include_nodata": True}, "only norm percentile_image"),
    ],
)
def test_contradictions_in_the_sar_section_are_refused(settings, words):
    tree = {"layout": "folders", "root": "x", "sar": settings}
    with pytest.raises(ValueError, match=words):
        DataConfig.model_validate_json(json.dumps(tree))


def test_bands_are_chosen_by_name_where_the_file_has_names(tmp_path):
    pixels = RNG.normal(-12, 3, (2, 5, 7)).astype(np.float32)
    path = tiff(tmp_path / "a.tif", pixels, names=["VV", "VH"])
    for bands, expected in [(["VH"], pixels[1:]), (["VH", "VV"], pixels[::-1]), (["VV", "VH"], pixels)]:
        assert np.array_equal(make(bands=bands, scale="db", clip=[-25, 0]).load(path)[0], expected)
    for bands in (["HH"], ["HH", "HV"]):
        with pytest.raises(UserError, match=r"found 2 band\(s\) named VV, VH; set data.sar.bands"):
            make(bands=bands, scale="db", clip=[-25, 0]).load(path)
    unnamed = tiff(tmp_path / "b.tif", pixels)
    assert np.array_equal(make(bands=["HH", "HV"], scale="db", clip=[-25, 0]).load(unnamed)[0], pixels)
    with pytest.raises(UserError, match=r"expected the SAR bands VV, found 2 band\(s\) without names"):
        make(scale="db", clip=[-25, 0]).load(unnamed)


def test_three_equal_bands_are_one_within_the_error_of_the_format(tmp_path):
    grey = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
    colour = np.repeat(grey[..., None], 3, 2)
    Image.fromarray(colour).save(tmp_path / "a.png")
    assert np.array_equal(make().load(tmp_path / "a.png")[0][0], grey)
    Image.fromarray(colour).save(tmp_path / "a.jpg", quality=90)
    assert make().load(tmp_path / "a.jpg")[0].shape == (1, 8, 8)
    colour[0, 0, 1] ^= 1
    Image.fromarray(colour).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"found 3 band\(s\)"):
        make().load(tmp_path / "b.png")
    assert make(bands=["R", "G", "B"]).load(tmp_path / "b.png")[0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("scale", "pixels", "words"),
    [
        ("uint8", row(0, 4000, dtype=np.uint16), "values 0..4000; set data.sar: {scale: uint16, clip: [0, 4000]}"),
        ("uint8", row(-20, -3), "set data.sar: {scale: db, clip: [-20, -3]}"),
        ("uint8", row(0.1, 2.5), "set data.sar: {scale: linear, clip: [-25, 0]}"),
        ("db", row(3, 200, dtype=np.uint8), "set data.sar: {scale: uint8}"),
        ("db", row(3, 200, dtype=np.uint16), "scale: db expects float, found uint16"),
    ],
)  # fmt: skip
def test_a_wrong_type_names_the_scale_that_fits(tmp_path, scale, pixels, words):
    np.save(tmp_path / "a.npy", pixels[0])
    r = make(scale=scale) if scale == "uint8" else make(scale=scale, clip=[-25, 0])
    for read in (lambda: r.load(tmp_path / "a.npy"), lambda: r.normalise(pixels)):
        with pytest.raises(UserError) as error:
            read()
        assert words in str(error.value)


def test_amplitude_may_be_stored_as_whole_numbers():
    found = make(scale="amplitude", clip=[0, 60]).normalise(row(1, 100, dtype=np.uint16))
    assert torch.allclose(found[0, 0], torch.tensor([-1, 1 / 3]), rtol=0, atol=1e-6)  # 0 and 40 dB


def test_an_image_without_a_valid_pixel_is_an_error(tmp_path):
    np.save(tmp_path / "a.npy", np.full((3, 4), np.nan, np.float32))
    with pytest.raises(UserError, match="a.npy: no valid SAR pixel among 12"):
        make(scale="db", clip=[-25, 0]).read(tmp_path / "a.npy")


def test_optical_16_bit_is_clipped_per_channel():
    cfg = OptConfig(scale="uint16", clip=((0.0, 3000.0),))
    pixels = np.array([0, 1500, 60000], np.uint16)[:, None, None]
    assert normalise_opt(pixels, cfg).flatten().tolist() == [-1, 0, 1]
    assert normalise_opt(
        pixels, OptConfig(scale="uint16", clip=((0.0, 1.0), (0.0, 3000.0), (0.0, 120000.0)))
    ).flatten().tolist() == [-1, 0, 0]
