"""DTensor parameters whose gradients or momenta are placed otherwise, against one process's SGD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

import torch_absgd as ta
from parallel import whole
from ranks import Ranks

HYPER = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
PLACEMENTS: dict[str, Placement] = {
    "rows": Shard(0), "columns": Shard(1), "replicated": Replicate(), "partial": Partial(),
}  # fmt: skip


def placed(t: Tensor, placement: Placement) -> Tensor:
    mesh = init_device_mesh("cpu", (2,))
    if placement.is_partial():  # each rank holds a summand
        return DTensor.from_local(t / 2, mesh, [placement])
    return distribute_tensor(t, mesh, [placement])


def step(of_param: str, of_grad: str, of_momentum: str) -> float:
    """The largest difference after four steps; from the third on the momentum is placed anew."""
    values = torch.Generator().manual_seed(0)
    start = torch.randn(4, 6, generator=values)
    ours = nn.Parameter(placed(start, PLACEMENTS[of_param]))
    reference = nn.Parameter(start.clone())
    opt = ta.ABSGD([ours], **HYPER)
    sgd = torch.optim.SGD([reference], **HYPER)
    for i in range(4):
        grad = torch.randn(4, 6, generator=values)
        reference.grad, ours.grad = grad, placed(grad, PLACEMENTS[of_grad])
        if i == 2:
            state = opt.state[ours]
            buffer = whole(state["momentum_buffer"]).clone()
            state["momentum_buffer"] = placed(buffer, PLACEMENTS[of_momentum])
        opt.step()
        sgd.step()
    return (whole(ours) - reference).abs().max().item()


@pytest.mark.parametrize("of_momentum", ["rows", "replicated"])
@pytest.mark.parametrize("of_grad", ["rows", "columns", "replicated", "partial"])
@pytest.mark.parametrize("of_param", ["rows", "replicated"])
def test_placements_that_differ(two: Ranks, of_param: str, of_grad: str, of_momentum: str) -> None:
    for difference in two.run(step, of_param, of_grad, of_momentum):
        assert difference < 1e-6
