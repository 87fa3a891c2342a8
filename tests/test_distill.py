"""Distillation: who may teach, whose gradients go where, and what accumulation, R1 and the critic's settings do."""

import json
import shutil

import pytest
import torch

import lcm_adv_train
import lcm_train
from sar2opt import config
from sar2opt.adversarial import AdversarialConfig
from sar2opt.config import UserError
from sar2opt.data.stream import Batch
from sar2opt.draws import Draws
from sar2opt.pipeline import SAR2OptPipeline

from .launch import ROOT, call, latent_teacher, teacher
from .test_methods import batch, build

# the teacher ----------------------------------------------------------------------------------------------------------


def test_networks_start_as_the_teacher_and_sampling_keeps_its_noise():
    method = build("lcm")
    weights = [net.state_dict() for net in (method.teacher, method.ema, method.student)]
    assert all(torch.equal(weights[0][k], w[k]) for w in weights for k in weights[0])
    assert not method.teacher.training and not method.ema.training
    assert torch.equal(method.pipeline.scheduler.alphas_cumprod, method.schedule.abar)
    assert method.run.inputs.keys() == {"teacher"} and len(method.run.inputs["teacher"]) == 64


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.sar.bands=[VV, VH]", "data.sar.bands: config has ['VV', 'VH'], teacher has ['VV']"),
        ("noise.schedule=cosine", "noise.schedule: config has cosine, teacher has linear"),
        ("model.block_out_channels=[8, 32]", "model.block_out_channels: config has [8, 32], teacher has [8, 16]"),
        ("data.resolution=33", "data.resolution: config has 33, teacher has multiples of 2 (remainder 1)"),
        ("lcm={solver_steps: 30}", "lcm.solver_steps=30 does not divide the teacher's 1000 timesteps"),
        ("lcm={guidance: 2.0}", "never saw an empty SAR image"),
    ],
)
def test_a_wrong_teacher_is_refused_and_says_what_differs(setting, said):
    with pytest.raises(UserError) as error:
        build("lcm", setting)
    assert said in str(error.value)


def test_a_student_cannot_teach(tmp_path):
    method = build("lcm")
    method.pipeline.save_pretrained(tmp_path / "student")
    with pytest.raises(UserError, match="is not a diffusion model"):
        build("lcm", f"model.init_from={tmp_path / 'student'}")


def test_a_teacher_with_betas_of_its_own_is_refused(tmp_path):
    shutil.copytree(teacher() / "model", tmp_path / "model")
    file = tmp_path / "model/scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.03}))
    with pytest.raises(UserError, match="beta_end': 0.03.* none of the schedules linear"):
        build("lcm", f"model.init_from={tmp_path / 'model'}")


def test_a_teacher_that_saw_other_sar_values_is_refused(tmp_path):
    shutil.copytree(teacher() / "model", tmp_path / "model")
    file = tmp_path / "model/sar2opt.json"
    card = json.loads(file.read_text())
    card["sar"] |= {"scale": "db", "clip": [[-25.0, 0.0]]}
    file.write_text(json.dumps(card))
    with pytest.raises(UserError, match="data.sar.scale: config has uint8, teacher has db"):
        build("lcm", f"model.init_from={tmp_path / 'model'}")


def test_a_wrong_teacher_is_exit_code_2_before_any_step(tmp_path):
    stated = ["model.layers_per_block=2", "noise.prediction=sample", f"run.dir={tmp_path}"]
    for script in ("lcm", "lcm_adv"):
        done = call(f"{script}_train", f"configs/{script}/smoke.yaml", f"model.init_from={teacher()}", *stated)
        assert done.code == 2 and "Traceback" not in done.err
        assert "model.layers_per_block: config has 2, teacher has 1" in done.err
        assert "noise.prediction: config has sample, teacher has v" in done.err
    done = call("lcm_train", "configs/lcm/smoke.yaml", f"model.init_from={tmp_path / 'none'}")
    assert done.code == 2 and f"{tmp_path / 'none'}: no such model folder" in done.err
    assert not list(tmp_path.iterdir())


# gradients ------------------------------------------------------------------------------------------------------------

ADVERSARIAL = ["lcm_adv", "lcm_adv, patch"]


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_no_pass_touches_what_the_other_has_accumulated(case):
    method, before = build(case), {}
    for net in (method.student, method.critic):
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        before[net] = [p.grad.clone() for p in net.parameters()]
    seen = []

    def update(loss, net):
        loss.backward()
        other = method.critic if net is method.student else method.student
        seen.append(all(torch.equal(p.grad, g) for p, g in zip(other.parameters(), before[other], strict=True)))
        before[net] = [p.grad.clone() for p in net.parameters()]

    method.run.update = update
    method.step(batch())
    assert seen == [True, True]


def gradients(parts, *settings):
    """Of student and critic in float64, accumulated over ``parts`` of the same 8 samples."""
    method = build("lcm_adv", *settings)
    for net in (method.teacher, method.ema, method.student, method.critic, method.schedule):
        net.double()
    method.run.update = lambda loss, net: (loss / len(parts)).backward()
    for keys in parts:
        sar, opt, draw = batch(keys=keys)
        method.step(Batch(sar.double(), opt.double(), draw))
    return [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (method.student, method.critic)]


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_accumulated_gradients_of_both_networks_equal_those_of_the_whole_batch(gamma):
    cuts = [[range(8)], [range(4), range(4, 8)], [range(2 * i, 2 * i + 2) for i in range(4)]]
    whole, *others = [gradients([tuple(part) for part in cut], f"lcm_adv.r1.gamma={gamma}") for cut in cuts]
    for parts in others:
        for a, b in zip(whole, parts, strict=True):
            assert (a - b).norm() / a.norm() < 1e-12


def test_r1_changes_the_critic_alone():
    (student, critic), (same, penalised) = (gradients([(0, 1)], f"lcm_adv.r1.gamma={gamma}") for gamma in (0.0, 10.0))
    assert torch.equal(student, same) and not torch.equal(critic, penalised)


# settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["encoder", "patch"])
@pytest.mark.parametrize("real", ["opt", "target"])
@pytest.mark.parametrize("game", ["non_saturating", "hinge", "wgan"])
@pytest.mark.parametrize("loss", ["l2", "huber"])
def test_every_combination_of_losses_works(loss, game, real, critic):
    own = f"lcm_adv={{loss: {game}, real: {real}, critic: {{kind: {critic}}}}}"
    values = build("lcm_adv", f"lcm.loss={loss}", own).step(batch())
    assert values["loss"].isfinite() and values["critic"].isfinite() and values["r1"].isfinite()
    assert {"lcm", "adv", "critic", "r1", "lambda", "accuracy", "logit/real", "logit/fake"} <= values.keys()
    assert ("logit/y" if real == "opt" else "logit/opt") in values


def test_what_is_real_is_what_the_setting_says():
    seen = {}
    for real in ("opt", "target"):
        method = build("lcm_adv", f"lcm_adv.real={real}", "lcm_adv.r1.gamma=0.0")
        method.critic.register_forward_pre_hook(lambda net, args, real=real: seen.setdefault(real, []).append(args))
        method.step(batch())
    opt, cut = batch().opt, len(batch().opt)
    (_, opt_call, _), (_, y_call, _) = seen["opt"], seen["target"]  # student's pass, critic's pass, log
    assert torch.equal(opt_call[2][cut:], opt) and not torch.equal(y_call[2][cut:], opt)
    assert torch.equal(opt_call[2][:cut], y_call[2][:cut])  # the same translated images


@pytest.mark.parametrize(("time", "zeros"), [("zero", True), ("u", False)])
def test_the_label_of_a_candidate(time, zeros):
    method, labels = build("lcm_adv", f"lcm_adv.critic.time={time}"), []
    method.critic.register_forward_pre_hook(lambda net, args: labels.append(args[3]))
    method.step(batch())
    _, u = method.consistency.pair(batch().draw.integers("cell", 50))
    assert all(torch.equal(label, torch.zeros_like(u) if zeros else u) for label in labels)


def test_the_critic_is_not_asked_while_its_weight_is_zero_but_trains():
    method = build("lcm_adv", "lcm_adv={start_step: 2, ramp_steps: 4}")
    for step, weight in ((0, 0.0), (2, 0.0), (3, 0.025), (6, 0.1), (9, 0.1)):
        method.run.step = step
        values = method.step(batch())
        assert values["lambda"].item() == pytest.approx(weight) and ("adv" in values) == (weight > 0)
        assert "critic" in values


def test_a_critic_that_starts_later_leaves_the_student_alone():
    method = build("lcm_adv", "lcm_adv={critic_start_step: 2, weight: 0.0}")
    for step, trained in ((0, False), (1, False), (2, True)):
        method.run.step = step
        assert ("critic" in method.step(batch())) == trained


def test_r1_every_other_step_is_as_strong_on_average():
    often, seldom = build("lcm_adv"), build("lcm_adv", "lcm_adv.r1.every=2")
    a, b = often.step(batch()), seldom.step(batch())
    game = a["critic"] - 0.5 * a["r1"]
    torch.testing.assert_close(b["critic"], game + 2 * 0.5 * a["r1"])
    seldom.run.step = 1
    assert "r1" not in seldom.step(batch())


def test_r1_by_differences_needs_one_more_candidate_and_estimates_the_same():
    exact, rough = build("lcm_adv"), build("lcm_adv", "lcm_adv.r1.form=difference")
    counts = []
    rough.critic.register_forward_pre_hook(lambda net, args: counts.append(len(args[2])))
    estimates = []
    for seed in range(40):
        opt = batch().opt
        estimates.append(rough.step(Batch(batch().sar, opt, Draws(seed, [0, 1, 2], "cpu")))["r1"].item())
        if seed == 0:
            assert counts == [3, 9, 3]  # the student's pass, f with real and moved images, what is logged
    assert 0.3 < sum(estimates) / 40 / exact.step(batch())["r1"].item() < 3


def test_with_head_only_the_encoder_has_neither_gradient_nor_optimiser_state():
    method = build("lcm_adv", "lcm_adv.critic.train=head")
    before = [p.clone() for p in method.critic.down_blocks.parameters()]
    method.step(batch())
    named = dict(method.critic.named_parameters())
    grads = dict(zip(named, method.run.grads["critic"], strict=True))
    assert {name.split(".")[0] for name, grad in grads.items() if grad is not None} == {"head"}
    assert all(torch.equal(a, b) for a, b in zip(before, method.critic.down_blocks.parameters(), strict=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lcm_adv={loss: wgan, r1: {gamma: 0.0}}", "has no bound"),
        ("lcm_adv={critic: {kind: patch, train: head}}", "train=head is for the encoder critic"),
        ("sample={steps: 51}", "sample.steps=51 is more than lcm.solver_steps=50"),
        ("sample={guidance: 2.0}", "set lcm.guidance"),
        ("sample={sampler: ddim}", "lcm"),
    ],
)
def test_settings_that_cannot_work_are_refused(text, said):
    with pytest.raises(config.ConfigError) as error:
        config.load(lcm_adv_train.Config, ROOT / "configs/lcm_adv/smoke.yaml", [text])
    assert said in str(error.value)


def test_the_critic_may_have_a_rate_and_a_clip_of_its_own():
    optim = config.OptimConfig(lr=1e-5)
    own = AdversarialConfig.model_validate({"critic": {"lr": 2e-5, "clip_norm": 3.0}}).critic.optim(optim)
    assert (own.lr, own.clip_norm, own.warmup_steps) == (2e-5, 3.0, optim.warmup_steps)
    assert AdversarialConfig().critic.optim(optim) is optim


# a latent teacher -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["lcm", "lcm_adv, patch"])
def test_a_latent_teacher_is_distilled_in_its_space(case, tmp_path):
    size = 256 if "patch" in case else 32  # a patch of latents is 8 times as wide
    method = build(case, f"model.init_from={latent_teacher()}", f"data.resolution={size}")
    draw = Draws(0, [0, 1], "cpu")
    opt = draw.normal("opt", (3, size, size)).clamp(-1, 1)
    pairs = Batch(opt.mean(1, keepdim=True), opt, draw)
    assert method.step(pairs)["loss"].isfinite()
    assert method.run.updates == [{name} for name in method.run.nets]
    point = method.point(pairs)
    assert point.x_t.shape == (2, 4, size // 8, size // 8)
    method.cached = True  # as with data.cache_latents
    assert torch.equal(method.point(Batch(point.cond, point.x0, draw)).x_t, point.x_t)
    assert method.student.config["out_channels"] == 4  # the teacher's variance stays behind
    assert method.evidence(pairs)[0]["student f"].shape == (3, size, size)
    method.pipeline.save_pretrained(tmp_path / "model")
    again = SAR2OptPipeline.from_pretrained(tmp_path / "model")
    for steps in (1, 4):
        a, b = (pipe.translate(pairs.sar, Draws(1, ["a", "b"], "cpu"), steps) for pipe in (method.pipeline, again))
        assert torch.equal(a, b) and a.shape == opt.shape


def test_the_encoder_critic_says_that_it_is_for_pixels():
    with pytest.raises(UserError, match="set lcm_adv.critic.kind=patch"):
        build("lcm_adv", f"model.init_from={latent_teacher()}")


# what is exported and shown -------------------------------------------------------------------------------------------


def test_the_slow_average_is_exported_where_one_is_kept():
    assert (plain := build("lcm")).pipeline.unet is plain.ema and plain.slow is None
    slow = build("lcm", "ema.decay=0.99")
    assert slow.pipeline.unet is slow.slow is not slow.ema


def test_validation_covers_the_steps_and_the_evidence_has_logits():
    method = build("lcm_adv")
    values = method.validate(batch())
    assert {f"{k}/steps{n}" for k in ("psnr", "hf_db", "shift_r", "contrast_b") for n in (1, 2, 4, 8)} <= values.keys()
    assert all(len(v) == 3 for v in values.values())
    rows = method.evidence(batch())
    assert [row["id"] for row in rows] == [key for t in range(3) for key in (0, 1, 2)]
    assert "t = 999" in rows[0]["label"] and "opt +" in rows[0]["label"].replace("-", "+")
    assert list(rows[0])[2:] == ["SAR", "x_t", "teacher x0_hat", "target y", "student f", "opt"]
    assert "f " not in build("lcm").evidence(batch())[0]["label"]
    assert method.student.training and lcm_train.LCM
