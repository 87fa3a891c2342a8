"""Runs, or evaluations, side by side on one page; differences to the first one, on the same images.

python scripts/compare.py runs/a runs/b [...] --out compare.html
python scripts/compare.py eval/a eval/b [...] --out compare.html      (folders that scripts/evaluate.py wrote)
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where the package is not installed

from sar2opt import comparison, config  # noqa: E402


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "folder", type=Path, nargs="+", help="run folders, or evaluation folders; the first is the reference"
    )
    parser.add_argument("--out", type=Path, required=True, help="the HTML file")
    args = parser.parse_args(argv)
    comparison.comparison_page(args.out, args.folder)
    print(f"open {args.out}")


if __name__ == "__main__":
    config.command_line(main)
