"""LamScheduler through the wrappers of Lightning and of accelerate, which HF's Trainer uses."""

import pytest
import torch
from torch import nn

import torch_absgd as ta


def prepared(opt):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare_optimizer(opt)


def lightning_wrapped(opt):
    return pytest.importorskip("lightning.pytorch.core.optimizer").LightningOptimizer(opt)


@pytest.mark.parametrize("wrap", [prepared, lightning_wrapped])
@pytest.mark.parametrize("over", [0, 1])
def test_lam_of_the_wrapped_optimizer_is_set(wrap, over):
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = ta.LamScheduler(wrap(opt), {0: 2.0, 3: 1.0}, over)
    schedule.step()
    assert float(opt.lam) == 2.0
