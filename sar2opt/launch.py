"""The command line of every entry script: CONFIG [key=value ...] [--check] [--print-config] [--print-schema]."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from . import config, latents
from .config import ConfigError
from .data import open_data
from .data.stream import Stream
from .run import Method, Run


def launch(kind: type[Any], build: Callable[[Any, Run], Method], argv: list[str], about: str | None) -> None:
    """What every entry script does: read the config, open the data, build the method, train."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/train/demo.yaml")
    parser.add_argument("override", metavar="key=value", nargs="*", help="settings that win over the file")
    parser.add_argument("--check", action="store_true", help="check config, data and networks; do not train")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config")
    parser.add_argument("--print-schema", action="store_true", help="print the JSON schema of the config, for editors")
    args = parser.parse_intermixed_args(argv)
    if args.print_schema:
        print(json.dumps(kind.model_json_schema(), indent=1))
        return
    cfg = config.load(kind, args.config, args.override)
    if args.print_config:
        print(config.dump(cfg), end="")
        return
    data = open_data(cfg.data)
    run = Run(cfg, data)
    method = build(cfg, run)
    if cfg.data.cache_latents != "off" and run.space is None:
        raise ConfigError("data.cache_latents: only latent models (cdiff_train.py) have latents; set it to off")
    if run.main:
        print(data.summary(), flush=True)
    if args.check:
        _check(run)
    else:
        run.fit(method)


def _check(run: Run) -> None:
    """Read one batch, and say what would run."""
    cfg, micro = run.cfg, run.cfg.data.micro_batch
    batch = run.first_batch(Stream(run.data.train, cfg.run.seed))
    if not run.main:
        return
    print(f"one batch: sar {list(batch.sar.shape)}, opt {list(batch.opt.shape)}")
    for net, (name, _) in run.trained.items():
        print(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters")
    print(f"device {run.device}, precision {run.accelerator.mixed_precision}, {run.world} process(es)")
    batch_size = f"{run.world} x {micro} x {run.accumulation} accumulated = {cfg.data.batch_size} images"
    if cfg.data.cache_latents != "off" and run.space is not None:
        print(latents.describe(latents.plan(run.data, run.space.factor)))
    print(f"{cfg.run.max_steps} steps of {batch_size}\nrun folder {cfg.run.folder}")
    print("check passed")
