"""The per-sample losses out of torch's own operators, and what their tests draw."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_absgd as ta

IGNORED = -100
# Loss: relative to 1 + |loss|. Gradient: relative to the largest of its kind, after rounding to the
# logits' dtype (2^-11 and 2^-8 for the halves).
TOLERANCE = {
    torch.float64: (1e-13, 1e-13),
    torch.float32: (3e-6, 6e-6),
    torch.float16: (3e-6, 6e-4),
    torch.bfloat16: (3e-6, 4e-3),
}


def reference(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    margin: Tensor | None = None,
    offset: Tensor | None = None,
    scale: float = 1.0,
    focal_gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The formula at the head of absgd.h's section, written with torch's log_softmax."""
    dim = min(logits.dim() - 1, 1)
    classes = logits.shape[dim]
    if target.is_floating_point() and (margin is not None or focal_gamma):
        options = (weight, margin, offset, scale, focal_gamma, label_smoothing)
        return expected_reference(logits, target, dim, options)
    view = [-1 if d == dim else 1 for d in range(logits.dim())]
    w = (torch.ones(classes) if weight is None else weight).to(logits).view(view)
    z = logits
    soft = target.is_floating_point()
    if not soft:
        y = target.clamp(min=0)
        one_hot = F.one_hot(y, classes).movedim(-1, dim).to(logits)
        if margin is not None:
            z = z - margin.to(logits).view(view) * one_hot
    z = scale * z
    if offset is not None:
        z = z + offset.to(logits).view(view)
    nll = -z.log_softmax(dim)
    smooth = label_smoothing / classes * (w * nll).sum(dim)
    if soft:
        return (1 - label_smoothing) * (w * target.to(logits) * nll).sum(dim) + smooth
    nll_y = (nll * one_hot).sum(dim)
    w_y = (w * one_hot).sum(dim)
    loss = w_y * (1 - label_smoothing) * nll_y + smooth
    if focal_gamma:
        loss = w_y * (1 - (-nll_y).exp()) ** focal_gamma * nll_y
    return loss.masked_fill(target == IGNORED, 0)


def expected_reference(logits: Tensor, q: Tensor, dim: int, options: tuple[Any, ...]) -> Tensor:
    """Σ_y q_y·(loss of class y), every y of every sample in one batch."""
    classes = logits.shape[dim]
    shape = [*logits.shape[:dim], *logits.shape[dim + 1 :]]
    labels = torch.arange(classes).view(-1, *[1] * len(shape)).expand(classes, *shape)
    batch = logits.expand(classes, *logits.shape)
    if dim:
        batch, labels = batch.flatten(0, 1), labels.flatten(0, 1)
    losses = reference(batch, labels, *options).view(classes, *shape)
    return (q.to(logits).movedim(dim, 0) * losses).sum(0)


def per_class(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 1 else shape[1]


def indices(shape: tuple[int, ...]) -> Tensor:
    """Class indices for logits of a shape, the second of them ignored."""
    rest = () if len(shape) == 1 else (shape[0], *shape[2:])
    target = torch.randint(per_class(shape), rest)
    if target.numel() > 1:
        target.view(-1)[1] = IGNORED
    return target


def probabilities(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype).softmax(min(len(shape) - 1, 1))


def criteria() -> list[nn.Module]:
    """One of each loss, for four classes of which the third is ignored."""
    return [
        ta.PerSampleCrossEntropy(label_smoothing=0.1, ignore_index=2),
        ta.PerSampleFocal(ignore_index=2),
        ta.PerSampleLDAM([5, 4, 3, 2], ignore_index=2),
        ta.PerSampleLogitAdjusted([5, 4, 3, 2], ignore_index=2),
    ]
