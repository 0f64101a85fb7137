"""Per-sample losses with Algorithm 1's weights: forward and backward pass to the logits' gradient.

The limit is an exponential of each logit in the forward pass, and a copy of them in the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from contest import Case, Contender, Result, Settings, contest
from machine import copy, exp
from peers import (
    LDAM,
    Criterion,
    LeanLDAM,
    ReleasedABLoss,
    SoftLDAM,
    cross_entropy,
    focal,
    soft_focal,
)
from torch import Tensor

import torch_absgd as ta

LAM = 5.0
SHAPES = ((128, 10), (512, 365), (512, 1000), (512, 8142))
TARGETS = {
    "CE": (2.0, 3.0, 3.5, 3.5),
    "LDAM": (2.5, 5.0, 6.0, 7.0),
    "focal": (2.3, 3.0, 3.3, 3.3),
}


def class_counts(classes: int) -> Tensor:
    return torch.tensor(ta.long_tailed_counts(5000, classes, 100))


def ours_of(kind: str, classes: int) -> Criterion:
    if kind.startswith("CE"):
        return ta.PerSampleCrossEntropy()
    if kind.startswith("focal"):
        return ta.PerSampleFocal()
    return ta.PerSampleLDAM(class_counts(classes))


def eager_of(kind: str, classes: int) -> dict[str, Criterion]:
    if kind.startswith("CE"):
        return {"eager": cross_entropy}
    if kind.startswith("focal"):
        return {"eager": soft_focal if "soft" in kind else focal}
    counts = class_counts(classes)
    if "soft" in kind:
        return {"eager": SoftLDAM(counts)}
    return {"eager": LDAM(counts), "eager, lean": LeanLDAM(counts)}


def both_passes(
    loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> Callable[[], None]:
    def call() -> None:
        x.grad = None
        loss(x, y).backward()

    return call


def logits(batch: int, classes: int, dtype: torch.dtype, cosines: bool) -> tuple[Tensor, Tensor]:
    """LDAM takes cosines in [−1, 1]."""
    x = torch.randn(batch, classes)
    x = (x.tanh() if cosines else 2 * x).to(dtype)
    return x.requires_grad_(), torch.randint(classes, (batch,))


def weighed_loss(
    settings: Settings, kind: str, batch: int, classes: int, dtype: torch.dtype
) -> Result:
    x, y = logits(batch, classes, dtype, kind.startswith("LDAM"))
    if "soft" in kind:
        y = torch.randn(batch, classes).softmax(1)
    criterion = ours_of(kind, classes)
    opt = ta.ABSGD([torch.nn.Parameter(torch.zeros(1))], lam=LAM)
    attention = ta.AttentionalLoss(criterion, lam=LAM)
    contenders = [
        Contender("ours", both_passes(attention, x, y)),
        Contender(
            "ours, opt.weigh",
            both_passes(lambda x, y: opt.weigh(criterion(x, y)), x, y),
            is_peer=False,
        ),
    ]
    for name, eager in eager_of(kind, classes).items():
        contenders.append(Contender(name, both_passes(ReleasedABLoss(eager, LAM), x, y)))
        if settings.compiles:
            compiled = torch.compile(ReleasedABLoss(eager, LAM))
            contenders.append(
                Contender(name.replace("eager", "compiled"), both_passes(compiled, x, y))
            )
    return contest(settings, contenders, loss_limit(x))


def loss_limit(x: Tensor) -> Callable[[], None]:
    x = x.detach()
    z = -torch.rand(x.shape, dtype=torch.float64 if x.dtype is torch.float64 else torch.float32)
    to = torch.empty_like(x)

    def call() -> None:
        exp(z)
        copy(to, x)

    return call


def against_the_mean(settings: Settings, batch: int, classes: int) -> Result:
    """Whether attention costs more than torch's plain mean."""
    x, y = logits(batch, classes, torch.float32, cosines=False)
    attention = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=LAM)
    contenders = [
        Contender("ours", both_passes(attention, x, y)),
        Contender("F.cross_entropy", both_passes(F.cross_entropy, x, y)),
    ]
    return contest(settings, contenders, loss_limit(x))


def _case(
    kind: str, batch: int, classes: int, dtype: torch.dtype, target: float | None = None
) -> Case:
    suffix = "" if dtype is torch.float32 else f" {str(dtype).removeprefix('torch.')}"
    return Case(
        f"loss/{kind} {batch}×{classes}{suffix}",
        lambda s: weighed_loss(s, kind, batch, classes, dtype),
        target,
    )


def cases() -> Iterator[Case]:
    for kind, targets in TARGETS.items():
        for shape, target in zip(SHAPES, targets, strict=True):
            yield _case(kind, *shape, torch.float32, target)
    for dtype in (torch.bfloat16, torch.float64):
        for kind in TARGETS:
            for shape in SHAPES:
                yield _case(kind, *shape, dtype)
    for kind in TARGETS:
        for shape in ((128, 10), (512, 1000)):
            yield _case(f"{kind}, soft targets", *shape, torch.float32)
    yield Case("mean/CE 128×10", lambda s: against_the_mean(s, 128, 10), target=1.0)
    for shape in SHAPES[1:]:
        yield Case(
            "mean/CE {}×{}".format(*shape), lambda s, shape=shape: against_the_mean(s, *shape)
        )
