"""Gradient accumulation: k micro-batches make, exactly, the step of one large batch."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_absgd import ABSGD, AttentionalLoss

LAMS = [0.1, 1.0, -0.5, math.inf]
SIZES = (5, 1, 8, 2)  # of the micro-batches


class Problem:
    """A linear regression whose batches jump in scale, so that log_c has to be raised."""

    def __init__(self, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64)

        self.w = normal(3).requires_grad_()
        self.batches = []
        for scale in (1.0, 0.3, 4.0, 1.0):
            x = normal(sum(SIZES), 3) * scale
            x[5:6] *= 3  # a sudden jump within the batch
            self.batches.append((x.split(SIZES), normal(sum(SIZES)).split(SIZES)))

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ self.w - y).abs()


def assert_same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


def large_batches(problem: Problem, opt: torch.optim.Optimizer, weigh: Callable) -> None:
    for xs, ys in problem.batches:
        opt.zero_grad()
        weigh(problem.losses(torch.cat(xs), torch.cat(ys))).backward()
        opt.step()


@pytest.mark.parametrize("divisor", [1, 4, 2.5])
@pytest.mark.parametrize("s_init", [None, 0.0, 1e-6])
@pytest.mark.parametrize("lam", LAMS)
def test_micro_batches_are_the_large_batch(
    lam: float, s_init: float | None, divisor: float
) -> None:
    options = {"lr": 0.01, "momentum": 0.9, "lam": lam, "s_init": s_init}
    one, many = Problem(), Problem()
    large, opt = ABSGD([one.w], **options), ABSGD([many.w], **options)
    for (xs, ys), batch in zip(many.batches, one.batches, strict=True):
        one.batches = [batch]
        large_batches(one, large, large.weigh)
        opt.zero_grad()
        for x, y in zip(xs, ys, strict=True):
            with opt.accumulate(divisor=divisor):
                (opt.weigh(many.losses(x, y)) / divisor).backward()
        log_s = opt.log_s.clone()
        opt.step()
        assert math.isinf(lam) or not torch.equal(opt.log_s, log_s)
        assert_same(many.w.grad, one.w.grad)
        assert_same(many.w, one.w)
        assert_same(opt.log_s, large.log_s)
        last, expected = opt.stats().last, large.stats().last
        assert list(last) == pytest.approx(list(expected), rel=1e-12)


def test_log_c_is_raised_before_weights_overflow() -> None:
    """Losses that grow by 10,000: provisional weights of exp(1e5) would be infinite."""
    p, q = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    large, opt = ABSGD([p], lam=0.1), ABSGD([q], lam=0.1)
    scales = torch.tensor([1.0, 10.0, 1e4, 2.0], dtype=torch.float64)
    large.weigh(p * scales).backward()
    for scale in scales:
        with opt.accumulate():
            opt.weigh(q * scale).backward()
        assert q.grad.isfinite()
    opt.finalize_grads_()
    assert_same(q.grad, p.grad)
    assert_same(opt.log_s, large.log_s)


@pytest.mark.parametrize("lam", LAMS)
def test_masks_and_empty_micro_batches(lam: float) -> None:
    p, q = (torch.ones(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scales = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5, 0.1], dtype=torch.float64)
    mask = torch.tensor([False, False, True, False, True, True])
    large, opt = ABSGD([p], lam=lam), ABSGD([q], lam=lam)
    large.weigh(p * scales, mask).backward()
    for part in (slice(0, 2), slice(2, 4), slice(4, 4), slice(4, 6)):
        with opt.accumulate():
            opt.weigh((q * scales)[part], mask[part]).backward()
    opt.finalize_grads_()
    assert_same(q.grad, p.grad)
    assert_same(opt.log_s, large.log_s)


def test_only_empty_micro_batches_change_nothing() -> None:
    opt = ABSGD([torch.ones(2, requires_grad=True)], lam=1.0)
    with opt.accumulate():
        opt.weigh(opt.param_groups[0]["params"][0][:0]).backward()
    opt.finalize_grads_()
    assert opt.log_s.isnan() and torch.equal(opt.param_groups[0]["params"][0].grad, torch.zeros(2))


@pytest.mark.parametrize("lam", LAMS)
def test_attentional_loss_with_adam(lam: float) -> None:
    one, many = Problem(), Problem()
    large, criterion = (AttentionalLoss(lambda losses, _: losses, lam=lam) for _ in range(2))
    large_batches(one, torch.optim.Adam([one.w], lr=0.01), large.weigh)
    opt = torch.optim.Adam([many.w], lr=0.01)
    for xs, ys in many.batches:
        opt.zero_grad()
        for x, y in zip(xs, ys, strict=True):
            with criterion.accumulate([many.w]):
                criterion(many.losses(x, y), None).backward()
        criterion.finalize_grads_()
        opt.step()
    assert_same(many.w, one.w)
    assert_same(criterion.log_s, large.log_s)


def test_half_precision_and_sparse_gradients() -> None:
    embedding = nn.Embedding(6, 2, sparse=True)
    opt = ABSGD(embedding.parameters(), lam=0.5)
    index = torch.tensor([0, 3, 3, 5])
    opt.weigh(embedding(index).square().sum(1)).backward()
    expected = embedding.weight.grad.to_dense()
    embedding.weight.grad = None
    opt.restart(0.5)
    for part in index.split(1):
        with opt.accumulate():
            opt.weigh(embedding(part).square().sum(1)).backward()
    opt.finalize_grads_()
    torch.testing.assert_close(embedding.weight.grad.to_dense(), expected)


def test_clipping_between_finalize_and_step() -> None:
    one, many = Problem(), Problem()
    options = {"lr": 0.01, "lam": 0.5}
    large, opt = ABSGD([one.w], **options), ABSGD([many.w], **options)
    xs, ys = one.batches[0]
    large.weigh(one.losses(torch.cat(xs), torch.cat(ys))).backward()
    for x, y in zip(xs, ys, strict=True):
        with opt.accumulate():
            opt.weigh(many.losses(x, y)).backward()
    opt.finalize_grads_()
    norms = [nn.utils.clip_grad_norm_([p.w], 0.1).item() for p in (one, many)]
    assert norms[0] > 0.1 and norms[1] == pytest.approx(norms[0], rel=1e-12)
    large.step()
    opt.step()
    assert_same(many.w, one.w)


def accumulated(opt: ABSGD) -> Tensor:
    (p,) = opt.param_groups[0]["params"]
    with opt.accumulate():
        opt.weigh(p * 2).backward()
    return p


def make() -> ABSGD:
    return ABSGD([torch.ones(3, requires_grad=True)], lam=1.0)


def test_weigh_outside_the_context_is_an_error() -> None:
    opt = make()
    p = accumulated(opt)
    with pytest.raises(RuntimeError, match=r"weigh\(\) outside accumulate\(\)"):
        opt.weigh(p * 2)
    opt.finalize_grads_()
    opt.weigh(p * 2)


def test_weigh_before_backward_is_an_error() -> None:
    opt = make()
    (p,) = opt.param_groups[0]["params"]
    with opt.accumulate():
        total = opt.weigh(p * 2)
        with pytest.raises(RuntimeError, match="run the backward pass of each micro-batch"):
            opt.weigh(p * 3)
        total.backward()
        opt.weigh(p * 3).backward()


def test_lam_cannot_change_between_micro_batches() -> None:
    opt = make()
    accumulated(opt)
    for change in (lambda: setattr(opt, "lam", 2.0), lambda: opt.restart(2.0)):
        with pytest.raises(RuntimeError, match="lam cannot change between the micro-batches"):
            change()
    assert opt.lam.item() == 1.0
    opt.step()
    opt.restart(2.0)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_drops_the_accumulation(set_to_none: bool) -> None:
    opt = make()
    p = accumulated(opt)
    opt.zero_grad(set_to_none)
    opt.finalize_grads_()
    assert opt.log_s.isnan()
    opt.weigh(p * 2)
    assert opt.log_s.item() == pytest.approx(2.0)
    opt.restart(1.0)
    with opt.accumulate():  # within the context, it begins anew
        opt.weigh(p * 5).backward()
        opt.zero_grad(set_to_none)
        opt.weigh(p * 3).backward()
    opt.step()
    assert opt.log_s.item() == pytest.approx(3.0)


def test_finalizing_twice_or_never() -> None:
    opt = make()
    opt.finalize_grads_()
    p = accumulated(opt)
    opt.finalize_grads_()
    once = p.grad.clone()
    opt.finalize_grads_()
    opt.step()
    assert torch.equal(p.grad, once)


def test_evaluation_between_micro_batches() -> None:
    opt = make()
    p = accumulated(opt)
    with torch.no_grad():
        assert opt.weigh(p * 7).item() == pytest.approx(7.0)
    opt.finalize_grads_()
    assert opt.log_s.item() == pytest.approx(2.0)
