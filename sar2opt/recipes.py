"""Every metric's name, direction, unit, recipe in words and library: what stands beside its number."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from . import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-image",
    "pillow",
    "lpips",
    "torchmetrics",
    "torch-fidelity",
)
FID_SMALLEST, FID_SMALL, FID_RANK = 50, 500, 2048  # images
SCC_NOISE = 0.02


class Metric(NamedTuple):
    """``better``: higher, lower, zero, one or target; ``short``: the recipe in 23 characters, for the printed table."""

    better: str
    unit: str
    recipe: str
    short: str
    library: str  # {package} stands for its version


OWN = "own, on numpy {numpy} and scipy {scipy}"
INCEPTION = "torch-fidelity {torch-fidelity} blocks, own distance"
METRICS: dict[str, Metric] = {
    "psnr": Metric(
        "higher", "dB", "mean of per-image dB, uint8 RGB, range 255; identical pairs count 100 dB",
        "dB, mean over images", "own; agrees with scikit-image",
    ),
    "ssim": Metric(
        "higher", "", "gaussian window sigma 1.5, 11 x 11 px, biased covariance, K .01 .03, range 255, map cropped by "
        "5 px, mean over RGB and images", "gaussian 11 px, RGB", "own, on numpy {numpy}; agrees with scikit-image",
    ),
    "scc": Metric(
        "higher", "", "8 x 8 px local correlation of high-passed bands on exact integers, zero variance gives 0, mean "
        "over pixels, RGB and images", "high-pass, 8 px windows", "own, on numpy {numpy}; agrees with sewar",
    ),
    "lpips_alex": Metric(
        "lower", "", "LPIPS v0.1, AlexNet, input x/127.5 - 1, mean over images", "v0.1, AlexNet", "lpips {lpips}"
    ),
    "lpips_vgg": Metric(
        "lower", "", "LPIPS v0.1, VGG16, input x/127.5 - 1, mean over images", "v0.1, VGG16", "lpips {lpips}"
    ),
    "fid": Metric(
        "lower", "", "Inception pool3, preprocessing of pytorch-fid (bilinear to 299 px, no antialiasing), Frechet "
        "distance in float64", "as pytorch-fid", INCEPTION,
    ),
    "kid": Metric(
        "lower", "", "the features of fid, unbiased MMD^2 with kernel (x.y/2048 + 1)^3 over all images; std from 100 "
        "subsets of min(500, n // 2)", "unbiased, all images", INCEPTION,
    ),
    "swd": Metric(
        "lower", "", "sliced Wasserstein distance x 1000 of 7 x 7 px patches on Laplacian-pyramid levels, normalised "
        "by the target's patches, mean over levels", "x 1000, target's norm", OWN,
    ),
    "spectrum": Metric(
        "lower", "dB", "root mean square over rings of the ratio of mean power spectra of luma, Hann window",
        "dB, power per frequency", OWN,
    ),
    "hf_energy": Metric(
        "one", "", "mean power of luma, Hann window, summed over the rings above a quarter cycle per px (half of "
        "Nyquist), output / target over the set; below 1 blur, above 1 noise", "output/target, f > 1/4", OWN,
    ),
    "edge_sar": Metric(
        "target", "", "Pearson of Sobel edges (gaussian sigma 1) of luma and of the SAR input, mean over images; read "
        "against edge_sar_target", "output's edges with SAR", OWN,
    ),
    "edge_sar_target": Metric(
        "target", "", "edge_sar of the target itself: the value that edge_sar should have", "target's edges with SAR",
        OWN,
    ),
    "copy_ratio": Metric(
        "higher", "", "sum abs(output - SAR) / sum abs(output - target) over the set; below 1 the output is nearer to "
        "the SAR than to the truth", "> 1: nearer to truth", OWN,
    ),
    "rgb_shift": Metric(
        "zero", "grey values", "mean over images of mean(output) - mean(target), R, G, B", "R G B, grey values", OWN
    ),
    # by name only
    "fid_torch_fidelity": Metric(
        "lower", "", "Inception pool3, preprocessing of torch-fidelity (TensorFlow 1's resize, (x - 128)/128), Frechet "
        "distance in float64", "as torch-fidelity", INCEPTION,
    ),
    "fid_clean": Metric(
        "lower", "", "Inception pool3, preprocessing of clean-fid (Pillow's bicubic in float), Frechet distance in "
        "float64", "as clean-fid", INCEPTION,
    ),
    "ssim_uniform7": Metric(
        "higher", "", "scikit-image's default: uniform window of 7 px, sample covariance, range 255", "uniform 7 px",
        "scikit-image {scikit-image}",
    ),
    "ssim_torchmetrics": Metric(
        "higher", "", "gaussian window sigma 1.5, mirrored border averaged too", "gaussian, with border",
        "torchmetrics {torchmetrics}",
    ),
    "swd_own": Metric(
        "lower", "", "as swd, but each set normalised by its own patches, as published: blind to a colour cast",
        "x 1000, each its own", OWN,
    ),
    "sam": Metric(
        "lower", "degrees", "mean angle between colours, pixels where neither is black, mean over images",
        "degrees", OWN,
    ),
    "ergas": Metric(
        "lower", "", "100 sqrt(mean over RGB of (rmse / mean of the target)^2), ratio 1, mean over images",
        "ratio 1", OWN,
    ),
    # one paper's convention
    "psnr_cdiffset": Metric(
        "higher", "dB", "mean of per-image dB on clip(x/127.5 - 1/2, 0, 1) of both images, range 1",
        "dB, stretched contrast", "torchmetrics {torchmetrics}",
    ),
    "ssim_cdiffset": Metric(
        "higher", "", "torchmetrics' SSIM on clip(x/127.5 - 1/2, 0, 1) of both images, range 1, mean over images",
        "stretched contrast", "torchmetrics {torchmetrics}",
    ),
    "scc_cdiffset": Metric(
        "higher", "", "torchmetrics' SCC in float32 on clip(x/127.5 - 1/2, 0, 1) of both images, mean over images",
        "stretched contrast", "torchmetrics {torchmetrics}",
    ),
    "lpips_vgg_cdiffset": Metric(
        "lower", "", "LPIPS v0.1, VGG16, fed clip(x/127.5 - 1/2, 0, 1) without scaling to [-1, 1], mean over images",
        "stretched, unscaled", "lpips {lpips}",
    ),
    "fid_cdiffset": Metric(
        "lower", "", "Inception pool3, preprocessing of pytorch-fid on the unstretched files, Frechet distance in "
        "float64", "as pytorch-fid", INCEPTION,
    ),
}  # fmt: skip
STANDARD = tuple(METRICS)[: tuple(METRICS).index("rgb_shift") + 1]
LEGACY = tuple(key for key in METRICS if key.endswith("_cdiffset"))
NAMED = tuple(key for key in METRICS if key not in STANDARD and key not in LEGACY)
RINGS = ("spectrum", "hf_energy")  # from power spectra
SET = ("swd", "swd_own", *RINGS)  # need images of one size
SAR = ("edge_sar", "edge_sar_target", "copy_ratio")  # need the SAR input
FEATURES = {  # metric -> kind of features
    "fid": "inception", "kid": "inception", "fid_cdiffset": "inception",
    "fid_torch_fidelity": "inception_torch_fidelity", "fid_clean": "inception_clean",
}  # fmt: skip
FIDS = tuple(key for key in FEATURES if key != "kid")


def versions() -> dict[str, str]:
    """Of this package and of the libraries behind the numbers that are installed."""
    found = {"sar2opt": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def library(metric: str, found: dict[str, str]) -> str:
    """The library of a metric with its version."""
    text = METRICS[metric].library
    for package, number in found.items():
        text = text.replace("{" + package + "}", number)
    return text


def warnings(metric: str, n: int, value: Any) -> list[str]:
    """What the number of images and the value do to the meaning of a metric."""
    found = []
    if metric.startswith("scc") and value < SCC_NOISE:
        found.append(f"below {SCC_NOISE}: a ranking by scc is close to noise")
    if metric == "copy_ratio" and value is not None and value < 1:
        found.append("below 1: the output is nearer to the SAR than to the truth")
    if metric in FIDS and n < FID_RANK:
        found.append(f"n = {n} < {FID_RANK}: rank-deficient, biased upwards; compare at equal n only, prefer KID")
    if metric in FIDS and n < FID_SMALL:
        found.append(f"n = {n} < {FID_SMALL}: FID of little meaning")
    return found
