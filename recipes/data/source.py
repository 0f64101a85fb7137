"""What --data opens: a training set, a test set, and how to feed them to a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.order import EpochBatches
from data.subsets import Records


@dataclass(frozen=True)
class Source:
    """train: the whole training set. test: reads the test set, or None if there is none.

    input: ("image", 3), ("vector", width) or ("text", size of the vocabulary): what the network
    takes. training: from records and a seed to a dataset of (epoch, index) keys. evaluation: from
    records and a batch size to a loader. prepare: from a batch, on the device, to the model's
    input. batches: from records, batch size and seed to the order of the epochs.
    """

    train: Records
    test: Callable[[], Records] | None
    input: tuple[str, int]
    training: Callable[[Any, int], Dataset]
    evaluation: Callable[[Any, int], DataLoader]
    prepare: Callable[[Tensor], Tensor] = lambda batch: batch
    batches: Callable[[Any, int, int], EpochBatches] = lambda records, size, seed: EpochBatches(
        len(records), size, seed
    )
