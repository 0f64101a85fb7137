"""λ from how selective the weights shall be, in place of a number.

The right λ depends on the scale of the losses; how many samples of a batch shall carry its weight
does not. Each of these is accepted wherever a λ is. At every batch, the |λ*| is found at which the
batch's own weights :math:`q_i \\propto \\exp(L_i/\\lambda^*)` meet the target, and log |λ| moves
towards log |λ*| by an exponential average (``csrc/lam_search_math.h``).

The default rate is 1, each batch's own λ*: with an average, λ lags behind losses that have become
small, and the next larger ones put a whole batch's weight on one sample (recipes/RESULTS.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ._checks import check_number, is_real


@dataclass(frozen=True)
class LamRule:
    """What λ follows.

    Args:
        noisy: λ < 0, attention to the small losses, for noisy labels.
        rate: of the average of log |λ|, in (0, 1]; 1: each batch's own λ*.
        low, high: bounds of |λ*| in units of the batch's largest less its smallest loss.
    """

    noisy: bool = False
    rate: float = 1.0
    low: float = 1e-12
    high: float = 1e6
    kind: ClassVar[int]

    @property
    def target(self) -> float:
        raise NotImplementedError

    def __post_init__(self) -> None:
        rate, low, high = self.rate, self.low, self.high
        check_number("rate", rate, "in (0, 1]", is_real(rate) and 0 < rate <= 1)
        check_number("high", high, "> low", is_real(high) and is_real(low) and low < high)
        check_number("low", low, "> 0", low > 0)

    def row(self) -> list[float]:
        """absgd_lam_rule."""
        sign = -1.0 if self.noisy else 1.0
        return [self.kind, self.target, sign, self.rate, self.low, self.high]

    def to_tensor(self, device: torch.device) -> Tensor:
        return torch.tensor(self.row(), dtype=torch.float64, device=device)


@dataclass(frozen=True, init=False)
class EffectiveSampleSize(LamRule):
    """λ at which ``fraction`` of the batch is effective: (Σq)²/(B Σq²) = fraction.

    1 is plain SGD; 0.5 puts the weight on about half of the samples. The sentence to try first is
    ``lam=EffectiveSampleSize(0.8)``, with a lower lr from where it begins. With noisy labels, keep
    ``fraction`` above the share of labels that are right. Class-balanced weights in the loss leave
    few samples effective already, and the share that is kept is that of p, not of w·p: with them,
    begin at 0.9 or do without (measured in recipes/RESULTS.md).

    Args:
        fraction: in (0, 1).
        noisy, rate, low, high: see `LamRule`.

    Raises:
        ValueError: a number is out of its range.
        TypeError: it is not a number.
    """

    fraction: float = 0.8
    kind: ClassVar[int] = 1

    def __init__(self, fraction: float, noisy: bool = False, **options: float) -> None:
        check_number("fraction", fraction, "in (0, 1)", is_real(fraction) and 0 < fraction < 1)
        object.__setattr__(self, "fraction", fraction)
        super().__init__(noisy, **options)

    @property
    def target(self) -> float:
        return float(self.fraction)


@dataclass(frozen=True, init=False)
class KLRadius(LamRule):
    """λ at which KL(q ‖ uniform) = radius: the KL-constrained form of the DRO problem,
    max over q of Σ q_i L_i subject to KL(q ‖ 1/B) ≤ radius.

    Args:
        radius: in nats, > 0; a batch of B samples reaches at most log B.
        noisy, rate, low, high: see `LamRule`.

    Raises:
        ValueError: a number is out of its range.
        TypeError: it is not a number.
    """

    radius: float = 0.5
    kind: ClassVar[int] = 2

    def __init__(self, radius: float, noisy: bool = False, **options: float) -> None:
        check_number("radius", radius, "> 0", is_real(radius) and 0 < radius < float("inf"))
        object.__setattr__(self, "radius", radius)
        super().__init__(noisy, **options)

    @property
    def target(self) -> float:
        return float(self.radius)


def unreachable(rule: LamRule, batch_size: int) -> str | None:
    return None


def _from_tensor(row: Tensor) -> LamRule:
    kind, target, sign, rate, low, high = row.tolist()
    made = EffectiveSampleSize if kind == 1 else KLRadius
    return made(target, noisy=sign < 0, rate=rate, low=low, high=high)


LamRule.from_tensor = staticmethod(_from_tensor)
