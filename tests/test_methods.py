"""One step of every method, without processes or folders: who receives gradients, and what follows a step."""

import copy

import pytest
import torch

import lcm_adv_train
import lcm_train
import train
from sar2opt import config, models
from sar2opt.data import open_data
from sar2opt.data.stream import Batch
from sar2opt.distill import Distillation
from sar2opt.draws import Draws
from sar2opt.pipeline import Card
from scripts import baseline

from .launch import ROOT, teacher

CASES = {
    "train": (train, "Diffusion", "train/smoke"),
    "lcm": (lcm_train, "LCM", "lcm/smoke"),
    "lcm_adv": (lcm_adv_train, "AdversarialLCM", "lcm_adv/smoke"),
    "lcm_adv, patch": (lcm_adv_train, "AdversarialLCM", "lcm_adv/smoke", "lcm_adv.critic.kind=patch"),
    "lcm_adv, target": (lcm_adv_train, "AdversarialLCM", "lcm_adv/smoke", "lcm_adv.real=target"),
    "regression": (baseline, "build", "baseline/smoke"),
    "pix2pix": (baseline, "build", "baseline/smoke", "baseline.kind=pix2pix"),
}


class StubRun:
    """Stands in for Run: keeps, for every update, the names of all nets that hold gradients right after backward."""

    device, precision = torch.device("cpu"), "no"
    step, logging = 0, True

    def __init__(self, data=None):
        self.nets, self.updates, self.losses, self.grads = {}, [], [], {}
        self.inputs, self.data = {}, data

    def trainable(self, name, net, optim=None, second_order=False):
        self.nets[name] = net.train()
        return net

    def bare(self, net):
        return net

    def reached(self, step):
        return self.step >= step

    def frozen_copy(self, net, average=None):
        return copy.deepcopy(net).eval().requires_grad_(False)

    def card(self, method, **own):
        sampler = "lcm" if method.startswith("lcm") else "ddim"
        return Card(method=method, sar={"bands": ["VV"]}, resolution=32, sampler=sampler, steps=2, **own)

    def average(self, ema, net):
        models.lerp_(ema, net, 0.9)

    def update(self, loss, net):
        loss.backward()
        self.losses.append(loss.item())
        self.updates.append({name for name, n in self.nets.items() if any(p.grad is not None for p in n.parameters())})
        self.grads[next(name for name, n in self.nets.items() if n is net)] = [p.grad for p in net.parameters()]
        for n in self.nets.values():
            n.zero_grad()


def build(case, *overrides):
    """The method of a smoke config, on a stub run."""
    module, name, path, *settings = CASES[case]
    torch.manual_seed(0)
    own = f"model.init_from={teacher()}" if case.startswith("lcm") else "model.dropout=0.0"
    cfg = config.load(module.Config, ROOT / "configs" / f"{path}.yaml", [own, *settings, *overrides])
    method = getattr(module, name)(cfg, StubRun(open_data(cfg.data)))
    for net in method.run.nets.values():
        for module in net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    return method


def batch(count=3, keys=(0, 1, 2)):
    draw = Draws(0, list(keys), "cpu")
    opt = draw.normal("opt", (3, 32, 32)).clamp(-1, 1)
    return Batch(opt.mean(1, keepdim=True), opt, draw)


@pytest.fixture(params=list(CASES))
def method(request):
    return build(request.param)


def test_every_loss_reaches_its_own_net_and_no_other(method):
    scalars = method.step(batch())
    assert scalars["loss"].ndim == 0 and scalars["loss"].isfinite()
    assert method.run.updates == [{name} for name in method.run.nets]
    assert all(p.grad is None for p in method.pipeline.unet.parameters())


def test_every_trained_parameter_receives_a_gradient(method):
    method.step(batch())
    assert method.run.grads.keys() == method.run.nets.keys()
    assert all(grad is not None for grads in method.run.grads.values() for grad in grads)


def test_the_average_follows_the_trained_net_only_after_a_step(method):
    before = [p.clone() for p in method.ema.parameters()]
    method.step(batch())
    assert all(torch.equal(a, b) for a, b in zip(before, method.ema.parameters(), strict=True))
    net = next(iter(method.run.nets.values()))
    for a, p in zip(before, net.parameters(), strict=True):
        p.data.copy_(a + 1.0)
    method.after_step()
    moved = 0.05 if isinstance(method, Distillation) else 0.1  # of the target network, and of the stub
    for a, b in zip(before, method.ema.parameters(), strict=True):
        torch.testing.assert_close(b - a, torch.full_like(a, moved), atol=1e-5, rtol=1e-5)


def test_the_exported_weights_are_the_average(method):
    assert method.pipeline.unet is method.ema


def test_a_translation_is_a_function_of_sar_and_draws(method):
    sar = batch().sar
    first = method.pipeline.translate(sar, Draws(1, ["a", "b", "c"], "cpu"))
    torch.manual_seed(1)
    again = method.pipeline.translate(sar[1:2], Draws(1, ["b"], "cpu"))
    torch.testing.assert_close(first[1:2], again, atol=1e-5, rtol=0)  # alone or in a batch


def test_regression_does_not_see_the_target_or_noise():
    method = build("regression")
    sar = batch().sar
    a, b = (method.pipeline.translate(sar, Draws(seed, [0, 1, 2], "cpu"), steps=1) for seed in (0, 1))
    assert torch.equal(a, b)
    torch.testing.assert_close(a, method.output(method.ema, sar).clamp(-1, 1))


OPTIONS = [
    "ddpm.noise_offset=0.3",
    "ddpm.input_perturbation=0.3",
    "ddpm.condition_dropout=0.9",
    "ddpm={weighting: min_snr_plus_one, snr_gamma: 1.1}",
    "ddpm.colour={weight: 1.0, size: 5, sigma: 1.0}",
    "noise.prediction=sample",
]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_loss(option):
    plain, changed = build("train"), build("train", option)
    plain.step(batch())
    changed.step(batch())
    assert plain.run.losses != changed.run.losses


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    """2 x 2 against 4 in float64: relative 1e-12, as sums in another order allow."""
    grads = []
    for parts in ([(0, 1, 2, 3)], [(0, 1), (2, 3)]):
        method = build("train")
        method.unet.double()
        for keys in parts:
            sar, opt, draw = batch(keys=keys)
            scale = len(keys) / 4
            method.run.update = lambda loss, net, scale=scale: (loss * scale).backward()
            method.step(Batch(sar.double(), opt.double(), draw))
        grads.append(torch.cat([p.grad.flatten() for p in method.unet.parameters()]))
    assert (grads[0] - grads[1]).norm() / grads[0].norm() < 1e-12


def test_training_and_sampling_feed_the_network_identical_channels():
    method, seen = build("train"), []
    method.unet.register_forward_pre_hook(lambda net, args: seen.append(args[0].clone()))
    sar, opt, draw = batch()
    method.step(Batch(sar, opt, draw))
    t = draw.integers("t", 1000)
    x_t = method.schedule.add_noise(opt, draw.normal("eps", opt.shape[1:]), t)
    models.predict(method.unet, x_t, t, sar)  # what every sampler calls
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], torch.cat([x_t, sar], dim=1))
