"""The training stream. Position p counts the samples a run has consumed, over all processes.

Order, augmentation, noise and timesteps are pure functions of (seed, p): a run may stop anywhere, resume, or change its
number of processes or data workers, and sees the same stream.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import draws
from ..config import UserError
from .pairs import Pairs


class Batch(NamedTuple):
    """One micro-batch: sar [B,b,H,W] and opt [B,3,H,W] in [-1, 1], and its random numbers. With ``data.cache_latents``
    training has the latents of both instead, [B,4,H/8,W/8]."""

    sar: Tensor
    opt: Tensor
    draw: draws.Draws


class Samples(NamedTuple):
    """What a data worker sends: positions [B], sar, opt, and the noise draw ``eps`` [B,3,H,W], drawn ahead because it
    takes as long as reading the images."""

    positions: list[int]
    sar: Tensor
    opt: Tensor
    eps: Tensor


class Stream(Dataset[Samples]):
    """The endless sequence of samples. Every epoch is one permutation of the pairs; a batch may straddle epochs."""

    def __init__(self, pairs: Pairs, seed: int):
        self.pairs, self.seed = pairs, seed

    def __getitems__(self, positions: list[int]) -> Samples | UserError:
        # a mistake in the data travels as a value: raised here, it would reach the user wrapped in a worker's traceback
        try:
            rows = [self._sample(p) for p in positions]
        except UserError as error:
            return error
        sar, opt, eps = (torch.stack(column) for column in zip(*rows, strict=True))
        return Samples(positions, sar, opt, eps)

    def _sample(self, p: int) -> tuple[Tensor, Tensor, Tensor]:
        epoch, k = divmod(p, len(self.pairs))
        i = int(permutation(self.seed, epoch, len(self.pairs))[k])
        sar, opt = self.pairs.read(i, draws.rng(self.seed, "augment", p))
        return sar, opt, torch.from_numpy(draws.normal(self.seed, "eps", p, opt.shape))


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of one epoch: int64 [length]."""
    return draws.rng(seed, "order", epoch).permutation(length)


def positions(first_step: int, batch_size: int, micro_batch: int, rank: int, world: int) -> Iterator[list[int]]:
    """This rank's micro-batches, endlessly. A step's positions are the same set for every ``world`` and cut."""
    for step in count(first_step):
        for start in range(step * batch_size, (step + 1) * batch_size, micro_batch * world):
            yield list(range(start + rank * micro_batch, start + (rank + 1) * micro_batch))
