"""The demonstration: train on generated pairs, translate unseen scenes, compare with the mean image.

    bash train.sh            (or: python scripts/demo.py [key=value ...], settings for the training)

Everything it does is a command that you can type yourself; each is printed before it runs. Stopped half-way, the same
command goes on where it was.
"""

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path("runs/demo")
UNSEEN, SEEN, TRANSLATED, SHEET = (FOLDER / name for name in ("unseen", "seen", "translated", "contact-sheet.png"))


def commands(overrides: list[str]) -> list[tuple[str, list[str]]]:
    """(what it is for, command) in order."""
    size = ["--size", "64"]
    return [
        ("train the baseline on generated SAR/optical pairs", ["train.py", "configs/train/demo.yaml", *overrides]),
        (
            "generate scenes that the network has never seen",
            ["scripts/generate.py", "--out", str(UNSEEN), "--count", "32", "--split", "test", *size],
        ),
        (
            "generate training scenes, for their mean image",
            ["scripts/generate.py", "--out", str(SEEN), "--count", "256", "--split", "train", *size],
        ),
        (
            "translate the unseen SAR images",
            ["infer.py", "--model", str(FOLDER), "--input", str(UNSEEN / "sar"), "--output", str(TRANSLATED),
             "--overwrite"],
        ),
        (
            "compare with the truth, and with the mean of the training images",
            ["scripts/contact_sheet.py", "--sar", str(UNSEEN / "sar"), "--target", str(UNSEEN / "opt"),
             "--pred", f"output={TRANSLATED}", "--train-target", str(SEEN / "opt"), "--out", str(SHEET)],
        ),
    ]  # fmt: skip


def main(overrides: list[str]) -> int:
    for number, (purpose, command) in enumerate(steps := commands(overrides), start=1):
        print(f"\n[{number}/{len(steps)}] {purpose}\n$ python {shlex.join(command)}", flush=True)
        code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
        if code:
            return code if code > 0 else 128 - code
    print(f"\nDone. Look at {SHEET} (SAR | output | target), and open {FOLDER / 'report.html'}.")
    print(f"Translate your own patches: python infer.py --model {FOLDER} --input SAR_FOLDER --output OUT_FOLDER")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
