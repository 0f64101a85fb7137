"""At λ = ∞ ABSGD is torch.optim.SGD: the same parameters, for every combination of arguments."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from torch_absgd import ABSGD

STEPS = 100


def parameters(dtype: torch.dtype) -> list[Tensor]:
    """Tensors of many layouts: 0-dim, empty, channels last, transposed, with gaps, longer than one
    chunk of the kernel's work; the last one gets no gradient."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    tensors = [
        normal(),
        normal(0),
        normal(7, 3),
        normal(2, 3, 4, 5).to(memory_format=torch.channels_last),
        normal(4, 6).t(),
        normal(9, 8)[::2, ::3],
        normal(20_011),
        normal(3),
    ]
    return [t.requires_grad_() for t in tensors]


def set_gradients(params: list[Tensor], step: int, maximize: bool) -> None:
    """Those of a noisy quadratic, in layouts that now and then are not the parameter's."""
    random = torch.Generator().manual_seed(step)
    for i, p in enumerate(params[:-1]):
        noise = torch.randn(p.shape, generator=random, dtype=torch.float64).to(p.dtype)
        gradient = noise - p.detach() if maximize else noise + p.detach()
        if i == 3 and step % 3 == 0:
            gradient = gradient.contiguous()
        if i == 2 and step % 3 == 1:
            gradient = gradient.t().contiguous().t()
        p.grad = gradient


def run(optimizer: type[SGD], dtype: torch.dtype, steps: int = STEPS, **options: Any) -> list:
    params = parameters(dtype)
    if isinstance(options["lr"], Tensor):
        options["lr"] = options["lr"].clone()
    opt = optimizer(params, **options)
    for step in range(steps):
        set_gradients(params, step, options.get("maximize", False))
        opt.step()
    return params


def combinations() -> list[dict[str, Any]]:
    names = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
    values = ((0, 0.9), (0, 0.3), (0, 0.01), (False, True), (False, True))
    all_of_them = [dict(zip(names, v, strict=True)) for v in itertools.product(*values)]
    return [
        options
        for options in all_of_them
        if not options["nesterov"] or (options["momentum"] > 0 and options["dampening"] == 0)
    ]


@functools.cache
def expected(dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """SGD's result, by its plain implementation: the fused one of torch 2.15 is wrong on the CPU
    for tensors with gaps and for gradients of another layout than the parameter's."""
    return run(SGD, dtype, lr=0.05, foreach=False, **options)


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        assert a.stride() == b.stride()


# Rounding errors of float32 differ between implementations by one or two ulp a step, and gradients
# that depend on the parameters hand some of that on.
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05, dtype=torch.float64)], ids=type)
@pytest.mark.parametrize(
    "implementation",
    [{}, {"fused": True}, {"fused": False}, {"foreach": True}, {"foreach": False}],
    ids=str,
)
def test_every_combination(
    implementation: dict[str, bool], lr: float | Tensor, dtype: torch.dtype, tolerance: float
) -> None:
    for options in combinations():
        ours = run(ABSGD, dtype, lr=lr, **options, **implementation)
        theirs = expected(dtype, **options)
        assert_close(ours, theirs, tolerance)
        assert not torch.equal(theirs[6], parameters(dtype)[6])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    """One step is within half an ulp of the exact one; SGD rounds after each operation."""
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    w, g, v = (torch.randn(1000).to(dtype) for _ in range(3))
    p = w.clone().requires_grad_()
    p.grad = g.clone()
    opt = ABSGD([p], **options)
    opt.state[p]["momentum_buffer"] = v.clone()
    opt.step()

    w, g, v = w.double(), g.double(), v.double()
    g = g + 0.01 * w
    v = 0.9 * v + g
    w = w - 0.05 * (g + 0.9 * v)
    half_ulp = (
        torch.finfo(dtype).eps / 2 * (1 + 1e-2)
    )  # the rounding, and that of float32 before it
    torch.testing.assert_close(p.double(), w, rtol=half_ulp, atol=1e-7)
    torch.testing.assert_close(
        opt.state[p]["momentum_buffer"].double(), v, rtol=half_ulp, atol=1e-7
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_follows_sgd(dtype: torch.dtype) -> None:
    for options in combinations():
        ours = run(ABSGD, dtype, lr=0.05, **options)
        assert_close(ours, expected(dtype, **options), 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters(dtype: torch.dtype) -> None:
    def run(optimizer: type[SGD]) -> Tensor:
        w = torch.view_as_complex(parameters(torch.float64)[6][:2000].detach().view(1000, 2))
        w = w.to(dtype).requires_grad_()
        opt = optimizer([w], lr=0.05, momentum=0.9, weight_decay=0.01)
        for step in range(STEPS):
            gradient = w.detach() * (1 - 0.5j) + step / STEPS
            w.grad = gradient.conj() if step % 2 else gradient
            opt.step()
        return w

    tolerance = 1e-12 if dtype is torch.complex128 else 2e-6
    assert_close([run(ABSGD)], [run(SGD)], tolerance)


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_sparse_gradients(momentum: float) -> None:
    def run(optimizer: type[SGD]) -> Tensor:
        torch.manual_seed(3)
        model = torch.nn.Embedding(50, 4, sparse=True, dtype=torch.float64)
        opt = optimizer(model.parameters(), lr=0.1, momentum=momentum)
        for _ in range(STEPS):
            opt.zero_grad()
            model(torch.randint(50, (6,))).square().sum().backward()
            opt.step()
        return model.weight

    assert_close([run(ABSGD)], [run(SGD)], 1e-12)


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_differentiable(momentum: float) -> None:
    """The result of two steps can be differentiated by the initial parameter, and by lr."""

    def gradients(optimizer: type[SGD]) -> list[Tensor]:
        start = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        w = start.clone()
        opt = optimizer([w], lr=0.1 if momentum else lr, momentum=momentum, differentiable=True)
        for _ in range(2):
            w.grad = 3 * w.clone() ** 2
            opt.step()
        return list(torch.autograd.grad(w.square().sum(), [start] if momentum else [start, lr]))

    assert_close(gradients(ABSGD), gradients(SGD), 1e-12)


class Trainings:
    """Features of torch.optim that a training loop uses, each on a small model."""

    @staticmethod
    def groups(optimizer: type[SGD], params: list[Tensor]) -> SGD:
        """Several groups of their own hyper-parameters, one of them added later."""
        opt = optimizer(
            [{"params": params[:2], "lr": 0.2}, {"params": params[2:3], "weight_decay": 0.1}],
            lr=0.05,
            momentum=0.9,
        )
        opt.add_param_group({"params": params[3:], "momentum": 0.5, "nesterov": True})
        return opt

    @staticmethod
    def scheduler(optimizer: type[SGD], params: list[Tensor]) -> SGD:
        opt = optimizer(params, lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 0.2, STEPS)  # changes momentum too
        opt.register_step_post_hook(lambda *_: schedule.step() if opt.steps < STEPS else None)
        return opt

    @staticmethod
    def hooks(optimizer: type[SGD], params: list[Tensor]) -> SGD:
        opt = optimizer(params, lr=0.1)

        def decay(opt: SGD, args: tuple, kwargs: dict) -> None:
            for p in params:
                p.data.mul_(0.99)

        opt.register_step_pre_hook(decay)
        return opt

    @staticmethod
    def named(optimizer: type[SGD], params: list[Tensor]) -> SGD:
        return optimizer([(f"p{i}", p) for i, p in enumerate(params)], lr=0.1, momentum=0.9)


@pytest.mark.parametrize("training", ["groups", "scheduler", "hooks", "named"])
def test_training_loops(training: str) -> None:
    def run(optimizer: type[SGD]) -> list[Tensor]:
        params = parameters(torch.float64)[2:6]
        opt = getattr(Trainings, training)(optimizer, params)
        for opt.steps in range(1, STEPS + 1):
            opt.zero_grad()

            def closure() -> Tensor:
                loss = sum(torch.sin(p).square().sum() for p in params)
                loss.backward()
                return loss

            assert opt.step(closure).item() > 0
        return params

    assert_close(run(ABSGD), run(SGD), 1e-12)


def transposed(t: Tensor) -> Tensor:
    return t.t()


def cut(t: Tensor) -> Tensor:
    return t[:2]


def moved(t: Tensor) -> Tensor:
    return t.clone()


@pytest.mark.parametrize("change", [transposed, cut, moved])
def test_assigned_data_is_noticed(change: Callable[[Tensor], Tensor]) -> None:
    """Also where it begins at the same address."""

    def run(optimizer: type[SGD]) -> Tensor:
        p = parameters(torch.float64)[6][:16].detach().view(4, 4).requires_grad_()
        opt = optimizer([p], lr=0.1)
        for step in range(4):
            if step == 2:
                p.grad = None
                p.data = change(p.data)
            p.grad = torch.arange(p.numel(), dtype=p.dtype).view(p.shape) * step
            opt.step()
        return p

    assert_close([run(ABSGD)], [run(SGD)], 1e-12)


def test_replaced_tensors_are_noticed() -> None:
    """Gradients, parameters' memory and buffers may be replaced between steps."""

    def run(optimizer: type[SGD]) -> list[Tensor]:
        params = parameters(torch.float64)[2:7]
        opt = optimizer(params, lr=0.1, momentum=0.9)
        for step in range(12):
            set_gradients(params, step, maximize=False)
            if step == 3:
                params[0].data = params[0].data.clone()
            if step == 5:
                opt.state[params[1]]["momentum_buffer"] = torch.ones_like(params[1])
            if step == 6:
                params[2].grad = None
            if step == 8:
                del opt.state[params[3]]["momentum_buffer"]
            opt.step()
        return params

    assert_close(run(ABSGD), run(SGD), 1e-12)
