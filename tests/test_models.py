"""The network: the reference size, the order of its channels, its averages, and weights from elsewhere."""

import json

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn

from sar2opt import models
from sar2opt.config import UserError
from sar2opt.models import UNetConfig, build_unet, lerp_, load_unet, predict, stride

TINY = UNetConfig(
    block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=4,
)  # fmt: skip


@pytest.fixture(autouse=True)
def fixed_initial_weights():
    torch.manual_seed(0)


def save(unet, folder):
    folder.mkdir(parents=True)
    unet.save_config(folder)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(safetensors.torch.save(unet.state_dict()))
    return folder


@pytest.mark.parametrize(("bands", "count"), [(1, 113_674_371), (2, 113_675_523), (3, 113_676_675), (4, 113_677_827)])
def test_the_defaults_are_the_reference_network(bands, count):
    with torch.device("meta"):
        unet = build_unet(UNetConfig(), bands, 256)
    assert sum(p.numel() for p in unet.parameters()) == count
    assert len(unet.state_dict()) == 450
    assert stride(unet) == 32
    heads = [(m.heads, m.inner_dim // m.heads) for m in unet.modules() if type(m).__name__ == "Attention"]
    assert heads == [(64, 8)] * 6  # two in the down level at 16 x 16, three in the up level, one in the middle


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_out_channels": (8, 16, 16)}, "3 levels"),
        ({"norm_num_groups": 3}, "norm_num_groups=3 does not divide"),
        ({"attention_head_dim": 5}, "attention_head_dim=5 does not divide"),
        ({"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}, "DownBlock2D"),
        ({"block_out_channels": (), "down_block_types": (), "up_block_types": ()}, "at least 1"),
    ],
)
def test_impossible_networks_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        UNetConfig(**(TINY.model_dump() | change))


def test_in_channels_and_resolution_must_agree_with_the_data():
    assert build_unet(TINY.model_copy(update={"in_channels": 5}), 2, 16).conv_in.in_channels == 5
    with pytest.raises(UserError, match="in_channels=5.* make 4"):
        build_unet(TINY.model_copy(update={"in_channels": 5}), 1, 16)
    with pytest.raises(UserError, match="resolution=17 is not a multiple of 2"):
        build_unet(TINY, 1, 17)


def test_predict_puts_x_t_first_and_returns_float32():
    class Echo(nn.Module):
        def forward(self, x, t):
            return type("Output", (), {"sample": x[:, :3].bfloat16() + t.reshape(-1, 1, 1, 1)})

    x_t, sar = torch.zeros(2, 3, 4, 6), torch.ones(2, 2, 4, 6)
    out = predict(Echo(), x_t, torch.tensor([1, 2]), sar)
    assert out.dtype == torch.float32 and torch.equal(out[:, 0, 0, 0], torch.tensor([1.0, 2.0]))
    assert predict(build_unet(TINY, 1, 16).double(), *random_input()).dtype == torch.float64


def random_input(bands=1):
    g = torch.Generator().manual_seed(1)
    x, sar = torch.randn(2, 3, 8, 6, generator=g).double(), torch.randn(2, 1, 8, 6, generator=g).double()
    return x, torch.tensor([3, 700]), sar.expand(-1, bands, -1, -1)


def test_lerp_follows_its_closed_form_and_copies_buffers():
    def net(value):
        layer = nn.Linear(3, 2).double()
        layer.register_buffer("count", torch.tensor(value))
        nn.init.constant_(layer.weight, value)
        nn.init.constant_(layer.bias, value)
        return layer

    ema, d, n = net(0.0), 0.95, 100
    for k in range(1, n + 1):
        lerp_(ema, net(float(k)), d)
    expected = n - d * (1 - d**n) / (1 - d)  # the average of a ramp, from 0
    assert expected == pytest.approx(81.11249, abs=1e-5)
    assert (ema.weight - expected).abs().max() < 1e-10 and (ema.bias - expected).abs().max() < 1e-10
    assert ema.get_buffer("count") == 100

    ema = net(5.0)
    for _ in range(n):
        lerp_(ema, net(2.0), d)
    assert (ema.weight - (2 + 3 * d**n)).abs().max() < 1e-10


@pytest.mark.parametrize("folder", ["model", "model/unet"])
def test_init_from_takes_a_model_folder_or_its_unet(tmp_path, folder):
    source = build_unet(TINY, 2, 16)
    save(source, tmp_path / "model" / "unet")
    unet = build_unet(TINY.model_copy(update={"init_from": tmp_path / folder, "dropout": 0.1}), 2, 32)
    assert all(torch.equal(v, unet.state_dict()[k]) for k, v in source.state_dict().items())
    assert unet.config["sample_size"] == 32 and unet.training


@pytest.mark.parametrize(("old", "new"), [(1, 3), (1, 2), (3, 1)])
def test_changed_bands_give_the_same_output_for_bands_of_one_image(tmp_path, old, new):
    source = build_unet(TINY, old, 16)
    folder = save(source, tmp_path / "unet")
    unet = build_unet(TINY.model_copy(update={"init_from": folder}), new, 16)
    with torch.no_grad():
        before = predict(source.double().eval(), *random_input(old))
        after = predict(unet.double().eval(), *random_input(new))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    # random filters: the rows themselves differ, so the equality is no accident
    assert source.conv_in.weight.shape != unet.conv_in.weight.shape


def test_other_networks_are_refused_with_a_table(tmp_path):
    folder = save(build_unet(TINY, 1, 16), tmp_path / "unet")
    wider = TINY.model_copy(update={"init_from": folder, "norm_num_groups": 8, "layers_per_block": 2})
    with pytest.raises(UserError, match="layers_per_block: config says 2, weights have 1") as caught:
        build_unet(wider, 1, 16)
    assert "norm_num_groups: config says 8, weights have 4" in str(caught.value)
    save(build_unet(TINY, 2, 16), tmp_path / "two")
    with pytest.raises(UserError, match=r"conv_in.weight: config says \[8, 6, 3, 3\], weights have \[8, 5, 3, 3\]"):
        build_unet(TINY.model_copy(update={"init_from": tmp_path / "two"}), 3, 16)


def test_missing_and_unexpected_weights_are_named(tmp_path):
    folder = save(build_unet(TINY, 1, 16), tmp_path / "unet")
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["stranger"] = weights.pop("conv_out.bias")
    file.write_bytes(safetensors.torch.save(weights))
    with pytest.raises(UserError, match=r"conv_out.bias: config says \[3\], weights have None") as caught:
        load_unet(folder)
    assert "stranger: config says None" in str(caught.value)


def test_pickles_are_never_opened(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    unet = build_unet(TINY, 1, 16)
    folder = save(unet, tmp_path / "unet")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(Payload(), folder / "diffusion_pytorch_model.bin")
    for load in (load_unet, lambda f: build_unet(TINY.model_copy(update={"init_from": f}), 1, 16)):
        with pytest.raises(UserError, match="never opened"):
            load(folder)
    torch.save(Payload(), folder / "diffusion_pytorch_model.safetensors")  # and under the right name
    with pytest.raises(UserError, match="not safetensors"):
        load_unet(folder)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "not readable"), ("[]", "expected the settings"), ('{"block_out_channels": [8, 12]}', "describes no UNet")],
)
def test_damaged_settings_are_refused(tmp_path, text, message):
    folder = save(build_unet(TINY, 1, 16), tmp_path / "unet")
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_unet(folder)
    with pytest.raises(UserError, match="no such folder"):
        load_unet(tmp_path / "nowhere")


def test_a_loaded_network_is_the_saved_one_in_float32(tmp_path):
    source = build_unet(TINY, 1, 16).eval()
    unet = load_unet(save(source.half(), tmp_path / "unet"))
    assert {p.dtype for p in unet.parameters()} == {torch.float32} and not unet.training
    x_t, t, sar = (v.float() if v.is_floating_point() else v for v in random_input())
    with torch.no_grad():
        assert torch.equal(predict(unet, x_t, t, sar), predict(source.float(), x_t, t, sar))
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["in_channels"] == 4
    assert models.stride(unet) == 2
