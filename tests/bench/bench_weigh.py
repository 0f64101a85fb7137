"""``opt.weigh(losses)`` alone, forward pass: at a fixed λ, and with λ found for each batch.

The limit is two exponentials in double a loss: one for the sums, one for the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from contest import Case, Contender, Result, Settings, contest
from machine import exp
from peers import ReleasedABLoss, cross_entropy
from torch import Tensor

import torch_absgd as ta

LAM = 5.0
BATCHES = (64, 512, 4096, 262144)


def weigh_limit(batch: int) -> Callable[[], None]:
    z = -torch.rand(batch, dtype=torch.float64)

    def call() -> None:
        exp(z)
        exp(z)

    return call


def _losses(batch: int) -> Tensor:
    return (3 * torch.rand(batch)).requires_grad_()


def _ours(lam: float | ta.EffectiveSampleSize, losses: Tensor) -> Callable[[], Tensor]:
    opt = ta.ABSGD([torch.nn.Parameter(torch.zeros(1))], lam=lam)
    return lambda: opt.weigh(losses)


def at_fixed_lam(settings: Settings, batch: int) -> Result:
    losses = _losses(batch)
    eager = ReleasedABLoss(cross_entropy, LAM).weigh
    contenders = [
        Contender("ours", _ours(LAM, losses)),
        Contender("eager", lambda: eager(losses)),
    ]
    if settings.compiles:
        compiled = torch.compile(ReleasedABLoss(cross_entropy, LAM).weigh)
        contenders.append(Contender("compiled", lambda: compiled(losses)))
    return contest(settings, contenders, weigh_limit(batch))


def with_search(settings: Settings, batch: int) -> Result:
    """The search is ours alone: its peer is what it costs not to search."""
    losses = _losses(batch)
    contenders = [
        Contender("ours", _ours(ta.EffectiveSampleSize(0.6), losses)),
        Contender("at a fixed λ", _ours(LAM, losses)),
    ]
    return contest(settings, contenders, weigh_limit(batch))


def cases() -> Iterator[Case]:
    for batch in BATCHES:
        yield Case(f"weigh/fixed λ, B = {batch}", lambda s, batch=batch: at_fixed_lam(s, batch))
    for batch in BATCHES:
        yield Case(f"search/B = {batch}", lambda s, batch=batch: with_search(s, batch))
