"""Comparisons: on the same images, paired, and refused where they would mislead."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from sar2opt import comparison
from sar2opt.config import UserError

from .test_report import HOSTILE, ROOT, Elements, browse, evaluation, in_browser, require_contained, run_folder

SCORES = {HOSTILE: 11.0, "a": 12.0, "b": 15.0, "c": 20.0}


def compare(folder, *sources):
    """Rows of the tables of the page as lists of cells, and all its text."""
    comparison.comparison_page(folder / "compare.html", sources)
    require_contained(folder / "compare.html")
    content = (folder / "compare.html").read_text()
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", content)]
    return [[re.sub("<.*?>", "", cell) for cell in row] for row in rows if row], Elements(content).text


def edit(folder, change):
    """Apply ``change`` to metrics.json."""
    content = json.loads((folder / "metrics.json").read_text())
    change(content)
    (folder / "metrics.json").write_text(json.dumps(content))


def test_a_constant_gain_has_an_interval_of_no_width_and_a_direction(tmp_path):
    a, *_ = evaluation(tmp_path / "a", SCORES, steps=4)
    b, *_ = evaluation(tmp_path / "b", {name: value + 0.5 for name, value in SCORES.items()}, seed=5, steps=8)
    rows, text = compare(tmp_path, a, b)
    assert ["PSNR (dB)", "b/eval", "14.5", "15", "+0.5", "+0.5, +0.5", "4", "better"] in rows
    assert ["mean absolute error (grey values)", "b/eval", "15.5", "15", "-0.5", "-0.5, -0.5", "4", "better"] in rows
    assert ["SSIM", "b/eval", "0.5", "0.5", "+0", "+0, +0", "4", "no clear difference"] in rows
    assert ["SWD x 1000", "100", "100", "+0"] in rows and ["inputs.steps", "4", "8"] in rows
    assert HOSTILE in text and "PSNR (dB) over sampler steps" in text
    rows, _ = compare(tmp_path, b, a)
    assert ["PSNR (dB)", "a/eval", "15", "14.5", "-0.5", "-0.5, -0.5", "4", "worse"] in rows


def test_a_difference_smaller_than_its_scatter_is_not_clear(tmp_path):
    a, *_ = evaluation(tmp_path / "a", SCORES)
    b, *_ = evaluation(tmp_path / "b", {name: v + (2 if v < 13 else -1.5) for name, v in SCORES.items()})
    rows, _ = compare(tmp_path, a, b)
    (row,) = [row for row in rows if row[0] == "PSNR (dB)"]
    assert row[4] == "+0.25" and row[-1] == "no clear difference"


def test_only_common_images_count_and_the_others_are_named(tmp_path):
    a, *_ = evaluation(tmp_path / "a", SCORES)
    b, *_ = evaluation(tmp_path / "b", {"a": 13.0, "c": 21.0, "more": 90.0}, steps=3)
    rows, text = compare(tmp_path, a, b)
    assert ["PSNR (dB)", "b/eval", "16", "17", "+1", "+1, +1", "2", "better"] in rows
    assert f"a/eval: 2 of 4 images are left out, the others lack them: {HOSTILE}, b" in text
    assert "b/eval: 1 of 3 images are left out, the others lack them: more" in text
    assert "Metrics of unequal sets cannot be compared" in text and "over sampler steps" not in text
    assert ["SWD x 1000", "100", "100", ""] in rows  # no difference between unequal sets


def test_rows_go_from_the_largest_loss_to_the_largest_gain(tmp_path):
    a, *_ = evaluation(tmp_path / "a", {f"i{k:02}": 20.0 for k in range(40)})
    b, *_ = evaluation(tmp_path / "b", {f"i{k:02}": 20.0 + (k * 7) % 40 - 20 for k in range(40)})
    _, text = compare(tmp_path, a, b)
    gains = [float(v) for v in re.findall(r"b/eval: PSNR \(dB\) (\S+)", text)]
    assert len(gains) == 2 * comparison.ROWS and gains == sorted(gains)
    assert (gains[0], gains[-1]) == (0, 39) and "24 of 40 images" in text


def test_pictures_that_are_gone_are_told(tmp_path):
    a, *_ = evaluation(tmp_path / "a", SCORES)
    b, pred, *_ = evaluation(tmp_path / "b", SCORES)
    shutil.rmtree(pred)
    assert f"not where they were evaluated: {pred}" in compare(tmp_path, a, b)[1]


def test_doubtful_comparisons_carry_a_warning(tmp_path):
    a, *_ = evaluation(tmp_path / "a", SCORES)
    b, *_ = evaluation(tmp_path / "b", SCORES)
    edit(b, lambda content: content["metrics"]["psnr"].update(ci="scene"))
    text = compare(tmp_path, a, b)[1]
    assert "The targets are not from one folder" in text and "makes intervals too narrow" in text


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            "disjoint",
            "no image is common to all evaluations; .*\n  a/eval: 4 ids, such as .*\n  b/eval: 1 ids, such as z",
        ),
        ("same", "expected two different folders or more"),
        ("kinds", "expected evaluations alone .* or runs alone .*\n  .*a/eval: metrics.json\n  .*run: config.yaml"),
        ("nothing", "empty: *$"),
        ("conventions", "different conventions cannot be compared: legacy:cdiffset, standard"),
        ("table", "b/eval: no per_image.csv"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, mistake, message):
    a, *_ = evaluation(tmp_path / "a", SCORES)
    b, *_ = evaluation(tmp_path / "b", {"z": 1.0} if mistake == "disjoint" else SCORES)
    (tmp_path / "empty").mkdir()
    if mistake == "conventions":
        edit(b, lambda content: content.update(convention="legacy:cdiffset"))
    if mistake == "table":
        (b / "per_image.csv").unlink()
    others = {"same": a, "kinds": run_folder(tmp_path / "run"), "nothing": tmp_path / "empty"}
    with pytest.raises(UserError, match=message):
        comparison.comparison_page(tmp_path / "x.html", [a, others.get(mistake, b)])
    assert not (tmp_path / "x.html").exists()


def test_runs_are_compared_at_the_last_step_that_all_have(tmp_path):
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b<i>", 40)
    rows, text = compare(tmp_path, a, b)
    assert "at step 40" in text and ["PSNR (dB)", "14", "14", "+0"] in rows
    assert ["run.max_steps", "60", "40"] in rows and not [row for row in rows if row[0] == "optim.lr"]
    assert "not have the same images" not in text
    for run, digest in ((a, "1"), (b, "2")):
        (run / "model").mkdir()
        (run / "model/sar2opt.json").write_text(json.dumps({"lists": {"train": "0", "val": digest}}))
    assert "do not have the same images: their lists differ in val." in compare(tmp_path, a, b)[1]
    assert "b<i>, step-00000040" in text and "a, step-00000040" in text and "no values per image" in text


def test_runs_without_anything_yet_are_compared_too(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("run: {max_steps: 5}\n")
    text = compare(tmp_path, tmp_path / "a", tmp_path / "b")[1]
    assert "no step at which all of these runs were validated" in text and "Nothing, as far as" in text


def test_the_command_ends_as_its_result_says(tmp_path):
    a, *_ = evaluation(tmp_path / "a", SCORES)
    b, *_ = evaluation(tmp_path / "b", {"z": 1.0})
    command = [sys.executable, str(ROOT / "scripts/compare.py"), "--out", str(tmp_path / "x.html"), str(a)]
    refused = subprocess.run([*command, str(b)], capture_output=True, text=True, timeout=60)
    assert (refused.returncode, refused.stdout) == (2, "") and refused.stderr.startswith("error: no image is common")
    shutil.copytree(a, tmp_path / "c")
    done = subprocess.run([*command, str(tmp_path / "c")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and (tmp_path / "x.html").is_file(), done.stderr


@in_browser
def test_the_slider_stands_between_two_outputs(tmp_path):
    a, *_ = evaluation(tmp_path / "a", SCORES)
    b, *_ = evaluation(tmp_path / "b", {name: v + 1 for name, v in SCORES.items()}, seed=5)
    compare(tmp_path, a, b)
    script = """
      const row = document.querySelector(".row"), viewer = document.querySelector(".viewer");
      const of = name => row.querySelector(`[data-name="${name}"]`).src, at = name => viewer.querySelector(name).src;
      say([at(".over") === of("a/eval"), at(".under") === of("b/eval"), at(".over") !== at(".under")].join(" "));"""
    assert browse(tmp_path / "compare.html", script) == ("true true true", [])
