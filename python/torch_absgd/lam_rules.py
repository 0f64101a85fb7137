"""λ from how selective the weights shall be, in place of a number.

The right λ depends on the scale of the losses; how many samples of a batch shall carry its weight
does not. Each of these is accepted wherever a λ is. At every batch, the |λ*| is found at which the
batch's own weights :math:`p_i \\propto \\exp(L_i/\\lambda^*)` meet the target, and log |λ| moves
towards log |λ*| by an exponential average (``csrc/lam_search_math.h``). The measure is taken
against the base measure w, the batch's class or sample weights (1 without them).

The default rate is 1, each batch's own λ*: with an average, λ lags behind losses that have become
small, and the next larger ones put a whole batch's weight on one sample (recipes/RESULTS.md). For
the same reason γ is 1 under a rule unless it is given: each batch is normalised by itself.

Until a batch has had an answer λ reads sign·∞, plain SGD; a batch without one (a single sample,
equal losses, a target out of reach) leaves λ as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ._checks import check_choice, check_number, is_real

INF = math.inf


@dataclass(frozen=True)
class LamRule:
    """What λ follows: `EffectiveSampleSize` or `KLRadius`.

    Args:
        noisy: λ < 0, attention to the small losses, for noisy labels.
        rate: of the average of log |λ|, in (0, 1]; 1: each batch's own λ*.
        low, high: bounds of |λ*| in units of the batch's largest less its smallest loss, finite.
    """

    noisy: bool = False
    rate: float = 1.0
    low: float = 1e-12
    high: float = 1e6
    kind: ClassVar[int]

    @property
    def target(self) -> float:
        """The measure that the weights are to have."""
        raise NotImplementedError

    @property
    def selectivity(self) -> float:
        """How far from plain SGD, which is 0, as `LamScheduler` ramps it; < 0 where ``noisy``."""
        raise NotImplementedError

    def with_selectivity(self, selectivity: float) -> LamRule:
        """This rule at another selectivity, which must not be 0."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        rate, low, high = self.rate, self.low, self.high
        check_choice("noisy", self.noisy, (True, False))
        check_number("rate", rate, "in (0, 1]", is_real(rate) and 0 < rate <= 1)
        check_number("low", low, "finite and > 0", is_real(low) and 0 < low < INF)
        check_number("high", high, f"finite and > low = {low}", is_real(high) and low < high < INF)

    def __repr__(self) -> str:
        """As it would be written: what is left at its default is left out."""
        words = [repr(self.target)]
        for name in ("noisy", "rate", "low", "high"):
            value = getattr(self, name)
            if value != getattr(LamRule, name):
                words.append(f"{name}={value}")
        return f"{type(self).__name__}({', '.join(words)})"

    @property
    def sign(self) -> float:
        """Of λ: −1 where ``noisy``."""
        return -1.0 if self.noisy else 1.0

    @property
    def initial_lam(self) -> float:
        """λ before the first batch with an answer: sign·∞."""
        return self.sign * INF

    def row(self) -> list[float]:
        """absgd_lam_rule."""
        return [self.kind, self.target, self.sign, self.rate, self.low, self.high]

    def to_tensor(self, device: torch.device) -> Tensor:
        """`row` as float64 [6], as it stands in state dicts (``lam_rule``)."""
        return torch.tensor(self.row(), dtype=torch.float64, device=device)

    @staticmethod
    def from_tensor(row: Tensor) -> LamRule | None:
        """The rule of a `to_tensor`; None of zeros, which stand where λ is a number.

        Raises:
            ValueError: ``row`` is neither.
        """
        if row.numel() == 0 or not bool(row.any()):
            return None
        values = row.flatten().tolist()
        rules: dict[float, Callable[..., LamRule]] = {1: EffectiveSampleSize, 2: KLRadius}
        if len(values) != 6 or values[0] not in rules or values[2] not in (-1.0, 1.0):
            raise ValueError(f"Invalid row of a rule for lam: {values}")
        kind, target, sign, rate, low, high = values
        return rules[kind](target, noisy=sign < 0, rate=rate, low=low, high=high)


@dataclass(frozen=True, init=False, repr=False)
class EffectiveSampleSize(LamRule):
    """λ at which ``fraction`` of the batch is effective: (Σwp)²/(Σw·Σwp²) = fraction, which is
    (Σp)²/(B Σp²) without base weights w.

    1 is plain SGD; 0.5 puts the weight on about half of the samples. The sentence to try first is
    ``lam=EffectiveSampleSize(0.8)``, with a lower lr from where it begins. With noisy labels, keep
    ``fraction`` above the share of labels that are right. Class weights inside the criterion leave
    few samples effective already, and the share that is kept is that of p: with them, begin at 0.9
    or give them as the base measure (``class_weight=``), against which the share is measured.

    Args:
        fraction: in (0, 1). A batch of B samples without base weights reaches down to 1/B.
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

    @property
    def selectivity(self) -> float:
        return self.sign * (1 - self.target)

    def with_selectivity(self, selectivity: float) -> EffectiveSampleSize:
        fraction = 1 - abs(selectivity)
        return replace(self, fraction=fraction, noisy=selectivity < 0)


@dataclass(frozen=True, init=False, repr=False)
class KLRadius(LamRule):
    """λ at which KL(q ‖ w/Σw) = radius, with q = wp/Σwp: the KL-constrained form of the DRO
    problem, max over q of Σ q_i L_i subject to KL(q ‖ w/Σw) ≤ radius (w/Σw = 1/B without base
    weights).

    Args:
        radius: in nats, > 0. A batch reaches only what is below ``−log(w*/Σw)``, ``w*`` being the
            weight at its largest loss (its smallest, where ``noisy``): log B without base weights.
        noisy, rate, low, high: see `LamRule`.

    Raises:
        ValueError: a number is out of its range.
        TypeError: it is not a number.
    """

    radius: float = 0.5
    kind: ClassVar[int] = 2

    def __init__(self, radius: float, noisy: bool = False, **options: float) -> None:
        check_number("radius", radius, "finite and > 0", is_real(radius) and 0 < radius < INF)
        object.__setattr__(self, "radius", radius)
        super().__init__(noisy, **options)

    @property
    def target(self) -> float:
        return float(self.radius)

    @property
    def selectivity(self) -> float:
        return self.sign * self.target

    def with_selectivity(self, selectivity: float) -> KLRadius:
        return replace(self, radius=abs(selectivity), noisy=selectivity < 0)


def unreachable(rule: LamRule, batch_size: int) -> str | None:
    """A sentence for the user if no batch of ``batch_size`` samples (without base weights) can meet
    the target of ``rule``; else None."""
    if batch_size < 1:
        return None
    reach, advice = "", ""
    if isinstance(rule, EffectiveSampleSize) and rule.fraction <= 1 / batch_size:
        reach, advice = f"of which at least 1/{batch_size} is effective", "a larger fraction"
    if isinstance(rule, KLRadius) and rule.radius >= math.log(batch_size):
        log_b = f"log {batch_size} = {math.log(batch_size):.3g}"
        reach, advice = f"whose weights are at most {log_b} nats from uniform", "a smaller radius"
    if not reach:
        return None
    return (
        f"{rule!r} is out of reach of batches of {batch_size}, {reach}: λ stays as it was. "
        f"Take {advice} or larger batches."
    )
