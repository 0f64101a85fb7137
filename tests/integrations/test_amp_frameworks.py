"""GradScaler within frameworks: they learn that a step was skipped, and may clip."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import torch_absgd as ta


def scaled(opt: ta.ABSGD, scaler: torch.amp.GradScaler, p: nn.Parameter, largest: float) -> None:
    opt.zero_grad()
    scaler.scale(opt.weigh(p * torch.tensor([1.0, 2.0, largest]))).backward()


@pytest.mark.parametrize("overflows", [True, False])
def test_accelerate_knows_of_a_skipped_step(overflows: bool) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.Accelerator(cpu=True)
    from accelerate.optimizer import AcceleratedOptimizer

    p = nn.Parameter(torch.ones(3))
    opt = ta.ABSGD([p], lr=0.1, lam=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    wrapped = AcceleratedOptimizer(opt, device_placement=False, scaler=scaler)
    scaled(opt, scaler, p, math.inf if overflows else 3.0)
    before = p.detach().clone()
    wrapped.step()
    assert wrapped.step_was_skipped == overflows
    assert torch.equal(p, before) == overflows


def test_lightning_may_clip() -> None:
    pytest.importorskip("lightning")
    from lightning.pytorch.plugins.precision import MixedPrecision

    p = nn.Parameter(torch.ones(3))
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    opt = ta.ABSGD([p], lr=0.1, lam=1.0)
    scaled(opt, plugin.scaler, p, 3.0)
    plugin.scaler.unscale_(opt)
    plugin.clip_gradients(opt, clip_val=0.5)
    assert p.grad.norm() == pytest.approx(0.5, rel=1e-4)
    handled = ta.ABSGD([nn.Parameter(torch.ones(3))], lr=0.1, fused=True)
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        plugin.clip_gradients(handled, clip_val=0.5)  # as with torch.optim.SGD(fused=True)
