"""The loader of a training set: this process's share of every batch, in an order that resumes."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, Dataset

from data.order import EpochBatches, as_is
from engine import distributed


def training_loader(
    dataset: Dataset, batches: EpochBatches, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """``dataset`` takes keys, as ``batches`` yields them, a batch at a time."""
    return DataLoader(
        dataset,
        batch_sampler=distributed.shared(batches),
        collate_fn=as_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # Spares the global generator, so that a resumed run is exact.
        generator=torch.Generator().manual_seed(batches.seed),
    )
