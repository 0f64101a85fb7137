"""Fake kernels and the autograd formula of ``torch.ops.absgd.softmax_loss``.

The schemas stand in ``csrc/register_losses.cpp``; the mathematics in ``csrc/absgd.h``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _ops  # noqa: F401  loads the operators

SAVED = 3  # ABSGD_LOSS_SAVED


def arithmetic_type(dtype: torch.dtype) -> torch.dtype:
    """The type that values of dtype are computed in, and that their losses have."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def softmax_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    margin: Tensor | None = None,
    offset: Tensor | None = None,
    scale: float = 1.0,
    focal_gamma: float = 0.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """The per-sample loss of ``absgd_softmax_loss`` in ``csrc/absgd.h``, differentiable once.

    Args:
        logits: (C), (N, C) or (N, C, d1, …), float32, float64, float16 or bfloat16.
        target: int64 class indices, (), (N) or (N, d1, …), or class probabilities in the logits'
            shape; these may require a gradient.
        weight, margin, offset: (C) each, of any floating dtype, on the logits' device; constants.

    Returns:
        Losses in the shape of class indices; float64 for float64 logits, else float32.
    """
    dtype = arithmetic_type(logits.dtype)
    weight, margin, offset = (None if v is None else v.to(dtype) for v in (weight, margin, offset))
    if target.is_floating_point():
        target = target.to(dtype)
        if target.requires_grad and torch.is_grad_enabled():
            return _soft_loss(logits.to(dtype), target, weight, offset, scale, label_smoothing)
    options = (weight, margin, offset, scale, focal_gamma, label_smoothing, ignore_index)
    return SoftmaxLoss.apply(logits, target, *options)


def _soft_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    scale: float,
    label_smoothing: float,
) -> Tensor:
    """The same for class probabilities that are themselves differentiated, out of torch's own."""
    class_dim = min(logits.dim() - 1, 1)
    per_class = [-1 if d == class_dim else 1 for d in range(logits.dim())]
    z = scale * logits if offset is None else scale * logits + offset.view(per_class)
    a = (1 - label_smoothing) * target + label_smoothing / logits.shape[class_dim]
    if weight is not None:
        a = a * weight.view(per_class)
    return -(a * z.log_softmax(class_dim)).sum(class_dim)


@torch.library.register_fake("absgd::softmax_loss")
def _(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    margin: Tensor | None,
    offset: Tensor | None,
    scale: float,
    focal_gamma: float,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    class_dim = min(logits.dim() - 1, 1)
    shape = [*logits.shape[:class_dim], *logits.shape[class_dim + 1 :]]
    loss = logits.new_empty(shape, dtype=arithmetic_type(logits.dtype))
    return loss, loss.new_empty((SAVED, loss.numel()))


@torch.library.register_fake("absgd::softmax_loss_backward")
def _(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    saved: Tensor,
    weight: Tensor | None,
    margin: Tensor | None,
    offset: Tensor | None,
    scale: float,
    focal_gamma: float,
    label_smoothing: float,
    ignore_index: int,
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


class SoftmaxLoss(torch.autograd.Function):
    """The operator's own autograd formula below, at two thirds of its time on a small batch."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *rest: Any) -> Tensor:
        loss, saved = torch.ops.absgd.softmax_loss(logits.detach(), *rest)
        _save(ctx, (logits, *rest), saved)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, grad_loss, None)


def _save(ctx: Any, inputs: tuple[Any, ...], saved: Tensor) -> None:
    logits, target, weight, margin, offset, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, saved, weight, margin, offset)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    _save(ctx, inputs, output[1])


def _backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    grad = None
    if grad_loss is not None and ctx.needs_input_grad[0]:
        grad = torch.ops.absgd.softmax_loss_backward(grad_loss, *ctx.saved_tensors, *ctx.options)
    return grad, *[None] * 8


def _backward_twice(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "the per-sample losses can be differentiated once; for second derivatives use "
        "torch.nn.functional.cross_entropy(reduction='none')"
    )


class DifferentiatedOnce(torch.autograd.Function):
    """A gradient that cannot be differentiated in turn."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    backward = staticmethod(_backward_twice)


torch.library.register_autograd("absgd::softmax_loss", _backward, setup_context=_setup_context)
torch.library.register_autograd("absgd::softmax_loss_backward", _backward_twice)
