"""Fake kernels and the autograd formula of ``torch.ops.absgd.softmax_loss``.

The schemas stand in ``csrc/register_losses.cpp``; the mathematics in ``csrc/absgd.h``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._differentiable import LossOperator, as_samples, in_front, refuse_mapped_options
from ._ops import arithmetic_type, check_factor, check_per_class, register_fake, require

SAVED = 4  # ABSGD_LOSS_SAVED


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
    numbers = (scale, focal_gamma, label_smoothing)
    if target.is_floating_point():
        target = target.to(dtype)
        if target.requires_grad and torch.is_grad_enabled():
            return _expected_loss(logits.to(dtype), target, weight, margin, offset, *numbers)
    return _operator(logits, target, weight, margin, offset, *numbers, ignore_index)


def _expected_loss(
    logits: Tensor,
    q: Tensor,
    weight: Tensor | None,
    margin: Tensor | None,
    offset: Tensor | None,
    scale: float,
    focal_gamma: float,
    label_smoothing: float,
) -> Tensor:
    """The mean under y ~ q of the loss of class y, out of torch's own operators: for targets that
    are differentiated, which the kernel holds constant.

    The largest class is left out of its own 1 − P, which then keeps its digits. A margin m_y on z_y
    alone turns log T, T being the sum over classes, into log T + shift_y.
    """
    class_dim = min(logits.dim() - 1, 1)
    classes = logits.shape[class_dim]
    per_class = [-1 if d == class_dim else 1 for d in range(logits.dim())]
    weight, margin, offset = (
        None if v is None else v.view(per_class) for v in (weight, margin, offset)
    )
    z = logits if scale == 1.0 else scale * logits
    z = z if offset is None else z + offset
    top = z.argmax(class_dim, keepdim=True)
    is_top = torch.zeros_like(z, dtype=torch.bool).scatter(class_dim, top, True)
    z = z - z.detach().gather(class_dim, top)  # or a sum's logarithm is lost beside a large z
    z_top = z.gather(class_dim, top)
    below = z.masked_fill(is_top, -math.inf).logsumexp(class_dim, keepdim=True) - z_top
    nll_top = F.softplus(below)
    nll = (z_top - z) + nll_top  # −log P
    p_below = (-nll).exp().masked_fill(is_top, 0)  # at most ½
    log_rest = torch.where(is_top, below - nll_top, torch.log1p(-p_below))  # log(1 − P)
    w: Tensor | float = 1.0 if weight is None else weight
    share = label_smoothing / classes
    others = share * (w * nll).sum(class_dim) if share else 0.0
    if margin is not None:
        m = scale * margin
        shift = torch.logaddexp(log_rest, -nll - m)
        if share:
            total = classes if weight is None else weight.sum()
            others = others + share * (q * (total * shift + w * m)).sum(class_dim)
        # −log P under y's own margin; nll is lost beside m where it is small
        nll = torch.logaddexp(log_rest + nll + m, torch.zeros_like(nll))
        log_rest = log_rest - shift
    factor = q if weight is None else q * weight  # each product is a pass over the logits
    factor = factor * (1 - label_smoothing) if label_smoothing else factor
    factor = factor * (focal_gamma * log_rest).exp() if focal_gamma else factor
    return (factor * nll).sum(class_dim) + others


def _check(
    logits: Tensor, target: Tensor, per_class: tuple[Tensor | None, ...], numbers: tuple[float, ...]
) -> tuple[list[int], torch.dtype]:
    """What the registration and the C ABI check; the losses' shape and dtype."""
    dtype = arithmetic_type(logits.dtype)
    require(logits.is_floating_point(), "logits must be float32, float64, float16 or bfloat16")
    require(logits.dim() >= 1, "logits must have shape (C), (N, C) or (N, C, d1, …)")
    class_dim = min(logits.dim() - 1, 1)
    classes = logits.shape[class_dim]
    shape = [*logits.shape[:class_dim], *logits.shape[class_dim + 1 :]]
    require(classes >= 1, "logits must have at least one class, got none")
    for name, values in zip(("weight", "margin", "offset"), per_class, strict=True):
        check_per_class(name, values, classes, logits)
    soft = target.dtype is not torch.int64
    require(target.device == logits.device, "target must be on the logits' device")
    require(
        not soft or target.dtype is dtype,
        f"target must be int64 class indices, or {dtype} class probabilities for {logits.dtype} "
        f"logits, got {target.dtype}",
    )
    require(
        list(target.shape) == (list(logits.shape) if soft else shape),
        "target of class probabilities must have the logits' shape"
        if soft
        else "target of class indices must have the logits' shape without the class dimension",
    )
    scale, focal_gamma, label_smoothing = numbers
    require(
        0 < scale < math.inf
        and 0 <= focal_gamma < math.inf
        and 0 <= label_smoothing <= 1
        and (focal_gamma == 0 or label_smoothing == 0),
        "a hyper-parameter is outside its range",
    )
    return shape, dtype


@register_fake("absgd::softmax_loss")
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
    numbers = (scale, focal_gamma, label_smoothing)
    shape, dtype = _check(logits, target, (weight, margin, offset), numbers)
    loss = logits.new_empty(shape, dtype=dtype)
    return loss, loss.new_empty((SAVED, loss.numel()))


@register_fake("absgd::softmax_loss_backward")
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
    factor: Tensor | None = None,
) -> Tensor:
    numbers = (scale, focal_gamma, label_smoothing)
    shape, dtype = _check(logits, target, (weight, margin, offset), numbers)
    samples = math.prod(shape)
    for name, values, n in (("grad_loss", grad_loss, samples), ("saved", saved, SAVED * samples)):
        require(
            values.numel() == n and values.dtype is dtype and values.device == logits.device,
            f"{name} must be {n} value(s) of {dtype} on the logits' device",
        )
    check_factor(factor, dtype, logits)
    if logits.dim() > 2 and not logits.is_contiguous():
        rows = logits.movedim(1, -1)
        if rows.is_contiguous():  # as in channels_last memory: so is the gradient
            return torch.empty_like(rows).movedim(-1, 1)
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _over_classes(terms: Tensor, *numbers: Any) -> Tensor:
    return terms.sum(min(terms.dim() - 1, 1))


_operator = LossOperator("softmax_loss", 3, _over_classes)


@torch.library.register_vmap("absgd::softmax_loss")  # type: ignore[untyped-decorator]
def _(
    info: Any, in_dims: tuple[Any, ...], logits: Tensor, target: Tensor, *options: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    refuse_mapped_options(in_dims[2:5])
    batch = info.batch_size
    logits, target = in_front(logits, in_dims[0], batch), in_front(target, in_dims[1], batch)
    shape = [batch, *logits.shape[1:2], *logits.shape[3:]] if logits.dim() > 2 else [batch]
    loss, saved = torch.ops.absgd.softmax_loss(*_joined(logits, target), *options)
    return (loss.view(shape), saved.view(SAVED, batch, math.prod(shape[1:]))), (0, 1)


@torch.library.register_vmap("absgd::softmax_loss_backward")  # type: ignore[untyped-decorator]
def _(
    info: Any,
    in_dims: tuple[Any, ...],
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    saved: Tensor,
    *options: Any,
) -> tuple[Tensor, int]:
    refuse_mapped_options(in_dims[4:7])
    batch = info.batch_size
    grad_loss, logits, target, saved = (
        in_front(t, d, batch)
        for t, d in zip((grad_loss, logits, target, saved), in_dims, strict=False)
    )
    grad = torch.ops.absgd.softmax_loss_backward(
        grad_loss.flatten(),
        *_joined(logits, target),
        saved.movedim(0, 1).flatten(1),
        *options,
    )
    return grad.view(logits.shape), 0


def _joined(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The samples of a batch of calls as those of one: (B, C) are that already."""
    if logits.dim() == 2:
        return logits, target
    return as_samples(logits), as_samples(target)
