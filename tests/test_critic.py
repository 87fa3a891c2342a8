"""Critics: their published sizes and names, what each of their inputs does, and that freezing them is complete."""

import copy
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from sar2opt import losses
from sar2opt.config import UserError
from sar2opt.models import EncoderCritic, PatchCritic, UNetConfig, build_unet, frozen, predict

TINY = UNetConfig(
    block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=4,
)  # fmt: skip
KINDS = ("encoder", "encoder_without_x_t", "patch", "patch_with_x_t")


@pytest.fixture(autouse=True)
def fixed_initial_weights():
    torch.manual_seed(0)


def build(kind, bands=2):
    if kind.startswith("patch"):
        return PatchCritic(bands, sees_x_t=kind == "patch_with_x_t", width=8, groups=4).double()
    return EncoderCritic(build_unet(TINY, bands, 24), sees_x_t=kind == "encoder").double()


def inputs(count=3, bands=2, h=24, w=32):
    g = torch.Generator().manual_seed(1)
    x_t, fake, real = (torch.randn(count, 3, h, w, generator=g).double() for _ in range(3))
    sar = torch.randn(count, bands, h, w, generator=g).double()
    return x_t, torch.tensor([999, 19, 499])[:count], fake, real, torch.tensor([0, 7, 0])[:count], sar


def size(net):
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(scope="module")
def reference():
    with torch.device("meta"):
        return build_unet(UNetConfig(), 1, 256)


def test_the_encoder_critic_has_the_published_size_and_names(reference):
    with torch.device("meta"):
        critic, blind = EncoderCritic(reference), EncoderCritic(reference, sees_x_t=False)
    assert (size(critic), size(blind)) == (68_835_713, 64_117_121)
    assert len(critic.state_dict()) == 200 and size(critic.head) == 26_221_569
    keys = critic.load_state_dict(reference.state_dict(), strict=False, assign=True)
    assert keys.missing_keys == [f"head.{i}.{kind}" for i in (0, 1, 3, 4, 8) for kind in ("weight", "bias")]
    assert len(keys.unexpected_keys) == 260
    assert {key.split(".")[0] for key in keys.unexpected_keys} == {"up_blocks", "conv_norm_out", "conv_out"}


def test_the_patch_critic_has_the_published_size_and_view():
    assert (size(PatchCritic(1)), size(PatchCritic(1, sees_x_t=True))) == (2_767_553, 2_770_625)
    with torch.device("meta"):
        critic, opt, sar = PatchCritic(1), torch.empty(2, 3, 256, 256), torch.empty(2, 1, 256, 256)
    assert critic(None, None, opt, None, sar).shape == (2, 30 * 30)


def test_its_feature_is_the_middle_block_of_the_denoiser():
    unet, seen = build_unet(TINY, 2, 24), []
    unet.mid_block.register_forward_hook(lambda module, args, out: seen.append(out))
    x_t, t, *_, sar = (v.float() if v.is_floating_point() else v for v in inputs())
    critic = EncoderCritic(unet)
    predict(unet, x_t, t, sar)
    assert torch.equal(seen[0], critic.feature(x_t, t, sar)) and seen[0].std() > 0.1


def test_the_head_reads_the_feature_of_x_t_first():
    """The order of the published weights."""
    x_t, t, fake, real, t_prime, sar = inputs()
    for half, same in ((slice(0, 16), (-x_t, fake)), (slice(16, 32), (x_t, real))):
        critic = build("encoder")
        with torch.no_grad():
            critic.head[0].weight[:, half] = 0
        expected = critic(x_t, t, fake, t_prime, sar)
        assert torch.equal(critic(same[0], t, same[1], t_prime, sar), expected)
        assert not torch.equal(critic(-x_t, t, real, t_prime, sar), expected)


def test_it_is_a_trainable_copy_of_a_frozen_teacher_and_without_dropout():
    teacher = build_unet(TINY.model_copy(update={"dropout": 0.5}), 2, 24).eval().requires_grad_(False)
    before = copy.deepcopy(teacher.state_dict())
    critic = EncoderCritic(teacher).double()
    assert critic.training and all(p.requires_grad for p in critic.parameters())
    x_t, t, fake, _, t_prime, sar = inputs()
    logits = critic(x_t, t, fake, t_prime, sar)
    assert torch.equal(logits, critic(x_t, t, fake, t_prime, sar))
    logits.sum().backward()
    torch.optim.SGD(critic.parameters(), lr=1.0).step()
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_with_head_only_nothing_else_can_be_trained():
    critic = EncoderCritic(build_unet(TINY, 2, 24), head_only=True)
    assert {name.split(".")[0] for name, p in critic.named_parameters() if p.requires_grad} == {"head"}
    with frozen(critic):
        assert not any(p.requires_grad for p in critic.parameters())
    assert {name.split(".")[0] for name, p in critic.named_parameters() if p.requires_grad} == {"head"}


@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_at_once_equal_two_passes(kind):
    critic, (x_t, t, fake, real, t_prime, sar) = build(kind), inputs()
    both = critic(x_t, t, torch.cat([fake, real]), torch.cat([t_prime, t_prime]), sar)
    for part, candidate in zip(both.chunk(2), (fake, real), strict=True):
        torch.testing.assert_close(part, critic(x_t, t, candidate, t_prime, sar), rtol=0, atol=1e-12)
    assert torch.equal(both, critic(x_t, t, torch.cat([fake, real]), t_prime, sar))  # one label for every half
    assert (both.chunk(2)[0] - both.chunk(2)[1]).abs().min() > 1e-6


def test_what_depends_on_x_t_is_computed_once():
    critic, (x_t, t, fake, real, t_prime, sar), sizes = build("encoder"), inputs(), []
    critic.mid_block.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    critic(x_t, t, torch.cat([fake, real]), t_prime, sar)
    assert sorted(sizes) == [3, 6]


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_matters_to_its_own_image_alone(kind):
    critic, (x_t, t, fake, _, t_prime, sar) = build(kind), inputs()
    arguments = {"x_t": x_t, "t": t, "candidate": fake, "t_prime": t_prime, "sar": sar}
    before = critic(**arguments)
    sees = {"encoder": set(arguments), "encoder_without_x_t": {"candidate", "t_prime", "sar"}, "patch": {"candidate",
            "sar"}, "patch_with_x_t": {"x_t", "candidate", "sar"}}[kind]  # fmt: skip
    for name, value in arguments.items():
        changed = value.clone()
        changed[1] = value[1] + 100 if name.startswith("t") else -value[1]
        moved = (losses.per_image(critic(**arguments | {name: changed}) - before)).abs()
        assert moved[[0, 2]].max() < 1e-12 and (moved[1] > 1e-6) == (name in sees), name


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_a_frozen_critic_and_the_accumulated_one_stays(kind):
    critic, (x_t, t, fake, real, t_prime, sar) = build(kind), inputs()
    critic(x_t, t, real, t_prime, sar).mean().backward()
    before = [p.grad.clone() for p in critic.parameters()]
    fake.requires_grad_(True)
    with frozen(critic):
        loss = losses.non_saturating_generator(critic(x_t, t, fake, t_prime, sar))
    loss.backward()  # after the freeze ended: what counts is the forward
    assert fake.grad.norm() > 0
    assert all(torch.equal(a, p.grad) for a, p in zip(before, critic.parameters(), strict=True))
    critic(x_t, t, fake.detach(), t_prime, sar).mean().backward()
    assert not any(torch.equal(a, p.grad) for a, p in zip(before, critic.parameters(), strict=True) if p.grad.any())


def test_every_parameter_of_a_critic_is_used():
    for kind in KINDS:
        critic, (x_t, t, fake, _, t_prime, sar) = build(kind), inputs()
        critic(x_t, t, fake, t_prime, sar).mean().backward()
        assert all(p.grad is not None for p in critic.parameters())


def test_exact_r1_and_its_gradient_through_attention():
    critic, (x_t, t, _, real, t_prime, sar) = build("encoder"), inputs(h=8, w=8)
    real.requires_grad_(True)
    weights = list(critic.parameters())
    directions = [torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).double()
                  for i, p in enumerate(weights)]  # fmt: skip

    def penalty(shift=0.0):
        moved = {name: p + shift * d for (name, p), d in zip(critic.named_parameters(), directions, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            logits = torch.func.functional_call(critic, moved, (x_t, t, real, t_prime, sar))
        return losses.r1_exact(logits, real)

    with sdpa_kernel(SDPBackend.MATH):  # a backward belongs to the kernel of its forward
        grads = torch.autograd.grad(penalty(), weights, allow_unused=True)
        slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True) if g is not None)
        h = 1e-5
        expected = (penalty(h) - penalty(-h)) / (2 * h)
    assert math.isfinite(slope) and abs(slope) > 1e-6
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("side", [16, 24])
def test_the_smallest_images(side):
    x_t, t, fake, _, t_prime, sar = inputs(h=side, w=side)
    assert build("encoder")(x_t, t, fake, t_prime, sar).isfinite().all()
    if side < 24:
        with pytest.raises(UserError, match="at least 24 px, got .16, 16."):
            build("patch")(x_t, t, fake, t_prime, sar)
    else:
        assert build("patch")(x_t, t, fake, t_prime, sar).shape == (3, 1)


def test_an_encoder_that_leaves_one_pixel_is_refused():
    types = {"down_block_types": ("DownBlock2D",) * 5, "up_block_types": ("UpBlock2D",) * 5}
    deep = UNetConfig(block_out_channels=(8,) * 5, norm_num_groups=4, layers_per_block=1, **types)
    with pytest.raises(UserError, match="5 levels needs images of at least 32 px.*got 16"):
        EncoderCritic(build_unet(deep, 1, 16))
    EncoderCritic(build_unet(deep, 1, 32))


def test_a_network_with_other_parts_is_refused():
    unet = build_unet(TINY, 1, 16)
    unet.class_embedding = torch.nn.Embedding(3, 32)
    with pytest.raises(UserError, match="class_embedding"):
        EncoderCritic(unet)
