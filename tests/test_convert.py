"""Published weights become model folders: random weights in both layouts, against the networks they came from."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_2d import UNet2DModel

import cdiff_train
from sar2opt import cdiff, convert
from sar2opt.config import UserError
from sar2opt.data import SarRadiometry, open_data
from sar2opt.diffusion import NoiseConfig
from sar2opt.draws import Draws
from sar2opt.models import EncoderCritic, UNetConfig, build_unet
from sar2opt.models.unet import unet_from
from sar2opt.pipeline import SAR2OptPipeline
from sar2opt.samplers import ancestral_step
from scripts import convert as script

from .guided import UNetModel, random_unet
from .launch import ROOT, tiny_base

ACD = UNetConfig(
    block_out_channels=(32, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1,
)  # fmt: skip
NOISE = NoiseConfig(schedule="scaled_linear", prediction="epsilon", zero_terminal_snr=False)


def inputs(channels, h=16, w=24):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, channels, h, w, generator=g)
    return x, torch.tensor([3, 1700])


def run(*argv):
    script.main([str(word) for word in argv])


# guided-diffusion ----------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    def make(name="ema.pt", **settings):
        net = random_unet(**settings)
        torch.save(net.state_dict(), tmp_path / name)
        return net, tmp_path / name

    return make


def from_guided(path, heads=4, keep_rgb=True, xstart=False, steps=2000):
    return convert.guided(path, heads, steps, xstart, keep_rgb, None, 16)


@torch.no_grad()
def difference(net, unet, channels=6):
    x, t = inputs(channels)
    expected = net(x, t)
    assert 0.3 < expected.std() < 3
    return (unet(x, t).sample - expected).abs().max().item()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shifts": False},
        {"layers": 2, "widths": (32, 64), "attended": ()},
        {"widths": (32, 32, 32), "attended": (0, 2), "heads": 2},
    ],
)
def test_a_guided_network_gives_the_same_output(source, settings):
    net, path = source(**settings)
    made = from_guided(path, heads=settings.get("heads", 4))
    assert difference(net, made.pipeline.unet) < 1e-5


def test_each_silent_trap_would_show(source):
    net, path = source()
    unet = from_guided(path).pipeline.unet
    settings, weights = dict(unet.config), unet.state_dict()
    other_heads = unet_from(UNet2DModel, settings | {"attention_head_dim": 8}, weights, path)
    assert difference(net, other_heads) > 1e-3
    without_norm = dict(weights)
    for kind in ("weight", "bias"):
        without_norm.pop(f"mid_block.attentions.0.group_norm.{kind}")
    no_norm = unet_from(UNet2DModel, settings | {"attn_norm_num_groups": None}, without_norm, path)
    assert difference(net, no_norm) > 1e-3
    thirds, state = dict(weights), net.state_dict()
    for letter, part in zip("qkv", state["middle_block.1.qkv.weight"].squeeze(-1).chunk(3), strict=True):
        thirds[f"mid_block.attentions.0.to_{letter}.weight"] = part
    assert difference(net, unet_from(UNet2DModel, settings, thirds, path)) > 1e-3


def test_the_public_training_script_gives_the_known_network():
    widths, attended = (128, 128, 256, 256, 512, 512), (4, 5)
    with torch.device("meta"):
        net = UNetModel(widths=widths, layers=3, attended=attended)
    source = net.state_dict()
    assert len(source) == 612
    weights = convert._renamed("x.pt", {k: torch.empty(v.shape, device="meta") for k, v in source.items()}, 4)
    settings = convert._architecture("x.pt", weights)
    assert len(weights) == 672 and sum(v.numel() for v in weights.values()) == 164_309_379
    assert settings["down_block_types"] == ("DownBlock2D",) * 4 + ("AttnDownBlock2D",) * 2
    assert settings["up_block_types"] == ("AttnUpBlock2D",) * 2 + ("UpBlock2D",) * 4
    assert (settings["layers_per_block"], settings["block_out_channels"]) == (3, widths)
    assert (settings["resnet_time_scale_shift"], settings["attn_norm_num_groups"]) == ("scale_shift", 32)
    unet_from(UNet2DModel, {**settings, "attention_head_dim": 128}, weights, "x.pt")


def test_sar_read_as_rgb_is_folded_into_one_band(source):
    net, path = source()
    made = from_guided(path, keep_rgb=False)
    x, t = inputs(4)
    with torch.no_grad():
        expected = net(torch.cat([x, x[:, 3:], x[:, 3:]], dim=1), t)
        torch.testing.assert_close(made.pipeline.unet(x, t).sample, expected, atol=1e-5, rtol=0)
    assert made.pipeline.card.sar["bands"] == ["VV"]
    assert from_guided(path).pipeline.card.sar["bands"] == ["R", "G", "B"]


def test_the_respaced_sampler_is_the_authors(source):
    _, path = source()
    scheduler = from_guided(path).pipeline.scheduler
    scheduler.set_timesteps(250)
    steps = scheduler.timesteps.tolist()
    assert steps[:3] == [1999, 1991, 1983] and steps[-2:] == [8, 0] and len(steps) == 250
    beta = torch.linspace(5e-5, 0.01, 2000, dtype=torch.float64)
    abar = (1 - beta).cumprod(0)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), abar, rtol=1e-4, atol=0)
    # the posterior of the respaced chain: its betas are 1 - abar_t / abar_u, its variance "fixed large" is beta
    g = torch.Generator().manual_seed(0)
    x_t, out, z = (torch.randn(2, 3, 4, 6, generator=g, dtype=torch.float64) for _ in range(3))
    for t, u in (steps[:2], steps[124:126], steps[-2:]):
        b = 1 - abar[t] / abar[u]
        x0 = ((x_t - (1 - abar[t]).sqrt() * out) / abar[t].sqrt()).clamp(-1, 1)
        mean = b * abar[u].sqrt() / (1 - abar[t]) * x0 + (1 - b).sqrt() * (1 - abar[u]) / (1 - abar[t]) * x_t
        torch.testing.assert_close(ancestral_step(scheduler, out, t, x_t, z), mean + b.sqrt() * z, rtol=0, atol=1e-4)
    assert from_guided(path, xstart=True).pipeline.scheduler.config["prediction_type"] == "sample"
    other = from_guided(path, steps=4000).pipeline.scheduler.config
    assert (other["beta_start"], other["beta_end"]) == (2.5e-5, 0.005)


def test_a_guided_file_becomes_a_folder_that_translates(source, tmp_path, capsys):
    _, path = source(channels=4)
    run("guided", "--input", path, "--output", tmp_path / "models/guided", "--resolution", 16)
    printed = capsys.readouterr().out
    assert "4 attention heads, 2000 diffusion steps" in printed and "ddpm, 250 steps" in printed
    pipe = SAR2OptPipeline.from_pretrained(tmp_path / "models/guided")
    assert (pipe.card.method, pipe.card.sampler, pipe.card.steps) == ("train", "ddpm", 250)
    assert pipe.scheduler.config["variance_type"] == "fixed_large"
    sar = inputs(1)[0].clamp(-1, 1)
    first = pipe(sar, num_inference_steps=3, output_type="pt").images
    assert first.isfinite().all() and first.std() > 0.05
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["guided"]


def edited(path, edit):
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("input_blocks.1.0.in_layers.2.weight"), "lacks .'input_blocks.1.0.in_layers.2.weight'"),
        (lambda s: s.pop("out.0.bias"), r"conv_norm_out.bias: config says \[32\], weights have None"),
        (lambda s: s.update({"label_emb.weight": torch.zeros(3)}), "no place.*'label_emb.weight'"),
        (lambda s: s.update({"time_embed.0.bias": torch.zeros(3)}), r"linear_1.bias: config says \[128\].* \[3\]"),
        (lambda s: s.update({"note": "x"}), "expected a state dict"),
        (lambda s: [s.pop(k) for k in list(s) if ".op." in k], "resblock_updown"),
        (lambda s: s.update({"input_blocks.8.0.op.weight": torch.zeros(3)}), "9 input_blocks for 5 levels"),
    ],
)
def test_other_guided_networks_are_refused(source, edit, message):
    _, path = source()
    with pytest.raises(UserError, match=message):
        from_guided(edited(path, edit))


def test_what_diffusers_cannot_hold_is_refused(source):
    with pytest.raises(UserError, match="6 output channels .learned sigma"):
        from_guided(source(out=6)[1])
    with pytest.raises(UserError, match=r"several widths, \[32, 64\].*input_blocks.1.1.qkv.weight"):
        from_guided(source(attended=(0, 3))[1])
    with pytest.raises(UserError, match="--heads 5 does not divide the width 64"):
        from_guided(source()[1], heads=5)
    with pytest.raises(UserError, match="reads 2 SAR bands; name them by --bands"):
        from_guided(source(channels=5)[1])


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {"out.2.weight": p}, lambda p: [torch.zeros(2)]])
def test_a_pickle_with_code_is_not_run(tmp_path, wrap):
    torch.save(wrap(Payload(tmp_path / "opened")), tmp_path / "x.pt")
    with pytest.raises(UserError, match="state dict"):
        from_guided(tmp_path / "x.pt")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_damaged_and_empty_files_are_refused(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x.pt: .*state dict"):
        from_guided(tmp_path / "x.pt")
    with pytest.raises(UserError, match="no such file"):
        from_guided(tmp_path / "y.pt")


# adversarially distilled ---------------------------------------------------------------------------------------------


def pair(bands=1):
    torch.manual_seed(0)
    unet = build_unet(ACD, bands, 16)
    return unet, EncoderCritic(unet)


@pytest.fixture(params=["generator first", "critic first"])
def checkpoint(request, tmp_path):
    """A checkpoint folder as Accelerate writes it."""
    unet, critic = pair()
    accelerator = Accelerator(cpu=True)
    for net in (unet, critic) if request.param == "generator first" else (critic, unet):
        accelerator.prepare(net, torch.optim.AdamW(net.parameters()))
    accelerator.save_state(str(tmp_path / "checkpoint-25001"))
    return unet, critic, tmp_path / "checkpoint-25001"


def equal(unet, weights):
    state = unet.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(v, weights[k]) for k, v in state.items())


def test_an_accelerate_checkpoint_becomes_a_folder_that_translates(checkpoint, tmp_path, capsys):
    unet, _, folder = checkpoint
    run("acd", "--input", folder, "--output", tmp_path / "acd", "--resolution", 16)
    printed = capsys.readouterr().out
    for said in ("critic: ", "heads of 8", "scaled_linear betas, prediction epsilon", "recommended: lcm, 8 steps"):
        assert said in printed
    pipe = SAR2OptPipeline.from_pretrained(tmp_path / "acd")
    assert equal(unet, pipe.unet.state_dict())
    assert json.loads((tmp_path / "acd/unet/config.json").read_text())["_class_name"] == "UNet2DModel"
    assert (pipe.card.method, pipe.card.sampler, pipe.card.steps) == ("lcm_adv", "lcm", 8)
    settings = pipe.scheduler.config
    expected = {"original_inference_steps": 50, "timestep_scaling": 10.0, "clip_sample": False, "beta_start": 8.5e-4,
                "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon",
                "num_train_timesteps": 1000, "rescale_betas_zero_snr": False}  # fmt: skip
    assert {key: settings[key] for key in expected} == expected
    with torch.no_grad():
        x, t = inputs(4)
        assert torch.equal(pipe.unet(x, t).sample, unet.eval()(x, t).sample)
    assert pipe(inputs(1)[0].clamp(-1, 1), output_type="pt").images.isfinite().all()


def average(folder, unet):
    """A folder of EMAModel.save_pretrained: the class and the keys of others."""
    folder.mkdir(parents=True)
    unet.save_config(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"_class_name": "SAR2OptUNetv3", "decay": 0.95, "optimization_step": 25001, "norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(unet.state_dict(), folder / "diffusion_pytorch_model.safetensors")


def test_the_average_is_preferred_and_its_settings_count(checkpoint, tmp_path):
    _, _, folder = checkpoint
    torch.manual_seed(1)
    ema = build_unet(ACD.model_copy(update={"attention_head_dim": 16, "norm_num_groups": 16}), 1, 16)
    average(folder / "checkpoint_ema-25001", ema)
    for path in (folder, tmp_path, folder / "checkpoint_ema-25001"):
        if path == tmp_path:
            (folder / "checkpoint_ema-25001").rename(tmp_path / "checkpoint_ema-25001")
        if path.name.startswith("checkpoint_ema"):
            path = tmp_path / path.name
        unet = convert.acd(path, 2, NOISE, None, 16).pipeline.unet
        assert equal(ema, unet.state_dict())
        assert (unet.config["attention_head_dim"], unet.config["norm_num_groups"]) == (16, 16)
        assert unet.config["norm_eps"] == 1e-6


def test_a_teacher_has_a_teachers_sampler(checkpoint, tmp_path):
    file = next(f for f in checkpoint[2].glob("*.safetensors") if "conv_out.weight" in safetensors.torch.load_file(f))
    options = ("--stage", 1, "--schedule", "linear", "--prediction", "v", "--resolution", 16, "--bands", "VH")
    run("acd", "--input", file, "--output", tmp_path / "teacher", *options)
    pipe = SAR2OptPipeline.from_pretrained(tmp_path / "teacher")
    assert (pipe.card.method, pipe.card.sampler, pipe.card.steps) == ("train", "ddim", 50)
    assert pipe.card.sar["bands"] == ["VH"]
    expected = {
        "timestep_spacing": "trailing",
        "clip_sample": True,
        "beta_start": 1e-4,
        "prediction_type": "v_prediction",
    }
    assert {key: pipe.scheduler.config[key] for key in expected} == expected


def write(path, tensors):
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda g, c: g.pop("conv_in.bias"), r"conv_in.bias: config says \[32\], weights have None"),
        (lambda g, c: g.update(stranger=torch.zeros(2)), r"stranger: config says None, weights have \[2\]"),
        (lambda g, c: g.pop("conv_out.weight"), "neither a generator .conv_out.weight. nor a critic"),
        (lambda g, c: g.pop("conv_in.weight"), "lacks .'conv_in.weight'"),
        (lambda g, c: [g.pop(k) for k in list(g) if k.startswith("up_")], "its blocks are .'down_blocks.0', 'down"),
        (
            lambda g, c: c.pop("head.8.bias"),
            r"model_1.safetensors: .*\n.*head.8.bias: config says \[1\], weights have N",
        ),
        (lambda g, c: c.update({"up_blocks.0": torch.zeros(1)}), "up_blocks.0: config says None"),
    ],
)
def test_other_checkpoints_are_refused(tmp_path, edit, message):
    generator, critic = (net.state_dict() for net in pair())
    edit(generator, critic)
    write(tmp_path / "model.safetensors", generator)
    write(tmp_path / "model_1.safetensors", critic)
    with pytest.raises(UserError, match=message):
        convert.acd(tmp_path, 2, NOISE, None, 16)


def test_what_is_to_be_converted_must_be_one(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        convert.acd(tmp_path / "nowhere", 2, NOISE, None, 16)
    with pytest.raises(UserError, match="expected one generator .* found 0"):
        convert.acd(tmp_path, 2, NOISE, None, 16)
    for name in ("checkpoint-1", "checkpoint-2"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "model.safetensors", pair()[0].state_dict())
    with pytest.raises(UserError, match="(?s)found 2.*checkpoint-1/model.safetensors.*checkpoint-2"):
        convert.acd(tmp_path, 2, NOISE, None, 16)
    (tmp_path / "pickled").mkdir()
    torch.save(Payload(tmp_path / "opened"), tmp_path / "pickled/model.safetensors")
    with pytest.raises(UserError, match="not safetensors"):
        convert.acd(tmp_path / "pickled", 2, NOISE, None, 16)
    assert not (tmp_path / "opened").exists()


def test_a_config_that_contradicts_its_weights_is_refused(tmp_path):
    average(tmp_path / "ema", pair()[0])
    config = json.loads((tmp_path / "ema/config.json").read_text())
    (tmp_path / "ema/config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    with pytest.raises(UserError, match="layers_per_block: config says 2, weights have 1"):
        convert.acd(tmp_path / "ema", 2, NOISE, None, 16)
    (tmp_path / "ema/config.json").write_text("[]")
    with pytest.raises(UserError, match="config.json: expected the settings of a network"):
        convert.acd(tmp_path / "ema", 2, NOISE, None, 16)


# the command line ----------------------------------------------------------------------------------------------------


def test_nothing_is_replaced_and_nothing_is_left_behind(source, tmp_path):
    _, path = source(channels=4)
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="model: exists already"):
        run("guided", "--input", path, "--output", tmp_path / "model")
    with pytest.raises(UserError, match="out.2.weight has 6"):
        run("guided", "--input", source("six.pt", out=6)[1], "--output", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ema.pt", "model", "six.pt"]


@pytest.mark.parametrize("words", [[], ["cdif"], ["acd", "--output", "x"], ["guided", "--input", "x", "--heads", "0"]])
def test_an_unknown_command_ends_with_usage(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2 and "usage" in capsys.readouterr().err


# C-DiffSET ------------------------------------------------------------------------------------------------------------


def latent_training(loss):
    """What a training on the tiny base builds, with noise where a new head has zeros."""
    settings = {"base": str(tiny_base()), "loss": loss}
    cfg = cdiff_train.Config.model_validate(
        {"run": {"name": "x", "max_steps": 4}, "data": {"layout": "generated", "resolution": 32}, "cdiff": settings}
    )
    made = cdiff.build(cfg, open_data(cfg.data).radiometry, ROOT / "none")
    torch.manual_seed(0)
    with torch.no_grad():
        made.unet.conv_out.weight.add_(0.05 * torch.randn_like(made.unet.conv_out.weight))
    return made


@pytest.mark.parametrize("wrapper", ["", "module.", "unet.", "module.unet."])
@pytest.mark.parametrize("loss", ["mse", "beta_nll"])
def test_a_network_of_cdiffset_becomes_a_folder_that_translates(tmp_path, capsys, loss, wrapper):
    made = latent_training(loss)
    file = tmp_path / "model.safetensors"
    write(file, {f"{wrapper}{key}": value for key, value in made.unet.state_dict().items()})
    run("cdiffset", "--input", file, "--base", tiny_base(), "--output", tmp_path / "out", "--resolution", 32)
    printed = capsys.readouterr().out
    assert ("2, with confidence" in printed) == (loss == "beta_nll") and "recommended: ddim, 50 steps" in printed
    pipe = SAR2OptPipeline.from_pretrained(tmp_path / "out")
    assert equal(made.unet, pipe.unet.state_dict())
    assert pipe.card.latent == made.card  # base, prompt, rule, loss, and the hashes of codec, prompt and noise
    assert pipe.scheduler.to_json_string() == made.scheduler.to_json_string()
    own = SAR2OptPipeline(made.unet.eval(), made.scheduler, pipe.card, made.space)
    sar = inputs(1)[0].clamp(-1, 1)
    expected, found = (p(sar, num_inference_steps=3, output_type="pt").images for p in (own, pipe))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    if loss == "beta_nll":
        assert pipe.confident(sar, Draws(0, ["a", "b"], "cpu"), 3)[1].values.std() > 0


def test_four_polarisations_are_stretched_as_its_authors_do(tmp_path):
    file = tmp_path / "model.safetensors"
    write(file, latent_training("mse").unet.state_dict())
    bands = ("--bands", "HH", "HV", "VH", "VV")
    run("cdiffset", "--input", file, "--base", tiny_base(), "--output", tmp_path / "out", *bands)
    card = SAR2OptPipeline.from_pretrained(tmp_path / "out").card
    assert card.latent.rule == "quad"
    pixels = np.zeros((4, 100, 100), np.float32)  # datasets.md: 4,000 zeros and 0.01 .. 60.00 have 0 and 59.0001
    pixels[:, 40:] = np.arange(1, 6001, dtype=np.float32).reshape(60, 100) / 100
    x = SarRadiometry.from_dict(card.sar).normalise(pixels)
    assert x[0, -1, -1] == 1 and (x[0, :40] == -1).all()  # what is empty stays black
    assert x[0, 50, 50].item() == pytest.approx(2 * pixels[0, 50, 50] / 59.0001 - 1, abs=1e-5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if "mid_block" not in k}, "not the configured network"),
        (lambda w: w | {"extra.weight": torch.zeros(3)}, "extra.weight"),
        (lambda w: w | {"conv_in.weight": w["conv_in.weight"][:, :4]}, "conv_in.weight"),
        (lambda w: w | {"conv_out.weight": w["conv_out.weight"][:3]}, "4 \\(stage 1\\) or 5 \\(stage 2\\) filters"),
        (lambda w: w | {"module.conv_in.weight": w["conv_in.weight"].clone()}, "no U-Net of C-DiffSET"),
        (lambda w: {"a": torch.zeros(2)}, "no U-Net of C-DiffSET"),
    ],
)
def test_what_is_no_network_of_cdiffset_is_refused(tmp_path, edit, message):
    file = tmp_path / "model.safetensors"
    write(file, edit(latent_training("mse").unet.state_dict()))
    with pytest.raises(UserError, match=message):
        run("cdiffset", "--input", file, "--base", tiny_base(), "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_three_bands_are_a_picture(tmp_path):
    write(tmp_path / "model.safetensors", latent_training("mse").unet.state_dict())
    own = ("--base", tiny_base(), "--bands", "R", "G", "B", "--output", tmp_path / "out")
    run("cdiffset", "--input", tmp_path / "model.safetensors", *own)
    card = SAR2OptPipeline.from_pretrained(tmp_path / "out").card
    assert (card.sar["scale"], card.latent.rule) == ("uint8", "three")


def test_cdiffset_says_what_it_misses(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        run("cdiffset", "--input", tmp_path / "no.safetensors", "--base", tiny_base(), "--output", tmp_path / "out")
    file = tmp_path / "model.safetensors"
    write(file, latent_training("mse").unet.state_dict())
    with pytest.raises(UserError, match="cdiff.base=nowhere"):
        run("cdiffset", "--input", file, "--base", "nowhere", "--output", tmp_path / "out")
