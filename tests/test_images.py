"""The contact sheet: every pixel where it belongs, and colours as documented."""

import io

import pytest
import torch
from PIL import Image

from sar2opt import images


def batch(n, bands, height, width, seed=0):
    return torch.rand(n, bands, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def find(sheet: torch.Tensor, tile: torch.Tensor) -> list[tuple[int, int]]:
    """Where ``tile`` [H,W,3] occurs in ``sheet`` [H,W,3]."""
    (h, w), corner = tile.shape[:2], tile[0, 0]
    spots = (sheet[: len(sheet) - h + 1, : sheet.shape[1] - w + 1] == corner).all(-1).nonzero().tolist()
    return [(y, x) for y, x in spots if torch.equal(sheet[y : y + h, x : x + w], tile)]


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(image.height, image.width, 3)


@pytest.mark.parametrize(("size", "zoom"), [((140, 150), 1), ((64, 80), 2), ((32, 128), 4)])
def test_every_image_stands_in_its_row_and_column(size, zoom):
    columns = {"SAR": batch(2, 1, *size), "output": batch(2, 3, *size, seed=1), "target": batch(2, 3, *size, seed=2)}
    sheet = pixels(images.contact_sheet(columns, ["scene/first", "second"]))
    spots = {}
    for name, column in columns.items():
        for i, image in enumerate(column):
            tile = images.rgb(image).repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
            (spots[name, i],) = find(sheet, tile)
    for i in range(2):
        assert spots["SAR", i][0] == spots["output", i][0] == spots["target", i][0]
        assert spots["SAR", i][1] < spots["output", i][1] < spots["target", i][1]
    assert spots["SAR", 0][0] < spots["SAR", 1][0]
    top, left = spots["SAR", 0]
    assert (sheet[:top] < 128).any() and (sheet[:, :left] < 128).any()  # there is a header, and there are labels


def test_values_become_grey_levels_by_rounding():
    levels = torch.arange(256).reshape(1, 16, 16)
    assert torch.equal(images.rgb(levels / 127.5 - 1)[..., 0], levels[0].to(torch.uint8))
    assert images.rgb(torch.tensor([[[-3.0, 3.0, 0.0]]]))[0].tolist() == [[0] * 3, [255] * 3, [128] * 3]


def test_colours_of_one_two_and_four_bands():
    one, two, four = batch(1, 1, 4, 6)[0], batch(1, 2, 4, 6)[0], batch(1, 4, 4, 6)[0]
    assert torch.equal(images.rgb(one), images.rgb(one.expand(3, -1, -1)))
    assert torch.equal(images.rgb(two), images.rgb(two[[0, 1, 0]]))
    assert torch.equal(images.rgb(torch.cat([one, one])), images.rgb(one))  # equal bands are grey
    assert torch.equal(images.rgb(four), images.rgb(four[:3]))


def test_long_and_foreign_names_do_not_break_the_sheet():
    column = {"SAR": batch(2, 1, 128, 128)}
    short = images.contact_sheet(column, ["a", "b"])
    long = images.contact_sheet(column, ["x" * 300, "Z\u00fcrich_\u4e00"])
    assert short.width < long.width < short.width + 250


def test_png_is_lossless():
    image = Image.fromarray(images.rgb(batch(1, 3, 5, 7)[0]).numpy())
    assert Image.open(io.BytesIO(images.png(image))).tobytes() == image.tobytes()
