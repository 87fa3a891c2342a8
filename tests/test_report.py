"""Reports: nothing from outside, nothing unescaped, nothing lost, and scripts that run in a real browser."""

import base64
import csv
import html.parser
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sar2opt import charts, page, report
from sar2opt.charts import Series

ROOT = Path(__file__).parents[1]
HOSTILE = "<script>alert(1)<img src=x onerror=alert(2)>&\"', b"
BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
in_browser = pytest.mark.skipif(not BROWSER, reason="needs chromium")


def picture(path, seed, side=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(path)


def run_folder(folder, steps=60):
    """A run as a training leaves it."""
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"run: {{name: {folder.name}, max_steps: {steps}}}\noptim: {{lr: 0.001}}\n")
    (folder / "env.json").write_text(json.dumps({"host": HOSTILE, "versions": {"torch": "2.11"}}))
    log, validation, timing = [], [], []
    for step in range(1, steps + 1):
        row = {"step": step, "samples": 4 * step, "loss": 1 / step, "lr": 1e-3, "grad_norm/unet": 0.5 + step % 3}
        log.append(row | {f"error/t{200 * (step % 5)}": 1 / step})
        timing.append({"step": step, "seconds_per_step": 0.5, "images_per_second": 8.0, "data_wait": 0.1})
        if step % 10 == 0:
            colours = {f"{p}{k}_{c}": 1.0 for p in ("", "one_step/") for k in ("shift", "contrast") for c in "rgb"}
            quality = {"psnr": 10 + step / 10, "ssim": 0.5, "error/t100": 0.1, "error/t300": 0.05}
            validation.append({"step": step, "split": "val", "n": 3} | quality | colours)
            picture(folder / f"samples/step-{step:08d}.png", step)
    for name, rows in (("log", log), ("metrics", validation), ("timing", timing)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def metric(value, better="higher", **more):
    """One entry of metrics.json."""
    entry = {"value": value, "ci95": [value - 0.1, value + 0.1], "ci": "image", "n": 5, "unit": "dB", "better": better}
    return entry | {"recipe": "mean of dB", "library": "own", "weights": None, "warnings": []} | more


def evaluation(folder, psnr, seed=0, **inputs):
    """An evaluation of ids with given PSNR: pictures, metrics.json, per_image.csv; the arguments of evaluation_page."""
    pred, target, sar, out = (folder / name for name in ("pred", "opt", "sar", "eval"))
    out.mkdir(parents=True)
    for k, name in enumerate(psnr):
        if "/" not in name:
            for place, kind in ((pred, 1 + seed), (target, 100), (sar, 200)):
                picture(place / f"{name}.png", kind + 1000 * k)
    with open(out / "per_image.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "psnr", "ssim", "lpips_vgg", "mae", "seconds"])
        for name, value in sorted(psnr.items(), key=lambda item: (item[1], item[0])):
            table.writerow([name, f"{value:.6f}", 0.5, "", f"{30 - value:.6f}", 0.1 * inputs.get("steps", 1)])
    given = {"pred": str(pred), "target": str(target), "sar": str(sar), "n": len(psnr), **inputs}
    mean = sum(psnr.values()) / max(len(psnr), 1)
    results = {
        "metrics": {"psnr": metric(mean), "swd": metric(100.0, "lower", ci95=None, ci=None, warnings=["few images"])},
        "skipped": {"fid": {"reason": "absent", "expected": "W/x.pth", "command": "python w.py --fetch fid"}},
        "baselines": {"mean image": {"psnr": {"value": 9.87}}},
        "inputs": given, "convention": "standard", "versions": {}, "curves": CURVES,
    }  # fmt: skip
    (out / "metrics.json").write_text(json.dumps(results))
    return out, pred, target, sar


class Elements(html.parser.HTMLParser):
    """All elements of a page, as (name, attributes), and its pieces of text, one a line."""

    def __init__(self, content):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data + "\n"


def require_contained(file):
    """The page holds everything it shows, and nothing in it runs but its own script; its elements."""
    elements = Elements(file.read_text())
    assert [name for name, _ in elements.found if name in ("link", "iframe", "object", "base", "form")] == []
    assert len([name for name, _ in elements.found if name == "script"]) == 1
    for _, attributes in elements.found:
        assert not [key for key in attributes if key.startswith("on")]
        assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "#").startswith("#")
    assert "default-src 'none'" in page.POLICY and "url(" not in page.CSS and "@import" not in page.CSS
    return elements


def browse(file, script="", *options):
    """The page in a browser after ``script`` ran in it: the text of ``script``'s ``say(...)``, and the console."""
    said = "const say = x => { const p = document.createElement('pre'); p.id = 'said'; p.textContent = x; "
    wrapped = f"<script>{said} document.body.append(p); }};{script}</script></body>"
    changed = file.with_name("browsed.html")
    changed.write_text(file.read_text().replace("</body>", wrapped))
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,800"]
    loud = ["--enable-logging=stderr", "--virtual-time-budget=3000", f"--user-data-dir={file.parent / 'profile'}"]
    command = [BROWSER, *common, *loud, *(options or ["--dump-dom"]), changed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answer = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    return answer and answer[1], [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def press(file, keys, expression):
    """The value of a JavaScript expression after each of ``keys`` was pressed on the keyboard of a browser."""
    read_in, write_in = os.pipe()
    read_out, write_out = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", file.as_uri()]
    command = ["bash", "-c", f'exec "$@" 3<&{read_in} 4>&{write_out}', "-", BROWSER, *options]
    command.append(f"--user-data-dir={file.parent / 'keys'}")
    browser = subprocess.Popen(command, pass_fds=(read_in, write_out), stderr=subprocess.DEVNULL)
    os.close(read_in)
    os.close(write_out)
    try:
        with open(write_in, "wb", buffering=0) as sink, open(read_out, "rb") as source:

            def ask(method, session=None, **parameters):
                message = {"id": 1, "method": method, "params": parameters} | (
                    {"sessionId": session} if session else {}
                )
                sink.write(json.dumps(message).encode() + b"\0")
                answer = {}
                while "id" not in answer:  # events come between
                    text = b"".join(iter(lambda: source.read(1), b"\0"))
                    answer = json.loads(text)
                return answer["result"]

            (tab,) = [t for t in ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
            session = ask("Target.attachToTarget", targetId=tab["targetId"], flatten=True)["sessionId"]

            def value(expression):
                answer = ask("Runtime.evaluate", session, expression=expression, returnByValue=True)
                return answer["result"].get("value")

            while value("document.readyState + location.protocol") != "completefile:":
                time.sleep(0.05)
            found = []
            for key in keys:
                for kind in ("keyDown", "keyUp"):
                    code = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Enter": 13}[key]
                    text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
                    ask("Input.dispatchKeyEvent", session, type=kind, key=key, windowsVirtualKeyCode=code, **text)
                found.append(value(expression))
            return found
    finally:
        browser.kill()
        browser.wait()


# markup and charts ---------------------------------------------------------------------------------------------------


def test_text_is_escaped_and_markup_is_not():
    made = page.tag("td", HOSTILE, page.tag("b", "<"), title=HOSTILE, hidden=False, selected=True)
    found = Elements(made)
    assert [name for name, _ in found.found] == ["td", "b"] and found.text == f"{HOSTILE}\n<\n"
    assert found.found[0][1] == {"title": HOSTILE, "selected": None}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 12.1), (14.2, 14.9), (0, 1e-5), (1e5, 1e6), (2, 2.0001)])
def test_ticks_are_round_few_and_inside(low, high):
    found = charts.ticks(low, high, log=False)
    values, steps = [*found], np.diff([*found])
    assert 3 <= len(found) <= 11 and low <= values[0] + 1e-9 and values[-1] <= high + 1e-9
    assert np.allclose(steps, steps[0]) and f"{steps[0]:.0e}"[0] in "125"
    assert len(set(found.values())) == len(found)  # labels tell them apart


@pytest.mark.parametrize(("low", "high"), [(1, 8), (0.01, 0.5), (3e-6, 2e2), (1.2, 1.4), (1, 1e12)])
def test_logarithmic_ticks_are_few_inside_and_told_apart(low, high):
    found = charts.ticks(low, high, log=True)
    assert (
        3 <= len(found) <= 12
        and all(low <= v <= high * 1.0001 for v in found)
        and len(set(found.values())) == len(found)
    )


def test_an_axis_is_exact_at_its_ends_and_in_the_middle():
    assert [charts.Axis(-2, 6, False, 50, 10).at(v) for v in (-2, 2, 6)] == [50, 30, 10]
    assert [charts.Axis(1, 100, True, 0, 8).at(v) for v in (1, 10, 100)] == pytest.approx([0, 4, 8])


def points(svg):
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in re.findall(r'points="(.*?)"', svg)]


def test_a_curve_is_drawn_where_its_values_are():
    (drawn,) = points(charts.chart("t", [Series("a", [0, 5, 7, 10], [1, 2, math.nan, 3])], "x", "y"))
    assert len(drawn) == 3  # NaN is not drawn
    (x0, y0), (x1, y1), (x2, y2) = drawn
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and y0 - y1 == pytest.approx(y1 - y2, abs=0.11) and y0 > y2
    box = charts.LEFT <= x0 < x2 <= charts.WIDTH - charts.RIGHT and charts.TOP <= y2 < y0
    assert box and y0 <= charts.HEIGHT - charts.BOTTOM


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [math.nan], [math.inf, 1.0], [-1.0, 1e300], [1e-300, 2.0]])
def test_charts_of_degenerate_values_are_charts(values):
    made = charts.switchable("t", charts.curve("a", range(len(values)), values), "x", "y")
    assert "nan" not in made and "inf," not in made and made.count("<svg") >= 1


def test_the_running_median_ignores_a_spike_and_keeps_a_step():
    y = [1.0] * 500 + [5.0] * 500
    y[100] = 1e6
    faint, median = charts.curve("a", range(1000), y)
    assert set(median.y) == {1.0, 5.0} and len(faint.x) <= charts.DRAWN and faint.x[-1] == 999
    assert next(x for x, v in zip(median.x, median.y, strict=True) if v == 5) == pytest.approx(500, abs=3)
    (short,) = charts.curve("a", range(5), y[:5])
    assert (short.x, short.y) == ([0, 1, 2, 3, 4], y[:5])


def test_a_histogram_counts_every_value():
    values = np.random.RandomState(0).standard_normal(300)
    made = charts.histogram("t", {"out": [*values, math.nan]}, "x")
    heights = np.array([charts.HEIGHT - charts.BOTTOM - y for _, y in points(made)[0]])[1:-1:2]
    counts = np.histogram(values, len(heights))[0]
    assert heights / heights.max() * counts.max() == pytest.approx(counts, abs=0.02)
    assert f"mean {values.mean():.4g}, n = 300" in made


# a run ---------------------------------------------------------------------------------------------------------------


def test_the_page_of_a_run_has_everything_and_needs_nothing(tmp_path):
    report.run_page(run_folder(tmp_path / "run"))
    elements = require_contained(tmp_path / "run/report.html")
    for words in (
        "last logged step 60 of 60, 240 training images",
        "loss (no unit)",
        "PSNR (dB)",
        "L2 norm",
        HOSTILE,
        "learning rate",
        "from t = 800",
        "t = 300",
        "one-step output",
        "max_steps: 60",
        "images per second",
    ):
        assert words in elements.text, words  # fmt: skip
    assert "PSNR (dB)\n16\n16\n60\n" in elements.text  # last, best, at step
    frames = [a for name, a in elements.found if name == "figure" and a.get("class") == "frame"]
    assert ["hidden" in a for a in frames] == [True] * 5 + [False]  # the newest shows without JavaScript too


def test_a_run_that_was_cut_anywhere_has_a_page(tmp_path):
    folder = run_folder(tmp_path / "run", 20)
    whole = (folder / "log.jsonl").read_bytes()
    for size in range(0, len(whole), len(whole) // 15):
        (folder / "log.jsonl").write_bytes(whole[:size])
        report.run_page(folder)
        cut = whole[:size].rpartition(b"\n")[2]
        assert ("1 unreadable lines" in (folder / "report.html").read_text()) == (cut != b"")
    for missing in ("log.jsonl", "metrics.jsonl", "timing.jsonl", "env.json", "config.yaml", "samples"):
        path = folder / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        report.run_page(folder)  # one after the other, down to an empty folder
    assert "nothing yet" in (folder / "report.html").read_text()


def test_lines_that_are_no_rows_are_counted(tmp_path):
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "a": 2}\n{"step": 2, "lo{"step": 3}\n[1]\n{"a": 1}\n\xff\n{"step": 4}\n'
    )
    rows, bad = report.read_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 4] and bad == 4


def test_values_that_are_not_finite_are_told(tmp_path):
    folder = run_folder(tmp_path / "run")
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"step": 61, "loss": NaN, "skipped": 2}\n')
    report.run_page(folder)
    text = Elements((folder / "report.html").read_text()).text
    assert "1 values of loss are not finite" in text and "2 updates were skipped" in text


def test_many_pictures_are_thinned_evenly_and_the_newest_stays(tmp_path, monkeypatch):
    for step in range(1, 101):
        picture(tmp_path / f"step-{step:08d}.png", step, 8)
    (tmp_path / "step-00000100.png").write_bytes(b"half")
    frames, bad = report.sample_pictures(tmp_path, "step")
    assert len(frames) == report.FRAMES - 1 and len(bad) == 1 and "step-00000100.png" in bad[0]
    picture(tmp_path / "step-00000100.png", 100, 8)
    whole = sum(map(len, report.sample_pictures(tmp_path, "step")[0].values()))
    monkeypatch.setattr(report, "FRAME_BYTES", whole // 3)
    frames, _ = report.sample_pictures(tmp_path, "step")
    steps = [int(name.split()[1]) for name in frames]
    assert sum(map(len, frames.values())) <= whole // 3 and len(frames) >= 6 and steps[-1] == 100
    assert max(np.diff(steps)) <= 2.5 * min(np.diff(steps)) and f"({len(frames)} of 100 pictures)" in [*frames][0]


def test_the_pictures_behind_the_loss_have_a_section_of_their_own(tmp_path):
    folder = run_folder(tmp_path / "run")
    report.run_page(folder)
    assert "Behind the loss" not in (folder / "report.html").read_text()
    for step in (20, 40):
        picture(folder / "samples" / f"behind-{step:08d}.png", step, 8)
    report.run_page(folder)
    text = Elements((folder / "report.html").read_text()).text
    assert "step 40 (2 of 2 pictures)" in text[text.index("Behind the loss") :]


def test_the_command_makes_the_page_and_refuses_other_folders(tmp_path):
    run_folder(tmp_path / "run")
    command = [sys.executable, str(ROOT / "scripts/report.py")]
    done = subprocess.run([*command, str(tmp_path / "run")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and (tmp_path / "run/report.html").is_file(), done.stderr
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (
        2,
        "",
    ) and f"{tmp_path}: neither config.yaml nor metrics.json" in done.stderr


# an evaluation -------------------------------------------------------------------------------------------------------

SCORES = {"b": 12.0, "a": 12.0, HOSTILE: 11.0, "c": 20.0, "d/missing": 30.0}
CURVES = {"spectrum": {"frequency": [0.1, 0.2, 0.5], "pred": [9.0, 99.0, 0.0], "target": [99.0, 9.0, 9.0]}}


def test_the_page_of_an_evaluation_has_everything_and_needs_nothing(tmp_path):
    model = run_folder(tmp_path / "run")
    given = evaluation(tmp_path / "x", SCORES, steps=4, model_folder=str(model / "model"), sampler=HOSTILE)
    report.evaluation_page(given[0])
    elements = require_contained(given[0] / "report.html")
    for words in (
        "mean of dB",
        "16.9, 17.1",
        "9.87",
        "python w.py --fetch fid",
        "few images",
        "cycles per px",
        HOSTILE,
        "mean absolute error",
        "All 5 images",
        "max_steps: 60",
        "standard",
        "missing",
    ):
        assert words in elements.text, words  # fmt: skip
    assert re.findall(r"(\d) of 5 from the worst", elements.text) == ["1", "2", "3", "4", "5"]
    shown = [a["alt"] for name, a in elements.found if name == "img" and a.get("data-name") == "error"]
    assert shown == [f"error of {name}" for name in (HOSTILE, "a", "b", "c")]
    (spectrum,) = [p for p in points((given[0] / "report.html").read_text()) if len(p) == 3][:1]
    assert spectrum[1][1] < spectrum[0][1] < spectrum[2][1]  # 20, 10, 0 dB


def test_of_many_images_the_worst_the_median_and_the_best_are_shown(tmp_path):
    scores = {f"i{k:03}": 10 + k / 10 for k in range(200)}
    given = evaluation(tmp_path / "x", {})
    with open(given[0] / "per_image.csv", "a") as file:
        file.writelines(f"{name},{value},,,,\n" for name, value in scores.items())
    report.evaluation_page(given[0])
    text = Elements((given[0] / "report.html").read_text()).text
    places = [int(p) for p in re.findall(r"(\d+) of 200 from the worst", text)]
    assert places == [*range(1, 21), *range(91, 111), *range(181, 201)]
    assert "Only the 20 worst, 20 around the median and 20 best of 200 images" in text


def test_only_published_rows_of_the_same_kind_are_shown(tmp_path, monkeypatch):
    own = {"convention": "standard", "set": "QXS", "split": "test", "n": 5}
    rows = [{"method": "same", "source": "paper", "values": {"psnr": 16.92, "dists": 0.23}} | own]
    rows += [{**rows[0], "method": f"other {key}", key: "else"} for key in own]
    monkeypatch.setattr(report, "PUBLISHED", tmp_path / "published.json")
    given = evaluation(tmp_path / "x", SCORES, set="QXS", split="test")
    for table in (None, rows):
        if table:
            report.PUBLISHED.write_text(json.dumps({"about": "how to read", "rows": table}))
        report.evaluation_page(given[0])
        text = Elements((given[0] / "report.html").read_text()).text
        shown = all(words in text for words in ("same [1]", "[1] paper", "16.92", "dists\n", "0.23", "how to read"))
        assert shown == bool(table) and "other" not in text


def test_several_evaluations_make_a_plot_over_steps_and_seconds(tmp_path):
    folders = {}
    for steps in (8, 1, 4):
        out, *_ = evaluation(tmp_path / str(steps), {"a": 10.0 + steps}, steps=steps, model="m", sampler="ddim")
        folders[f"{steps} steps"] = out
    made = report.tradeoff(folders)
    drawn = points(made)[0]
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn) and [y for _, y in drawn] == sorted(
        (y for _, y in drawn), reverse=True
    )
    gaps = np.diff([x for x, _ in drawn])
    assert gaps[0] == pytest.approx(2 * gaps[1], abs=0.2)  # log 4 = 2 log 2
    assert "PSNR (dB) over seconds per image" in made and "SWD x 1000 over sampler steps" in made
    assert report.tradeoff({"one": folders["8 steps"]}) == ""


def decoded(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_error_maps_are_dark_at_zero_and_bright_from_the_top():
    target = np.zeros((64, 64, 3), np.uint8)
    for error, colour in ((0, report.HEAT[0]), (report.ERROR_TOP, report.HEAT[-1]), (255, report.HEAT[-1])):
        made = report.pictures({"output": target + np.uint8(error), "target": target}, "output")
        assert np.abs(decoded(made["error"]).astype(int) - colour).max() <= 6  # JPEG


def test_a_larger_target_is_cut_in_its_centre():
    x = np.zeros((600, 600, 3), np.uint8)
    x[44:556, 44:556] = 200  # 600 -> 512, offset 44
    made = report.pictures({"output": np.full((512, 512, 3), 200, np.uint8), "target": x}, "output")
    assert decoded(made["target"]).min() > 190 and decoded(made["error"]).max() < 20


def test_pictures_keep_their_colours_and_shape():
    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    image = np.stack([np.tile(ramp, (100, 1)), np.tile(ramp[::-1], (100, 1)), np.full((100, 300), 90)], -1)
    seen = decoded(page.embed(Image.fromarray(image.astype(np.uint8))))
    reference = Image.fromarray(image.astype(np.uint8)).resize((256, 85), Image.Resampling.BOX)
    assert seen.shape == (85, 256, 3) and np.abs(seen.astype(int) - np.asarray(reference)).mean() < 2


def test_radar_values_are_stretched_between_percentiles(tmp_path):
    np.save(tmp_path / "x.npy", np.linspace(-30, 5, 10000, dtype=np.float32).reshape(100, 100))
    pixels = report.pixels(tmp_path / "x.npy")
    assert pixels is not None and (pixels[0, 0] == 0).all() and (pixels[-1, -1] == 255).all()
    assert pixels[50, 0].tolist() == pytest.approx([128] * 3, abs=2)


# in a browser --------------------------------------------------------------------------------------------------------


@in_browser
def test_a_mistake_in_a_script_would_be_seen(tmp_path):
    (tmp_path / "x.html").write_text(page.document("t", "", {"a": "b"}).decode())
    assert browse(tmp_path / "x.html", "say(nothing.at.all)")[1] != []
    (tmp_path / "y.html").write_text(page.document("t", "", {"a": page.tag("img", src="http://localhost/x")}).decode())
    assert "Content Security Policy" in browse(tmp_path / "y.html")[1][0]


@in_browser
def test_the_scrubber_shows_one_picture_at_a_time(tmp_path):
    report.run_page(run_folder(tmp_path / "run"))
    script = """
      const range = document.querySelector(".scrubber input"), frames = [...document.querySelectorAll(".frame")];
      const seen = () => frames.map(f => f.offsetHeight > 0 ? 1 : 0).join("");
      const log = [range.offsetWidth > 0, seen()];
      for (const at of [0, 3]) { range.value = at; range.dispatchEvent(new Event("input")); log.push(seen()); }
      const box = document.querySelector(".chart input"), chart = box.closest(".chart");
      const shown = () => [".lin", ".log"].map(c => chart.querySelector(c).offsetHeight > 0 ? 1 : 0).join("");
      log.push(shown()); box.click(); log.push(shown());
      log.push(document.documentElement.scrollWidth <= innerWidth); say(log.join(" "));"""
    said, console = browse(tmp_path / "run/report.html", script)
    assert (said, console) == ("true 000001 100000 000100 10 01 true", [])


@in_browser
def test_the_slider_compares_the_chosen_pictures(tmp_path):
    given = evaluation(tmp_path / "x", SCORES)
    report.evaluation_page(given[0])
    script = """
      const viewer = document.querySelector(".viewer"), range = viewer.querySelector("input"), log = [];
      const rows = [...document.querySelectorAll(".row")], over = viewer.querySelector(".over");
      const same = (row, name) => over.src === row.querySelector(`[data-name="${name}"]`).src;
      log.push(viewer.offsetHeight > 0, same(rows[0], "output"), getComputedStyle(over).clipPath.includes("50%"));
      range.value = 250; range.dispatchEvent(new Event("input"));
      log.push(viewer.querySelector(".stack").style.getPropertyValue("--at"));
      rows[2].querySelector("button").click();
      log.push(rows[2].nextElementSibling === viewer, document.activeElement === range, same(rows[2], "output"));
      const left = viewer.querySelector("select"); left.value = "SAR"; left.dispatchEvent(new Event("change"));
      log.push(same(rows[2], "SAR")); viewer.querySelectorAll("button")[1].click(); log.push(same(rows[3], "SAR"));
      say(log.join(" "));"""
    said, console = browse(given[0] / "report.html", script)
    assert (said, console) == ("true true true 25% true true true true true", [])


@in_browser
def test_the_slider_obeys_the_keyboard(tmp_path):
    given = evaluation(tmp_path / "x", SCORES)
    report.evaluation_page(given[0])
    changed = given[0] / "focused.html"
    first = "document.querySelector('.row button').focus();"
    changed.write_text((given[0] / "report.html").read_text().replace("</body>", f"<script>{first}</script></body>"))
    at = "document.querySelector('.viewer .stack').style.getPropertyValue('--at') + ' ' + document.activeElement.type"
    keys = ["Enter", "ArrowRight", "ArrowRight", "ArrowLeft", "Home", "End", "Tab"]
    found = press(changed, keys, at)
    assert found[:6] == [f"{n}% range" for n in (50, 51, 52, 51, 0, 100)]  # the button opens, and gives it the focus
    assert found[6] == "100% select-one"  # from the slider to the choice of pictures


@in_browser
def test_the_page_follows_the_scheme_of_the_reader(tmp_path):
    report.run_page(run_folder(tmp_path / "run"))
    corners = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{scheme}.png"
        browse(
            tmp_path / "run/report.html", "", f"--screenshot={shot}", f"--blink-settings=preferredColorScheme={number}"
        )
        corners[scheme] = np.asarray(Image.open(shot).convert("L"))
    assert corners["light"][2, 2] == 255 and corners["dark"][2, 2] < 40
    assert corners["light"].std() > 10 < corners["dark"].std()  # there is something on it
