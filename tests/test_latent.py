"""Latent networks: what a Stable Diffusion folder must be, what widening keeps, and what a model folder holds."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

import cdiff_train
from sar2opt import cdiff, config
from sar2opt.config import UserError
from sar2opt.data import open_data
from sar2opt.draws import Draws
from sar2opt.models import latent, tiny
from sar2opt.models.latent import LatentSpace, ThreeBands
from sar2opt.pipeline import SAR2OptPipeline, model_hash

from .launch import ROOT, tiny_base
from .test_methods import StubRun

PROMPT = "electro-optical image"


def opened(**changes):
    """Space and network of the tiny base, as a training builds them."""
    settings = {"base": "generated", "loss": "beta_nll"} | changes
    cfg = cdiff_train.Config.model_validate(
        {"run": {"name": "x", "max_steps": 4}, "data": {"layout": "generated", "resolution": 32}, "cdiff": settings}
    )
    return cdiff.build(cfg, open_data(cfg.data).radiometry, ROOT / "none")


def fresh(*overrides):
    """A method on a stub run, untrained."""
    cfg = config.load(cdiff_train.Config, ROOT / "configs/cdiff/smoke.yaml", ["model.dropout=0.0", *overrides])
    return cdiff_train.CDiff(cfg, StubRun(open_data(cfg.data)))


def method(*overrides):
    """A method on a stub run, untrained but for noise in its last layer."""
    made = fresh(*overrides)
    torch.manual_seed(0)
    with torch.no_grad():
        made.ema.conv_out.weight.add_(0.05 * torch.randn_like(made.ema.conv_out.weight))
    return made


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def edited(tmp_path, file, **changes):
    """A copy of the tiny base with settings changed; None removes one."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base(), folder)
    settings = json.loads((folder / file).read_text())
    settings = {key: value for key, value in (settings | changes).items() if value != "remove"}
    (folder / file).write_text(json.dumps(settings))
    return folder


# the tiny base --------------------------------------------------------------------------------------------------------


def test_the_tiny_base_has_the_sizes_that_it_says():
    counts = [sum(p.numel() for p in net.parameters()) for net in (tiny.unet(), tiny.vae())]
    assert counts == [792_964, 81_215]
    torch.testing.assert_close(tiny.unet().state_dict(), tiny.unet().state_dict(), rtol=0, atol=0)


def test_the_folder_holds_the_same_networks_and_a_prompt_of_22_tokens():
    base = latent.open_base(str(tiny_base()), None, 1000)
    assert latent.digest(base.vae.state_dict()) == latent.digest(tiny.vae().state_dict())
    unet = latent.unet_from(
        UNet2DConditionModel, base.settings, latent.read_unet_weights(tiny_base() / "unet"), tiny_base()
    )
    assert latent.digest(unet.state_dict()) == latent.digest(tiny.unet().state_dict())
    prompt = latent.open_prompt(base, PROMPT, [])
    assert prompt.shape == (1, 22, 32) and prompt.dtype == torch.float32 and not prompt.requires_grad


# refusals -------------------------------------------------------------------------------------------------------------

REFUSED = [
    ("unet/config.json", {"in_channels": 9}, "in_channels: expected 4 or 8, found 9"),
    ("unet/config.json", {"out_channels": 3}, "out_channels: expected 4 or 5, found 3"),
    ("unet/config.json", {"_class_name": "UNet2DModel"}, "expected UNet2DConditionModel, found UNet2DModel"),
    ("vae/config.json", {"latent_channels": 16}, "latent_channels: expected 4, found 16"),
    ("vae/config.json", {"scaling_factor": "remove"}, "scaling_factor: expected a number such as 0.18215, found None"),
    ("vae/config.json", {"shift_factor": 0.1}, "shift_factor: expected None, found 0.1"),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": 500}, "expected 1000, found 500"),
]


@pytest.mark.parametrize(("file", "changes", "message"), REFUSED)
def test_a_base_that_is_something_else_is_refused_by_file_and_key(tmp_path, file, changes, message):
    folder = edited(tmp_path, file, **changes)
    with pytest.raises(UserError) as raised:
        latent.open_base(str(folder), None, 1000)
    assert message in str(raised.value) and str(folder / file) in str(raised.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    folder = edited(tmp_path, "unet/config.json", in_channels=9, out_channels=3)
    with pytest.raises(UserError, match=r"in_channels.*\n.*out_channels"):
        latent.open_base(str(folder), None, 1000)


def test_weights_of_another_network_are_listed(tmp_path):
    folder = edited(tmp_path, "unet/config.json", block_out_channels=[32, 96])
    with pytest.raises(UserError, match="config says") as raised:
        opened(base=str(folder))
    assert "down_blocks.1" in str(raised.value)


def test_a_prompt_of_another_width_is_refused(tmp_path):
    folder = edited(tmp_path, "unet/config.json")
    (folder / "prompt").mkdir()
    (folder / latent.PROMPT_FILE).write_bytes(latent.prompt_bytes(PROMPT, torch.zeros(1, 22, 64)))
    with pytest.raises(UserError, match=r"expected \[1, length, 32\] \(cross_attention_dim\), found \[1, 22, 64\]"):
        opened(base=str(folder))
    with pytest.raises(UserError, match="set cdiff.prompt to what is stored"):
        opened(base=str(folder), prompt="something else")


def test_a_base_without_text_encoder_needs_a_stored_prompt(tmp_path):
    folder = edited(tmp_path, "unet/config.json")
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    with pytest.raises(UserError, match="no tokenizer and no text_encoder in it, and no stored prompt"):
        opened(base=str(folder))
    (folder / "prompt").mkdir()
    (folder / latent.PROMPT_FILE).write_bytes(latent.prompt_bytes(PROMPT, noise(1, 5, 32)))
    assert opened(base=str(folder)).space.prompt.shape == (1, 5, 32)


@pytest.mark.parametrize("revision", [None, "main", "0094d48", "g" * 40])
def test_a_hub_id_needs_a_pinned_revision(revision):
    with pytest.raises(UserError, match="a commit of 40 hexadecimal digits"):
        latent.open_base("someone/stable-diffusion", revision, 1000)


def test_a_hub_id_is_never_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection"))
    with pytest.raises(UserError, match=f"hf download someone/stable-diffusion --revision {'0' * 40}"):
        latent.open_base("someone/stable-diffusion", "0" * 40, 1000)


def test_a_missing_folder_names_the_command_that_makes_one():
    with pytest.raises(UserError, match="make_tiny_sd.py /no/such/folder"):
        latent.open_base("/no/such/folder", None, 1000)


def test_zero_terminal_snr_of_an_epsilon_base_is_refused(tmp_path):
    folder = edited(tmp_path, "scheduler/scheduler_config.json", rescale_betas_zero_snr=True)
    with pytest.raises(UserError, match="zero_terminal_snr with prediction=epsilon"):
        opened(base=str(folder))


def test_another_prediction_than_the_bases_must_be_meant():
    cfg = ["noise.prediction=v", "cdiff.base=generated"]
    with pytest.raises(UserError, match="the base generated predicts epsilon"):
        method(*cfg)
    for allowed in ("cdiff.init=scratch", "cdiff.allow_prediction_change=true"):
        made = method(*cfg, allowed)
        assert made.schedule.prediction == "v" and made.pipeline.scheduler.config["prediction_type"] == "v_prediction"


# widening -------------------------------------------------------------------------------------------------------------


def test_a_new_head_says_nothing_for_any_input():
    made = opened()
    out = made.space.outputs(made.unet, noise(2, 4, 6, 5), torch.tensor([3, 900]), noise(2, 4, 6, 5, seed=1))
    assert out.shape == (2, 5, 6, 5) and torch.equal(out[:, 4:], torch.zeros(2, 1, 6, 5))
    assert opened(loss="laplace2").unet.config.out_channels == 8 and opened(loss="mse").unet.config.out_channels == 4


@torch.no_grad()
def test_the_wide_input_with_both_halves_equal_is_the_base():
    made, z, t = opened(), noise(2, 4, 6, 5), torch.tensor([3, 900])
    words = made.space.prompt.expand(2, -1, -1)
    base = tiny.unet()(z, t, encoder_hidden_states=words).sample
    torch.testing.assert_close(made.space.predict(made.unet, z, t, z), base, atol=1e-5, rtol=0)
    wide, narrow, z = made.unet.conv_in.double(), tiny.unet().conv_in.double(), z.double()
    torch.testing.assert_close(wide(torch.cat([z, z], 1)), narrow(z), atol=1e-14, rtol=0)


@torch.no_grad()
def test_at_the_start_the_two_halves_count_alike_and_zero_sar_is_blind():
    made, t = opened(), torch.tensor([3, 900])
    a, b = noise(2, 4, 6, 5), noise(2, 4, 6, 5, seed=1)
    swapped = made.space.predict(made.unet, b, t, a)
    torch.testing.assert_close(made.space.predict(made.unet, a, t, b), swapped, atol=1e-5, rtol=0)
    blind = opened(conv_in="zero_sar")
    words = blind.space.prompt.expand(2, -1, -1)
    base = tiny.unet()(a, t, encoder_hidden_states=words).sample
    torch.testing.assert_close(blind.space.predict(blind.unet, a, t, b), base, atol=1e-5, rtol=0)


def test_widening_twice_changes_nothing_and_the_config_knows(tmp_path):
    made = opened()
    before = latent.digest(made.unet.state_dict())
    latent.widen_input_(made.unet, "half_repeat")
    latent.widen_output_(made.unet, 1)
    assert latent.digest(made.unet.state_dict()) == before
    assert (made.unet.config.in_channels, made.unet.config.out_channels) == (8, 5)
    made.unet.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path, use_safetensors=True)
    assert (loaded.config.in_channels, loaded.config.out_channels) == (8, 5)
    z, t, words = noise(1, 8, 4, 4), torch.tensor([7]), made.space.prompt
    with torch.no_grad():
        pair = [net.eval()(z, t, encoder_hidden_states=words).sample for net in (made.unet, loaded)]
    assert latent.digest(loaded.state_dict()) == before
    torch.testing.assert_close(
        *pair, atol=1e-5, rtol=0
    )  # tensors of a file lie unaligned: other kernels, other rounding


def test_widened_stable_diffusion_has_the_published_number_of_parameters():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        counts = [unet.num_parameters()]
        latent.widen_input_(unet, "half_repeat")
        counts.append(unet.num_parameters())
        latent.widen_output_(unet, 1)
        counts.append(unet.num_parameters())
    assert counts == [865_910_724, 865_922_244, 865_925_125] and len(unet.state_dict()) == 686


def test_without_an_average_the_trained_weights_are_exported():
    made = fresh("ema.decay=null")
    assert made.pipeline.unet is made.unet
    with pytest.raises(config.ConfigError, match=r"model\.dropout without ema\.decay"):
        fresh("ema.decay=null", "model.dropout=0.1")


def test_scratch_keeps_the_codec_alone():
    torch.manual_seed(5)
    a = opened(init="scratch")
    assert a.unet.config.in_channels == 8
    assert not torch.equal(a.unet.conv_in.weight[:, :4], a.unet.conv_in.weight[:, 4:])
    assert latent.digest(a.space.vae.state_dict()) == latent.digest(tiny.vae().state_dict())


def test_gradient_checkpointing_changes_no_bit():
    grads = []
    for checkpointing in ("true", "false"):
        made = method(f"model.gradient_checkpointing={checkpointing}", "ema.decay=null")
        batch = one_batch(made)
        made.step(batch)
        grads.append((made.run.losses, made.run.grads["unet"]))
        assert made.unet.is_gradient_checkpointing == (checkpointing == "true")
    assert grads[0][0] == grads[1][0]
    assert all(torch.equal(a, b) for a, b in zip(grads[0][1], grads[1][1], strict=True))


def one_batch(made, count=2):
    from sar2opt.data.stream import Batch

    draw = Draws(0, list(range(count)), "cpu")
    opt = draw.normal("opt", (3, 32, 32)).clamp(-1, 1)
    return Batch(opt.mean(1, keepdim=True), opt, draw)


# stage 2 from stage 1 -------------------------------------------------------------------------------------------------


def test_stage_2_starts_where_stage_1_ended(tmp_path):
    first = method()
    first.pipeline.save_pretrained(tmp_path / "model")
    second = fresh("cdiff.loss=beta_nll", f"model.init_from={tmp_path}")  # the run folder stands for its model
    x_t, cond, t = noise(2, 4, 4, 4), noise(2, 4, 4, 4, seed=1), torch.tensor([3, 900])
    with torch.no_grad():
        a, b = (m.space.outputs(m.ema.eval(), x_t, t, cond) for m in (first, second))
        base = first.space.outputs(fresh().ema.eval(), x_t, t, cond)
    assert (a - base).abs().max() > 1e-2
    assert b.shape[1] == 5 and torch.equal(b[:, 4:], torch.zeros_like(b[:, 4:]))
    torch.testing.assert_close(b[:, :4], a, atol=1e-5, rtol=0)  # 5 filters may sum in another order


def test_stage_2_loads_stage_1_strictly(tmp_path):
    first = method("cdiff.loss=beta_nll")
    first.pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"conv_out.weight: config says \[4, 32, 3, 3\], weights have \[5, 32, 3, 3\]"):
        method("cdiff.loss=beta_nll", f"model.init_from={tmp_path / 'model'}")


def test_stage_2_needs_the_codec_of_stage_1(tmp_path):
    method().pipeline.save_pretrained(tmp_path / "model")
    tiny.write(tmp_path / "other", seed=7)
    (tmp_path / "other" / "prompt").mkdir()
    shutil.copy(tmp_path / "model" / latent.PROMPT_FILE, tmp_path / "other" / latent.PROMPT_FILE)
    with pytest.raises(UserError, match=r"trained on other latents .*\n  SHA-256 of vae: stage 1"):
        method("cdiff.loss=beta_nll", f"model.init_from={tmp_path}", f"cdiff.base={tmp_path / 'other'}")


def test_stage_2_needs_the_target_and_the_sar_values_of_stage_1(tmp_path):
    first = method("noise.prediction=v", "cdiff.allow_prediction_change=true")
    first.pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"another target:\n  prediction: stage 1 v_prediction, now epsilon$"):
        method("cdiff.loss=beta_nll", f"model.init_from={tmp_path}")
    card = json.loads((tmp_path / "model/sar2opt.json").read_text())
    card["sar"] |= {"scale": "db", "clip": [[-25, 0]]}
    (tmp_path / "model/sar2opt.json").write_text(json.dumps(card))
    same = ("noise.prediction=v", "cdiff.allow_prediction_change=true", f"model.init_from={tmp_path}")
    with pytest.raises(UserError, match=r"data.sar.scale: stage 1 db, now uint8\n  data.sar.clip"):
        method("cdiff.loss=beta_nll", *same)


def test_as_many_steps_as_there_were_in_training_are_possible():
    """With steps_offset 1 the first of 1,000 leading steps would be t = 1000, where there is no noise level."""
    pipeline = method().pipeline
    scheduler = pipeline.scheduler_for("ddpm", 1000)
    scheduler.set_timesteps(1000)
    assert scheduler.timesteps.max() == 999
    with pytest.raises(UserError, match="beyond the 1000 of training"):
        fresh("sample.spacing=leading", "sample.steps=1000")


# SAR bands ------------------------------------------------------------------------------------------------------------


def test_bands_become_three_channels():
    def value(bands, *levels, **more):
        image = torch.tensor(levels, dtype=torch.float64)[None, :, None, None].expand(1, -1, 2, 3)
        return ThreeBands.choose(bands, **({"ratio": False} | more))(image)[0, :, 1, 2].tolist()

    assert value(["HH", "HV", "VH", "VV"], 10, 20, 40, 80) == [10, 30, 80]
    assert value(["VV", "VH", "HV", "HH"], 80, 40, 20, 10) == [10, 30, 80]  # by name, not by place
    assert value(["VV"], 5) == [5, 5, 5] and value(["a", "b", "c"], 1, 2, 3) == [1, 2, 3]
    assert value(["VV", "VH"], 1, 2) == [1, 2, 1] and value(["HV", "HH"], 1, 2) == [2, 1, 2]
    # -1..1 are -25..0 dB: VV -10, VH -20, a difference of 10 dB of 0..25, and of 30 dB, clipped
    ratio = {"ratio": True, "limits": ((-25.0, 0.0), (-25.0, 0.0))}
    assert value(["VV", "VH"], 0.2, -0.6, **ratio) == pytest.approx([0.2, -0.6, -0.2])
    wide = {"ratio": True, "limits": ((-25.0, 5.0), (-35.0, 0.0))}
    assert value(["VH", "VV"], -1, 1, ratio=True, limits=((-35.0, 0.0), (-25.0, 5.0)))[2] == pytest.approx(1)
    assert value(["VV", "VH"], 1, -1, **wide)[2] == pytest.approx(1)


@pytest.mark.parametrize("bands", [["VV", "HH"], ["VV", "VH", "HH", "X"], ["a", "b", "c", "d", "e"]])
def test_other_bands_are_refused(bands):
    with pytest.raises(UserError, match="a latent model reads one band"):
        ThreeBands.choose(bands, ratio=False)


def test_the_ratio_needs_decibels():
    with pytest.raises(UserError, match="cdiff.channels=ratio: needs"):
        ThreeBands.choose(["VV", "VH"], ratio=True)


# sampling -------------------------------------------------------------------------------------------------------------

TIMES = {
    ("leading", 50): [*range(981, 0, -20)], ("leading", 1): [1], ("leading", 4): [751, 501, 251, 1],
    ("auto", 50): [*range(981, 0, -20)], ("auto", 1): [999], ("auto", 4): [999, 749, 499, 249],
    ("auto", 8): [999, 874, 749, 624, 499, 374, 249, 124],
    ("trailing", 4): [999, 749, 499, 249], ("linspace", 1): [0],
}  # fmt: skip


@pytest.mark.parametrize(("spacing", "steps"), TIMES)
def test_the_times_of_a_sampler_are_the_bases_but_for_few_steps(spacing, steps):
    made = method(f"sample.spacing={spacing}", "sample.steps=50")
    scheduler = made.pipeline.scheduler_for(None, steps)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == TIMES[spacing, steps]
    settings = scheduler.config
    assert (settings.clip_sample, settings.set_alpha_to_one, settings.steps_offset) == (False, False, 1)
    assert scheduler.alphas_cumprod[0].item() == pytest.approx(0.999150, abs=1e-6)
    assert scheduler.alphas_cumprod[999].item() == pytest.approx(0.004660, abs=1e-6)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp", "unipc"])
def test_no_sampler_clips_latents(name):
    made = method("sample.steps=10")
    settings = made.pipeline.scheduler_for(name, 10).config
    assert not settings.get("clip_sample") and not settings.get("thresholding")
    assert settings["steps_offset"] == 1 and settings["timestep_spacing"] == "leading"


@pytest.mark.parametrize(("one", "rmse", "tolerance"), [(False, 0.0293, 0.002), (True, 0.0, 1e-6)])
def test_a_perfect_predictor_ends_at_the_level_of_abar_0(one, rmse, tolerance):
    z0 = torch.from_numpy(np.random.RandomState(0).standard_normal((1, 4, 16, 16)))
    ddim = DDIMScheduler.from_config(tiny.SCHEDULER, clip_sample=False, set_alpha_to_one=one)
    ddim.set_timesteps(50)
    z = torch.from_numpy(np.random.RandomState(1).standard_normal(z0.shape))
    for t in ddim.timesteps:
        abar = ddim.alphas_cumprod[t].double()
        z = ddim.step((z - abar.sqrt() * z0) / (1 - abar).sqrt(), t, z).prev_sample
    assert (z - z0).square().mean().sqrt().item() == pytest.approx(rmse, abs=tolerance)


def test_a_translation_of_any_size_is_that_of_the_reflected_image():
    pipeline = method("sample.steps=2").pipeline
    sar = noise(1, 1, 27, 41).clamp(-1, 1)
    output = pipeline.translate(sar, Draws(0, ["a"], "cpu"))
    assert output.shape == (1, 3, 27, 41) and output.abs().max() <= 1
    rows, columns = [*range(27), *range(25, 20, -1)], [*range(41), *range(39, 32, -1)]
    padded = pipeline.translate(sar[:, :, rows][..., columns], Draws(0, ["a"], "cpu"))
    assert padded.shape == (1, 3, 32, 48) and torch.equal(output, padded[..., :27, :41])


# the model folder -----------------------------------------------------------------------------------------------------


def test_a_model_folder_gives_the_same_translation_and_confidence(tmp_path):
    made = method("cdiff.loss=beta_nll")
    made.pipeline.save_pretrained(tmp_path)
    loaded = SAR2OptPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.space, LatentSpace) and loaded.card == made.pipeline.card
    assert loaded.card.latent.prompt == PROMPT and loaded.card.latent.rule == "one"
    sar = noise(2, 1, 24, 40).clamp(-1, 1)
    for a, b in zip(*(p.confident(sar, Draws(0, ["a", "b"], "cpu")) for p in (made.pipeline, loaded)), strict=True):
        a, b = (x if isinstance(x, torch.Tensor) else x.values for x in (a, b))
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)  # tensors of a file lie unaligned: other rounding
    output, said = loaded.confident(sar, Draws(0, ["a", "b"], "cpu"))
    assert torch.equal(output, loaded.translate(sar, Draws(0, ["a", "b"], "cpu")))  # looking changes nothing
    assert said.values.shape == (2, 24, 40) and (said.t, said.step) == (499, 1) and said.values.std() > 0
    alone = loaded.confident(sar[1:], Draws(0, ["b"], "cpu"))[1]
    torch.testing.assert_close(alone.values, said.values[1:], rtol=1e-4, atol=0)


def test_the_confidence_of_the_clean_latent_is_another_unit(tmp_path):
    pipeline, sar = method("cdiff.loss=beta_nll").pipeline, noise(1, 1, 16, 16)
    a, b = (pipeline.confident(sar, Draws(0, ["a"], "cpu"), 50, of_clean=clean)[1] for clean in (False, True))
    abar = pipeline.scheduler.alphas_cumprod[481].item()
    assert a.t == b.t == 481 and a.step == 25
    torch.testing.assert_close(a.values / b.values, torch.full_like(a.values, (1 - abar) / abar), rtol=1e-4, atol=0)


def test_models_without_a_head_have_no_confidence():
    with pytest.raises(UserError, match="train one with cdiff_train.py cdiff.loss=beta_nll"):
        method().pipeline.confident(noise(1, 1, 16, 16), Draws(0, ["a"], "cpu"))


def test_the_hash_of_a_model_covers_codec_and_prompt(tmp_path):
    method().pipeline.save_pretrained(tmp_path)
    before = model_hash(tmp_path)
    for name in ("vae/diffusion_pytorch_model.safetensors", "vae/config.json", latent.PROMPT_FILE):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b" ")
        assert model_hash(tmp_path) != before
        (tmp_path / name).write_bytes(content)
    assert model_hash(tmp_path) == before


def test_a_model_folder_whose_parts_disagree_is_refused(tmp_path):
    method().pipeline.save_pretrained(tmp_path)
    card = json.loads((tmp_path / "sar2opt.json").read_text())
    for change, message in (({"rule": "quad"}, "expected 'one'"), ({"prompt": "other"}, "expected the prompt 'other'")):
        (tmp_path / "sar2opt.json").write_text(json.dumps(card | {"latent": card["latent"] | change}))
        with pytest.raises(UserError, match=message):
            SAR2OptPipeline.from_pretrained(tmp_path)


WITHOUT_TRANSFORMERS = """
import importlib.machinery, sys

class Hiding(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in ("transformers", "tokenizers") else super().find_spec(name, path, target)

sys.meta_path = [Hiding if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
import infer
infer.main(sys.argv[1:])
"""


def test_inference_needs_no_text_encoder(tmp_path):
    method(f"cdiff.base={tiny_base()}", "cdiff.loss=beta_nll").pipeline.save_pretrained(tmp_path / "model")
    assert not [*tmp_path.rglob("token*"), *tmp_path.rglob("text*")]
    sar = np.linspace(0, 255, 16 * 24).reshape(16, 24).astype(np.uint8)
    np.save(tmp_path / "a.npy", sar)
    arguments = ["--model", tmp_path / "model", "--input", tmp_path / "a.npy", "--output", tmp_path / "out"]
    command = [sys.executable, "-c", WITHOUT_TRANSFORMERS, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out/a.png").is_file()


def test_a_pixel_model_folder_still_loads_without_the_new_card_fields(tmp_path):
    from .test_methods import build

    build("train").pipeline.save_pretrained(tmp_path)
    card = json.loads((tmp_path / "sar2opt.json").read_text())
    assert card.pop("latent") is None
    (tmp_path / "sar2opt.json").write_text(json.dumps(card))
    assert SAR2OptPipeline.from_pretrained(tmp_path).card.latent is None


def test_prompts_survive_their_file(tmp_path):
    prompt = noise(1, 22, 32)
    (tmp_path / "prompt").mkdir()
    (tmp_path / latent.PROMPT_FILE).write_bytes(latent.prompt_bytes(PROMPT, prompt))
    text, found = latent.read_prompt(tmp_path)
    assert text == PROMPT and torch.equal(found, prompt)
    assert list(safetensors.torch.load_file(tmp_path / latent.PROMPT_FILE)) == ["prompt_embeds"]
