"""What each process of a recipe has of its own comes back to it, bit by bit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from ranks import Ranks


def meters(saved_after: int) -> tuple[object, object]:
    """What a meter reads after eight batches: whole, and as saved and loaded on the way."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
    from engine.log import Meter

    as_torchrun = {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    with mock.patch.dict(os.environ, as_torchrun):
        return _meters(Meter, saved_after)


def _meters(Meter: type, saved_after: int) -> tuple[object, object]:
    random = torch.Generator().manual_seed(dist.get_rank())
    batches = [torch.rand(2, 5, generator=random, dtype=torch.float64) for _ in range(8)]
    targets = torch.arange(5) % 3
    whole, parted = Meter(3, "cpu"), Meter(3, "cpu")
    for i, (losses, weights) in enumerate(batches):
        if i == saved_after:
            state = parted.state_dict()
            parted = Meter(3, "cpu")
            parted.load_state_dict(state)
        whole.add(losses, weights, targets)
        parted.add(losses, weights, targets)
    return whole.read(), parted.read()


@pytest.mark.parametrize("saved_after", range(1, 8))
def test_a_resumed_meter_reads_the_same_bits(two: Ranks, saved_after: int) -> None:
    for whole, parted in two.run(meters, saved_after):
        assert parted == whole
