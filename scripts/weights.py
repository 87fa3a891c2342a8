"""The weights of LPIPS and FID: what is needed, what is there, and the only place that downloads it.

    python scripts/weights.py --list | --check | --fetch [METRIC ...] [--weights-dir DIR]

Files lie in --weights-dir, else in SAR2OPT_WEIGHTS, else in ~/.cache/sar2opt/weights. On a machine without network,
fetch them elsewhere and copy that folder; every file is checked against its pinned SHA-256.
"""

import argparse
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where the package is not installed

from sar2opt import config, networks  # noqa: E402
from sar2opt.config import MachineError, UserError  # noqa: E402
from sar2opt.networks import WEIGHTS, Missing  # noqa: E402

TIMEOUT, CHUNK = 30, 1 << 20


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true", help="files, hashes and addresses")
    action.add_argument("--check", action="store_true", help="which are there and intact; exit 2 if any is not")
    action.add_argument("--fetch", nargs="*", metavar="METRIC", help="download what METRIC needs; default: everything")
    parser.add_argument("--weights-dir", type=Path)
    args = parser.parse_args(argv)
    folder = networks.weights_dir(args.weights_dir)
    if args.list:
        print(f"folder: {folder}")
        for weights in WEIGHTS.values():
            print(f"{' = '.join(weights.files)}\n  for {', '.join(weights.metrics)}")
            print(f"  SHA-256 {weights.sha256}\n  {weights.url}")
    elif args.check:
        check(folder)
    else:
        for key in chosen(args.fetch):
            fetch(key, folder)


def chosen(metrics: list[str]) -> list[str]:
    """Keys of ``WEIGHTS`` for metrics or keys; all without any."""
    keys = {name: name if name in WEIGHTS else networks.needed_by(name) for name in metrics}
    if unknown := [name for name, key in keys.items() if key is None]:
        known = ", ".join(metric for weights in WEIGHTS.values() for metric in weights.metrics)
        raise UserError(f"--fetch {' '.join(unknown)}: needs no weights, or is unknown; expected any of {known}")
    return list(dict.fromkeys(key for key in keys.values() if key)) or list(WEIGHTS)


def check(folder: Path) -> None:
    found = {key: networks.locate(key, folder) for key in WEIGHTS}
    for key, path in found.items():
        state = f"{path.reason} at {path.expected}" if isinstance(path, Missing) else f"intact: {path}"
        print(f"{key:10} {state}")
    if missing := [path for path in found.values() if isinstance(path, Missing)]:
        listed = "\n".join(f"  {path.command}" for path in missing)
        raise UserError(f"{len(missing)} of {len(found)} files are missing or wrong; the metrics are skipped\n{listed}")


def fetch(key: str, folder: Path) -> None:
    """Download beside the final name, and give it that name only if its hash is right."""
    weights = WEIGHTS[key]
    if isinstance(path := networks.locate(key, folder), Path):
        print(f"{key}: there already: {path}")
        return
    final = folder / weights.files[0]
    part = final.with_name(f".tmp-{final.name}-{os.getpid()}")
    print(f"{key}: {weights.url}", flush=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(weights.url, timeout=TIMEOUT) as source, open(part, "wb") as file:
            while content := source.read(CHUNK):
                file.write(content)
        if (found := networks.file_hash(part)) != weights.sha256:
            raise UserError(
                f"{weights.url}: {part.stat().st_size} bytes with SHA-256 {found}, expected {weights.sha256}; "
                "nothing was kept. A proxy may have answered in its place"
            )
        os.replace(part, final)
    except urllib.error.URLError as error:
        raise UserError(
            f"{weights.url}: no answer: {error.reason}. Without network, fetch the file on another machine and copy it "
            f"to {final}"
        ) from None
    except OSError as error:
        raise MachineError(f"{final}: not written: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    print(f"{key}: written to {final}")


if __name__ == "__main__":
    config.command_line(main)
