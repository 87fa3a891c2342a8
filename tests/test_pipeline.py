"""The model folder: what is written, what comes back, what is refused; and one output whatever surrounds an image."""

import json
import os
import stat

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image

from sar2opt.config import UserError
from sar2opt.diffusion import NoiseConfig
from sar2opt.draws import Draws
from sar2opt.models import UNetConfig, build_unet
from sar2opt.pipeline import Card, SAR2OptPipeline, model_hash, pad
from sar2opt.samplers import build_scheduler, sample

SAR = {"bands": ["VV"], "scale": "uint8"}


def make(bands=1, levels=2, **card):
    torch.manual_seed(0)
    cfg = UNetConfig(
        block_out_channels=(8,) * levels, down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels, layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    sar = {**SAR, "bands": ["VV", "VH", "HH"][:bands]}
    facts = {"method": "train", "sar": sar, "resolution": 16, "sampler": "ddim", "steps": 3, **card}
    unet = build_unet(cfg, bands, 16).eval()
    return SAR2OptPipeline(unet, build_scheduler(NoiseConfig(), "ddim", "trailing"), Card(**facts))


@pytest.fixture
def folder(tmp_path):
    make(noise_offset=0.1, lists={"train": "ab"}, sar_percentiles=((-1.0, -0.9, 0.8, 1.0),)).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def image(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_saved_pipeline_comes_back_with_the_same_output(folder):
    old = make(noise_offset=0.1, lists={"train": "ab"}, sar_percentiles=((-1.0, -0.9, 0.8, 1.0),))
    new = SAR2OptPipeline.from_pretrained(folder)
    assert new.card == old.card and new.scheduler.to_json_string() == old.scheduler.to_json_string()
    sar = image(2, 1, 16, 8)
    assert torch.equal(new(sar, output_type="pt").images, old(sar, output_type="pt").images)
    assert not torch.equal(new(sar, output_type="pt").images, make()(sar, output_type="pt").images)  # the offset counts


def test_the_folder_is_one_of_diffusers(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"] and index["scheduler"] == ["diffusers", "DDIMScheduler"]
    unet = UNet2DModel.from_pretrained(folder / "unet", local_files_only=True, use_safetensors=True)
    ours = SAR2OptPipeline.from_pretrained(folder).unet
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in unet.state_dict().items())
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    assert scheduler.config["rescale_betas_zero_snr"] and scheduler.config["timestep_spacing"] == "trailing"


def test_files_follow_the_umask_and_bytes_repeat(tmp_path):
    old = os.umask(0o022)
    try:
        for name in "ab":
            make().save_pretrained(tmp_path / name)
    finally:
        os.umask(old)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert {stat.S_IMODE((tmp_path / "a" / f).stat().st_mode) for f in files} == {0o644}
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert [f.suffix for f in files].count(".safetensors") == 1 and {f.suffix for f in files} == {
        ".json",
        ".safetensors",
    }


def test_the_model_hash_changes_with_anything_that_matters(folder):
    before = model_hash(folder)
    assert before == model_hash(folder)
    for file in ("sar2opt.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[:-2] + b" " + content[-1:])
        assert model_hash(folder) != before
        (folder / file).write_bytes(content)
    assert model_hash(folder) == before


def test_a_run_folder_stands_for_its_model(folder):
    assert SAR2OptPipeline.from_pretrained(folder.parent).card == SAR2OptPipeline.from_pretrained(folder).card
    assert model_hash(folder.parent) == model_hash(folder)


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGE = {
    "not there": (lambda f: f.rename(f.with_name("moved")), "no such model folder"),
    "not ours": (lambda f: (f / "sar2opt.json").unlink(), "not a sar2opt model: expected sar2opt.json"),
    "other format": (lambda f: edit(f / "sar2opt.json", format=9), r"format: Input should be 1 \(got 9\)"),
    "unknown key": (lambda f: edit(f / "sar2opt.json", colour="red"), "colour: Extra inputs"),
    "damaged card": (lambda f: (f / "sar2opt.json").write_text("{"), "sar2opt.json: the file: Invalid JSON"),
    "other bands": (lambda f: edit(f / "sar2opt.json", sar=SAR | {"bands": ["VV", "VH"]}), "3 . 2 expected"),
    "no weights": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "expected config.json and"
    ),
    "truncated": (
        lambda f: os.truncate(f / "unet" / "diffusion_pytorch_model.safetensors", 5000), "damaged, or not safetensors"
    ),
    "other class": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", _class_name="os.system"), "expected the settings of"
    ),
    "no scheduler": (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "expected the settings of"),
    "other shape": (lambda f: edit(f / "unet" / "config.json", layers_per_block=2), "config says .* weights have None"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_other_folders_are_refused(folder, damage):
    spoil, message = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(UserError, match=message):
        SAR2OptPipeline.from_pretrained(folder)


def test_pickled_weights_are_refused_unopened(folder, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(Payload(), folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="never opened"):
        SAR2OptPipeline.from_pretrained(folder)
    assert not (tmp_path / "opened").exists()


def test_all_kinds_of_input_and_output_agree():
    pipe, levels = make(), np.random.default_rng(0).integers(0, 256, (9, 11), dtype=np.uint8)
    tensor = torch.from_numpy(levels)[None].float() / 127.5 - 1
    expected = pipe(tensor, output_type="np").images
    grey = Image.fromarray(levels)
    for sar in (levels, levels[None], grey, grey.convert("RGB"), tensor[None], [tensor], [grey], (levels,)):
        assert np.array_equal(pipe(sar, output_type="np").images, expected)
    assert np.array_equal(np.asarray(pipe(grey).images[0]), expected[0])
    exact = pipe(grey, output_type="pt").images
    assert exact.shape == (1, 3, 9, 11) and exact.abs().max() <= 1
    assert np.array_equal(((exact[0].permute(1, 2, 0) + 1) * 127.5).round().numpy(), expected[0])
    mixed = pipe([grey, tensor, levels], ids=["0"] * 3, output_type="np").images
    assert all(np.abs(one.astype(int) - expected[0]).max() <= 1 for one in mixed)


def test_an_image_does_not_depend_on_its_batch_but_on_seed_and_id():
    pipe, sar = make(), image(3, 1, 16, 24)
    together = pipe(sar, ids=["a", "b", "c"], output_type="pt").images
    alone = pipe(sar[1], ids=["b"], output_type="pt").images
    assert (alone[0] - together[1]).abs().max() < 1e-5
    assert (pipe(sar[1], ids=["x"], output_type="pt").images[0] - together[1]).abs().max() > 0.1
    assert (pipe(sar[1], ids=["b"], seed=1, output_type="pt").images[0] - together[1]).abs().max() > 0.1


def test_the_pipeline_is_the_sampler_of_training():
    pipe, sar, card = make(noise_offset=0.2, guidance=1.5, condition_dropout=0.1), image(2, 1, 16, 24), {}
    card = {"noise_offset": 0.2, "guidance": 1.5}
    direct = sample(
        pipe.unet, build_scheduler(NoiseConfig(), "ddim", "trailing"), sar, Draws(4, "ab", "cpu"), 3, **card
    )
    assert torch.equal(pipe(sar, seed=4, ids=["a", "b"], output_type="pt").images, direct)
    other = sample(
        pipe.unet, build_scheduler(NoiseConfig(), "unipc", "trailing"), sar, Draws(4, "ab", "cpu"), 5, **card
    )
    assert torch.equal(pipe(sar, 5, 4, ["a", "b"], "unipc", "pt").images, other)
    assert torch.equal(pipe(sar, seed=4, ids=["a", "b"], output_type="pt").images, direct)  # nothing has stuck


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 31), (3, 20), (1, 1), (2, 5)])
def test_images_of_any_size_keep_it(height, width):
    pipe = make(levels=4)
    output = pipe(image(1, 1, height, width), output_type="pt").images
    assert output.shape == (1, 3, height, width) and output.isfinite().all()


def test_padding_reflects_and_keeps_the_image():
    x = torch.arange(2 * 3 * 5.0).reshape(1, 2, 3, 5)
    padded = pad(x, 4)
    assert torch.equal(padded, torch.nn.functional.pad(x, (0, 3, 0, 1), mode="reflect"))
    assert torch.equal(pad(x, 1), x)
    far = pad(torch.tensor([[[1.0, 2.0, 3.0]]]), 8)  # torch's own reflection ends at one image width
    assert far[0, 0].tolist() == [1, 2, 3, 2, 1, 2, 3, 2] and far.shape == (1, 8, 8)


def test_wrong_inputs_have_one_clear_message():
    pipe = make(bands=2)
    for sar, message in [
        (image(1, 16, 16), r"expected float \[2,H,W\] in \[-1, 1\] with the bands VV, VH"),
        (image(2, 16, 16).to(torch.uint8), "uint8"),
        (image(16, 16), "expected float"),
        (np.zeros((3, 16, 16), np.uint8), r"SAR pixels uint8 \[3, 16, 16\]: expected \[2,H,W\]"),
        (Image.new("L", (16, 16)), r"expected \[2,H,W\]"),
        ([image(2, 16, 16), image(2, 16, 8)], "one size"),
        ([], "got 0 images"),
        (image(2, 16, 16) / 0, "512 values are not finite"),
    ]:
        with pytest.raises(UserError, match=message):
            pipe(sar)
    good = image(2, 16, 16)
    for arguments, message in [
        ({"num_inference_steps": 0}, "0 steps: expected 1 to 1000"),
        ({"num_inference_steps": 1001}, "1001 steps"),
        ({"sampler": "euler"}, "expected one of ddim, ddpm, dpmpp, unipc"),
        ({"ids": ["a", "b"]}, "2 given for 1 images"),
        ({"output_type": "jpg"}, "expected 'pil', 'np' or 'pt'"),
    ]:
        with pytest.raises(UserError, match=message):
            pipe(good, **arguments)


def test_a_regression_network_needs_one_step_and_no_noise(tmp_path):
    pipe = make(start_noise=0.0, steps=1)
    pipe.scheduler = build_scheduler(NoiseConfig(prediction="sample"), "ddim", "trailing")
    pipe.save_pretrained(tmp_path / "m")
    loaded, sar = SAR2OptPipeline.from_pretrained(tmp_path / "m"), image(1, 1, 16, 16)
    first = loaded(sar, seed=0, output_type="pt").images
    assert torch.equal(first, loaded(sar, seed=9, ids=["z"], output_type="pt").images)
    with torch.no_grad():
        x = torch.cat([torch.zeros(1, 3, 16, 16), sar], 1)
        assert torch.equal(first, loaded.unet(x, torch.tensor([999])).sample.clamp(-1, 1))


def test_the_pipeline_moves_and_shows_its_components():
    pipe = make()
    assert set(pipe.components) == {"unet", "scheduler", "card", "space"}
    assert pipe.to("cpu").device == torch.device("cpu") and pipe.num_bands == 1
