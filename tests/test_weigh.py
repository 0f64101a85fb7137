"""weigh: masks, empty and bad batches, evaluation, precision, and what it leaves in the graph."""

import gc
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from reference import Algorithm1
from torch_absgd import ABSGD, AttentionalLoss
from torch_absgd.weigher import SUM_CHUNK

NAN = math.nan


def make_optimizer(lam: float = 0.5) -> ABSGD:
    return ABSGD([torch.zeros(3, requires_grad=True)], lam=lam)


def make_module(lam: float = 0.5) -> AttentionalLoss:
    return AttentionalLoss(lambda losses, _: losses, lam=lam)


Make = Callable[..., ABSGD | AttentionalLoss]
makers = pytest.mark.parametrize("make", [make_optimizer, make_module])
lams = pytest.mark.parametrize("lam", [0.5, -0.5, math.inf])


def state(owner: ABSGD | AttentionalLoss) -> list[float]:
    report = owner.stats()
    return [owner.lam.item(), owner.log_s.item(), *report.last, *report.mean]


def same(a: list[float], b: list[float]) -> bool:
    return all(x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))


def reference(lam: float) -> Algorithm1:
    return Algorithm1(torch.zeros(3), lr=0.1, lam=lam)


@makers
@lams
def test_masked_elements_are_no_samples(make: Make, lam: float) -> None:
    owner, expected = make(lam), reference(lam)
    for step in range(3):
        losses = torch.rand(4, 5, dtype=torch.float64)
        mask = torch.rand(4, 5) < 0.6
        losses[~mask] = [1e6, math.nan, math.inf][step]
        losses.requires_grad_()
        total = owner.weigh(losses, mask)
        total.backward()
        want = expected.weigh(losses[mask].tolist())
        p = torch.zeros(4, 5, dtype=torch.float64)
        p[mask] = torch.tensor(expected.p, dtype=torch.float64)
        assert total.item() == pytest.approx(want, rel=1e-13)
        torch.testing.assert_close(owner.weights, p, rtol=1e-12, atol=0)
        torch.testing.assert_close(losses.grad, p / mask.sum(), rtol=1e-12, atol=0)
        torch.testing.assert_close(
            owner.log_s.item(), expected.log_s, rtol=1e-13, atol=0, equal_nan=True
        )


@makers
@pytest.mark.parametrize("lam", [0.1, -0.1])
@pytest.mark.parametrize("masked", [False, True])
def test_what_does_not_count_may_be_far_above(make: Make, lam: float, masked: bool) -> None:
    """In a batch whose exponentials are floats, which have none for z_i − max_j z_j > 88."""
    owner, others = make(lam), torch.arange(4096) > 0
    for gap in range(800, 1000):  # z_0 − z_i, in tenths; what is masked is taken for a loss of 0
        level = gap / 10 * abs(lam)
        losses = torch.full((4096,), level)
        losses[0] += gap / 10 * lam
        owner.restart(lam)
        total = owner.weigh(losses, **({"mask": others} if masked else {"weight": others.float()}))
        assert owner.log_s.item() == pytest.approx(level / lam, rel=1e-6)
        assert total.item() == pytest.approx(level if masked else level * 4095 / 4096, rel=1e-5)
        assert torch.equal(owner.weights > 0, others)


@makers
@lams
@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 3)])
def test_a_batch_without_samples(make: Make, lam: float, shape: tuple[int, ...]) -> None:
    owner = make(lam)
    for _ in range(2):  # before the first batch, and after it
        before = state(owner)
        losses = torch.full(shape, math.nan, requires_grad=True)
        total = owner.weigh(losses, torch.zeros(shape, dtype=torch.bool))
        total.backward()
        assert total.item() == 0 and torch.equal(losses.grad, torch.zeros(shape))
        assert torch.equal(owner.weights, torch.zeros(shape))
        if math.prod(shape) == 0:
            total = owner.weigh(losses)
            assert total.item() == 0 and total.requires_grad
        assert same(state(owner), before)
        owner.weigh(torch.rand(5))


@makers
@lams
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_batch_leaves_log_s(make: Make, lam: float, bad: float) -> None:
    owner = make(lam)
    for _ in range(2):
        log_s, mean = owner.log_s.item(), owner.stats().mean
        losses = torch.tensor([1.0, bad, 2.0], requires_grad=True)
        total = owner.weigh(losses)
        assert not total.isfinite()
        if math.isfinite(lam):
            total.backward()
            assert losses.grad.isnan().all() and owner.weights.isnan().all()
        assert same([owner.log_s.item(), *owner.stats().mean], [log_s, *mean])
        owner.weigh(torch.rand(5))


@makers
def test_evaluation_is_the_plain_mean(make: Make) -> None:
    owner = make()
    owner.weigh(torch.rand(6))
    before, weights = state(owner), owner.weights
    losses = torch.tensor([1.0, 5.0, math.nan], requires_grad=True)
    mask = torch.tensor([True, True, False])
    with torch.no_grad():
        assert owner.weigh(losses, mask).item() == 3.0
        assert owner.weigh(losses[:2]).item() == 3.0
        assert owner.weigh(losses, ~mask & mask).item() == 0.0
        assert owner.weigh(losses[:0]).item() == 0.0
        half = owner.weigh(torch.full((3000,), 100.0, dtype=torch.float16))
        assert half.dtype is torch.float32 and half.item() == 100.0
    if isinstance(owner, nn.Module):
        owner.eval()
        total = owner.weigh(losses, mask)
        total.backward()
        assert total.item() == 3.0 and losses.grad.tolist() == [0.5, 0.5, 0.0]
        assert owner(losses[:2], None).item() == 3.0
        owner.train()
    assert same(state(owner), before) and owner.weights is weights


@makers
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shapes_and_precision(make: Make, dtype: torch.dtype) -> None:
    owner, expected = make(0.1), reference(0.1)
    assert owner.weights is None
    losses = (8 * torch.rand(3, 4, 2)).to(dtype).transpose(0, 2).requires_grad_()
    total = owner.weigh(losses)
    total.backward()
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    tolerance = 1e-12 if dtype is torch.float64 else 3e-6
    want = expected.weigh(losses.flatten().tolist())
    p = torch.tensor(expected.p, dtype=torch.float64).view_as(losses)
    assert total.dtype is wide and total.dim() == 0
    assert total.item() == pytest.approx(want, rel=tolerance)
    assert owner.weights.dtype is wide and owner.weights.shape == losses.shape
    assert not owner.weights.requires_grad
    torch.testing.assert_close(owner.weights.double(), p, rtol=tolerance, atol=0)
    assert losses.grad.dtype is dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(losses.grad.double(), p / 24, rtol=max(eps, tolerance), atol=6e-8)
    assert owner.log_s.dtype is torch.float64
    assert owner.log_s.item() == pytest.approx(expected.log_s, rel=1e-13)


@makers
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_many_losses_are_added_up_as_few(make: Make, dtype: torch.dtype) -> None:
    """In one pass of their own, with a formula of their own for the gradient."""
    losses = (3 * torch.rand(3, SUM_CHUNK)).to(dtype).T  # laid out otherwise
    mask = torch.rand(losses.shape) < 0.7
    losses[~mask] = NAN
    losses.requires_grad_()
    owner = make(0.5)
    total = owner.weigh(losses, mask)
    (grad,) = torch.autograd.grad(total, losses, 3 * torch.ones_like(total), create_graph=True)
    coefficients = owner.weights.double() / mask.sum()
    products = coefficients * losses.detach().double().masked_fill(~mask, 0)
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    assert total.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert total.item() == pytest.approx(products.sum().item(), rel=tolerance)
    assert grad.dtype is dtype
    torch.testing.assert_close(
        grad.double(), 3 * coefficients, rtol=max(torch.finfo(dtype).eps, tolerance), atol=6e-8
    )


@makers
def test_many_losses_have_a_tangent(make: Make) -> None:
    losses, tangent = torch.rand(2, SUM_CHUNK + 1).unbind()
    owner = make(0.5)
    with forward_ad.dual_level():
        total = owner.weigh(forward_ad.make_dual(losses, tangent))
        of_total = forward_ad.unpack_dual(total).tangent
    torch.testing.assert_close(of_total, owner.weights @ tangent / len(losses))


@makers
def test_weights_are_constants_in_the_backward_pass(make: Make) -> None:
    owner = make(0.5)
    x = torch.linspace(0, 1, 5, dtype=torch.float64, requires_grad=True)
    owner.weigh(x**2).backward()
    torch.testing.assert_close(x.grad, owner.weights * 2 * x.detach() / 5)
    assert not owner.weights.requires_grad and not owner.log_s.requires_grad


@makers
def test_the_graph_does_not_grow(make: Make) -> None:
    owner = make()
    x = torch.rand(5, requires_grad=True)

    def nodes() -> int:
        gc.collect()
        return sum(type(o) is Tensor and o.grad_fn is not None for o in gc.get_objects())

    owner.weigh(x * 2)
    start = nodes()
    for _ in range(20):
        total = owner.weigh(x * 2)
    assert nodes() <= start + 1
    seen, pending = set(), [total.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [n for n, _ in node.next_functions]
    assert len(seen) <= 6, seen


@makers
def test_a_stale_normaliser_in_a_graph_is_noticed(make: Make) -> None:
    """weigh changes log_s in place, and autograd is told so."""
    owner = make()
    owner.weigh(torch.rand(5))
    x = torch.ones((), dtype=torch.float64, requires_grad=True)
    product = x * owner.weigher.state.log_s
    owner.weigh(torch.rand(5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_two_backward_passes_through_one_batch() -> None:
    opt = make_optimizer()
    losses = torch.rand(5, requires_grad=True)
    total = opt.weigh(losses)
    total.backward(retain_graph=True)
    once = losses.grad.clone()
    total.backward()
    torch.testing.assert_close(losses.grad, 2 * once)
