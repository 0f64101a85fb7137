"""Multi-label losses with Algorithm 1's weights, on samples or on labels: forward and backward pass
to the logits' gradient.

The limit is, as for the softmax losses, an exponential of each logit and a copy of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from bench_loss import LAM, both_passes, loss_limit
from contest import Case, Contender, Result, Settings, contest
from peers import Criterion, ReleasedABLoss
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

import torch_absgd as ta

SHAPES = ((128, 20), (512, 1000))
POSITIVES = 0.05  # of the labels


def labels_losses(kind: str) -> Criterion:
    """torch's or torchvision's, (N, C)."""
    of = F.binary_cross_entropy_with_logits if kind == "BCE" else sigmoid_focal_loss
    return lambda x, y: of(x, y, reduction="none")


def weighed_sigmoid_loss(
    settings: Settings, kind: str, per: str, batch: int, classes: int, dtype: torch.dtype
) -> Result:
    x = torch.randn(batch, classes).to(dtype).requires_grad_()
    y = (torch.rand(batch, classes) < POSITIVES).to(dtype)
    losses = labels_losses(kind)

    def eager(x: Tensor, y: Tensor) -> Tensor:
        return losses(x, y).mean(1) if per == "sample" else losses(x, y).flatten()

    criterion = (ta.PerSampleBCE if kind == "BCE" else ta.PerSampleSigmoidFocal)(per=per)
    contenders = [
        Contender("ours", both_passes(ta.AttentionalLoss(criterion, lam=LAM), x, y)),
        Contender("eager", both_passes(ReleasedABLoss(eager, LAM), x, y)),
    ]
    if settings.compiles:
        compiled = torch.compile(ReleasedABLoss(eager, LAM))
        contenders.append(Contender("compiled", both_passes(compiled, x, y)))
    return contest(settings, contenders, loss_limit(x))


def _case(kind: str, per: str, batch: int, classes: int, dtype: torch.dtype) -> Case:
    suffix = "" if dtype is torch.float32 else f" {str(dtype).removeprefix('torch.')}"
    aimed_at = per == "sample" and (batch, classes) == (512, 1000) and not suffix
    return Case(
        f"sigmoid/{kind} per {per} {batch}×{classes}{suffix}",
        lambda s: weighed_sigmoid_loss(s, kind, per, batch, classes, dtype),
        target=2.0 if aimed_at else None,
    )


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for kind in ("BCE", "sigmoid focal"):
            for per in ("sample", "element"):
                for shape in SHAPES:
                    yield _case(kind, per, *shape, dtype)
