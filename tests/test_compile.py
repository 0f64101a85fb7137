"""Under torch.compile and torch.export: one graph, no recompilation, the numbers of eager."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

import torch_absgd as ta

STEPS = 5


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """How many graphs were compiled."""
    return counters["stats"]["unique_graphs"]


def small_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def batches(steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(0)
    return [
        (
            2 * torch.randn(16, 6, generator=random, dtype=torch.float64),
            torch.randint(4, (16,), generator=random),
        )
        for _ in range(steps)
    ]


def optimizer(model: nn.Module, **arguments: object) -> ta.ABSGD:
    rule = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "lam": 0.5, **arguments}
    return ta.ABSGD(model.parameters(), **rule)


def forward(model: nn.Module, opt: ta.ABSGD) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: opt.weigh(F.cross_entropy(model(x), y, reduction="none"))


def run(
    model: nn.Module,
    opt: ta.ABSGD,
    backend: str | None,
    compiled_step: bool,
    change: Callable[[int, ta.ABSGD], None] = lambda step, opt: None,
) -> list[object]:
    """Losses, weights, log_s and statistics of every step."""
    weighted, step_ = forward(model, opt), opt.step
    if backend is not None:
        if compiled_step:
            step_ = torch.compile(opt.step, fullgraph=True, backend=backend)
        else:
            weighted = torch.compile(weighted, fullgraph=True, backend=backend)
    seen: list[object] = []
    for step, (x, y) in enumerate(batches()):
        change(step, opt)
        loss = weighted(x, y)
        loss.backward()
        seen += [loss.detach(), opt.weights.clone(), opt.log_s.clone()]
        seen += [torch.tensor(opt.stats().last, dtype=torch.float64)]
        step_()
        opt.zero_grad()
    return seen


def assert_same(ours: list[object], eager: list[object]) -> None:
    assert len(ours) == len(eager)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_model_loss_and_weights_are_one_graph(backend: str) -> None:
    model, reference = small_model(), small_model()
    ours = run(model, optimizer(model), backend, compiled_step=False)
    assert_same(ours, run(reference, optimizer(reference), None, False))
    assert_same(list(model.parameters()), list(reference.parameters()))
    assert graphs() == 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_complex_parameters(momentum: float) -> None:
    """Beside real ones: as a graph of functions torch takes view_as_real's result for complex."""
    results = []
    for compiled in (False, True):
        random = torch.Generator().manual_seed(0)
        params = [
            torch.randn(3, generator=random, dtype=dtype).requires_grad_()
            for dtype in (torch.complex64, torch.float32)
        ]
        opt = ta.ABSGD(params, lr=0.1, momentum=momentum, weight_decay=0.1)
        step_ = (
            torch.compile(opt.step, fullgraph=True, backend="aot_eager") if compiled else opt.step
        )
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(3, generator=random, dtype=p.dtype)
            step_()
        results.append([p.detach() for p in params])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("form", ["torch", "polyak"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_step_is_one_graph(backend: str, form: str) -> None:
    model, reference = small_model(), small_model()
    addresses = [p.data_ptr() for p in model.parameters()]
    ours = run(model, optimizer(model, momentum_form=form), backend, compiled_step=True)
    assert_same(ours, run(reference, optimizer(reference, momentum_form=form), None, False))
    assert_same(list(model.parameters()), list(reference.parameters()))
    assert graphs() == 2  # the first step makes the momentum
    assert [p.data_ptr() for p in model.parameters()] == addresses


def test_parameters_are_not_copied() -> None:
    """What inductor runs is the operator on the parameters themselves, and allocates nothing."""
    from torch._inductor.utils import run_and_get_code

    model = small_model()
    opt = optimizer(model, lr=torch.tensor(0.1, dtype=torch.float64))
    for x, y in batches(1):
        forward(model, opt)(x, y).backward()
    opt.step()
    _, (code,) = run_and_get_code(torch.compile(opt.step, fullgraph=True))
    assert "absgd.sgd_step_" in code
    assert "empty_strided" not in code.split("def call")[1]
    assert "copy_" not in code.split("def call")[1]


def set_tensors(step: int, opt: ta.ABSGD) -> None:
    opt.param_groups[0]["lr"].fill_(0.1 / (step + 1))
    opt.lam = torch.tensor(0.5 + step)


def set_numbers(step: int, opt: ta.ABSGD) -> None:
    opt.param_groups[0]["lr"] = 0.1 / (step + 1)
    opt.lam = 0.5 + step


@pytest.mark.parametrize("compiled_step", [False, True])
@pytest.mark.parametrize("change", [set_tensors, set_numbers])
def test_a_changing_lr_or_lam_does_not_recompile(
    change: Callable[[int, ta.ABSGD], None], compiled_step: bool
) -> None:
    lr = torch.tensor(0.1, dtype=torch.float64) if change is set_tensors else 0.1
    model, reference = small_model(), small_model()
    opt = optimizer(model, lr=lr)
    ours = run(model, opt, "aot_eager", compiled_step, change)
    eager = run(reference, optimizer(reference, lr=copy.copy(lr)), None, False, change)
    assert_same(ours, eager)
    assert_same(list(model.parameters()), list(reference.parameters()))
    first = 2 if compiled_step else 1  # the first step makes the momentum
    assert graphs() - first <= (0 if change is set_tensors else 1)


def test_an_attentional_loss_compiles_with_its_model() -> None:
    runs = []
    for compiles in (True, False):
        model = small_model()
        criterion = ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=0.5)

        def weighted(x: Tensor, y: Tensor, model=model, criterion=criterion) -> Tensor:
            return criterion(model(x), y)

        if compiles:
            weighted = torch.compile(weighted, fullgraph=True, backend="inductor")
        opt = torch.optim.Adam(model.parameters())
        seen = []
        for x, y in batches():
            loss = weighted(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            seen += [loss.detach(), criterion.log_s.clone(), criterion.weights.clone()]
        runs.append([*seen, *model.parameters()])
    assert_same(*runs)
    assert graphs() == 1


@pytest.mark.parametrize("training", [True, False])
def test_a_module_with_an_attentional_loss_exports(training: bool) -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_model()
            self.loss = ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=0.5)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.loss(self.model(x), y)

    module = WithLoss().train(training)
    exported = torch.export.export(copy.deepcopy(module), batches(1)[0]).module()
    for x, y in batches():
        ours, eager = exported(x, y), module(x, y)
        torch.testing.assert_close(ours, eager, rtol=1e-12, atol=1e-12)
    # Its state is no buffer: the exported program has a copy that moves on, and saves none.
    assert not [name for name in exported.state_dict() if name.startswith("loss.")]
    assert math.isfinite(module.loss.log_s) == training


def test_an_empty_batch_compiles() -> None:
    model = small_model()
    opt = optimizer(model)
    weighted = torch.compile(forward(model, opt), fullgraph=True, backend="aot_eager")
    loss = weighted(torch.empty(0, 6, dtype=torch.float64), torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and opt.log_s.isnan()
