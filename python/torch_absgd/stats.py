"""What the weights of a batch did, for people to watch."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

# Under this many effective samples, over this many batches, training is about to collapse.
FEW_SAMPLES = 3.0
MANY_BATCHES = 100


class Report(NamedTuple):
    """One batch's numbers, or their running mean (rate 0.01)."""

    count: float  # B, samples that counted
    mean_loss: float  # (1/B) Σ L_i, what plain SGD would report
    weighted_loss: float  # (1/B) Σ p_i L_i, what `weigh` returned (before any factor of DDP)
    objective: float  # λ log s, the estimate of F_λ = λ log mean exp(L/λ)
    max_weight: float  # max p_i
    effective_samples: float  # (Σ p_i)²/Σ p_i²
    batches: float  # how many batches went in
    kappa: float = 1.0  # κ of keep_loss
    capped: float = 0.0  # share of the samples whose weight was capped


def effective_samples(losses: Tensor, lam: float) -> float:
    """(Σq)²/Σq² of the weights q = exp(L/λ)."""
    log_q = losses.double() / lam
    return float(torch.exp(2 * log_q.logsumexp(0) - (2 * log_q).logsumexp(0)))


def lam_for_half(losses: Tensor, sign: float) -> float:
    """The |λ| of the given sign at which half of these losses' samples are effective."""
    losses = losses.detach().flatten().double().cpu()
    spread = float(losses.max() - losses.min())
    if not spread > 0:
        return math.nan
    low, high = 1e-4 * spread, 1e4 * spread
    for _ in range(60):
        middle = math.sqrt(low * high)
        too_few = effective_samples(losses, sign * middle) < losses.numel() / 2
        low, high = (middle, high) if too_few else (low, middle)
    return sign * high


class Stats:
    """Numbers of the last batch (``.last``) and their running mean (``.mean``), each a `Report`.

    The numbers are those of the global batch, NaN before the first. They stay on the device until
    one is read. When the running mean of the effective sample size is that of a few samples,
    reading it warns, once, that λ is too small for these losses.
    """

    _has_warned = False

    def __init__(self, reports: Tensor, losses: Tensor | None, lam: Tensor) -> None:
        self._reports = reports
        self._losses = losses
        self._lam = lam

    @property
    def last(self) -> Report:
        return Report(*self._reports[0].tolist())

    @property
    def mean(self) -> Report:
        mean = Report(*self._reports[1].tolist())
        self._warn_if_collapsing(mean)
        return mean

    def _warn_if_collapsing(self, mean: Report) -> None:
        few = min(FEW_SAMPLES, mean.count / 2)
        if Stats._has_warned or mean.batches < MANY_BATCHES or not mean.effective_samples < few:
            return
        Stats._has_warned = True
        advice = ""
        if self._losses is not None:
            better = lam_for_half(self._losses, math.copysign(1, self._lam.item()))
            advice = f" At λ = {better:.3g} half of the last batch would be effective."
        warnings.warn(
            f"over the last batches, weights of {mean.effective_samples:.1f} samples of "
            f"{mean.count:.0f} were effective: |λ| is too small for these losses, and training "
            f"may collapse.{advice}",
            stacklevel=3,
        )
