"""The demonstration: train on generated pairs, distil to few steps, translate unseen scenes, compare.

    bash train.sh            (or: python scripts/demo.py [key=value ...], settings for the trainings)

Everything it does is a command that you can type yourself; each is printed before it runs. Stopped half-way, the same
command goes on where it was.
"""

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER, FEW = Path("runs/demo"), Path("runs/demo-lcm")
UNSEEN, SEEN, TRANSLATED, SHEET = (FOLDER / name for name in ("unseen", "seen", "translated", "contact-sheet.png"))
DISTILLED, STEPS = FEW / "translated", FEW / "steps"


def commands(overrides: list[str]) -> list[tuple[str, list[str]]]:
    """(what it is for, command) in order."""
    size, unseen = ["--size", "64"], ["--sar", str(UNSEEN / "sar"), "--target", str(UNSEEN / "opt")]
    shared = [item for item in overrides if item.startswith(("run.", "data."))]
    return [
        ("train the baseline on generated SAR/optical pairs", ["train.py", "configs/train/demo.yaml", *overrides]),
        (
            "distil the baseline to 1 to 8 steps",
            ["lcm_train.py", "configs/lcm/demo.yaml", f"model.init_from={FOLDER}", *shared],
        ),
        (
            "generate scenes that the networks have never seen",
            ["scripts/generate.py", "--out", str(UNSEEN), "--count", "32", "--split", "test", *size],
        ),
        (
            "generate training scenes, for their mean image",
            ["scripts/generate.py", "--out", str(SEEN), "--count", "256", "--split", "train", *size],
        ),
        (
            "translate the unseen SAR images with the baseline, in 20 steps",
            ["infer.py", "--model", str(FOLDER), "--input", str(UNSEEN / "sar"), "--output", str(TRANSLATED),
             "--overwrite"],
        ),
        (
            "translate them with the distilled network, in 4 steps",
            ["infer.py", "--model", str(FEW), "--input", str(UNSEEN / "sar"), "--output", str(DISTILLED),
             "--overwrite"],
        ),
        (
            "compare with the truth, and with the mean of the training images",
            ["scripts/contact_sheet.py", *unseen, "--pred", f"20 steps={TRANSLATED}", "--pred",
             f"distilled={DISTILLED}", "--train-target", str(SEEN / "opt"), "--out", str(SHEET)],
        ),
        (
            "quality against steps, of both networks",
            ["scripts/evaluate.py", "--model", str(FEW), "--teacher", str(FOLDER), "--steps", "1,2,4,8", *unseen,
             "--out", str(STEPS)],
        ),
    ]  # fmt: skip


def main(overrides: list[str]) -> int:
    for number, (purpose, command) in enumerate(steps := commands(overrides), start=1):
        print(f"\n[{number}/{len(steps)}] {purpose}\n$ python {shlex.join(command)}", flush=True)
        code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
        if code:
            return code if code > 0 else 128 - code
    print(f"\nDone. Look at {SHEET} and {STEPS / 'steps.png'},")
    print(f"and open {FOLDER / 'report.html'} and {STEPS / 'report.html'}.")
    print(f"Translate your own patches: python infer.py --model {FEW} --input SAR_FOLDER --output OUT_FOLDER")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
