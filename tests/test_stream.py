"""The training stream is a function of (seed, position) and of nothing else."""

import torch

from sar2opt.config import UserError
from sar2opt.data.stream import Stream, positions
from sar2opt.draws import Draws


class Seven:
    """Seven pairs whose image says which one it is; augmentation adds noise from the generator that it is given."""

    def __len__(self):
        return 7

    def read(self, i, rng):
        opt = torch.full((3, 4, 6), float(i))
        return opt[:1] + rng.random(), opt


def test_an_epoch_is_a_permutation_and_epochs_differ():
    stream = Stream(Seven(), seed=0)
    first, second = (stream.__getitems__(list(range(7 * e, 7 * e + 7))).opt[:, 0, 0, 0].tolist() for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(7)) and first != second


def test_a_sample_does_not_depend_on_the_batch_it_is_read_in():
    stream = Stream(Seven(), seed=3)
    whole, alone = stream.__getitems__([11, 12, 13]), stream.__getitems__([12])
    for a, b in zip(whole[1:], alone[1:], strict=True):
        assert torch.equal(a[1:2], b)


def test_the_same_pair_is_augmented_anew_in_the_next_epoch():
    stream = Stream(Seven(), seed=0)
    seen = stream.__getitems__(list(range(70)))
    for i in range(7):
        rows = seen.sar[seen.opt[:, 0, 0, 0] == i, 0, 0, 0]
        assert len(rows) == 10 and len(rows.unique()) == 10


def test_noise_of_the_workers_is_the_noise_of_the_draws():
    samples = Stream(Seven(), seed=5).__getitems__([3, 9])
    assert torch.equal(samples.eps, Draws(5, [3, 9], "cpu").normal("eps", (3, 4, 6)))


def test_a_step_covers_the_same_positions_for_every_world_and_cut():
    for step in (0, 3):
        for world, micro in [(1, 12), (1, 3), (2, 3), (3, 1), (4, 3)]:
            cuts = 12 // (world * micro)
            ranks = [positions(step, 12, micro, rank, world) for rank in range(world)]
            seen = sorted(p for stream in ranks for _ in range(cuts) for p in next(stream))
            assert seen == list(range(12 * step, 12 * step + 12))


def test_a_mistake_in_the_data_travels_as_a_value():
    class Broken(Seven):
        def read(self, i, rng):
            raise UserError("a.png: truncated")

    found = Stream(Broken(), seed=0).__getitems__([0])
    assert isinstance(found, UserError) and str(found) == "a.png: truncated"
