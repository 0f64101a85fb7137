"""PyTorch's own inputs for the tests of torch.optim.SGD, as far as the installed torch ships them,
given to ABSGD: it takes what SGD takes, refuses what SGD refuses, and goes where SGD goes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

import torch_absgd as ta

# From its import on the process may not set cudnn's flags, as recipes do: this puts that back.
with torch.backends.__allow_nonbracketed_mutation():
    common = pytest.importorskip("torch.testing._internal.common_optimizers")
INPUTS = common.optim_inputs_func_sgd("cpu")
ERRORS = common.optim_error_inputs_func_sgd("cpu", torch.float32)
VARIANTS: list[dict[str, Any]] = [{}, {"foreach": False}, {"foreach": True}, {"fused": True}]


def model() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(12, 2), nn.Tanh())


def run(opt: torch.optim.Optimizer, net: nn.Module, steps: int, seed: int = 0) -> None:
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(5, 1, 3, 3, generator=random)

        def closure(x: Tensor = x) -> Tensor:
            opt.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            return loss

        opt.step(closure)


def arguments(given: Any, variant: dict[str, Any]) -> dict[str, Any]:
    return {"lr": 1e-3, **copy.deepcopy(given.kwargs), **variant}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("given", INPUTS, ids=lambda g: g.desc)
def test_goes_where_sgd_goes(given: Any, variant: dict[str, Any]) -> None:
    kwargs = arguments(given, variant)
    if variant.get("fused") and isinstance(kwargs.get("weight_decay"), Tensor):
        pytest.skip("torch's fused SGD takes no tensor weight_decay")
    ours, theirs = model(), model()
    run(ta.ABSGD(ours.parameters(), **kwargs), ours, 5)
    run(SGD(theirs.parameters(), **arguments(given, {"foreach": False})), theirs, 5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("given", INPUTS, ids=lambda g: g.desc)
def test_state_dicts_copies_and_groups(given: Any) -> None:
    net = model()
    params = [*net.parameters()]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 5e-3}]
    opt = ta.ABSGD(groups, **arguments(given, {}))
    run(opt, net, 3)
    twin_net = copy.deepcopy(net)
    twin = ta.ABSGD(
        [{"params": [*twin_net.parameters()][:1]}, {"params": [*twin_net.parameters()][1:]}],
        **arguments(given, {}),
    )
    twin.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))
    both = copy.deepcopy((net, opt))
    for n, o in ((net, opt), (twin_net, twin), both):
        run(o, n, 3, seed=1)
    for other in (twin_net, both[0]):
        for a, b in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.optimizer_error_input.desc)
def test_refuses_what_sgd_refuses(error: Any) -> None:
    given = error.optimizer_error_input
    params = given.params if given.params is not None else [nn.Parameter(torch.ones(2))]
    if error.error_on is not common.OptimizerErrorEnum.CONSTRUCTION_ERROR:
        pytest.skip("not an error of the constructor")
    if issubclass(error.error_type, Warning):
        expected = pytest.warns(error.error_type, match=error.error_regex)
    else:  # our own message where we check first
        expected = pytest.raises((ValueError, TypeError, RuntimeError, KeyError))
    with expected:
        ta.ABSGD(params, **given.kwargs)


SCHEDULERS = {
    "LambdaLR": lambda o: LambdaLR(o, lambda e: 0.9**e),
    "StepLR": lambda o: StepLR(o, 2),
    "ConstantLR": lambda o: ConstantLR(o, 0.3, 3),
    "LinearLR": lambda o: LinearLR(o, 0.3, total_iters=4),
    "ExponentialLR": lambda o: ExponentialLR(o, 0.8),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, 4),
    "CyclicLR": lambda o: CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: OneCycleLR(o, 0.1, total_steps=8),
    "ReduceLROnPlateau": lambda o: ReduceLROnPlateau(o, patience=0),
}


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_lr_schedulers(name: str, tensor_lr: bool) -> None:
    results = []
    for make in (ta.ABSGD, SGD):
        net = model()
        lr = torch.tensor(0.05) if tensor_lr else 0.05
        opt = make(net.parameters(), lr=lr, momentum=0.9, foreach=False)
        schedule = SCHEDULERS[name](opt)
        for epoch in range(6):
            run(opt, net, 1, seed=epoch)
            schedule.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        results.append([*net.parameters(), *(torch.as_tensor(g["lr"]) for g in opt.param_groups)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
