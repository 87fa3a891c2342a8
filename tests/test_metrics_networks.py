"""LPIPS and Inception features with the same random weights in two libraries, and what happens to wrong files."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from sar2opt import distances, networks
from sar2opt.networks import Judges, Missing
from tests.reference import A, B, C, D, G, T, random_backbone, random_inception

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Random weights under the names that ``Judges`` asks for."""
    folder = tmp_path_factory.mktemp("weights")
    states = {"alexnet": random_backbone("alex"), "vgg16": random_backbone("vgg"), "inception": random_inception()}
    for name, state in states.items():
        torch.save(state, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in states}


@pytest.fixture(scope="module")
def judges(files):
    """All networks at once."""
    return Judges([*networks.PERCEPTUAL, *networks.FEATURE], files, CPU)


@pytest.mark.parametrize(
    ("output", "alex", "vgg"), [(B, 0.012998, 0.018183), (C, 0.024705, 0.039821), (D, 0.037941, 0.042169)]
)
def test_lpips_has_its_reference_values_and_is_symmetric(judges, output, alex, vgg):
    found = judges.distances(np.stack([A, output]), np.stack([output, A]))
    assert found["lpips_alex"] == pytest.approx([alex, alex], abs=1e-5)
    assert found["lpips_vgg"] == pytest.approx([vgg, vgg], abs=1e-5)


def test_lpips_of_an_identical_pair_is_zero(judges):
    found = judges.distances(A[None], A[None])
    assert found["lpips_alex"] == 0 and found["lpips_vgg"] == 0


def test_lpips_fed_the_wrong_range_has_the_wrong_reference_values(judges):
    a, b = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in (A, B))
    for net, unit, legacy in (("alex", 0.001036, 0.003175), ("vgg", 0.001257, 0.004056)):
        assert judges.nets[net](a / 255, b / 255).item() == pytest.approx(unit, abs=1e-5)
        stretched = networks.lpips_input_cdiffset(a), networks.lpips_input_cdiffset(b)
        assert judges.nets[net](*stretched).item() == pytest.approx(legacy, abs=1e-5)
    assert judges.distances(A[None], B[None])["lpips_vgg_cdiffset"][0] == pytest.approx(0.004056, abs=1e-5)


@pytest.mark.parametrize("key", ["lpips_alex", "lpips_vgg"])
def test_the_smallest_images_of_lpips_are_known(judges, key):
    side = networks.SMALLEST[key]
    net = judges.nets[networks.PERCEPTUAL[key].net]
    a, b = (networks.lpips_input(torch.from_numpy(x).permute(2, 0, 1)[None]) for x in (A, B))
    assert net(a[..., :side, :side], b[..., :side, :side]).item() > 0
    with pytest.raises(RuntimeError, match="too small"):
        net(a[..., : side - 1, : side - 1], b[..., : side - 1, : side - 1])


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_agrees_with_torchmetrics_on_the_same_weights(judges, net):
    from torchmetrics.functional.image import lpips as theirs

    made = theirs._LPIPS(pretrained=True, net=net, pnet_rand=True)  # its heads are files of its wheel
    ours = [m for m in judges.nets[net].net.modules() if isinstance(m, torch.nn.Conv2d)]
    convs = [m for m in made.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for mine, other in zip(ours, convs, strict=True):
        other.load_state_dict(mine.state_dict())
    a, b = (networks.lpips_input(torch.from_numpy(x).permute(2, 0, 1)[None]) for x in (A, B))
    expected = made.eval()(a, b).item()
    assert judges.distances(A[None], B[None])[f"lpips_{net}"][0] == pytest.approx(expected, abs=1e-6)


def test_inception_agrees_with_torch_fidelity_on_equal_input(judges, files):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(files["inception"]))
    images = torch.from_numpy(np.stack([A, B])).permute(0, 3, 1, 2)
    expected = theirs(images)[0]
    found = judges.features(np.stack([A, B]))
    assert np.array_equal(found["inception_torch_fidelity"], expected.numpy())
    assert expected.std() > 1e-2  # the random network tells images apart
    other = found["inception"]
    assert 1e-4 < np.linalg.norm(other - expected.numpy()) / np.linalg.norm(other) < 0.1  # another resize and scale


def test_inception_has_the_layers_of_torchvisions_network(judges, files):
    """pytorch-fid's network is torchvision's, with other pools in its blocks: up to the first block they are one."""
    import torchvision

    theirs = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    theirs.load_state_dict(torch.load(files["inception"], weights_only=True))
    theirs.eval()
    x = networks.inception_input(torch.from_numpy(A).permute(2, 0, 1)[None])
    y = x
    for layer in list(judges.nets["inception"])[:7]:
        y = layer(y)
    for name in (
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "maxpool1",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "maxpool2",
    ):
        x = getattr(theirs, name)(x)
    assert torch.equal(x, y)


def test_the_resize_of_pytorch_fid_does_not_antialias():
    big = torch.zeros(1, 3, 598, 598, dtype=torch.uint8)
    big[..., ::2, ::2] = 255
    found = networks.inception_input(big)
    assert found.shape == (1, 3, 299, 299) and found.mean() == pytest.approx(2 / 4 - 1, abs=1e-6)
    assert networks.inception_input(torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)) == pytest.approx(1)


def test_the_clean_resize_is_pillows_bicubic():
    from PIL import Image

    found = networks.inception_input_clean(torch.from_numpy(A).permute(2, 0, 1)[None])[0]
    expected = np.asarray(Image.fromarray(A).resize((299, 299), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    error = np.abs(found.numpy() * 128 + 128 - expected)
    assert error.max() < 1.5 and error.mean() < 0.4  # Pillow rounds 8-bit pictures after both passes


def test_batches_change_no_distance(judges):
    features = [judges.features(x[:3])["inception"] for x in (T, G)]
    single = [np.concatenate([judges.features(x[None])["inception"] for x in side[:3]]) for side in (T, G)]
    assert features[0] == pytest.approx(single[0], rel=1e-4, abs=1e-6)
    assert distances.frechet(*features) == pytest.approx(distances.frechet(*single), rel=1e-6)
    assert distances.kid(*features) == pytest.approx(distances.kid(*single), rel=1e-5)


# files ----------------------------------------------------------------------------------------------------------------


def test_heads_of_lpips_are_those_that_were_checked():
    import lpips

    folder = Path(lpips.__file__).parent / "weights" / "v0.1"
    assert {net: networks.file_hash(folder / f"{net}.pth") for net in networks.HEADS} == networks.HEADS


def test_pinned_hashes_begin_as_the_names_of_their_files():
    for weights in networks.WEIGHTS.values():
        assert len(weights.sha256) == 64
        assert all(name.removesuffix(".pth").endswith(weights.sha256[:8]) for name in weights.files)


def test_a_file_is_taken_only_with_its_hash(tmp_path, monkeypatch):
    found = networks.locate("inception", tmp_path)
    assert isinstance(found, Missing) and found.reason == "weights not found"
    assert found.expected == str(tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    assert found.command.startswith("python scripts/weights.py --fetch fid")
    other = tmp_path / networks.WEIGHTS["inception"].files[1]  # torch-fidelity's name of the same file
    other.write_bytes(b"something else")
    assert "SHA-256" in networks.locate("inception", tmp_path).reason
    digest = hashlib.sha256(b"something else").hexdigest()
    changed = networks.WEIGHTS["inception"]._replace(sha256=digest)
    monkeypatch.setitem(networks.WEIGHTS, "inception", changed)
    assert networks.locate("inception", tmp_path) == other


def test_weights_lie_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SAR2OPT_WEIGHTS", str(tmp_path / "named"))
    assert networks.weights_dir() == tmp_path / "named"
    assert networks.weights_dir(tmp_path) == tmp_path
    monkeypatch.delenv("SAR2OPT_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert networks.weights_dir() == tmp_path / "sar2opt" / "weights"


def test_weights_cannot_run_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"features.0.weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(Exception, match="(?i)weights.only"):
        networks.load_state(tmp_path / "bomb.pth")
