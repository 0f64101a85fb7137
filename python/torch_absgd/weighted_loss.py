"""One of our losses and its weights as one autograd node, for `AttentionalLoss`.

The same numbers as ``weigh(criterion(input, target))``; on a small batch the dispatch and autograd
of two steps cost more than their arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _loss_ops  # noqa: F401  the fake kernel below calls its
from ._loss_ops import arithmetic_type
from .losses import PerSampleLoss
from .weighting import WEIGH_STATE, Weighting

PER_CLASS = 3  # weight, margin, offset
OPTIONS = 4  # scale, focal_gamma, label_smoothing, ignore_index


@torch.library.register_fake("absgd::weighted_softmax_loss")
def _(logits: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    losses, saved = torch.ops.absgd.softmax_loss(logits, target, *rest[: PER_CLASS + OPTIONS])
    return losses.new_empty(()), losses, saved, losses.new_empty((2, *losses.shape))


class WeightedSoftmaxLoss(torch.autograd.Function):
    """(total, losses, weights) of logits; only ``total`` is differentiable, and only once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        total, losses, saved, weights = torch.ops.absgd.weighted_softmax_loss(logits, target, *rest)
        ctx.n_inputs = 2 + len(rest)
        ctx.save_for_backward(logits, target, saved, weights[1], *rest[:PER_CLASS])
        ctx.options = rest[PER_CLASS : PER_CLASS + OPTIONS]
        ctx.mark_non_differentiable(losses, weights)
        ctx.set_materialize_grads(False)
        return total, losses, weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_total is None:
            return (None,) * ctx.n_inputs
        logits, target, saved, coefficients, *per_class = ctx.saved_tensors
        grad = torch.ops.absgd.softmax_loss_backward(
            coefficients * grad_total, logits, target, saved, *per_class, *ctx.options
        )
        return grad, *[None] * (ctx.n_inputs - 1)


def can_weigh_at_once(criterion: Any, target: Any, attention: Weighting) -> bool:
    """Whether `weigh_at_once` applies: a loss of ours, one process, one batch, a number for λ, and
    nobody who waits for the scalar's backward pass."""
    return (
        isinstance(criterion, PerSampleLoss)
        and isinstance(target, Tensor)
        and not target.requires_grad
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
    options = criterion.options()
    per_class = (criterion.weight, options.get("margin"), options.get("offset"))
    state = attention._state_on(input.device)
    total, losses, weights = WeightedSoftmaxLoss.apply(
        input,
        target.to(dtype) if target.is_floating_point() else target,
        *(None if v is None else v.to(dtype) for v in per_class),
        options.get("scale", 1.0),
        options.get("focal_gamma", 0.0),
        options.get("label_smoothing", 0.0),
        criterion.ignore_index,
        *(state[name] for name in WEIGH_STATE),
        *attention._rule(),
    )
    attention._remember(weights[0], losses)
    torch.autograd.graph.increment_version([state[name] for name in WEIGH_STATE[1:]])
    return total
