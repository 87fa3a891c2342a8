"""What --confidence leaves on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import from_origin

import infer
from sar2opt import heatmap
from sar2opt.config import UserError
from sar2opt.data.rasters import read_georeference

from .test_latent import method

UTM = CRS.from_epsg(32611)
PLACE = from_origin(400_000, 3_700_000, 10, 10)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    method("cdiff.loss=beta_nll").pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def sar(tmp_path):
    folder = tmp_path / "sar"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 27), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(folder / "a.png")
    with rasterio.open(
        folder / "b.tif", "w", driver="GTiff", height=20, width=27, count=1, dtype="uint8", crs=UTM, transform=PLACE
    ) as file:
        file.write(pixels[1], 1)
    return folder


def run(model, sar, out, *flags):
    infer.main(["--model", str(model), "--input", str(sar), "--output", str(out), *flags])


def lines(out):
    return {Path(row["input"]).name: row for row in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}


def test_values_lie_where_the_input_lies_and_the_manifest_has_their_means(model, sar, tmp_path):
    out = tmp_path / "out"
    run(model, sar, out, "--confidence")
    names = {f"{stem}{end}" for stem in "ab" for end in (".png", "_confidence.png", "_confidence.tif")}
    assert {path.name for path in out.iterdir()} == names | {"manifest.jsonl"}
    with rasterio.open(out / "b_confidence.tif") as file:
        values = file.read(1)
        assert (file.crs, file.transform, file.dtypes, file.shape) == (UTM, PLACE, ("float32",), (20, 27))
    assert read_georeference(out / "a_confidence.tif") == {} == read_georeference(sar / "a.png")
    assert (values >= 0.1 * (1 - 1e-5)).all() and (values <= 1e6 * (1 + 1e-5)).all() and values.std() > 0
    row = lines(out)["b.tif"]
    assert row["confidence_mean"] == pytest.approx(values.astype(np.float64).mean(), rel=1e-9)
    assert row["confidence_gmean"] == pytest.approx(np.exp(np.log(values.astype(np.float64)).mean()), rel=1e-9)
    assert (row["confidence_t"], row["confidence_step"], row["steps"]) == (499, 1, 2)


def test_the_picture_is_the_one_without_confidence_and_finished_images_stay(model, sar, tmp_path):
    plain, both = tmp_path / "plain", tmp_path / "both"
    run(model, sar, plain)
    run(model, sar, both, "--confidence", "--batch-size", "1")
    for name in ("a.png", "b.png"):
        a, b = (np.asarray(Image.open(out / name)).astype(int) for out in (plain, both))
        assert np.abs(a - b).max() <= 1  # alone or in a batch: rounding
    stamps = {path.name: path.stat().st_mtime_ns for path in both.iterdir()}
    run(model, sar, both, "--confidence")
    assert {path.name: path.stat().st_mtime_ns for path in both.iterdir()} == stamps
    run(model, sar, plain, "--confidence")  # finished without: made again, with
    assert (plain / "a_confidence.tif").is_file()
    run(model, sar, plain)
    assert lines(plain)["a.png"]["confidence_space"] == "noise"


def test_x0_divides_by_the_noise_of_the_step(model, sar, tmp_path):
    for space in ("noise", "x0"):
        run(model, sar, tmp_path / space, "--confidence", "--confidence-space", space)
    noise, clean = (rasterio.open(tmp_path / s / "a_confidence.tif").read(1) for s in ("noise", "x0"))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.prod(1 - betas[:500])
    np.testing.assert_allclose(noise / clean, (1 - abar) / abar, rtol=1e-4)


def test_images_of_control_points_keep_them(tmp_path):
    points = [GroundControlPoint(row, column, 10.0 * column, -10.0 * row) for row in (0, 5) for column in (0, 7)]
    (tmp_path / "a.tif").write_bytes(heatmap.geotiff(np.ones((5, 7)), {"crs": UTM, "gcps": points}))
    with rasterio.open(tmp_path / "a.tif") as file:
        found, crs = file.gcps
    assert crs == UTM and [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]
    assert len(read_georeference(tmp_path / "a.tif")["gcps"]) == 4


def test_one_scale_makes_maps_comparable_and_minmax_does_not():
    one, ten = np.full((8, 8), 1.0), np.full((8, 8), 10.0)
    one[0, 0], ten[0, 0] = 0.1, 1.0
    pixel = (heatmap.MARGIN + 100, heatmap.MARGIN + 100)
    assert heatmap.picture(one, "beta_nll").getpixel(pixel) != heatmap.picture(ten, "beta_nll").getpixel(pixel)
    own = [heatmap.picture(x, "beta_nll", own_scale=True).getpixel(pixel) for x in (one, ten)]
    assert own[0] == own[1] == heatmap.COLOURS[-1]
    assert heatmap.picture(np.full((8, 8), 1e-1), "beta_nll").getpixel(pixel) == heatmap.COLOURS[0]
    assert heatmap.picture(np.full((8, 8), 1e3), "beta_nll").getpixel(pixel) == heatmap.COLOURS[-1]
    assert heatmap.picture(np.full((8, 8), 1.0), "laplace2").getpixel(pixel) == heatmap.COLOURS[-1]


def test_the_bar_carries_numbers():
    sheet = np.asarray(heatmap.picture(np.ones((200, 150)), "beta_nll"))
    right = sheet[:, 150 + 2 * heatmap.MARGIN + heatmap.BAR :]
    inked = np.flatnonzero((right.sum(2) < 300).any(1))
    groups = 1 + int((np.diff(inked) > 5).sum())
    assert groups == heatmap.TICKS


def test_a_model_without_confidence_and_a_taken_name_are_refused(model, sar, tmp_path):
    method().pipeline.save_pretrained(tmp_path / "stage1")
    with pytest.raises(UserError, match="has no confidence"):
        run(tmp_path / "stage1", sar, tmp_path / "out", "--confidence")
    Image.open(sar / "a.png").save(sar / "a_confidence.png")
    with pytest.raises(UserError, match="rename an input"):
        run(model, sar, tmp_path / "out", "--confidence")
    run(model, sar, tmp_path / "out")
