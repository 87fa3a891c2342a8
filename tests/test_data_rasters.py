"""Reading: stored values arrive unchanged, whatever the format; what is no image is refused by name."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sar2opt.config import UserError
from sar2opt.data.rasters import read_header, read_raster

REAL = Path(os.environ.get("SAR2OPT_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
RNG = np.random.default_rng(0)
H, W = 5, 7


def levels(bands, dtype="uint8"):
    return RNG.integers(0, np.iinfo(dtype).max + 1, (bands, H, W), dtype=dtype)


def tiff(path, pixels, **tags):
    import rasterio

    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    mask, names = tags.pop("mask", None), tags.pop("names", ())
    with rasterio.open(path, "w", **profile, **tags) as file:
        file.write(pixels)
        if mask is not None:
            file.write_mask(mask)
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
    return path


def deep_png(path, pixels, colour):
    """A 16-bit PNG written by hand; no library in use writes all of them."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.moveaxis(pixels, 0, 2))
    chunks = [
        (b"IHDR", struct.pack(">2I5B", W, H, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("bands", [1, 3])
def test_png_of_8_bit_is_read_exactly(tmp_path, bands):
    pixels = levels(bands)
    Image.fromarray(np.moveaxis(pixels, 0, 2).squeeze()).save(tmp_path / "a.png")
    raster = read_raster(tmp_path / "a.png")
    assert np.array_equal(raster.pixels, pixels) and raster.valid.all() and not raster.lossy
    assert read_header(tmp_path / "a.png")[:4] == (H, W, bands, "uint8")


@pytest.mark.parametrize(("bands", "colour"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_png_of_16_bit_keeps_its_low_byte(tmp_path, bands, colour):
    pixels = levels(bands, "uint16")
    pixels[-1, 0, 0] = 0
    raster = read_raster(deep_png(tmp_path / "a.png", pixels, colour))
    plain = bands - (bands % 2 == 0)  # without alpha
    assert raster.pixels.dtype == np.uint16 and np.array_equal(raster.pixels, pixels[:plain])
    assert raster.valid[0, 0] == (plain == bands)
    assert read_header(tmp_path / "a.png")[2:4] == (plain, "uint16")


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_becomes_the_mask(tmp_path, mode):
    pixels = levels(len(mode))
    pixels[-1] = 255
    pixels[-1, 1, 2] = 0
    Image.fromarray(np.moveaxis(pixels, 0, 2), mode).save(tmp_path / "a.png")
    raster = read_raster(tmp_path / "a.png")
    assert np.array_equal(raster.pixels, pixels[:-1])
    assert not raster.valid[1, 2] and raster.valid.sum() == H * W - 1


def test_palettes_bits_and_transparent_colours(tmp_path):
    indices = RNG.integers(0, 4, (H, W), dtype=np.uint8)
    palette = np.array([[9, 8, 7], [200, 0, 1], [3, 3, 3], [255, 254, 253]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.ravel().tolist())
    image.save(tmp_path / "p.png")
    assert np.array_equal(read_raster(tmp_path / "p.png").pixels, np.moveaxis(palette[indices], 2, 0))
    bits = RNG.random((H, W)) < 0.5
    Image.fromarray(bits).save(tmp_path / "1.png")
    assert np.array_equal(read_raster(tmp_path / "1.png").pixels[0], bits * 255)
    grey = levels(1)[0]
    Image.fromarray(grey).save(tmp_path / "t.png", transparency=int(grey[2, 3]))
    assert np.array_equal(read_raster(tmp_path / "t.png").valid, grey != grey[2, 3])


def test_the_orientation_of_a_jpeg_is_applied(tmp_path):
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    raster = read_raster(tmp_path / "a.jpg")
    assert raster.lossy and raster.pixels.shape == (1, 32, 16)
    assert raster.pixels[0, :, 12].min() > 240 and raster.pixels[0, :, 4].max() < 15
    header = read_header(tmp_path / "a.jpg")
    assert (header.height, header.width, header.orientation) == (32, 16, 6)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiff_of_any_bands_and_type_is_read_exactly(tmp_path, bands, dtype):
    pixels = (RNG.normal(-12, 5, (bands, H, W)) if dtype == "float32" else levels(bands, dtype)).astype(dtype)
    names = [f"B{k}" for k in range(bands)]
    path = tiff(tmp_path / "a.tif", pixels, names=names, photometric="MINISBLACK", ALPHA="NO")
    raster = read_raster(path)
    assert raster.pixels.dtype == dtype and np.array_equal(raster.pixels, pixels) and raster.valid.all()
    assert raster.descriptions == tuple(names)
    assert read_header(path) == (H, W, bands, dtype, tuple(names), 1)


def test_masks_of_a_tiff_nodata_nan_and_mask_band(tmp_path):
    pixels = RNG.normal(-12, 5, (2, H, W)).astype(np.float32)
    pixels[0, 0, 0], pixels[1, 1, 1], pixels[:, 2, 2] = np.nan, np.inf, -99
    pixels[1, 3, 3] = -99  # in one band only: a fill value is no backscatter
    expected = np.ones((H, W), bool)
    for k in range(4):
        expected[k, k] = False
    assert np.array_equal(read_raster(tiff(tmp_path / "a.tif", pixels, nodata=-99)).valid, expected)
    zero = levels(3) | 1
    zero[0, 0, 0], zero[:, 1, 1] = 0, 0
    valid = read_raster(tiff(tmp_path / "b.tif", zero, nodata=0)).valid
    assert valid[0, 0] and not valid[1, 1]  # a pure colour has a zero somewhere; nothing has only zeros
    mask = RNG.random((H, W)) < 0.5
    assert np.array_equal(read_raster(tiff(tmp_path / "c.tif", levels(1), mask=mask)).valid, mask)


@pytest.mark.parametrize("array", [np.zeros((H, W), "<f4"), np.ones((H, W, 2), ">f8"), np.ones((H, W, 1), "u2")])
def test_npy_is_read_as_height_width_bands(tmp_path, array):
    array[1, 2] = 3
    np.save(tmp_path / "a.npy", array)
    raster = read_raster(tmp_path / "a.npy")
    assert raster.pixels.dtype.isnative
    assert np.array_equal(raster.pixels, np.moveaxis(array.reshape(H, W, -1), 2, 0))


def refused(path, words, max_pixels=2**27):
    for read in (read_raster, read_header):
        with pytest.raises(UserError) as error:
            read(path, max_pixels)
        assert words in str(error.value) and str(path) in str(error.value)


def test_files_that_are_no_images_are_refused_by_name(tmp_path):
    (tmp_path / "page.png").write_text("<!DOCTYPE html><html>404</html>")
    refused(tmp_path / "page.png", "begins with b'<!DOCTYPE html><")
    (tmp_path / "empty.png").write_bytes(b"")
    refused(tmp_path / "empty.png", "is empty (0 bytes)")
    np.save(tmp_path / "o.npy", np.array([["a", None]], dtype=object), allow_pickle=True)
    refused(tmp_path / "o.npy", "damaged NPY")
    np.save(tmp_path / "c.npy", np.zeros((3, 3), complex))
    refused(tmp_path / "c.npy", "complex128 [3, 3]; expected real numbers [H,W] or [H,W,bands]")
    np.save(tmp_path / "v.npy", np.zeros(3))
    refused(tmp_path / "v.npy", "float64 [3]")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.npy"])
def test_truncated_files_are_refused_and_not_half_read(tmp_path, name):
    pixels = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
    path = tmp_path / name
    np.save(path, pixels) if name == "a.npy" else Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{name}: damaged .* of {len(whole) // 2} bytes"):
        read_raster(path)


def test_too_many_pixels_are_refused_from_the_header(tmp_path):
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "40 x 30 = 1200 pixels; the limit data.max_pixels is 1199", max_pixels=1199)
    assert read_header(tmp_path / "a.png", 1200).width == 40
    bomb = bytearray((tmp_path / "a.png").read_bytes())
    bomb[16:24] = struct.pack(">2I", 50000, 50000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bytes(bomb))
    refused(tmp_path / "bomb.png", "")


@pytest.mark.parametrize(
    "name",
    ["/vsicurl/http://127.0.0.1:9/a.tif", "http://127.0.0.1:9/a.tif", "-a.tif", "a\nb.tif", "/vsizip/a.zip/b.tif"],
)
def test_names_that_gdal_would_interpret_are_refused(name, monkeypatch):
    import rasterio

    monkeypatch.setattr(rasterio, "open", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(UserError, match="refused: expected a local file name"):
        read_raster(name)


def test_a_vrt_named_tif_reads_nothing(tmp_path):
    secret = tiff(tmp_path / "secret.tif", levels(1))
    vrt = f'<VRTDataset rasterXSize="{W}" rasterYSize="{H}"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
    vrt += f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    (tmp_path / "evil.tif").write_text(vrt)
    refused(tmp_path / "evil.tif", "begins with b'<VRTDataset rast'")
    (tmp_path / "half.tif").write_bytes(b"II*\0" + vrt.encode())
    refused(tmp_path / "half.tif", "damaged TIFF")


def test_gdal_is_asked_for_one_format_and_a_whole_path(tmp_path, monkeypatch):
    import rasterio

    path, calls, opened = tiff(tmp_path / "a.tif", levels(1)), [], rasterio.open
    monkeypatch.setattr(rasterio, "open", lambda *a, **k: calls.append((a, k)) or opened(*a, **k))
    monkeypatch.chdir(tmp_path)
    read_raster("a.tif")
    assert calls == [((str(path),), {"driver": "GTiff"})]


def test_a_folder_or_a_missing_file_is_no_image(tmp_path):
    refused(tmp_path, "no such file")
    refused(tmp_path / "x.png", "no such file")


@pytest.mark.skipif(not (REAL / "scenes").is_dir(), reason="no real data")
def test_real_scenes():
    spain = read_raster(REAL / "scenes" / "spain_s1_vv_vh_db_512.tif")
    assert spain.descriptions == ("VV", "VH") and spain.pixels.shape == (2, 512, 512)
    assert -30 < np.median(spain.pixels[0][spain.valid]) < 0
    camargue = read_raster(REAL / "scenes" / "camargue_s1_vv_db_268x217.tif")
    assert camargue.pixels.shape == (1, 217, 268) and camargue.pixels[0][camargue.valid].min() > -99
