"""Make or renew RUN/report.html from the run folder alone.

    python scripts/report.py runs/demo [runs/other ...]

A training does this itself at every checkpoint; this is for runs from elsewhere, and for those still training.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where the package is not installed

from sar2opt import config, report  # noqa: E402
from sar2opt.config import UserError  # noqa: E402


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, nargs="+", help="run folder, as a training makes it")
    for folder in parser.parse_args(argv).run:
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder}: no config.yaml in it; expected a run folder such as runs/demo")
        report.run_page(folder)
        print(f"open {folder / 'report.html'}")


if __name__ == "__main__":
    config.command_line(main)
