"""Charts as SVG: numbers in, markup out. Values that are not finite are not drawn; pages say how many there are."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .page import Html, join, tag

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 270, 68, 12, 10, 40  # px
COLOURS = tuple(f"var(--c{i})" for i in range(8))
DRAWN = 400  # points of a curve; more cannot be told apart


class Series(NamedTuple):
    """One curve. ``mark``: line, dots (line and points), faint (behind another one of its name), area."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = COLOURS[0]
    mark: str = "line"
    bars: Sequence[tuple[float, float]] = ()  # interval of each y
    labels: Sequence[str] = ()  # text beside each point


class Plot(NamedTuple):
    """The arguments of ``chart``."""

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    log: str = ""


class Axis(NamedTuple):
    """From values ``low``..``high`` to pixels ``start``..``end``."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where ``value`` lies, px."""
        low, high, v = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (v - low) / (high - low) * (self.end - self.start)


def ramp(count: int) -> list[str]:
    """Colours for ordered curves, from cold to hot."""
    return [f"color-mix(in oklch, var(--hot) {100 * i / max(count - 1, 1):.0f}%, var(--cold))" for i in range(count)]


def ticks(low: float, high: float, log: bool) -> dict[float, str]:
    """Round values within [low, high] and how to write them."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1,), (1, 2, 5)):
            stride = max(1, len(decades) // 6)
            found = [f * 10.0**d for d in decades[::stride] for f in factors if low <= f * 10.0**d <= high]
            if len(found) > 2:
                return {value: f"{value:g}" for value in found}
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * 0.99)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return {
        v: f"{v / 1000:g}k" if step >= 1000 and v else f"{v:.{digits}f}" if digits < 6 else f"{v:g}" for v in values
    }


def chart(title: str, series: Sequence[Series], x_label: str, y_label: str, log: str = "") -> Html:
    """A figure with its legend; ``log`` names the logarithmic axes: x, y, xy or none."""
    return _figure(title, series, [_svg(title, series, x_label, y_label, log)])


def switchable(title: str, series: Sequence[Series], x_label: str, y_label: str) -> Html:
    """The chart with a linear and a logarithmic y axis, and a box to choose; works without JavaScript."""
    if any(v <= 0 for s in series for v in s.y):
        return chart(title, series, x_label, y_label)
    box = tag("label", tag("input", type="checkbox"), " log scale")
    plain, log = (_svg(title, series, x_label, y_label, axes) for axes in ("", "y"))
    return _figure(title, series, [box, tag("div", plain, class_="lin"), tag("div", log, class_="log")])


def curve(name: str, x: Sequence[float], y: Sequence[float], colour: str = COLOURS[0]) -> list[Series]:
    """Points, thinned to ``DRAWN``, behind their running median over a tenth of them."""
    values = np.asarray(y, float)
    half, chosen = (
        len(y) // 20 if len(y) >= 40 else 0,
        np.unique(np.linspace(0, max(len(y) - 1, 0), DRAWN).astype(int))[: len(y)].tolist(),
    )
    windows = [values[max(0, i - half) : i + half + 1] for i in chosen]
    middle = [float(np.median(w[np.isfinite(w)])) if np.isfinite(w).any() else math.nan for w in windows]
    xs = [x[i] for i in chosen]
    faint = Series(name, xs, [y[i] for i in chosen], colour, "faint")
    return [*([faint] if half else []), Series(name, xs, middle, colour)]


def histogram(title: str, samples: Mapping[str, Sequence[float]], x_label: str) -> Html:
    """Outlines of the counts over common bins, and the mean of each sample."""
    finite = {name: np.asarray(v, float)[np.isfinite(v)] for name, v in samples.items()}
    everything = np.concatenate([*finite.values()])
    if not len(everything):
        return Html()
    bins = min(40, max(8, round(2 * len(everything) ** 0.5)))
    edges, series = np.histogram_bin_edges(everything, bins), []
    for colour, (name, values) in zip(COLOURS, finite.items(), strict=False):
        counts = np.histogram(values, edges)[0]
        outline = np.concatenate([[0], np.repeat(counts, 2), [0]]).tolist()
        label = f"{name}: mean {values.mean():.4g}, n = {len(values)}" if len(values) else f"{name}: none"
        series.append(Series(label, np.repeat(edges, 2).tolist(), outline, colour, "area"))
    return chart(title, series, x_label, "images")


def _figure(title: str, series: Sequence[Series], content: Sequence[Html]) -> Html:
    named = {s.name: s.colour for s in series}
    keys = [tag("span", tag("i", style=f"--c:{colour}"), f" {name}", class_="key") for name, colour in named.items()]
    legend = tag("figcaption", *(keys if len(keys) > 1 or series[0].mark == "area" else []))
    return tag("figure", tag("figcaption", tag("b", title)), *content, legend, class_="chart")


def _svg(title: str, series: Sequence[Series], x_label: str, y_label: str, log: str) -> Html:
    x = axis([v for s in series for v in s.x], "x" in log, LEFT, WIDTH - RIGHT)
    highs = [v for s in series for v in [*s.y, *[end for bar in s.bars for end in bar]]]
    y = axis(highs, "y" in log, HEIGHT - BOTTOM, TOP)
    grids, texts = [], []
    for value, label in ticks(x.low, x.high, x.log).items():
        grids.append(_line(x.at(value), TOP, x.at(value), HEIGHT - BOTTOM))
        texts.append(_text(x.at(value), HEIGHT - BOTTOM + 15, label, "middle"))
    for value, label in ticks(y.low, y.high, y.log).items():
        grids.append(_line(LEFT, y.at(value), WIDTH - RIGHT, y.at(value)))
        texts.append(_text(LEFT - 6, y.at(value) + 4, label, "end"))
    texts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 6, x_label, "middle"))
    turned = {"transform": f"translate(11 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)", "text_anchor": "middle"}
    texts.append(tag("text", y_label, **turned))
    drawn = [_series(s, x, y) for s in series]
    described = f"{title}: {y_label} over {x_label}"
    view = f"0 0 {WIDTH} {HEIGHT}"
    return tag("svg", tag("g", *grids, class_="grids"), *drawn, *texts, viewBox=view, role="img", aria_label=described)


def _series(series: Series, x: Axis, y: Axis) -> Html:
    points = [(i, a, b) for i, (a, b) in enumerate(zip(series.x, series.y, strict=True)) if math.isfinite(b)]
    places = [(x.at(a), y.at(b)) for _, a, b in points]
    parts = [tag("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in places))]
    if series.mark == "dots" or len(places) == 1:
        for (i, a, b), (left, top) in zip(points, places, strict=True):
            parts.append(tag("circle", cx=f"{left:.1f}", cy=f"{top:.1f}", r=3))
            parts[-1] = tag("g", tag("title", f"{series.name}: {a:g}, {b:.6g}"), parts[-1])
            if series.bars:
                parts.append(_line(left, y.at(series.bars[i][0]), left, y.at(series.bars[i][1])))
            if series.labels:
                anchor, shift = ("end", -6) if left > WIDTH / 2 else ("start", 6)
                parts.append(_text(left + shift, top - 6, series.labels[i], anchor, stroke="none"))
    return tag("g", *parts, class_=f"series {series.mark}", style=f"--c:{series.colour}")


def axis(values: Sequence[float], log: bool, start: float, end: float) -> Axis:
    """Room for all finite values, with a margin where they do not fill an axis that starts at zero."""
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
    low, high = min(finite), max(finite)
    if log:
        return Axis(low / 1.15, high * 1.15, True, start, end)
    margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return Axis(low if low == 0 < high else low - margin, high + margin, False, start, end)


def _line(x1: float, y1: float, x2: float, y2: float) -> Html:
    return tag("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}")


def _text(x: float, y: float, words: str, anchor: str, **more: str) -> Html:
    return tag("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, **more)


def grid(figures: Sequence[Html]) -> Html:
    """Figures side by side, as many as fit."""
    return tag("div", join(figures), class_="grid") if any(figures) else Html()
