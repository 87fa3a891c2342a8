"""Image files -> arrays in their stored values, never through an 8-bit conversion.

The decoder follows the first bytes of a file, not its name. Paths are checked before GDAL sees them: to GDAL a name can
be a URL or a file system of its own, and a text file (VRT) can name any other file.
"""

import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..config import UserError

MAX_PIXELS = 2**27
MAX_BANDS = 64
ORIENTATION = 0x0112  # the EXIF tag
PNG, JPEG, TIFF, NPY = "PNG", "JPEG", "TIFF", "NPY"
MAGIC = {
    b"\x89PNG\r\n\x1a\n": PNG, b"\xff\xd8\xff": JPEG, b"\x93NUMPY": NPY,
    b"II*\0": TIFF, b"MM\0*": TIFF, b"II+\0": TIFF, b"MM\0+": TIFF,
}  # fmt: skip
# Pillow's modes of 8-bit files -> the mode that is read
MODES = {"1": "L", "L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA", "P": "RGB", "PA": "RGBA"}
DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class Header(NamedTuple):
    """What a file says of itself; ``bands`` without alpha."""

    height: int
    width: int
    bands: int
    dtype: str
    descriptions: tuple[str | None, ...] = ()
    orientation: int = 1  # of EXIF; height and width are those after it is applied


class Raster(NamedTuple):
    """pixels [C,H,W] as stored; valid [H,W] bool: alpha, nodata tag and finite values; names of the bands if stored."""

    pixels: np.ndarray
    valid: np.ndarray
    descriptions: tuple[str | None, ...] = ()
    lossy: bool = False


def read_raster(path: str | Path, max_pixels: int = MAX_PIXELS) -> Raster:
    """Decode one PNG, JPEG, TIFF or NPY file completely."""
    path = safe_file(path)
    kind = sniff(path)
    try:
        if kind == NPY:
            raster = _read_npy(path, max_pixels)
        elif kind == TIFF or (kind == PNG and _is_deep(path)):
            raster = _read_gdal(path, kind, max_pixels)
        else:
            raster = _read_pillow(path, max_pixels)
    except DECODER_ERRORS as error:
        raise _undecodable(path, kind, error) from None
    if raster.pixels.dtype.kind == "f":
        raster = raster._replace(valid=raster.valid & np.isfinite(raster.pixels).all(0))
    return raster


def read_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Size, bands and type of a file without decoding its pixels."""
    path = safe_file(path)
    kind = sniff(path)
    try:
        if kind == NPY:
            return _npy_header(path, max_pixels)[0]
        if kind == TIFF or (kind == PNG and _is_deep(path)):
            with _rasterio_open(path, kind) as source:
                return _gdal_header(path, source, max_pixels)
        with Image.open(path, formats=[kind]) as image:
            return _pillow_header(path, image, max_pixels)
    except DECODER_ERRORS as error:
        raise _undecodable(path, kind, error) from None


def read_easting(path: str | Path) -> tuple[str, float]:
    """The projection of a GeoTIFF, and the easting of its centre in m."""
    path = safe_file(path)
    if (kind := sniff(path)) != TIFF:
        raise UserError(f"{path}: a {kind} file does not say where it lies; a geographic split needs GeoTIFF")
    try:
        with _rasterio_open(path, kind) as source:
            crs, t = source.crs, source.transform
            easting = t.c + t.a * source.width / 2 + t.b * source.height / 2
    except DECODER_ERRORS as error:
        raise _undecodable(path, kind, error) from None
    if crs is None or not crs.is_projected or crs.linear_units_factor[1] != 1:
        raise UserError(f"{path}: a geographic split needs a projection in metres, found {crs or 'none'}")
    return crs.to_string(), float(easting)


def safe_file(path: str | Path) -> Path:
    """``path`` if it names a plain local file and nothing that GDAL would interpret."""
    text = str(path)
    if text.startswith(("/vsi", "-")) or "://" in text or any(ord(c) < 32 for c in text):
        raise UserError(f"{text!r}: refused: expected a local file name without URL, /vsi prefix or control characters")
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return path


def sniff(path: Path) -> str:
    """The kind of a file by its first bytes."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UserError(f"{path}: not readable: {error.strerror}") from None
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            return kind
    found = f"begins with {start!r}" if start else "is empty"
    size = path.stat().st_size
    raise UserError(f"{path}: expected a PNG, JPEG, TIFF or NPY file; this one {found} ({size} bytes)")


def _undecodable(path: Path, kind: str, error: BaseException) -> UserError:
    words = str(error) or type(error).__name__
    return UserError(
        f"{path}: damaged {kind} file of {path.stat().st_size} bytes: {words}; replace it, or remove the pair"
    )


def _require_budget(path: Path, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise UserError(
            f"{path}: {width} x {height} = {height * width} pixels; the limit data.max_pixels is {max_pixels}: "
            "raise it if the file is what you expect, or cut it into tiles"
        )


# Pillow: PNG and JPEG of 8 bit ----------------------------------------------------------------------------------------


def _is_deep(path: Path) -> bool:
    """PNG of 16 bit: where it has colour or alpha, Pillow would silently drop the low byte."""
    with open(path, "rb") as file:
        return file.read(25)[24:] == b"\x10"


def _read_pillow(path: Path, max_pixels: int) -> Raster:
    with Image.open(path, formats=[PNG, JPEG]) as image:
        header = _pillow_header(path, image, max_pixels)
        lossy = image.format == JPEG
        if header.orientation != 1:
            image = ImageOps.exif_transpose(image)
        mode = MODES[image.mode]
        if "transparency" in image.info:  # a colour, or palette entries, that mean "nothing here"
            mode = {"L": "LA", "RGB": "RGBA"}.get(mode, mode)
        pixels = np.asarray(image if mode == image.mode else image.convert(mode))
        alpha = mode in ("LA", "RGBA")
    if pixels.ndim == 2:
        return Raster(pixels[None], np.ones(pixels.shape, bool), lossy=lossy)
    pixels = np.moveaxis(pixels, 2, 0)
    if alpha:
        return Raster(pixels[:-1], pixels[-1] > 0, lossy=lossy)
    return Raster(pixels, np.ones(pixels.shape[1:], bool), lossy=lossy)


def _pillow_header(path: Path, image: Image.Image, max_pixels: int) -> Header:
    width, height = image.size
    _require_budget(path, height, width, max_pixels)
    if image.mode not in MODES:
        raise UserError(f"{path}: pictures of mode {image.mode} are not read; expected grey or RGB")
    orientation = image.getexif().get(ORIENTATION, 1) if image.format == JPEG else 1
    if orientation not in range(1, 9):  # some cameras write 0
        orientation = 1
    if orientation >= 5:
        width, height = height, width
    bands = 1 if MODES[image.mode] in ("L", "LA") else 3
    return Header(height, width, bands, "uint8", orientation=orientation)


# GDAL: TIFF, and PNG of 16 bit ----------------------------------------------------------------------------------------


def _rasterio_open(path: Path, kind: str):  # no type: rasterio is imported only where it is needed
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # resolved: an absolute path of a real file is never a GDAL connection string; the driver keeps VRT out
        return rasterio.open(str(path.resolve()), driver={TIFF: "GTiff", PNG: "PNG"}[kind])


def _gdal_bands(source) -> list[int]:
    """1-based numbers of the bands that are not alpha."""
    return [i for i, kind in enumerate(source.colorinterp, 1) if kind.name != "alpha"]


def _gdal_header(path: Path, source, max_pixels: int) -> Header:
    _require_budget(path, source.height, source.width, max_pixels)
    if not 1 <= source.count <= MAX_BANDS:
        raise UserError(f"{path}: {source.count} bands; expected 1 to {MAX_BANDS}")
    chosen = _gdal_bands(source)
    dtypes = {source.dtypes[i - 1] for i in chosen}
    if len(dtypes) != 1 or np.dtype(dtype := dtypes.pop()).kind not in "uif":
        raise UserError(f"{path}: bands of types {', '.join(source.dtypes)}; expected one real type")
    descriptions = tuple(source.descriptions[i - 1] for i in chosen)
    return Header(source.height, source.width, len(chosen), dtype, descriptions if any(descriptions) else ())


def _read_gdal(path: Path, kind: str, max_pixels: int) -> Raster:
    with _rasterio_open(path, kind) as source:
        header = _gdal_header(path, source, max_pixels)
        pixels = source.read(_gdal_bands(source))
        valid = source.dataset_mask() > 0
        if source.nodata:  # the mask keeps a pixel if any band is valid; right for black (0), wrong for a fill of -9999
            valid &= (pixels != source.nodata).all(0)
    return Raster(pixels, valid, header.descriptions)


# NumPy ----------------------------------------------------------------------------------------------------------------


def _npy_header(path: Path, max_pixels: int) -> tuple[Header, np.ndarray]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3) or array.dtype.kind not in "uif" or (array.ndim == 3 and array.shape[2] > MAX_BANDS):
        raise UserError(f"{path}: array {array.dtype} {list(array.shape)}; expected real numbers [H,W] or [H,W,bands]")
    height, width, bands = (*array.shape, 1)[:3]
    _require_budget(path, height, width, max_pixels)
    return Header(height, width, bands, array.dtype.name), array


def _read_npy(path: Path, max_pixels: int) -> Raster:
    header, array = _npy_header(path, max_pixels)
    pixels = np.moveaxis(np.array(array).reshape(header.height, header.width, header.bands), 2, 0)
    # whatever byte order the file has, the rest of the code sees this machine's
    return Raster(pixels.astype(pixels.dtype.newbyteorder("="), copy=False), np.ones(pixels.shape[1:], bool))
