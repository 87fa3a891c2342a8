"""HTML without dependencies: a page is one file that opens from disk and asks no network for anything.

Text is escaped on its way into markup; only what ``tag`` built is not.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

EMBED_SIDE = 256  # px; the rows of pictures are shown at most this large
VOID = {"img", "input", "meta"}  # elements without an end

CSS = """
:root { --ink: #1d2127; --dim: #5d6673; --paper: #ffffff; --panel: #f3f5f7; --line: #cfd5dc; --warn: #8a4b00;
  --c0: #1f5fbf; --c1: #c2410c; --c2: #15803d; --c3: #9b1fae; --c4: #0e7490; --c5: #be123c; --c6: #6b5b00; --c7: #555;
  --cold: #2b50c8; --hot: #d9480f; color-scheme: light }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --dim: #9aa4b1; --paper: #14171b;
  --panel: #1e2329; --line: #3a424c; --warn: #ffb454; --c0: #6ea8fe; --c1: #fb923c; --c2: #4ade80; --c3: #e07bf0;
  --c4: #22d3ee; --c5: #fb7185; --c6: #e5c84b; --c7: #bbb; --cold: #6f9bff; --hot: #ff9a4d; color-scheme: dark } }
body { margin: 0 auto; max-width: 1180px; padding: 12px 20px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: .6em 0 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2em 0 .5em }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere } p { margin: .4em 0; max-width: 80ch }
a { color: var(--c0) } nav a { margin-right: 1em } .dim, figcaption, nav { color: var(--dim); font-size: .87em }
.warn { color: var(--warn); border-left: 4px solid; padding-left: .7em; overflow-wrap: anywhere }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9em }
th, td { text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word; max-width: 44ch; font-variant-numeric: tabular-nums }
tr.own td { font-weight: 600 } code, pre { font: 12px/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
pre { background: var(--panel); padding: 10px; white-space: pre-wrap; columns: 2 300px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 345px), 1fr)); gap: 18px }
figure { margin: 0; break-inside: avoid } svg { width: 100%; height: auto; display: block; overflow: visible }
svg text { font-size: 12px; fill: var(--dim) } svg .grids line { stroke: var(--line); stroke-width: .6 }
svg .series { stroke: var(--c); stroke-width: 1.7; fill: none; stroke-linejoin: round }
svg circle { fill: var(--c); stroke: none } svg .faint { stroke-width: .8; opacity: .38 }
svg .area { fill: var(--c); fill-opacity: .22; stroke-width: 1.2 }
.chart b { color: var(--ink); font-size: 1.05em } .key { margin-right: 1.1em; white-space: nowrap }
.key i { display: inline-block; width: 1.2em; height: 3px; background: var(--c); vertical-align: middle }
.chart label { float: right } .chart .log, .chart:has(input:checked) .lin { display: none }
.chart:has(input:checked) .log { display: block }
.row { display: grid; grid-template-columns: 190px 1fr; gap: 14px; padding: 12px 0; border-top: 1px solid var(--line);
  break-inside: avoid } .pictures { display: flex; gap: 8px } .pictures figure { flex: 0 1 256px; min-width: 0 }
.pictures img { width: 100%; display: block } .none { aspect-ratio: 1; background: var(--panel); padding: 8px }
.frame img { max-width: 100% } .ramp { display: inline-block; width: 9em; height: .8em; vertical-align: middle }
.viewer { background: var(--panel); padding: 12px; margin: 8px 0 }
.stack { position: relative; width: min(100%, 512px); touch-action: pan-y } .stack img { width: 100%; display: block;
  image-rendering: pixelated } .stack .over { position: absolute; inset: 0; height: 100%;
  clip-path: inset(0 calc(100% - var(--at)) 0 0) }
.stack i { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 0 1px #000; pointer-events: none } .stack input { position: absolute; inset: 0; width: 100%;
  height: 100%; margin: 0; opacity: 0; cursor: ew-resize } .stack:focus-within { outline: 3px solid var(--c0) }
.controls { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; margin: 6px 0 }
.scrubber input { flex: 1 1 300px; max-width: 700px } [hidden] { display: none !important }
@media screen and (max-width: 900px) { .row { grid-template-columns: 1fr }
  .row > div > .dim { display: inline-block; margin-right: 1em } }
@media print { body { max-width: none; padding: 0 } nav, button, .controls, .viewer, .chart label { display: none }
  .grid { grid-template-columns: 1fr 1fr } h2 { break-after: avoid } .wide { overflow: visible }
  .row { grid-template-columns: 120px 1fr } }
"""

SCRIPT = """
"use strict";
for (const box of document.querySelectorAll(".scrubber")) {
  const range = box.querySelector("input"), frames = [...box.querySelectorAll(".frame")];
  const show = () => {
    frames.forEach((frame, i) => { frame.hidden = i !== Number(range.value); });
    range.setAttribute("aria-valuetext", frames[range.value].querySelector("figcaption").textContent);
  };
  range.max = frames.length - 1; range.value = range.max; range.oninput = show; show();
  range.parentElement.hidden = false;
}
for (const viewer of document.querySelectorAll(".viewer")) {
  const rows = [...viewer.parentElement.querySelectorAll(".row")], part = name => viewer.querySelector(name);
  const [left, right] = viewer.querySelectorAll("select"), range = part("input"), stack = part(".stack");
  const pictures = row => Object.fromEntries([...row.querySelectorAll("img")].map(i => [i.dataset.name, i.src]));
  const slide = () => {
    stack.style.setProperty("--at", range.value / 10 + "%");
    range.setAttribute("aria-valuetext", left.value + " on the left " + Math.round(range.value / 10) + " percent");
  };
  const open = (index, move) => {
    const row = rows[(index + rows.length) % rows.length], have = pictures(row);
    viewer.dataset.row = rows.indexOf(row);
    part(".over").src = have[left.value] || ""; part(".under").src = have[right.value] || "";
    part("output").textContent = row.querySelector("h3").textContent;
    if (move) { row.after(viewer); viewer.scrollIntoView({block: "nearest"}); range.focus({preventScroll: true}); }
    slide();
  };
  const step = by => open(Number(viewer.dataset.row) + by, true);
  rows.forEach((row, i) => {
    const button = document.createElement("button");
    button.textContent = "compare"; button.onclick = () => open(i, true);
    row.querySelector("h3").after(button);
  });
  range.oninput = slide;
  left.onchange = right.onchange = () => open(Number(viewer.dataset.row), false);
  const [before, after] = viewer.querySelectorAll("button");
  before.onclick = () => step(-1); after.onclick = () => step(1);
  viewer.hidden = false; open(0, false);
}
"""

# what the browser may load: nothing but what the file holds
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Html(str):
    """Markup. Any other string is text, and is escaped."""


def tag(name: str, *content: object, **attributes: object) -> Html:
    """One element; ``class_="x"`` sets class, ``data_name`` data-name; True is a bare attribute, False none."""
    pairs = [(key.strip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not False]
    inside = "".join(f" {key}" if value is True else f' {key}="{html.escape(str(value))}"' for key, value in pairs)
    return Html(f"<{name}{inside}>" if name in VOID else f"<{name}{inside}>{join(content)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """Parts one after the other."""
    return Html("".join(p if isinstance(p, Html) else html.escape(str(p)) for p in parts))


def document(title: str, subtitle: str, sections: Mapping[str, object]) -> bytes:
    """The page: the only template. Sections by heading; empty ones are left out."""
    kept = {heading: content for heading, content in sections.items() if content}
    links = [tag("a", heading, href=f"#s{i}") for i, heading in enumerate(kept)]
    body = [tag("section", tag("h2", h, id=f"s{i}"), content) for i, (h, content) in enumerate(kept.items())]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name_="viewport", content="width=device-width"),
        tag("title", title),
        tag("style", Html(CSS)),
    ]
    main = [tag("h1", title), tag("p", subtitle, class_="dim"), tag("nav", *links), *body, tag("script", Html(SCRIPT))]
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *head), tag('body', *main), lang='en')}\n".encode()


def table(head: Sequence[object], rows: Iterable[Sequence[object]], own: int = 0) -> Html:
    """A table; its first ``own`` rows stand out. Nothing if there are no rows."""
    lines = [
        tag("tr", *[tag("td", cell) for cell in row], class_="own" if i < own else False) for i, row in enumerate(rows)
    ]
    return (
        tag("div", tag("table", tag("tr", *[tag("th", h) for h in head]), *lines), class_="wide") if lines else Html()
    )


def notes(texts: Iterable[str]) -> Html:
    """Warnings, one paragraph each."""
    return join(tag("p", text, class_="warn") for text in texts)


def embed(picture: Image.Image, side: int = EMBED_SIDE) -> str:
    """A data address: JPEG without colour subsampling, averaged down to ``side`` px where larger."""
    if (factor := max(picture.size) / side) > 1:
        size = max(1, round(picture.width / factor)), max(1, round(picture.height / factor))
        picture = picture.resize(size, Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def gallery(rows: Iterable[tuple[str, Sequence[str], dict[str, str | None]]], left: str, right: str) -> Html:
    """Rows of (id, lines beside it, picture addresses by name; None: missing), and a slider between two pictures."""
    articles, names = [], dict[str, None]()
    for title, lines, pictures in rows:
        figures = [
            tag(
                "figure",
                tag("img", src=address, alt=f"{name} of {title}", data_name=name)
                if address
                else tag("div", "missing", class_="none"),
                tag("figcaption", name),
            )
            for name, address in pictures.items()
        ]
        words = tag("div", tag("h3", title), *[tag("div", line, class_="dim") for line in lines])
        articles.append(tag("article", words, tag("div", *figures, class_="pictures"), class_="row"))
        names |= dict.fromkeys(pictures)
    if not articles:
        return Html()
    choices = [
        tag("select", *[tag("option", n, value=n, selected=n == chosen) for n in names], aria_label=f"{place} picture")
        for place, chosen in (("left", left), ("right", right))
    ]
    slider = tag("input", type="range", min=0, max=1000, step=10, value=500, aria_label="where the left picture ends")
    layers = [tag("img", class_="under", alt=""), tag("img", class_="over", alt=""), tag("i"), slider]
    buttons = [tag("button", "previous"), tag("button", "next")]
    viewer = [
        tag("div", tag("output"), class_="controls"),
        tag("div", *layers, class_="stack"),
        tag("div", choices[0], "| drag, or use the arrow keys |", choices[1], *buttons, class_="controls"),
    ]
    return tag("div", tag("div", *viewer, class_="viewer", hidden=True), *articles)


def scrubber(frames: dict[str, str]) -> Html:
    """Pictures (address by caption) in one place, the last one shown, and a slider through them."""
    figures = [
        tag("figure", tag("img", src=address, alt=caption), tag("figcaption", caption), class_="frame",
            hidden=i < len(frames) - 1)
        for i, (caption, address) in enumerate(frames.items())
    ]  # fmt: skip
    slider = tag("input", type="range", min=0, aria_label="step of the pictures")
    controls = tag("div", "earlier", slider, "later", class_="controls", hidden=True)
    return tag("div", controls, *figures, class_="scrubber") if figures else Html()
