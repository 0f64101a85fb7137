"""PerSampleLinearCrossEntropy: torch's chunked linear cross-entropy with `weigh`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_absgd as ta

needs_it = pytest.mark.skipif(
    not hasattr(nn, "LinearCrossEntropyOptions"),
    reason=f"torch {torch.__version__} has no linear_cross_entropy of options",
)
N, D, C = 300, 8, 700


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, nn.Linear, Tensor]:
    target = torch.randint(C, (N,))
    target[::7] = -100
    return torch.randn(N, D).to(dtype).requires_grad_(), nn.Linear(D, C).to(dtype), target


@needs_it
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_for_arbitrary_upstream_weights(
    dtype: torch.dtype, tolerance: float, weighted: bool
) -> None:
    features, head, target = problem(dtype)
    weight = torch.rand(C) if weighted else None
    losses = ta.PerSampleLinearCrossEntropy(weight)(features, head.weight, target, head.bias)
    assert losses.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    upstream = torch.rand_like(losses)
    given = (features, head.weight, head.bias)
    grads = torch.autograd.grad(losses, given, upstream)
    exact = [t.detach().double().requires_grad_() for t in given]
    expected = F.cross_entropy(
        F.linear(*exact),
        target,
        None if weight is None else weight.double(),
        reduction="none",
    )
    torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=2e-6)
    for got, wanted in zip(
        grads, torch.autograd.grad(expected, exact, upstream.double()), strict=True
    ):
        assert got.dtype is dtype
        assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


@needs_it
@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_few_samples_strided_and_extreme(n: int, size: float) -> None:
    """Logits up to ±1e4 and ties among them; features and layer as views."""
    features, layer = torch.randn(D, 2 * n).t()[::2], size * torch.randn(D, 60).t()
    layer[1::2] = layer[::2]
    target = torch.randint(60, (2 * n,))[::2]
    given = [features.requires_grad_(), layer.requires_grad_()]
    losses = ta.PerSampleLinearCrossEntropy()(*given, target)
    exact = [t.detach().double().requires_grad_() for t in given]
    expected = F.cross_entropy(F.linear(*exact), target, reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-6 * size)
    grads = torch.autograd.grad(losses.sum(), given)
    for got, wanted in zip(grads, torch.autograd.grad(expected.sum(), exact), strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5 * max(size / 100, 1))


@needs_it
@pytest.mark.parametrize("by", ["ABSGD", "AttentionalLoss"])
def test_weighed_it_is_the_weighed_cross_entropy(by: str) -> None:
    """The weights need all losses before any gradient."""
    features, head, target = problem()
    results = []
    for chunked in (True, False):
        criterion: Any = ta.PerSampleLinearCrossEntropy() if chunked else ta.PerSampleCrossEntropy()
        opt: Any
        if by == "ABSGD":
            opt = ta.ABSGD(head.parameters(), lam=0.5)
        else:  # its call takes (input, target); weigh takes the losses of any call
            opt = ta.AttentionalLoss(criterion, lam=0.5)
        if chunked:
            losses = criterion(features, head.weight, target, head.bias)
        else:
            losses = criterion(head(features), target)
        loss = opt.weigh(losses, criterion.counted(target))
        grads = torch.autograd.grad(loss, (features, head.weight, head.bias))
        results.append((loss.detach(), opt.log_s.clone(), opt.weights, *grads))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@needs_it
def test_under_autocast() -> None:
    features, head, target = problem()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = features @ torch.eye(D)
        losses = ta.PerSampleLinearCrossEntropy()(hidden, head.weight, target, head.bias)
    assert hidden.dtype is torch.bfloat16
    assert losses.dtype is torch.float32
    losses.sum().backward()
    assert features.grad.dtype is head.weight.grad.dtype is torch.float32


@needs_it
def test_it_never_holds_the_logits() -> None:
    """Not one tensor of half their size is allocated, in either pass."""
    from torch.profiler import ProfilerActivity, profile

    features, target = torch.randn(256, 16, requires_grad=True), torch.randint(4000, (256,))
    weight = torch.randn(4000, 16, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        ta.PerSampleLinearCrossEntropy()(features, weight, target).sum().backward()
    largest = max(event.self_cpu_memory_usage for event in log.events())
    assert 0 < largest < 4 * target.numel() * len(weight) / 2


FEATURES, HEAD, TARGET = torch.zeros(2, 3), torch.zeros(5, 3), torch.tensor([0, 4])
BAD_CALLS = [
    (([1.0], HEAD, TARGET), TypeError, "input must be a tensor"),
    ((FEATURES, HEAD, TARGET.int()), TypeError, "target must hold int64 class indices"),
    ((FEATURES[0], HEAD, TARGET[0]), ValueError, r"input must have shape \(N, D\)"),
    ((FEATURES, HEAD, TARGET[:1]), ValueError, r"got \(2, 3\) and \(1,\)"),
    ((FEATURES, HEAD[:, :2], TARGET), ValueError, r"linear_weight must have shape \(C, D\)"),
]


@needs_it
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS)
def test_bad_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ta.PerSampleLinearCrossEntropy()(*arguments)
    with pytest.raises(ValueError, match="as many classes as weight, 2, got 5"):
        ta.PerSampleLinearCrossEntropy(torch.ones(2))(FEATURES, HEAD, TARGET)


def test_an_older_torch_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(nn, "LinearCrossEntropyOptions", raising=False)
    with pytest.raises(RuntimeError, match="PerSampleLinearCrossEntropy needs"):
        ta.PerSampleLinearCrossEntropy()
