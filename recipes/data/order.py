"""The order of an epoch, and seeds: pure functions of (seed, epoch), so that a resumed run sees the
batches that the uninterrupted one saw, with any number of workers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


def seed_of(*parts: int) -> int:
    """One 64-bit seed from several integers, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Yields batches of (epoch, index) in an order drawn from (seed, epoch).

    ``start(epoch, batch)`` says which epoch comes next, and after how many of its batches.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start(0)

    def start(self, epoch: int, batch: int = 0) -> None:
        self.epoch, self.batch = epoch, batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch, 0))
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        for i in range(self.batch * self.batch_size, self.num_samples, self.batch_size):
            yield [(self.epoch, index) for index in order[i : i + self.batch_size]]

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)


def as_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The collate function of datasets that give whole batches."""
    return batch
