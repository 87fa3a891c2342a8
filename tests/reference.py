"""The arrays that the reference values of the metrics belong to, and random weights."""

import numpy as np
import torch


def up8(lo):
    """Integer bilinear, 9 x 9 -> 64 x 64."""
    i, f = np.arange(64) // 8, np.arange(64) % 8
    rows = lo[i] * (8 - f)[:, None, None] + lo[i + 1] * f[:, None, None]
    return (rows[:, i] * (8 - f)[None, :, None] + rows[:, i + 1] * f[None, :, None]) // 64


def make(seed):
    """Target, output and SAR; RandomState streams are frozen by numpy's policy."""
    random = np.random.RandomState(seed)

    def integers(low, high, shape):
        return random.randint(low, high, shape, dtype=np.int64)

    base = up8(integers(40, 216, (9, 9, 3)))
    target = np.clip(base + integers(-12, 13, (64, 64, 3)), 0, 255).astype(np.uint8)
    output = np.clip(target.astype(int) + integers(-20, 21, (64, 64, 3)), 0, 255).astype(np.uint8)
    grey = (target.astype(int) @ np.array([77, 150, 29])) // 256
    sar = np.clip(grey * integers(64, 193, (64, 64)) // 128, 0, 255).astype(np.uint8)
    return target, output, sar


A, B, S = make(0)
C, D = np.roll(A, 2, axis=1), (A // 2 + 70).astype(np.uint8)  # 2 px shift; flat contrast
E, F = A.copy(), B.copy()
E[:, 32:] = F[:, 32:] = 30  # flat right half
T, G, X = (np.stack([make(seed)[side] for seed in range(8)]) for side in range(3))  # targets, outputs, SAR


def blurred(images, sigma):
    """Rounded gaussian blur of [n,H,W,3]."""
    from scipy.ndimage import gaussian_filter

    return np.stack([np.rint(gaussian_filter(x.astype(float), (sigma, sigma, 0))).astype(np.uint8) for x in images])


def random_backbone(net):
    """The convolutions of torchvision's AlexNet or VGG16 with numbers of their own stream each."""
    import torchvision

    with torch.device("meta"):
        made = getattr(torchvision.models, {"alex": "alexnet", "vgg": "vgg16"}[net])(weights=None)
    shapes = [(name, p.shape) for name, p in made.state_dict().items() if name.startswith("features.")]
    state, k = {}, 0
    for name, shape in shapes:
        if name.endswith("bias"):
            state[name] = torch.zeros(shape)
            continue
        random = np.random.RandomState({"alex": 100, "vgg": 200}[net] + k)
        scale = np.sqrt(2 / np.prod(shape[1:]))
        state[name] = torch.from_numpy(random.standard_normal(shape) * scale).float()
        k += 1
    return state


def random_inception():
    """A state dict in the layout of pytorch-fid's file: activations keep their scale, no two channels are equal."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    with torch.device("meta"):
        made = _without_weights(fidelity)
    random = torch.Generator().manual_seed(0)
    state = {}
    for name, p in made.state_dict().items():
        if name.endswith("conv.weight"):
            state[name] = torch.randn(p.shape, generator=random) * (2 / p[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = 1 + 0.1 * torch.rand(p.shape, generator=random)
        elif p.is_floating_point():
            state[name] = 0.1 * torch.randn(p.shape, generator=random)
        else:
            state[name] = torch.tensor(0)
    return state


def _without_weights(fidelity):
    def nothing(self, state, **_):
        return None

    class Bare(fidelity.FeatureExtractorInceptionV3):
        load_state_dict = nothing

        def to(self, *_, **__):
            return self

    original = fidelity.load_state_dict_from_url
    fidelity.load_state_dict_from_url = lambda *_, **__: {}
    try:
        return Bare("bare", ["2048"])
    finally:
        fidelity.load_state_dict_from_url = original
