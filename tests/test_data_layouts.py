"""Pairs are formed by name, once; scenes stay in one split; nothing depends on the order of a listing."""

import json
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sar2opt.config import UserError
from sar2opt.data import DataConfig, splits
from sar2opt.data.layouts import find_pairs, is_safe_id
from sar2opt.data.splits import assign, by_chance, by_scene, list_hash, policy, uniform


def config(root, layout="folders", **keys):
    return DataConfig.model_validate_json(json.dumps({"layout": layout, "root": str(root), **keys}))


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def ids(cfg):
    return [pair.id for pair in find_pairs(cfg).pairs]


def refused(cfg, *words):
    with pytest.raises(UserError) as error:
        found = find_pairs(cfg).pairs
        assign(cfg, found, policy(cfg, found))
    for word in words:
        assert word in str(error.value)
    return str(error.value)


# folders --------------------------------------------------------------------------------------------------------------


def test_folders_pair_by_relative_stem_and_suffixes_may_differ(tmp_path):
    touch(
        tmp_path, "sar/a/1.tif", "opt/a/1.png", "sar/b/1.TIF", "opt/b/1.jpg", "sar/.x.png", "sar/Thumbs.db", "opt/n.txt"
    )
    found = find_pairs(config(tmp_path))
    assert [(p.id, p.sar, p.opt, p.scene) for p in found.pairs] == [
        ("a/1", "sar/a/1.tif", "opt/a/1.png", "a"),
        ("b/1", "sar/b/1.TIF", "opt/b/1.jpg", "b"),
    ]
    assert found.skipped == {"hidden": 2, "no image": 1}


def test_a_listing_in_another_order_gives_the_same_pairs(tmp_path, monkeypatch):
    touch(tmp_path, *[f"{side}/{k % 3}/{k}.png" for side in ("sar", "opt") for k in range(20)])
    before, scandir = find_pairs(config(tmp_path)), os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: reversed(sorted(scandir(path), key=lambda e: e.name[::-1])))
    assert find_pairs(config(tmp_path)) == before


def test_words_of_the_rules_in_the_root_change_nothing(tmp_path):
    root = tmp_path / "train_s1_" / "sar_s2" / "opt"
    touch(root, "sar/x.png", "opt/x.png", "urban/s1/ROIs1970_fall_s1_8_p1.png", "urban/s2/ROIs1970_fall_s2_8_p1.png")
    assert ids(config(root)) == ["x"] and ids(config(root, "sen12")) == ["urban/ROIs1970_fall_8_p1"]


def test_missing_partners_are_counted_and_named_with_the_path_looked_for(tmp_path):
    touch(tmp_path, *[f"sar/{k}.png" for k in range(9)], "opt/0.png", "opt/z.png")
    text = refused(config(tmp_path), "9 SAR files (sar) and 2 optical files (opt)", "8 files have no partner in opt")
    assert "1 (looked for opt/1.*)" in text and "1 files have no partner in sar: z (looked for sar/z.*)" in text
    assert "5 (looked for opt/5.*), ..." in text and "6 (" not in text


def test_two_files_with_one_id_are_an_error_with_both_paths(tmp_path):
    touch(tmp_path, "sar/a.png", "sar/a.tif", "opt/a.png")
    refused(config(tmp_path), "1 ids have two files on one side", "sar/a.png and sar/a.tif")


def test_names_that_differ_in_case_are_an_error_that_shows_both(tmp_path):
    touch(tmp_path, "sar/Tile.png", "opt/tile.png")
    refused(config(tmp_path), "Tile and tile", "upper and lower case")


def test_unicode_forms_of_one_name_are_one_name(tmp_path):
    composed, split = (unicodedata.normalize(form, "\u00e9t\u00e9") for form in ("NFC", "NFD"))
    touch(tmp_path, f"sar/{split}.png", f"opt/{composed}.png")
    assert ids(config(tmp_path)) == [composed]
    touch(tmp_path, f"sar/{composed}.png")
    refused(config(tmp_path), "two files on one side")


def test_links_are_followed_inside_the_root_only(tmp_path):
    touch(tmp_path / "data", "sar/a/1.png", "opt/a/1.png")
    touch(tmp_path / "elsewhere", "2.png")
    for side in ("sar", "opt"):
        (tmp_path / "data" / side / "b").symlink_to(tmp_path / "data" / side / "a")
        (tmp_path / "data" / side / "a" / "loop").symlink_to(tmp_path / "data" / side)
    assert {"a/1", "b/1"} <= set(ids(config(tmp_path / "data")))
    for side in ("sar", "opt"):
        (tmp_path / "data" / side / "c").symlink_to(tmp_path / "elsewhere")
    refused(config(tmp_path / "data"), "a link that leaves the root", "data.allow_outside_root: true")
    assert "c/2" in ids(config(tmp_path / "data", allow_outside_root=True))


def test_what_is_missing_is_said(tmp_path):
    refused(config(tmp_path / "nowhere"), "data.root", "no such folder")
    touch(tmp_path, "SAR/a.png", "OPT/a.png")
    refused(config(tmp_path), "data.sar_dir", "OPT, SAR")
    assert ids(config(tmp_path, sar_dir="SAR", opt_dir="OPT")) == ["a"]
    refused(config(tmp_path, sar_dir="../x"), "leaves the root")
    (tmp_path / "sar").mkdir()
    (tmp_path / "opt").mkdir()
    refused(config(tmp_path), "no image files")


def test_ids_are_names_of_output_files(tmp_path):
    assert all(map(is_safe_id, ["a", "a b/c,d.e", "\u00e9", "1-2"]))
    assert not any(
        map(is_safe_id, ["", "-a", "/a", "a//b", "../a", "a/..", "a/./b", "a\\b", "a\nb", "\udcff", "x" * 201])
    )
    touch(tmp_path, "sar/-a.png", "opt/-a.png")
    refused(config(tmp_path), "cannot name output files", "'-a'")


# sen12 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", ["", "v_2/"])
def test_sen12_and_its_terrain_edition(tmp_path, top):
    touch(
        tmp_path,
        top + "ROIs1868_summer/s1_59/ROIs1868_summer_s1_59_p2.png",
        top + "ROIs1868_summer/s2_59/ROIs1868_summer_s2_59_p2.png",
        top + "agri/s1/ROIs1970_fall_s1_115_p61.png", top + "agri/s2/ROIs1970_fall_s2_115_p61.png",
        top + "grassland/s1/ROIs1970_fall_s1_115_p61.png", top + "grassland/s2/ROIs1970_fall_s2_115_p61.png",
        top + "readme/s1.png",
    )  # fmt: skip
    found = find_pairs(config(tmp_path, "sen12"))
    assert [(p.id, p.scene, p.note) for p in found.pairs] == [
        ("ROIs1868_summer_59_p2", "ROIs1868_summer_59", ""),
        ("agri/ROIs1970_fall_115_p61", "ROIs1970_fall_115", "agri"),
        ("grassland/ROIs1970_fall_115_p61", "ROIs1970_fall_115", "grassland"),
    ]
    for pair in found.pairs:  # "s1" is a part of ROIs1868, too
        assert pair.sar.count("_s1_") == 1 and pair.opt == pair.sar.replace("/s1", "/s2").replace("_s1_", "_s2_")
    assert found.skipped == {"other names": 1}


def test_sen12_names_the_partner_it_misses(tmp_path):
    touch(tmp_path, "ROIs1868_summer/s1_11/ROIs1868_summer_s1_11_p2.png", "urban/s2/ROIs1970_fall_s2_8_p1.png")
    text = refused(config(tmp_path, "sen12"), "1 SAR files (s1) and 1 optical files (s2)")
    assert "looked for ROIs1868_summer/s2_11/ROIs1868_summer_s2_11_p2.png" in text
    assert "looked for urban/s1/ROIs1970_fall_s1_8_p1.png" in text


def test_a_wrong_layout_names_what_it_found_and_what_would_fit(tmp_path):
    touch(tmp_path, *[f"{side}/{k}.png" for side in ("sar", "opt") for k in range(9)])
    refused(config(tmp_path, "sen12"), "ROIs<season>/s1_<scene>", "18 image files: opt/0.png, opt/1.png, opt/2.png",
            "fit layout folders")  # fmt: skip
    touch(tmp_path / "sen", "urban/s1/ROIs1970_fall_s1_8_p1.png")
    refused(config(tmp_path / "sen"), "fit layout sen12")


TERRAIN = """agri summer-59 1370, 19 886, 29 800, 113 527, 133 288, 115 129;
barrenland 114 1080, 71 930, 2 900, 124 391, 73 350, 26 284, 144 65;
grassland 11 1250, 145 1213, 72 1088, 121 342, 32 75, 115 32;
urban 50 794, 143 651, 47 491, 43 364, 53 334, 52 291, 8 287, 27 276, 140 150, 13 136, 67 127, 56 81, 144 18"""


def test_the_official_split_of_the_terrain_edition_has_its_published_counts():
    pairs = []
    for part in TERRAIN.split(";"):
        terrain, rest = part.split(maxsplit=1)
        for scene, count in (item.split() for item in rest.split(",")):
            name = f"ROIs1868_summer_{scene[7:]}" if scene.startswith("summer") else f"ROIs1970_fall_{scene}"
            pairs += [splits.Pair(f"{terrain}/{name}_p{k}", "", "", name, terrain) for k in range(int(count))]
    assert len(pairs) == 16000 and len({p.scene for p in pairs}) == 30
    chosen = assign(config(".", "sen12", split="official"), pairs, "official")
    assert [chosen.count(name) for name in ("train", "val", "test")] == [13323, 1245, 1432]
    urban = [name for name, pair in zip(chosen, pairs, strict=True) if pair.note == "urban"]
    assert [urban.count(name) for name in ("val", "test")] == [294, 291]
    for scene in {p.scene for p in pairs}:
        assert len({name for name, pair in zip(chosen, pairs, strict=True) if pair.scene == scene}) == 1


# csv ------------------------------------------------------------------------------------------------------------------


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_table_names_its_pairs_and_what_it_knows_of_them(tmp_path):
    file = table(
        tmp_path / "t.csv", "id,opt,sar,scene,split,note", "x,o/1.png,s/7.png,A,test,hi", "a,o/2.png,s/8.png,B,train,"
    )
    cfg = config(tmp_path, "csv", csv={"files": [file]})
    found = find_pairs(cfg).pairs
    assert [p[:6] for p in found] == [
        ("a", "s/8.png", "o/2.png", "B", "", "train"),
        ("x", "s/7.png", "o/1.png", "A", "hi", "test"),
    ]
    assert assign(cfg, found, policy(cfg, found)) == ["train", "test"]


@pytest.mark.parametrize("header", ["auto", False])
def test_two_columns_without_a_header_are_sar_and_opt(tmp_path, header):
    file = table(tmp_path / "t.csv", "s/7.png,o/1.png", "s/8.png,o/2.png")
    cfg = config(tmp_path, "csv", csv={"files": [file], "header": header}, scene_regex="^(.)")
    assert [(p.id, p.opt, p.scene) for p in find_pairs(cfg).pairs] == [("7", "o/1.png", "7"), ("8", "o/2.png", "8")]


@pytest.mark.parametrize("head", [["path"], []])
def test_two_lists_pair_by_order_and_their_names_must_agree(tmp_path, head):
    left = table(tmp_path / "a.csv", *head, *[f"x/ROIs_s1_{k}_p{k}.png" for k in (3, 1, 2)])
    right = table(tmp_path / "b.csv", *head, *[f"y/ROIs_s2_{k}_p{k}.png" for k in (3, 1, 2)])
    cfg = config(tmp_path, "csv", csv={"files": [left, right]})
    assert [(p.id, p.opt[-5]) for p in find_pairs(cfg).pairs] == [(f"ROIs_s1_{k}_p{k}", str(k)) for k in (1, 2, 3)]


def test_two_lists_in_different_orders_are_refused_with_the_rows(tmp_path):
    left = table(tmp_path / "a.csv", *[f"sar_{k}.png" for k in range(9)])
    right = table(tmp_path / "b.csv", *[f"opt_{k}.png" for k in [0, *range(8, 0, -1)]])
    cfg = config(tmp_path, "csv", csv={"files": [left, right]}, split="random")
    text = refused(cfg, "8 of 9 rows do not name the same patch", "row 2: sar_1.png | opt_8.png")
    assert text.count("row ") == 5 and "row 7" not in text
    trusted = config(tmp_path, "csv", csv={"files": [left, right], "trust_order": True})
    assert find_pairs(trusted).pairs[1][:3] == ("sar_1", "sar_1.png", "opt_8.png")


def test_a_header_that_is_taken_for_a_row_is_found_out(tmp_path):
    left, right = (table(tmp_path / f"{s}.csv", "path", f"{s}_1.png", f"{s}_2.png") for s in ("sar", "opt"))
    cfg = {"files": [left, right]}
    assert len(find_pairs(config(tmp_path, "csv", csv=cfg)).pairs) == 2
    assert len(find_pairs(config(tmp_path, "csv", csv=cfg | {"header": True})).pairs) == 2
    assert len(find_pairs(config(tmp_path, "csv", csv=cfg | {"header": False})).pairs) == 3  # then 'path' is no file


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["sar,opt", "/etc/a.png,o.png"], "row 1 of the pairs: /etc/a.png: leaves the root"),
        (["sar,opt", "a.png,../o.png"], "row 1 of the pairs: ../o.png: leaves the root"),
        (["sar,opt", "x/a.png,o.png", "y/a.png,p.png"], "id a twice: x/a.png and y/a.png; give the table a column id"),
        (["sar,opt", "a.png"], "1 cells, expected 2"),
        (["left,middle,right", "a.png,b.png,c.png"], "expected the columns sar and opt"),
        (["sar,opt"], "no rows"),
        (["sar,opt,split", "a.png,b.png,testing"], "column split: expected train, val, test, unused; found testing"),
        (["id,sar,opt", "../a,a.png,b.png"], "cannot name output files"),
    ],
)
def test_mistakes_in_a_table_are_named(tmp_path, lines, words):
    refused(config(tmp_path, "csv", csv={"files": [table(tmp_path / "t.csv", *lines)]}), words)


def test_a_missing_table_or_an_unequal_one_is_named(tmp_path):
    refused(config(tmp_path, "csv", csv={"files": ["none.csv"]}), "data.csv.files: none.csv: no such file")
    files = [table(tmp_path / "a.csv", "a.png", "b.png"), table(tmp_path / "b.csv", "a.png")]
    refused(config(tmp_path, "csv", csv={"files": files}), "2 and 1 rows")


# splits ---------------------------------------------------------------------------------------------------------------


def test_the_place_of_a_scene_is_a_published_function_of_its_name():
    for name, u in [("ROIs1868_summer_59", 0.679155367), ("ROIs1970_fall_115", 0.418237480), ("13", 0.845019556)]:
        assert uniform(0, name) == pytest.approx(u, abs=5e-10)


def test_the_hash_of_a_list_does_not_depend_on_its_order():
    assert list_hash(["b", "a", "c"]).startswith("ea7fb08b7a2dc461") and list_hash("bac") == list_hash("abc")


@pytest.mark.parametrize(("n", "expected"), [(20000, 4000), (3401, 680)])
def test_random_shares_are_rounded_not_cut(n, expected):
    names = [str(k) for k in range(n)]
    chosen = by_chance(names, 0, 0.0, 0.2)
    assert chosen.count("test") == expected and chosen.count("val") == 0
    assert by_chance(names[::-1], 0, 0.0, 0.2) == chosen[::-1] and by_chance(names, 1, 0.0, 0.2) != chosen


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(0, 3), st.sampled_from([0, 0.1, 0.3]))
def test_scenes_are_whole_and_the_shares_reached(numbers, seed, fraction):
    scenes = [f"scene{k}" for k in numbers]
    chosen = by_scene(scenes, seed, fraction, fraction)
    where = dict(zip(scenes, chosen, strict=True))
    assert [where[s] for s in scenes] == chosen
    for name in ("test", "val"):
        if "train" in chosen or fraction == 0:  # the rest is train only once the others are full
            assert chosen.count(name) >= fraction * len(scenes)
        last = max((s for s in where if where[s] == name), key=lambda s: uniform(seed, s), default=None)
        if last:  # without its last scene it had not reached its share
            assert chosen.count(name) - scenes.count(last) < fraction * len(scenes)
    if fraction == 0:
        assert set(chosen) == {"train"}


def test_without_scenes_the_split_must_be_chosen(tmp_path):
    names = [f"{k:03d}_r0c{k}" for k in range(10)]
    touch(tmp_path, *[f"{side}/{n}.png" for side in ("sar", "opt") for n in names])
    refused(config(tmp_path), "data.scene_regex", "data.split: random", "000_r0c0")
    refused(config(tmp_path, split="scene"), "data.scene_regex")
    refused(config(tmp_path, scene_regex="^x"), "does not match 10 of 10 ids")
    refused(config(tmp_path, split="official"), "layout folders: it has none")
    cfg = config(tmp_path, scene_regex=r"^(\d+)_")
    found = find_pairs(cfg).pairs
    assert policy(cfg, found) == "scene" and [p.scene for p in found] == [n[:3] for n in names]


def test_one_scene_leaves_nothing_for_training(tmp_path):
    touch(tmp_path, "sar/a/1.png", "opt/a/1.png")
    refused(config(tmp_path), "leaves no pair for training: 1 pairs in 1 scenes")
    cfg = config(tmp_path, test_fraction=0, val_fraction=0)
    assert assign(cfg, find_pairs(cfg).pairs, "scene") == ["train"]


def test_a_split_from_a_file(tmp_path):
    touch(tmp_path, *[f"{side}/{n}.png" for side in ("sar", "opt") for n in "abc"])
    file = table(tmp_path / "split.csv", "id,split", "b,test", "a,train")
    cfg = config(tmp_path, split=f"file:{file}")
    found = find_pairs(cfg).pairs
    assert assign(cfg, found, policy(cfg, found)) == ["train", "test", "unused"]
    table(tmp_path / "split.csv", "id,split", "a,train", "z,test")
    refused(cfg, "1 of its 2 ids are not in the data: z")
    table(tmp_path / "split.csv", "id,split", "a,trian")
    refused(cfg, "found trian")
    table(tmp_path / "split.csv", "name", "a")
    refused(cfg, "columns id and split")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"layout": "folders"}, "root: layout folders needs"),
        ({"layout": "manifest"}, "manifest: layout manifest needs"),
        ({"layout": "csv", "root": "x"}, "csv.files"),
        ({"layout": "generated", "root": "x"}, "root: layout generated has none"),
        ({"layout": "generated", "sar": {"bands": ["HH"]}}, "knows the bands VV and VH"),
        ({"layout": "generated", "generated": {"train": 0}}, "generated.train"),
        ({"layout": "folders", "root": "x", "split": "half"}, "split: expected scene, random"),
        ({"layout": "folders", "root": "x", "scene_regex": "("}, "scene_regex: not a regular"),
        ({"layout": "sen12", "root": "x", "scene_regex": "a"}, "scene_regex: layout sen12 has its own rule"),
        ({"layout": "folders", "root": "x", "val_fraction": 0.5, "test_fraction": 0.5}, "leaves no pair"),
        ({"layout": "folders", "root": "x", "opt_dir": "sar"}, "opt_dir: the same folder"),
        ({"layout": "folders", "root": "x", "opt": {"scale": "uint16"}}, "clip: scale uint16 needs"),
    ],
)
def test_contradictions_in_the_data_section_are_refused(keys, words):
    with pytest.raises(ValueError, match=words):
        DataConfig.model_validate_json(json.dumps(keys))
