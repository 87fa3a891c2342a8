"""Does a latent model with a variance know where SAR and optical image disagree? A trial on generated pairs.

    python scripts/confidence_trial.py [--out runs/confidence-trial] [key=value ...]

Trains a small codec, then both stages of cdiff_train.py (configs/cdiff/trial.yaml; key=value goes to both), on pairs in
which houses, clearings and ships show in one of the two images only. Then, on pairs of another seed: how often has a
changed pixel less confidence than an unchanged one (ROC AUC, 0.5 is chance), given the true z_t at one timestep; of all
changes, and of those in one image alone. The control is the same places in the same scenes without the changes: what
the kind of place alone explains. Writes trial.json and trial.png; stopped half-way, the same command goes on.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # also where the package is not installed

from sar2opt import checkpoint, confidence, config, heatmap, images  # noqa: E402
from sar2opt.data import DataConfig, SarRadiometry, open_data  # noqa: E402
from sar2opt.data.generated import GeneratedPairs  # noqa: E402
from sar2opt.diffusion import levels  # noqa: E402
from sar2opt.draws import Draws  # noqa: E402
from sar2opt.models import LatentSpace, latent, tiny  # noqa: E402
from sar2opt.pipeline import SAR2OptPipeline  # noqa: E402

CONFIG = "configs/cdiff/trial.yaml"
CODEC_STEPS, CODEC_BATCH = 500, 8
IMAGES, SEED, NOISES, SHOWN = 48, 1, 8, 6
LEVELS, SHOWN_LEVEL = (100, 250, 481, 700), 481  # 481: where infer.py reads the confidence, in the middle of 50 steps


class Data(config.Section, extra="ignore"):
    """What the trial reads of the config; the trainings check all of it."""

    data: DataConfig


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=Path("runs/confidence-trial"))
    parser.add_argument("override", metavar="key=value", nargs="*")
    args = parser.parse_args(argv)
    out = args.out.resolve()
    shared = [f"run.dir={out}", f"cdiff.base={out / 'base'}", f"data.cache_dir={out / 'latents'}"]
    cfg = config.load(Data, ROOT / CONFIG, [*shared, *args.override])
    if not (out / "base" / latent.PROMPT_FILE).exists():
        train_codec(out / "base", cfg.data)
    stages = {"stage1": [], "stage2": [f"model.init_from={out / 'stage1'}", "cdiff.loss=beta_nll"]}
    for name, own in stages.items():
        command = ["cdiff_train.py", CONFIG, *shared, f"run.name={name}", *own, *args.override]
        if code := subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
            sys.exit(code if code > 0 else 128 - code)
    pipe = SAR2OptPipeline.from_pretrained(out / "stage2")
    results, shown = measure(pipe, cfg.data)
    checkpoint.put(out / "trial.json", json.dumps(results, indent=1).encode())
    checkpoint.put(out / "trial.png", images.png(images.contact_sheet(*shown)))
    print(f"{'t':>5}{'AUC':>8}{'control':>9}{'SAR only':>10}{'optical only':>14}")
    for t, row in results["levels"].items():
        print(f"{t:>5}{row['auc']:8.3f}{row['control']:9.3f}{row['sar_only']:10.3f}{row['opt_only']:14.3f}")
    print(f"from the SAR alone, as infer.py --confidence, of what the SAR shows: {results['from_sar_alone']:.3f}")
    print(f"{out / 'trial.json'} and {out / 'trial.png'}")


def train_codec(folder: Path, data: DataConfig) -> None:
    """A codec of factor 2 on generated SAR and optical images, and a small U-Net with random weights that predicts v:
    epsilon would hardly train the noisiest levels, where all that is known comes from the SAR."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    vae = cast(Any, AutoencoderKL)(  # its annotations are tuples of one
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8,
        sample_size=64, mid_block_add_attention=False,
    )  # fmt: skip
    pairs = open_data(data).train
    optimizer = torch.optim.AdamW(vae.parameters(), lr=4e-3)
    begin = time.process_time()
    for step in range(CODEC_STEPS):
        chosen = [pairs.read((step * CODEC_BATCH // 2 + i) % len(pairs), None) for i in range(CODEC_BATCH // 2)]
        x = torch.stack([image.expand(3, -1, -1) for pair in chosen for image in pair])
        posterior: Any = vae.encode(x, return_dict=False)[0]
        z = posterior.mode() + 0.05 * torch.randn_like(posterior.mean)  # a latent's neighbours mean the same image
        loss = torch.nn.functional.mse_loss(vae.decode(z, return_dict=False)[0], x) + 1e-3 * (z**2).mean()
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 50) * (1 - step / CODEC_STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"codec {step + 1}/{CODEC_STEPS}  loss {loss.item():.4f}  {time.process_time() - begin:.0f} s")
    with torch.no_grad():
        scale = 1 / torch.cat([vae.encode(x, return_dict=False)[0].mode()]).std().item()  # pyright: ignore
    vae.register_to_config(scaling_factor=scale)
    unet = UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=(32, 64, 64), layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3,
        mid_block_type="UNetMidBlock2D", cross_attention_dim=tiny.TEXT_WIDTH, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    scheduler = tiny.SCHEDULER | {"prediction_type": "v_prediction"}
    checkpoint.put(folder / "scheduler/scheduler_config.json", json.dumps(scheduler).encode())
    (folder / "prompt").mkdir()
    checkpoint.put(folder / latent.PROMPT_FILE, latent.prompt_bytes("none", torch.zeros(1, 1, tiny.TEXT_WIDTH)))


@torch.no_grad()
def measure(pipe: SAR2OptPipeline, data: DataConfig) -> tuple[dict[str, Any], tuple[dict[str, Tensor], list[str]]]:
    """AUC by timestep with its control, and the columns and labels of the picture."""
    size, looks, bands, scale = data.resolution, data.generated.looks, data.sar.bands, data.sar.scale
    changed, plain = (
        GeneratedPairs("test", IMAGES, size, SEED, looks, bands, scale, n) for n in (data.generated.changes, 0)
    )
    sides = np.stack([changed.sides(i) for i in range(IMAGES)], axis=1)  # [2,IMAGES,H,W]
    masks = np.logical_or(*sides)
    sar, opt = tensors(pipe, changed)
    space, found, maps = pipe.space, {}, {}
    assert isinstance(space, LatentSpace)
    latents = {"changed": space.encode(sar, opt), "plain": space.encode(*tensors(pipe, plain))}
    for t in LEVELS:
        scores = {name: log_variance(pipe, space, *pair, t) for name, pair in latents.items()}
        maps[t] = {name: score.mean(0) for name, score in scores.items()}
        seen = maps[t]["changed"]
        found[str(t)] = {
            "auc": roc_auc(seen, masks), "control": roc_auc(maps[t]["plain"], masks),
            "one_noise": roc_auc(scores["changed"][0], masks),
            "sar_only": one_side(seen, *sides), "opt_only": one_side(seen, *sides[::-1]),
        }  # fmt: skip
    sampled = pipe.confident(sar, Draws(0, changed.ids, "cpu"))[1].values.numpy()
    results = {
        "images": IMAGES, "changes": data.generated.changes, "looks": looks, "noises": NOISES,
        "changed_share": float(masks.mean()),
        "levels": found, "from_sar_alone": one_side(-sampled, *sides),
    }  # fmt: skip
    columns = {
        "SAR": sar[:SHOWN], "optical": opt[:SHOWN],
        "changed": torch.from_numpy(masks[:SHOWN, None] * 2.0 - 1),
        **{f"1/var, {name}": heat(maps[SHOWN_LEVEL][name][:SHOWN]) for name in latents},
    }  # fmt: skip
    return results, (columns, changed.ids[:SHOWN])


def tensors(pipe: SAR2OptPipeline, pairs: GeneratedPairs) -> tuple[Tensor, Tensor]:
    """All pairs, in [-1, 1]."""
    radiometry = SarRadiometry.from_dict(pipe.card.sar)
    sar, opt = zip(*[pairs.pixels(i) for i in range(len(pairs.ids))], strict=True)
    return torch.stack([radiometry.normalise(x) for x in sar]), torch.from_numpy(np.stack(opt)).float() / 127.5 - 1


def log_variance(pipe: SAR2OptPipeline, space: LatentSpace, cond: Tensor, z0: Tensor, t: int) -> np.ndarray:
    """log var of every pixel, at the true z_t with each of several noises: [NOISES,B,H,W]."""
    a, s = levels(pipe.scheduler.alphas_cumprod[t])
    found = []
    for seed in range(NOISES):
        z_t = a * z0 + s * Draws(seed, list(range(len(z0))), "cpu").normal("eps", z0.shape[1:])
        out = space.outputs(pipe.unet, z_t, torch.full((len(z0),), t), cond)
        found.append(confidence.enlarged(confidence.variance(out[:, space.channels :]).log(), space.factor)[:, 0])
    return torch.stack(found).numpy()


def roc_auc(score: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive scores higher than a negative (Mann & Whitney); 0.5 for scores that know nothing."""
    ranks = np.empty(score.size)
    ranks[np.argsort(score, axis=None)] = np.arange(score.size)
    inside = positive.ravel()
    return float((ranks[inside].mean() - (inside.sum() - 1) / 2) / (~inside).sum())


def one_side(score: np.ndarray, here: np.ndarray, there: np.ndarray) -> float:
    """ROC AUC of changes that show ``here``, among all pixels but those that changed ``there`` alone."""
    counted = here | ~there
    return roc_auc(score[counted], here[counted])


def heat(log_var: np.ndarray) -> Tensor:
    """Heat maps of 1/var on one scale for all: [N,3,H,W] in [-1, 1]."""
    low, high = np.percentile(-log_var, [1, 99])
    coloured = np.stack([heatmap.colours((-row - low) / (high - low)) for row in log_var])
    return torch.from_numpy(coloured).permute(0, 3, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    config.command_line(main)
