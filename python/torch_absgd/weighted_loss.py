"""One of our losses, its weights and its gradient in one operator, for `AttentionalLoss`.

The same numbers as ``weigh(criterion(input, target))``. On a small batch the dispatch and autograd
of two steps cost more than their arithmetic; and logits that are still in the cache when the
weights are known give their gradient at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._loss_ops import DifferentiatedOnce, arithmetic_type
from .losses import PerSampleLoss
from .weighting import WEIGH_STATE, Weighting

AT_ONCE = 2**20  # logits; of more, what has left the cache costs more than what is saved


class WithGradient(torch.autograd.Function):
    """``total``, whose gradient in logits is ``grad``; differentiable once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, total: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return total.detach()  # not total itself, which could then not be divided in place

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        if not _is_one(grad_total):
            grad = grad * grad_total
        if torch.is_grad_enabled():  # create_graph=True
            grad = DifferentiatedOnce.apply(grad.detach().requires_grad_())
        return grad, None, None


def _is_one(grad_total: Tensor) -> bool:
    """Whether it is known, without waiting for a device, that there is nothing to multiply by."""
    return not torch.compiler.is_compiling() and grad_total.is_cpu and grad_total.item() == 1


def can_weigh_at_once(criterion: Any, input: Any, target: Any, attention: Weighting) -> bool:
    """Whether `weigh_at_once` applies: a loss of ours, logits of no great size to differentiate,
    one process, one batch, a number for λ, and nobody who waits for the scalar's backward pass.
    Not in float16, where a gradient may need its scale to be representable."""
    return (
        isinstance(criterion, PerSampleLoss)
        and isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.requires_grad
        and not target.requires_grad
        and input.numel() <= AT_ONCE
        and input.dtype is not torch.float16
        and not attention._memory.follows
        and attention._memory.accumulation is None
        and attention._stepper is None
        and attention._world_size() == 1
    )


def weigh_at_once(
    criterion: PerSampleLoss, input: Tensor, target: Tensor, attention: Weighting
) -> Tensor:
    """``attention.weigh(criterion(input, target), criterion.counted(target))``."""
    criterion.check_call(input, target)
    dtype = arithmetic_type(input.dtype)
    if target.is_floating_point():
        target = target.to(dtype)
    state = attention._state_on(input.device)
    tensors = [state[name] for name in WEIGH_STATE]
    total, losses, rows, grad = torch.ops.absgd.weighted_softmax_loss.default(
        input.detach(),
        target,
        *criterion.options(dtype),
        *(None, None, None, None),
        *tensors,
        *attention._rule(),
        *(math.inf, False, False),
    )
    attention._remember(rows, losses)
    torch.autograd.graph.increment_version(tensors[1:])
    return WithGradient.apply(input, total, grad)
