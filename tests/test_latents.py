"""The cache of latents: the same numbers as without it, and an error wherever they would be of something else."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sar2opt import draws, latents
from sar2opt.config import UserError
from sar2opt.data import DataConfig, open_data
from sar2opt.data.pairs import TURNS, turned
from sar2opt.data.stream import Stream
from sar2opt.latents import DTYPES
from sar2opt.models import LatentSpace, tiny
from sar2opt.models.latent import ThreeBands

from .launch import ROOT, call, finish, printed, rows, run, start

ONE = {"run__max_steps": 5, "run__sample_every": 0, "run__validate_every": 0, "model__dropout": 0.0}


def space(seed=0):
    vae = tiny.vae(seed).eval().requires_grad_(False)
    return LatentSpace(vae, torch.zeros(1, 1, 32), ThreeBands.choose(["VV"], ratio=False))


def config(folder, **changes):
    generated = {"train": 5, "val": 1, "test": 1}
    settings = {"layout": "generated", "resolution": 32, "generated": generated, "cache_latents": "dihedral"}
    return DataConfig.model_validate(settings | {"cache_dir": folder} | changes)


def cached(cfg, seed=0):
    """Data and the opened cache, built by one process."""
    data, encoder = open_data(cfg), space(seed)
    plan = latents.plan(data, encoder.factor)
    key = latents.claim(data, encoder, plan)
    latents.build(data, encoder, plan, key, 0, 1)
    return data, latents.opened(data, plan, key)


@pytest.fixture
def pictures(tmp_path):
    """Four pairs of 40 x 48 px."""
    for side, bands in (("sar", ()), ("opt", (3,))):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 48, *bands), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pairs" / side / f"{i}.png")
    return {"layout": "folders", "root": tmp_path / "pairs", "split": "random", "test_fraction": 0.0, "generated": {}}


# the numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("fp16", 2e-3)])
def test_every_turn_is_the_turned_image_encoded_afresh_and_not_the_latent_turned(tmp_path, dtype, tolerance):
    data, pairs = cached(config(tmp_path, cache_precision=dtype))
    encoder, seen = space(), set()
    for p in range(40):
        z_sar, z_opt = pairs.read(p % 5, draws.rng(0, "augment", p))
        sar, opt = data.train.read(p % 5, draws.rng(0, "augment", p))  # the same turn, by the same generator
        fresh = encoder.encode(sar[None], opt[None])
        for found, want in zip((z_sar, z_opt), fresh, strict=True):
            torch.testing.assert_close(found, want[0], atol=tolerance, rtol=0)
    upright = pairs.plan.turns.index((0, False))
    stored = np.load(next(tmp_path.glob("*.npy")))
    assert stored.shape == (5, 8, 2, 4, 4, 4) and stored.dtype == DTYPES[dtype]
    for k, turn in enumerate(pairs.plan.turns[1:], 1):
        difference = turned(stored[:, upright].astype(np.float32), turn) - stored[:, k]
        assert difference.std() > 0.1 * stored.astype(np.float32).std()
        seen.add(k)
    assert len(seen) == 7


def test_all_turns_are_read_and_pixels_where_nothing_is_random(tmp_path):
    data, pairs = cached(config(tmp_path))
    stored = np.load(next(tmp_path.glob("*.npy"))).astype(np.float32)
    found = {
        next(k for k in range(8) if np.array_equal(stored[2, k, 0], pairs.read(2, draws.rng(0, "augment", p))[0]))
        for p in range(80)
    }
    assert found == set(range(8))
    assert all(torch.equal(a, b) for a, b in zip(pairs.read(2, None), data.train.read(2, None), strict=True))


def test_plain_is_for_data_without_turns(tmp_path):
    _, pairs = cached(config(tmp_path, cache_latents="plain", flip=False, rotate90=False))
    assert np.load(next(tmp_path.glob("*.npy"))).shape == (5, 1, 2, 4, 4, 4)
    a, b = (pairs.read(1, draws.rng(0, "augment", p))[0] for p in (0, 1))
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match="plain has no turns"):
        config(tmp_path, cache_latents="plain")


def test_the_turns_of_the_switches_are_groups():
    image = np.arange(6).reshape(2, 3)
    for (flip, rotate90), turns in TURNS.items():
        assert len({turned(image, turn).tobytes() + bytes(turned(image, turn).shape) for turn in turns}) == len(turns)
        assert len(turns) == {0: 1, 1: 4, 2: 8}[flip + rotate90]


def test_training_from_the_cache_is_training_on_the_fly(tmp_path):
    """Losses agree to 1e-5 relative: a batch through the codec is not bit-equal to its images."""
    run("cdiff_train", tmp_path / "fly", **ONE)
    cache = {"data__cache_latents": "dihedral", "data__cache_dir": tmp_path / "cache", "data__cache_precision": "fp32"}
    run("cdiff_train", tmp_path / "cached", **ONE, **cache)
    a, b = (rows(tmp_path / name) for name in ("fly", "cached"))
    assert len(a) == 5 and a[0]["loss"] != a[1]["loss"]
    for one, other in zip(a, b, strict=True):
        assert one == pytest.approx(other, rel=1e-5, nan_ok=True, abs=1e-7)
    # a second stage uses the same cache
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*.npy")}
    again = {"cdiff__loss": "beta_nll", "model__init_from": tmp_path / "cached"}
    run("cdiff_train", tmp_path / "second", **ONE, **cache, **again)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*.npy")} == stamps


def test_processes_share_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "SHARD", 2)
    data, encoder = open_data(config(tmp_path)), space()
    plan = latents.plan(data, encoder.factor)
    key = latents.claim(data, encoder, plan)
    latents.build(data, encoder, plan, key, 1, 2)
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == [f"{key}-00001.npy"]
    with pytest.raises(UserError, match=f"{key}-00000.npy: damaged"):
        latents.opened(data, plan, key)
    latents.build(data, encoder, plan, key, 0, 2)
    pairs = latents.opened(data, plan, key)
    whole = torch.stack([pairs.read(i, draws.rng(0, "augment", i))[0] for i in range(5)])
    monkeypatch.setattr(latents, "SHARD", 256)
    (tmp_path / "one").mkdir()
    one = cached(config(tmp_path / "one"))[1]
    assert torch.equal(whole, torch.stack([one.read(i, draws.rng(0, "augment", i))[0] for i in range(5)]))


# crops ----------------------------------------------------------------------------------------------------------------


def test_seeded_crops_are_pairs_of_their_own(tmp_path, pictures):
    cfg = config(tmp_path, **pictures, crops_per_image=3, cache_precision="fp32", val_fraction=0.5)
    data, pairs = cached(cfg)
    assert len(data.train) == 3 * (4 - len(data.val)) == len(set(data.train.ids)) and "#" not in data.val.ids[0]
    images = [data.train.read(i, None)[0] for i in range(3)]
    assert not torch.equal(images[0], images[1])
    again = open_data(cfg).train.read(1, None)[0]
    assert torch.equal(images[1], again)
    sample = Stream(pairs, 0).__getitems__([0, 1, 2])
    assert sample.sar.shape == sample.opt.shape == sample.eps.shape == (3, 4, 4, 4)


def test_random_crops_of_larger_images_cannot_be_cached(tmp_path, pictures):
    with pytest.raises(UserError, match=r"set data\.crops_per_image"):
        cached(config(tmp_path, **pictures))
    cached(config(tmp_path / "a", **pictures, crop="center"))
    exact = {"resolution": 48, "pad": "reflect"}  # nothing left to choose
    cached(config(tmp_path / "b", **pictures, **exact))


def test_crops_of_images_that_have_no_room_are_refused(tmp_path):
    with pytest.raises(ValueError, match="crops_per_image"):
        config(tmp_path, crops_per_image=2)
    with pytest.raises(ValueError, match="cache_dir: cache_latents needs a folder"):
        config(None)


# another cache --------------------------------------------------------------------------------------------------------


def test_a_cache_of_something_else_is_an_error_that_says_what(tmp_path):
    cached(config(tmp_path))
    with pytest.raises(UserError, match="codec: cache has"):
        cached(config(tmp_path), seed=3)
    other = {"train": 5, "val": 1, "test": 1, "looks": 2.0}
    with pytest.raises(UserError, match="reader.generated: cache has"):
        cached(config(tmp_path, generated=other))
    with pytest.raises(UserError, match="precision: cache has fp16, now fp32"):
        cached(config(tmp_path, cache_precision="fp32"))
    with pytest.raises(UserError, match=r"pairs: cache has"):
        cached(config(tmp_path, generated={"train": 4, "val": 1, "test": 1}))
    cached(config(tmp_path, workers=0, batch_size=2, micro_batch=1))  # what does not matter may change


def test_a_changed_image_is_found_and_a_touched_or_moved_one_is_not_an_error(tmp_path, pictures):
    cfg = config(tmp_path / "cache", **pictures, crop="center")
    data, _ = cached(cfg)
    path = data.train.sources()[0]
    path.touch()
    cached(cfg)
    (tmp_path / "pairs").rename(tmp_path / "moved")
    cached(config(tmp_path / "cache", **(pictures | {"root": tmp_path / "moved"}), crop="center"))
    path = tmp_path / "moved" / path.relative_to(tmp_path / "pairs")
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(UserError, match="files: cache has"):
        cached(config(tmp_path / "cache", **(pictures | {"root": tmp_path / "moved"}), crop="center"))


def test_a_damaged_shard_is_named(tmp_path):
    cfg = config(tmp_path)
    cached(cfg)
    shard = next(tmp_path.glob("*.npy"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{shard.name}"):
        cached(cfg)


def test_latents_beyond_half_precision_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(LatentSpace, "latent", lambda self, x: torch.full((len(x), 4, 4, 4), 1e6))
    with pytest.raises(UserError, match=r"data\.cache_precision: fp32"):
        cached(config(tmp_path))


# the command line -----------------------------------------------------------------------------------------------------


def test_check_says_what_would_be_cached_and_writes_nothing(tmp_path):
    settings = ["data.cache_latents=dihedral", f"data.cache_dir={tmp_path / 'cache'}"]
    done = call("cdiff_train", f"{ROOT}/configs/cdiff/smoke.yaml", "--check", *settings)
    assert done.code == 0 and "16 x 8, 0.00 GiB, not yet computed" in done.out and not list(tmp_path.iterdir())
    done = call("train", f"{ROOT}/configs/train/smoke.yaml", "--check", *settings)
    assert done.code == 2 and "only latent models" in done.err


def test_a_wrong_cache_ends_a_training_with_one_message(tmp_path):
    cache = {"data__cache_latents": "dihedral", "data__cache_dir": tmp_path / "cache"}
    run("cdiff_train", tmp_path / "a", **ONE, **cache)
    assert finish(start("cdiff_train", tmp_path / "b", **ONE, **cache, data__cache_precision="fp32")) == [2]
    assert "holds latents of something else" in printed(tmp_path / "b") and "Traceback" not in printed(tmp_path / "b")
    index = json.loads((tmp_path / "cache/index.json").read_text())
    assert index["precision"] == "fp16"
