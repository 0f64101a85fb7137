"""Fake kernels and the autograd formula of ``torch.ops.absgd.sigmoid_loss``.

The schemas stand in ``csrc/register_sigmoid_loss.cpp``; the mathematics in ``csrc/absgd.h``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._differentiable import (
    TransformableGradient,
    arithmetic_type,
    as_samples,
    backward_twice,
    check_factor,
    in_front,
    loss_of,
    refuse_mapped_options,
    require,
)
from ._ops import register_fake


def sigmoid_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    alpha: float = -1.0,
    focal_gamma: float = 0.0,
    ignore_index: float | None = None,
    per_sample: bool = False,
) -> Tensor:
    """The loss of ``absgd_sigmoid_loss`` in ``csrc/absgd.h``, differentiable once in the logits.

    Args:
        logits: (N), (N, C) or (N, C, d1, …), float32, float64, float16 or bfloat16.
        target: in [0, 1] or ``ignore_index``, in the logits' shape, of any dtype; a constant.
        weight, pos_weight: (C) each, of any floating dtype, on the logits' device; constants.

    Returns:
        Losses in the logits' shape, or (N) if ``per_sample``; float64 for float64 logits, else
        float32.
    """
    dtype = arithmetic_type(logits.dtype)
    weight, pos_weight = (None if v is None else v.to(dtype) for v in (weight, pos_weight))
    arguments = (
        logits,
        target.to(dtype),
        weight,
        pos_weight,
        label_smoothing,
        alpha,
        focal_gamma,
        ignore_index,
        per_sample,
    )
    return loss_of(arguments, torch.ops.absgd.sigmoid_loss, SigmoidLoss, TransformableSigmoidLoss)


def _check(
    logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> torch.dtype:
    """What the registration checks of tensors; the arithmetic type."""
    dtype = arithmetic_type(logits.dtype)
    require(logits.is_floating_point(), "logits must be float32, float64, float16 or bfloat16")
    require(logits.dim() >= 1, "logits must have shape (N), (N, C) or (N, C, d1, …)")
    classes = 1 if logits.dim() == 1 else logits.shape[1]
    for name, value in (("weight", weight), ("pos_weight", pos_weight)):
        if value is not None:
            require(value.shape == (classes,), f"{name} must have shape (C) with C = {classes}")
            require(
                value.dtype is dtype and value.device == logits.device,
                f"{name} must be {classes} contiguous value(s) of {dtype} on the logits' device",
            )
    require(
        target.dtype is dtype and target.device == logits.device,
        f"target must be {dtype} on the logits' device for {logits.dtype} logits, "
        f"got {target.dtype}",
    )
    require(target.shape == logits.shape, "target must have the logits' shape")
    return dtype


@register_fake("absgd::sigmoid_loss")
def _(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    label_smoothing: float,
    alpha: float,
    focal_gamma: float,
    ignore_index: float | None,
    per_sample: bool,
) -> tuple[Tensor, Tensor]:
    dtype = _check(logits, target, weight, pos_weight)
    _check_numbers(label_smoothing, alpha, focal_gamma, ignore_index)
    samples = logits.shape[:1]
    loss = logits.new_empty(samples if per_sample else logits.shape, dtype=dtype)
    return loss, logits.new_empty(samples if per_sample else (0,), dtype=dtype)


@register_fake("absgd::sigmoid_loss_backward")
def _(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    known: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    label_smoothing: float,
    alpha: float,
    focal_gamma: float,
    ignore_index: float | None,
    per_sample: bool,
    factor: Tensor | None = None,
) -> Tensor:
    dtype = _check(logits, target, weight, pos_weight)
    _check_numbers(label_smoothing, alpha, focal_gamma, ignore_index)
    losses = logits.shape[0] if per_sample else logits.numel()
    for name, value, n in (
        ("grad_loss", grad_loss, losses),
        ("known", known, logits.shape[0] if per_sample else 0),
    ):
        require(
            value.numel() == n and value.dtype is dtype and value.device == logits.device,
            f"{name} must be {n} contiguous value(s) of {dtype} on the logits' device",
        )
    check_factor(factor, dtype, logits)
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _check_numbers(
    label_smoothing: float, alpha: float, focal_gamma: float, ignore_index: float | None
) -> None:
    require(
        0 <= label_smoothing <= 1
        and alpha <= 1
        and 0 <= focal_gamma < float("inf")
        and not (ignore_index is not None and 0 <= ignore_index <= 1),
        "a hyper-parameter is outside its range",
    )


class SigmoidLoss(torch.autograd.Function):
    """The operator's own autograd formula below, at two thirds of its time on a small batch."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *rest: Any) -> Tensor:
        loss: Tensor
        loss, known = torch.ops.absgd.sigmoid_loss(logits.detach(), *rest)
        _save(ctx, (logits, *rest), known)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, grad_loss, None)


def _save(ctx: Any, inputs: tuple[Any, ...], known: Tensor) -> None:
    logits, target, weight, pos_weight, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, known, weight, pos_weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    _save(ctx, inputs, output[1])


def _backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    grad = None
    if grad_loss is not None and ctx.needs_input_grad[0]:
        grad = torch.ops.absgd.sigmoid_loss_backward(grad_loss, *ctx.saved_tensors, *ctx.options)
    return grad, *[None] * 8


torch.library.register_autograd("absgd::sigmoid_loss", _backward, setup_context=_setup_context)
torch.library.register_autograd("absgd::sigmoid_loss_backward", backward_twice)


# ---- torch.func ----


class TransformableSigmoidLoss(torch.autograd.Function):
    """The same for torch.func: ``grad`` and its kin, ``vmap`` and ``jvp``, also of one another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        loss, known = torch.ops.absgd.sigmoid_loss(*arguments)
        return loss, known

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], inputs[1], output[1], *inputs[2:4])

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None or not ctx.needs_input_grad[0]:
            return (None,) * 9
        grad = TransformableGradient.apply(
            torch.ops.absgd.sigmoid_loss_backward, grad_loss, *ctx.saved_tensors, *ctx.options
        )
        return grad, *[None] * 8

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        logits, target, known, *per_class = ctx.saved_tensors
        per_sample = ctx.options[-1]
        ones = known.new_ones(logits.shape[:1] if per_sample else logits.shape)
        slope = torch.ops.absgd.sigmoid_loss_backward(
            ones, logits, target, known, *per_class, *ctx.options
        )
        change = (slope * tangent).to(known.dtype)
        return (change.flatten(1).sum(1) if per_sample and change.dim() > 1 else change), None


@torch.library.register_vmap("absgd::sigmoid_loss")  # type: ignore[untyped-decorator]
def _(
    info: Any, in_dims: tuple[Any, ...], logits: Tensor, target: Tensor, *options: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    refuse_mapped_options(in_dims[2:4])
    batch = info.batch_size
    logits, target = in_front(logits, in_dims[0], batch), in_front(target, in_dims[1], batch)
    loss, known = torch.ops.absgd.sigmoid_loss(as_samples(logits), as_samples(target), *options)
    per_sample = options[-1]
    samples = logits.shape[1]
    shape = (batch, samples) if per_sample else logits.shape
    return (loss.view(shape), known.view(batch, samples if per_sample else 0)), (0, 0)


@torch.library.register_vmap("absgd::sigmoid_loss_backward")  # type: ignore[untyped-decorator]
def _(
    info: Any,
    in_dims: tuple[Any, ...],
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    known: Tensor,
    *options: Any,
) -> tuple[Tensor, int]:
    refuse_mapped_options(in_dims[4:6])
    batch = info.batch_size
    tensors = zip((grad_loss, logits, target, known), in_dims, strict=False)
    batched = [in_front(t, d, batch) for t, d in tensors]
    grad = torch.ops.absgd.sigmoid_loss_backward(*map(as_samples, batched), *options)
    return grad.view(batched[1].shape), 0
