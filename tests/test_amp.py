"""Automatic mixed precision: scaled gradients, and steps that GradScaler skips."""

import copy

import pytest
import torch
from torch import Tensor

from torch_absgd import ABSGD


def snapshot(opt: ABSGD) -> list[Tensor]:
    params = [p for group in opt.param_groups for p in group["params"]]
    buffers = [b for p in params for b in opt.state.get(p, {}).values()]
    return copy.deepcopy([t.detach() for t in params + buffers])


def set_scaled_gradient(p: Tensor, scale: float, bad: bool) -> None:
    p.grad = torch.full_like(p, torch.inf if bad else 0.5 * scale)


FORMS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "momentum_form": "polyak"},
        {"momentum": 0.9, "foreach": True},
        {"momentum": 0.9, "fused": False},
    ],
    ids=str,
)


@FORMS
@pytest.mark.parametrize("skipped_first", [True, False])
def test_a_skipped_step_leaves_every_bit(options: dict, skipped_first: bool) -> None:
    def train(skip: bool) -> list[Tensor]:
        p = torch.ones(3, requires_grad=True)
        opt = ABSGD([p], lr=0.1, **options)
        opt.grad_scale = torch.tensor(8.0)
        for step, bad in enumerate([skipped_first, False, not skipped_first, False]):
            set_scaled_gradient(p, 8.0 * (1 + step % 2), bad)
            opt.found_inf = torch.tensor(float(bad))
            before = snapshot(opt)
            if bad and not skip:
                continue
            opt.step()
            after = snapshot(opt)
            if bad:
                assert len(after) == len(before)
                assert all(map(torch.equal, before, after))
            else:
                assert all(t.isfinite().all() for t in after)
        return snapshot(opt)

    assert all(map(torch.equal, train(skip=True), train(skip=False)))


@FORMS
def test_the_scale_is_divided_out(options: dict) -> None:
    def train(scale: float | None) -> list[Tensor]:
        p = torch.linspace(-1, 1, 5).requires_grad_()
        opt = ABSGD([p], lr=0.1, weight_decay=0.1, maximize=True, **options)
        if scale is not None:
            opt.grad_scale, opt.found_inf = torch.tensor(scale), torch.tensor(0.0)
        for step in range(3):
            p.grad = (p.detach() + step) * (scale or 1.0)
            given = p.grad.clone()
            opt.step()
            assert torch.equal(p.grad, given)  # the user's gradients are not changed
        return snapshot(opt)

    assert all(map(torch.equal, train(1024.0), train(None)))


@FORMS
def test_grad_scaler(options: dict) -> None:
    def train(with_scaler: bool) -> list[Tensor]:
        p = torch.linspace(-1, 1, 5).requires_grad_()
        opt = ABSGD([p], lr=0.1, lam=0.5, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=with_scaler)
        for bad in (True, False, False, True, False):
            opt.zero_grad()
            loss = opt.weigh(p.square())
            if bad and not with_scaler:
                continue
            scaler.scale(loss).backward()
            if bad:
                p.grad[2] = torch.inf
            before = snapshot(opt)
            scaler.step(opt)
            scaler.update()
            assert not bad or all(map(torch.equal, before, snapshot(opt)))
        assert not with_scaler or scaler.get_scale() == 2.0**8
        return snapshot(opt)

    for a, b in zip(train(True), train(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_grad_scaler_with_accumulation_and_clipping() -> None:
    def train(scaler: torch.amp.GradScaler) -> Tensor:
        p = torch.linspace(-1, 2, 6).requires_grad_()
        opt = ABSGD([p], lr=0.1, momentum=0.9, lam=0.5)
        for _ in range(3):
            opt.zero_grad()
            for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
                with opt.accumulate():
                    scaler.scale(opt.weigh(p[part].square())).backward()
            scaler.unscale_(opt)
            opt.finalize_grads_()
            norm = torch.nn.utils.clip_grad_norm_([p], 0.2)
            assert norm > 0.2
            scaler.step(opt)
            scaler.update()
        return p.detach()

    scaled = train(torch.amp.GradScaler("cpu", init_scale=2.0**10))
    torch.testing.assert_close(scaled, train(torch.amp.GradScaler("cpu", enabled=False)))


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=str)
@pytest.mark.parametrize("is_finalized", [False, True], ids=["", "finalized"])
def test_a_window_whose_step_is_skipped(options: dict, is_finalized: bool) -> None:
    """It is dropped, unless the batch was taken in: by `finalize_grads_`, or by `step`, which
    the scaler calls where it leaves overflows to it."""
    p = torch.linspace(-1, 2, 6).requires_grad_()
    opt = ABSGD([p], lr=0.1, momentum=0.9, lam=0.5, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def window(bad: bool) -> None:
        for part in (slice(0, 2), slice(2, 6)):
            with opt.accumulate():
                scaler.scale(opt.weigh(p[part].square())).backward()
        if bad:
            p.grad[2] = torch.inf
        if is_finalized:
            scaler.unscale_(opt)
            opt.finalize_grads_()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()

    window(bad=False)
    before, log_s = snapshot(opt), opt.log_s
    window(bad=True)
    assert scaler.get_scale() == 2.0**9
    assert all(map(torch.equal, before, snapshot(opt)))
    assert torch.equal(opt.log_s, log_s) == (not options and not is_finalized)
    taken_in = 0.1 * log_s.exp() + 0.9 * p.detach().double().square().div(0.5).exp().mean()
    if options or is_finalized:
        torch.testing.assert_close(opt.log_s, taken_in.log(), rtol=1e-6, atol=0)
    window(bad=False)
    assert not torch.equal(p, before[0]) and p.isfinite().all()
