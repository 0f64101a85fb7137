"""The rule of `torch_absgd` in plain torch, for many independent runs at once.

Every row of a [runs, B] tensor of losses is a batch of its own, with its own λ, guards and state:
Algorithm 1 of ABSGD with a base measure w, the cap, the kept loss and λ found from an effective
sample size. Written to be read beside the paper, not to be fast; the package is held against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weighting:
    """What one run's weights are made with; λ = ∞ without a target is plain SGD.

    Args:
        lam: λ, or sign · ∞ where ``target`` says how it is found.
        target: the effective sample size as a share of the batch; None: λ is the number.
        gamma: None is 0.9 for a number and 1 for a target.
    """

    lam: float = math.inf
    target: float | None = None
    gamma: float | None = None
    keep_loss: bool = False
    max_weight: float = math.inf
    cap_first: bool = False  # the cap before κ: measured, not what the package does
    floor: float = 0.0  # of a found |λ|, in units of the loss: measured, not in the package

    @property
    def rate(self) -> float:
        return self.gamma or (0.9 if self.target is None else 1.0)

    @property
    def is_guarded(self) -> bool:
        return self.target is not None or self.keep_loss or math.isfinite(self.max_weight)


def effective_size(t: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """(Σwq)²/(Σw Σwq²) of q = exp(t·x), x ≤ 0; rows."""
    q = torch.exp(t[:, None] * x)
    return (w * q).sum(1) ** 2 / (w.sum(1) * (w * q * q).sum(1))


def find_lam(losses: Tensor, w: Tensor, sign: Tensor, target: Tensor) -> Tensor:
    """The λ of each row at which the batch's effective size is the target; ∞: no answer."""
    signed = torch.where(w > 0, sign[:, None] * losses, -math.inf)
    x = signed - signed.amax(1, keepdim=True)
    spread = -torch.where(w > 0, x, 0).amin(1)
    x = torch.where(w > 0, x, 0) / spread.clamp(min=1e-300)[:, None]
    low, high = torch.full_like(spread, -6.0), torch.full_like(spread, 12.0)  # log10 of spread/|λ|
    has_answer = (spread > 0) & (effective_size(10**high, x, w) < target)
    for _ in range(36):
        middle = (low + high) / 2
        above = effective_size(10**middle, x, w) > target
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(has_answer, sign * spread / 10**low, math.inf)


class Rule:
    """Rows of losses to rows of coefficients, with the state of every row."""

    def __init__(self, weightings: Sequence[Weighting]) -> None:
        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)

        self.gamma = column([w.rate for w in weightings])
        self.cap = column([w.max_weight for w in weightings])
        self.keeps = torch.tensor([w.keep_loss for w in weightings])
        self.cap_first = torch.tensor([w.cap_first for w in weightings])
        self.is_guarded = torch.tensor([w.is_guarded for w in weightings])
        self.lam = column([w.lam for w in weightings])
        self.target = column([w.target or math.nan for w in weightings])
        self.sign = torch.sign(self.lam)
        self.floor = column([w.floor for w in weightings])
        self.log_s = torch.full_like(self.lam, math.nan)

    def set_lam(self, lam: Tensor, target: Tensor) -> None:
        """λ and targets of the epoch to come; log_s follows λ within one sign."""
        moved = self.log_s * self.lam / lam
        keeps = torch.isfinite(self.lam) & (self.lam * lam > 0) & torch.isnan(target)
        self.log_s = torch.where(keeps, moved, self.log_s)
        self.lam = torch.where(torch.isnan(target), lam, self.lam)
        self.target = target

    def __call__(self, losses: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Coefficients of Σ_i c_i L_i / B, base measure included, and the uncapped p; float64."""
        L = losses.detach().double()
        w = torch.ones_like(L) if w is None else w.double()
        is_ruled = ~torch.isnan(self.target)
        if is_ruled.any():
            r = is_ruled
            found = find_lam(L[r], w[r], self.sign[r], self.target[r])
            found = self.sign[r] * torch.maximum(found.abs(), self.floor[r])
            old = self.lam[r]
            self.lam[r] = torch.where(torch.isfinite(found), found, old)
            self.log_s[r] = self.log_s[r] * torch.where(torch.isfinite(old), old / self.lam[r], 1.0)
        lam, log_gamma = self.lam[:, None], torch.log(self.gamma)
        ell = torch.logsumexp(L / lam + torch.log(w), 1) - torch.log(w.sum(1))
        moved = torch.logaddexp(torch.log1p(-self.gamma) + self.log_s, log_gamma + ell)
        log_s = torch.where(torch.isnan(self.log_s), ell, moved)
        bounded = torch.minimum(log_s, ell - log_gamma)
        log_s = torch.where(self.is_guarded, bounded, log_s)
        is_selective = torch.isfinite(self.lam)
        self.log_s = torch.where(is_selective, log_s, self.log_s)
        p = torch.exp(L / lam - log_s[:, None])
        p = torch.where(is_selective[:, None], torch.where(w > 0, p, 0), 1.0)
        return w * self.guarded(p, w, L), p

    def guarded(self, p: Tensor, w: Tensor, L: Tensor) -> Tensor:
        """min(κp, c), or κ·min(p, c) with κ of the capped weights where the cap comes first."""
        cap = torch.where(torch.isfinite(self.lam), self.cap, math.inf)[:, None]
        first = torch.where(self.cap_first[:, None], torch.minimum(p, cap), p)
        weighted = (w * first * L.abs()).sum(1)
        kappa = torch.where(weighted > 0, (w * L.abs()).sum(1) / weighted, 1).clamp(max=1)
        kept = torch.where(self.keeps, kappa, 1)[:, None] * first
        return torch.minimum(kept, cap)
