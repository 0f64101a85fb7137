"""Fake kernels and the autograd formula of ``torch.ops.absgd.sigmoid_loss``.

The schemas stand in ``csrc/register_sigmoid_loss.cpp``; the mathematics in ``csrc/absgd.h``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._differentiable import LossOperator, as_samples, in_front, refuse_mapped_options
from ._ops import arithmetic_type, check_factor, check_per_class, register_fake, require


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
    numbers = (label_smoothing, alpha, focal_gamma, ignore_index, per_sample)
    return _operator(logits, target.to(dtype), weight, pos_weight, *numbers)


def _check(
    logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> torch.dtype:
    """What the registration checks of tensors; the arithmetic type."""
    dtype = arithmetic_type(logits.dtype)
    require(logits.is_floating_point(), "logits must be float32, float64, float16 or bfloat16")
    require(logits.dim() >= 1, "logits must have shape (N), (N, C) or (N, C, d1, …)")
    classes = 1 if logits.dim() == 1 else logits.shape[1]
    check_per_class("weight", weight, classes, logits)
    check_per_class("pos_weight", pos_weight, classes, logits)
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


def _over_elements(terms: Tensor, *numbers: Any) -> Tensor:
    per_sample = numbers[-1]
    return terms.flatten(1).sum(1) if per_sample and terms.dim() > 1 else terms


_operator = LossOperator("sigmoid_loss", 2, _over_elements)


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
