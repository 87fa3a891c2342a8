"""Every random number of a run. Nothing random has a state, so nothing random needs saving.

Row i of draw ``name`` is a pure function of (seed, name, keys[i]): independent of the batch it is drawn in, of the
process, of the number of workers, and of every other draw.
"""

import hashlib
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Key = int | str  # position of a sample in the run (int), or id of an image (str)


def rng(seed: int, name: str, key: Key) -> np.random.Generator:
    """The generator of one row. A torch generator would keep only 32 bits of its seed, numpy keeps them all."""
    entropy = key if isinstance(key, int) else int.from_bytes(hashlib.sha256(key.encode()).digest()[:16])
    return np.random.default_rng((seed, zlib.crc32(name.encode()), isinstance(key, str), entropy))


def normal(seed: int, name: str, key: Key, shape: Sequence[int]) -> np.ndarray:
    """Standard normal, float32, ``shape``: one row of ``Draws.normal``."""
    return rng(seed, name, key).standard_normal(tuple(shape), dtype=np.float32)


class Draws:
    """The random numbers of one batch. ``ready`` holds rows of ``normal`` that data workers drew ahead."""

    def __init__(
        self, seed: int, keys: Sequence[Key], device: torch.device | str, ready: dict[str, Tensor] | None = None
    ):
        self.seed, self.keys, self.device, self.ready = seed, list(keys), device, ready or {}

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Standard normal rows, float32: [B, *shape]; ``shape`` excludes the batch axis."""
        if name in self.ready and self.ready[name].shape[1:] == tuple(shape):
            return self.ready[name].to(self.device, non_blocking=True)
        return torch.from_numpy(np.stack([normal(self.seed, name, k, shape) for k in self.keys])).to(self.device)

    def integers(self, name: str, high: int) -> Tensor:
        """Uniform on 0..high-1, int64: [B]."""
        return self._rows(name, lambda g: int(g.integers(high)))

    def uniform(self, name: str) -> Tensor:
        """Uniform on [0, 1), float32: [B]."""
        return self._rows(name, lambda g: float(g.random(dtype=np.float32)))

    def _rows(self, name: str, draw: Callable[[np.random.Generator], float]) -> Tensor:
        return torch.tensor([draw(rng(self.seed, name, k)) for k in self.keys], device=self.device)
