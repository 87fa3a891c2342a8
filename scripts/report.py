"""Make or renew report.html of a run or an evaluation from its folder.

    python scripts/report.py runs/demo [out-evaluation ...]

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
    parser.add_argument("folder", type=Path, nargs="+", help="of a training, or of scripts/evaluate.py")
    for folder in parser.parse_args(argv).folder:
        if (folder / "config.yaml").is_file():
            report.run_page(folder)
        elif (folder / "metrics.json").is_file():
            report.evaluation_page(folder)
        else:
            raise UserError(
                f"{folder}: neither config.yaml nor metrics.json in it; expected a run folder such as runs/demo, or "
                "the --out folder of scripts/evaluate.py"
            )
        print(f"open {folder / 'report.html'}")


if __name__ == "__main__":
    config.command_line(main)
