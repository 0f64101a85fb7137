"""A whole training step as one graph: forward, weigh, backward(), step() and zero_grad()."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

import torch_absgd as ta

pytestmark = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"),
    reason="this torch cannot trace backward(): torch._dynamo.config.trace_autograd_ops is missing",
)
STEPS = 5
CLASS_WEIGHT = torch.tensor([1.0, 2.0, 0.5, 0.0])


@pytest.fixture(autouse=True)
def _compiler_that_traces_backward() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield
    torch._dynamo.reset()


def train(
    backend: str | None,
    rule: dict[str, object],
    change: Callable[[int, ta.ABSGD], None],
    *,
    set_to_none: bool = True,
    weight: Tensor | None = None,
    autocast: bool = False,
) -> list[Tensor]:
    """What STEPS steps return and leave behind; compiled by ``backend``, or eager."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    opt = ta.ABSGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, "lam": 0.5, **rule})

    def step(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            losses = F.cross_entropy(model(x), y, reduction="none")
        loss = opt.weigh(losses, weight=None if weight is None else weight[y])
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none)
        return loss.detach()

    if backend:
        step = torch.compile(step, fullgraph=True, backend=backend)
    seen = []
    for i in range(STEPS):
        change(i, opt)
        seen += [step(torch.randn(16, 6), torch.randint(4, (16,))), opt.log_s, opt.lam]
        seen += [opt.weights.clone(), torch.tensor(opt.stats().last)]
    return [*seen, *(p.detach() for p in model.parameters())]


def nothing(i: int, opt: ta.ABSGD) -> None:
    pass


def set_numbers(i: int, opt: ta.ABSGD) -> None:
    opt.param_groups[0]["lr"] = 0.1 / (i + 1)
    opt.lam = 0.5 + i


def set_tensors(i: int, opt: ta.ABSGD) -> None:
    opt.param_groups[0]["lr"].fill_(0.1 / (i + 1))
    opt.lam = torch.tensor(0.5 + i)


@pytest.mark.parametrize(
    ("rule", "change", "options"),
    [
        ({}, set_numbers, {"set_to_none": False}),
        ({"lr": torch.tensor(0.1, dtype=torch.float64)}, set_tensors, {}),
        ({"max_weight": 1.5, "keep_loss": True}, nothing, {"weight": CLASS_WEIGHT}),
        ({"lam": ta.EffectiveSampleSize(0.5), "weight_decay": 1e-3}, nothing, {"autocast": True}),
    ],
    ids=["numbers", "tensors", "guards and base measure", "rule for λ, autocast"],
)
def test_a_training_step_is_one_graph(
    rule: dict[str, object],
    change: Callable[[int, ta.ABSGD], None],
    options: dict[str, object],
) -> None:
    eager = train(None, copy.deepcopy(rule), change, **options)
    compiled = train("aot_eager", copy.deepcopy(rule), change, **options)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert counters["stats"]["unique_graphs"] == 2  # the first step makes the momentum


def test_a_training_step_by_inductor() -> None:
    eager, compiled = train(None, {}, nothing), train("inductor", {}, nothing)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 2


def train_leaf(**options: object) -> Iterator[Tensor]:
    """A parameter of no module, after each step. Once torch has seen it in an optimizer, a traced
    backward() does not find it."""
    w = torch.eye(6, 4, requires_grad=True)
    opt = ta.ABSGD([w], lr=0.1, momentum=0.9)

    def step(x: Tensor, y: Tensor) -> None:
        opt.weigh(F.cross_entropy(x @ w, y, reduction="none")).backward()
        opt.step()
        opt.zero_grad()

    compiled = torch.compile(step, backend="eager", **options) if options else step
    random = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        compiled(torch.randn(16, 6, generator=random), torch.randint(4, (16,), generator=random))
        yield w.detach().clone()


def test_gradients_that_a_graph_loses_are_an_error() -> None:
    steps = train_leaf(fullgraph=True)
    next(steps)
    with pytest.raises(Exception, match="no parameter has a gradient"):
        next(steps)


def test_steps_that_would_lose_gradients_are_eager() -> None:
    for a, b in zip(train_leaf(fullgraph=False), train_leaf(), strict=True):
        torch.testing.assert_close(a, b)


def test_an_attentional_loss_and_its_backward_are_one_graph() -> None:
    """For another optimizer; torch's own step breaks the graph, and stays outside."""
    runs = []
    for backend in (None, "aot_eager"):
        torch.manual_seed(1)
        model = nn.Linear(6, 4)
        criterion = ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=0.5)
        opt = torch.optim.Adam(model.parameters())

        def gradients(x: Tensor, y: Tensor, model=model, criterion=criterion) -> Tensor:
            loss = criterion(model(x), y)
            loss.backward()
            return loss.detach()

        if backend:
            gradients = torch.compile(gradients, fullgraph=True, backend=backend)
        seen = []
        for _ in range(STEPS):
            seen += [gradients(torch.randn(16, 6), torch.randint(4, (16,))), criterion.log_s]
            opt.step()
            opt.zero_grad()
        runs.append([*seen, *(p.detach() for p in model.parameters())])
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert counters["stats"]["unique_graphs"] == 1
