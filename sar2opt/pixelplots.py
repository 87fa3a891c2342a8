"""The plots of charts.py as pixels, for where no browser is: several in one picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .charts import COLOURS, Axis, Plot, Series, axis, ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 440, 84, 20, 78, 58  # px of one plot
COLUMNS = 2
# the colours of a page on white paper
HUES = dict(zip(COLOURS, ("#1f5fbf", "#c2410c", "#15803d", "#9b1fae", "#0e7490", "#be123c", "#6b5b00", "#555555"),
                strict=True))  # fmt: skip
INK, DIM, LINE = "#1d2127", "#5d6673", "#cfd5dc"


def sheet(plots: Sequence[Plot]) -> Image.Image:
    """Two plots a row."""
    rows = -(-len(plots) // COLUMNS)
    picture = Image.new("RGB", (WIDTH * min(len(plots), COLUMNS), HEIGHT * rows), "white")
    for i, plot in enumerate(plots):
        picture.paste(draw(plot), (i % COLUMNS * WIDTH, i // COLUMNS * HEIGHT))
    return picture


def draw(plot: Plot) -> Image.Image:
    """One plot with its legend."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=17)
    x = axis([v for s in plot.series for v in s.x], "x" in plot.log, LEFT, WIDTH - RIGHT)
    values = [v for s in plot.series for v in [*s.y, *[end for bar in s.bars for end in bar]]]
    y = axis(values, "y" in plot.log, HEIGHT - BOTTOM, TOP)
    for value, label in ticks(x.low, x.high, x.log).items():
        pen.line([(x.at(value), TOP), (x.at(value), HEIGHT - BOTTOM)], LINE)
        pen.text((x.at(value), HEIGHT - BOTTOM + 6), label, DIM, font, anchor="ma")
    for value, label in ticks(y.low, y.high, y.log).items():
        pen.line([(LEFT, y.at(value)), (WIDTH - RIGHT, y.at(value))], LINE)
        pen.text((LEFT - 8, y.at(value)), label, DIM, font, anchor="rm")
    pen.text((LEFT, 10), plot.title, INK, ImageFont.load_default(size=20))
    pen.text(((LEFT + WIDTH) / 2, HEIGHT - 24), plot.x_label, INK, font, anchor="ma")
    at = LEFT
    for series in plot.series:
        hue = HUES[series.colour]
        pen.line([(at, 54), (at + 24, 54)], hue, 3)
        pen.text((at + 28, 54), series.name, INK, font, anchor="lm")
        at += 42 + int(font.getlength(series.name))
        _curve(pen, series, x, y, hue, font)
    return picture


def _curve(pen: ImageDraw.ImageDraw, series: Series, x: Axis, y: Axis, hue: str, font: object) -> None:
    places = [(x.at(a), y.at(b)) for a, b in zip(series.x, series.y, strict=True)]
    pen.line(places, hue, 3)
    for (left, top), (low, high) in zip(places, series.bars, strict=False):
        pen.line([(left, y.at(low)), (left, y.at(high))], hue, 2)
        pen.ellipse([left - 5, top - 5, left + 5, top + 5], hue)
    for (left, top), label in zip(places, series.labels, strict=False):
        anchor, shift = ("rm", -9) if left > WIDTH * 0.6 else ("lm", 9)
        below = (places[-1][1] < places[0][1]) == (shift > 0)  # beside the curve, not on it
        pen.text((left + shift, top + (13 if below else -13)), label, DIM, font, anchor=anchor)  # pyright: ignore[reportArgumentType]
