"""A small model trained by several ranks, beside the same run in one process.

Every rank can make the whole batch, so each computes the single-process run itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import torch_absgd as ta

INPUTS, CLASSES = 5, 3


def small_model() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(INPUTS, 7), nn.Tanh(), nn.Linear(7, CLASSES)]
    return nn.Sequential(*layers).double()


def wrapped(model: nn.Module, wrapper: str, group: dist.ProcessGroup | None = None) -> nn.Module:
    """``model`` under "ddp" or "fsdp2"."""
    if wrapper == "ddp":
        return DistributedDataParallel(model, process_group=group)
    assert group is None
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def batches(steps: int, seed: int = 0, scale: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
    """Imbalanced whole batches of 4 to 40 samples, the same on every rank."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, INPUTS, generator=random, dtype=torch.float64)
    for _ in range(steps):
        n = int(torch.randint(4, 41, (), generator=random))
        y = torch.randint(10, (n,), generator=random).sub(7).clamp(0)
        x = centres[y] + torch.randn(n, INPUTS, generator=random, dtype=torch.float64)
        yield scale * x, y


def cut(batch: tuple[Tensor, Tensor], parts: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The batch in so many unequal parts; one in every few of them is empty."""
    x, y = batch
    random = torch.Generator().manual_seed(seed)
    bounds = torch.randint(0, len(y) + 1, (parts - 1,), generator=random).tolist()
    if seed % 2 == 0 and bounds:  # two cuts in one place
        bounds[0] = 0 if parts == 2 else bounds[-1]
    bounds = [0, *sorted(bounds), len(y)]
    return [(x[i:j], y[i:j]) for i, j in itertools.pairwise(bounds)]


def whole(t: Tensor) -> Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


def largest_difference(ours: nn.Module, reference: nn.Module) -> float:
    pairs = zip(ours.parameters(), reference.parameters(), strict=True)
    return max((whole(a) - b).abs().max().item() for a, b in pairs)


@torch.no_grad()
def copy_state(source: tuple[nn.Module, ta.ABSGD], to: tuple[nn.Module, ta.ABSGD]) -> None:
    """Parameters, momentum and log_s of one process's run into the ranks'."""
    (model, opt), (ranks_model, ranks_opt) = source, to

    def copy(value: Tensor, destination: Tensor) -> None:
        if isinstance(destination, DTensor):
            value = distribute_tensor(value, destination.device_mesh, destination.placements)
        destination.copy_(value)

    for p, q in zip(model.parameters(), ranks_model.parameters(), strict=True):
        copy(p, q)
        for key, value in opt.state[p].items():
            copy(value, ranks_opt.state[q][key])
    ranks_opt.weigher.state.log_s.copy_(opt.log_s)


RULE = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3, "gamma": 0.6}


def pair(wrapper: str, lam: float, group: dist.ProcessGroup | None = None, **arguments):
    """(model, optimizer) of one process, and of the ranks under ``wrapper``."""
    reference, model = small_model(), wrapped(small_model(), wrapper, group)
    rule = {**RULE, **arguments, "lam": lam}
    return (
        (reference, ta.ABSGD(reference.parameters(), process_group="local", **rule)),
        (model, ta.ABSGD(model.parameters(), process_group=group, **rule)),
    )
