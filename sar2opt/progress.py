"""How fast a run goes: a bar on a terminal, plain lines otherwise, and the figures of timing.jsonl."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm


class Progress:
    """The clock of the main process. ``report`` speaks of the time since the report before."""

    def __init__(self, first_step: int, max_steps: int, batch_size: int, device: torch.device, shown: bool):
        self.step, self.max_steps, self.batch_size, self.device, self.shown = (
            first_step, max_steps, batch_size, device, shown,
        )  # fmt: skip
        terminal = shown and sys.stderr.isatty()
        self.bar = tqdm(total=max_steps, initial=first_step, disable=not terminal, unit="step", dynamic_ncols=True)
        self._restart()

    def update(self) -> None:
        """One step is done."""
        self.step += 1
        self.bar.update()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent in here is time without data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def report(self, row: dict[str, Any]) -> dict[str, float | int]:
        """The row of timing.jsonl; prints one line of the logged ``row`` where there is no bar."""
        seconds, steps = time.perf_counter() - self.since, self.step - self.since_step
        timing: dict[str, float | int] = {
            "step": self.step,
            "seconds_per_step": seconds / max(steps, 1),
            "images_per_second": steps * self.batch_size / seconds,
            "data_wait": self.waited / seconds,
        }
        if self.device.type == "cuda":
            timing["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        loss = next((value for key, value in row.items() if key not in ("step", "samples")), float("nan"))
        self.bar.set_postfix_str(f"loss {loss:.4f}")
        if self.shown and self.bar.disable:
            left = (self.max_steps - self.step) * timing["seconds_per_step"]
            rate = f"{timing['images_per_second']:.1f} images/s, {clock(left)} left"
            print(f"step {self.step}/{self.max_steps}  loss {loss:.4f}  {rate}", flush=True)
        if self.shown and timing["data_wait"] > 0.1 and steps > 1:
            self.say(f"note: {timing['data_wait']:.0%} of the time is spent waiting for data; raise data.workers")
        self._restart()
        return timing

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if self.shown:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()

    def _restart(self) -> None:
        self.since, self.since_step, self.waited = time.perf_counter(), self.step, 0.0


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
