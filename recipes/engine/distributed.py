"""Several processes for one run, as torchrun starts them: each takes its part of every batch.

    torchrun --nproc-per-node=2 --max-restarts=3 recipes/train.py --data … --output-dir …

The first process alone prints and writes. --batch-size is that of all together, and so are λ's
statistics; batch normalisation goes by each process's part. When a worker dies, torchrun starts
all anew, and they go on from the last checkpoint. (On several machines, torchrun needs
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for that.) Without torchrun, nothing here does anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

from data.order import EpochBatches, as_is


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    return rank() == 0


def was_restarted() -> bool:
    """Whether torchrun started these processes in the place of others, one of which died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def default_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"


def silence() -> None:
    """Lets the first process alone print; errors of all are still seen."""
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)


def begin(device: str) -> None:
    if world_size() > 1 and not dist.is_initialized():
        on_cuda = torch.device(device).type == "cuda"
        if on_cuda:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if on_cuda else "gloo", **_meeting_place())


def _meeting_place() -> dict[str, Any]:
    """Where the processes find each other, if not where torch has them look.

    torchrun keeps one store over all restarts, in which the addresses of those that died still
    stand: a process that reads one before it is written anew cannot connect, or waits for ever.
    So each restart gets keys of its own. (Several machines count their restarts apart: there,
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 has torchrun start a new store each time.)
    """
    if not was_restarted() or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    store, rank, world_size = next(dist.rendezvous("env://"))
    keys = f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}"
    return {"store": dist.PrefixStore(keys, store), "rank": rank, "world_size": world_size}


def end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def wait() -> None:
    """Until all processes are here."""
    if world_size() > 1:
        dist.barrier()


def total(values: Tensor) -> Tensor:
    """The sum of the processes' values."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def gathered(values: Tensor, device: str) -> Tensor:
    """[processes, …]: the values of each, on the CPU; ``device``: where processes exchange them."""
    if world_size() == 1:
        return values[None].cpu()
    rows = [torch.empty_like(values, device=device) for _ in range(world_size())]
    dist.all_gather(rows, values.to(device))
    return torch.stack(rows).cpu()


class Replicated:
    """``model`` whose backward pass averages gradients over the processes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trainable: list[bool] = []

    def __call__(self, *inputs: Any) -> Tensor:
        trainable = [p.requires_grad for p in self.model.parameters()]
        if trainable != self.trainable:  # layers were frozen or freed: DDP has to know
            self.ddp, self.trainable = DistributedDataParallel(self.model), trainable
        return self.ddp(*inputs)


class Share(Sampler[list[Any]]):
    """This process's part of every batch: each ``world_size()``-th sample of it.

    Raises:
        ValueError: the last batch of an epoch has too few samples for all processes.
    """

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches
        last = batches.num_samples % batches.batch_size or batches.batch_size
        if last < world_size():
            raise ValueError(
                f"Invalid --batch-size: {batches.batch_size} of {batches.num_samples} samples "
                f"leaves a last batch of {last}, too few for {world_size()} processes"
            )

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self.batches:
            yield batch[rank() :: world_size()]

    def __len__(self) -> int:
        return len(self.batches)


def training_loader(
    dataset: Dataset, batches: EpochBatches, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """This process's share of every batch, in an order that resumes.

    Args:
        dataset: takes keys, as ``batches`` yields them, a batch at a time.
    """
    return DataLoader(
        dataset,
        batch_sampler=Share(batches) if world_size() > 1 else batches,
        collate_fn=as_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # Spares the global generator, so that a resumed run is exact.
        generator=torch.Generator().manual_seed(batches.seed),
    )
