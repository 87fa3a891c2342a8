"""Pictures for people: the sheet on which all methods show their results in the same way."""

import io

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN, FONT_SIZE, MIN_SIDE, MAX_LABEL = 6, 13, 128, 24
INK, PAPER = (20, 20, 20), (255, 255, 255)


def contact_sheet(columns: dict[str, Tensor], ids: list[str]) -> Image.Image:
    """One row per image, labelled with lines of text; one column per entry of ``columns``, [N,b or 3,H,W] in [-1, 1].

    SAR with one band is grey; with two, red and blue show the first and green the second, so that equal bands are
    grey; with more, the first three are red, green and blue. Images below 128 px are enlarged by a whole factor.
    """
    rows, height, width = (next(iter(columns.values())).shape[i] for i in (0, 2, 3))
    zoom = max(1, -(-MIN_SIDE // min(height, width)))
    height, width = height * zoom, width * zoom
    font = ImageFont.load_default(size=FONT_SIZE)
    labels = ["\n".join(map(_shorten, label.split("\n"))) for label in ids]
    left = MARGIN * 2 + int(max((font.getlength(line) for label in labels for line in label.split("\n")), default=0))
    top = MARGIN * 2 + FONT_SIZE
    size = (left + len(columns) * (width + MARGIN), top + rows * (height + MARGIN))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for j, (name, batch) in enumerate(columns.items()):
        x = left + j * (width + MARGIN)
        pen.text((x + width // 2, MARGIN), _ascii(name), INK, font, anchor="ma")
        for i, picture in enumerate(batch):
            y = top + i * (height + MARGIN)
            tile = Image.fromarray(rgb(picture).numpy())
            sheet.paste(tile.resize((width, height), Image.Resampling.NEAREST), (x, y))
            pen.text((MARGIN, y + height // 2), labels[i], INK, font, anchor="lm")
    return sheet


def rgb(image: Tensor) -> Tensor:
    """[b,H,W] in [-1, 1] -> uint8 [H,W,3]; colours as in ``contact_sheet``."""
    bands = {1: [0, 0, 0], 2: [0, 1, 0]}.get(len(image), [0, 1, 2])
    pixels = (image.detach().cpu().float()[bands].clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(1, 2, 0).contiguous()


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _shorten(label: str) -> str:
    label = _ascii(label)  # ids that are long differ at their ends
    return label if len(label) <= MAX_LABEL else ".." + label[2 - MAX_LABEL :]


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()
