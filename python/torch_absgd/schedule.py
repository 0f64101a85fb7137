"""λ against the epoch: the paper's two stages, and smoother ways to damp it.

The paper trains with λ = ∞ (plain SGD), then restarts ABSGD "with a decayed λ" (Section 5). A
milestone is such a restart: log_s is forgotten. Damping moves λ a little each epoch instead, and
log_s carries over (λ·log_s, the estimate of the objective, is kept).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from .lam_rules import LamRule

__all__ = ["Damping", "LamScheduler"]


class _HasLam(Protocol):
    """ABSGD, AttentionalLoss, or anything else with a settable ``lam`` and ``restart(lam=…)``."""

    lam: Any

    def restart(self, lam: float | LamRule) -> None: ...


def _check_lam(name: str, lam: Any) -> float:
    if isinstance(lam, bool) or not isinstance(lam, (int, float)):
        raise TypeError(f"{name} must be a number, got {lam!r}")
    if math.isnan(lam) or lam == 0:
        raise ValueError(f"Invalid {name}: {lam} (any number except 0 and NaN; ±inf is plain SGD)")
    return float(lam)


def _check_epoch(name: str, epoch: Any) -> int:
    if isinstance(epoch, bool) or not isinstance(epoch, int):
        raise TypeError(f"{name} must be an int, got {epoch!r}")
    if epoch < 0:
        raise ValueError(f"Invalid {name}: {epoch} (must be >= 0)")
    return epoch


@dataclass(frozen=True)
class Damping:
    """Moves λ from the value in force at ``start_epoch`` to ``lam``, reached at ``end_epoch``.

    With t = (epoch − start_epoch)/(end_epoch − start_epoch):

    - ``"linear"``: 1/λ is linear in t. The start may be ±inf (1/λ = 0).
    - ``"cosine"``: 1/λ follows (1 − cos πt)/2. The start may be ±inf.
    - ``"exponential"``: log|λ| is linear in t. Both ends must be finite.

    Both ends must have one sign.

    Raises:
        TypeError, ValueError: naming the argument that is not as above.
    """

    start_epoch: int
    end_epoch: int
    lam: float
    shape: Literal["linear", "cosine", "exponential"] = "linear"

    def __post_init__(self) -> None:
        _check_epoch("start_epoch", self.start_epoch)
        _check_epoch("end_epoch", self.end_epoch)
        _check_lam("lam", self.lam)
        if self.end_epoch <= self.start_epoch:
            raise ValueError(
                f"Invalid end_epoch: {self.end_epoch} (must be > start_epoch = {self.start_epoch})"
            )
        if self.shape not in ("linear", "cosine", "exponential"):
            raise ValueError(
                f"Invalid shape: {self.shape!r} (must be 'linear', 'cosine' or 'exponential')"
            )

    def check_start(self, start: float | LamRule) -> None:
        """Raises ValueError if damping cannot begin at λ = ``start``."""
        if isinstance(start, LamRule) or math.isnan(start):
            raise ValueError("Invalid damping: it cannot begin where λ follows a rule")
        finite = math.isfinite(start) and math.isfinite(self.lam)
        if finite and (start > 0) != (self.lam > 0):
            raise ValueError(
                f"Invalid damping from lam = {start} to {self.lam}: the signs differ "
                "(a change of sign is a new problem: use a milestone)"
            )
        if self.shape == "exponential" and not finite:
            raise ValueError(
                f"Invalid exponential damping from lam = {start} to {self.lam}: both must be "
                "finite ('linear' and 'cosine' move 1/lam and may start at inf)"
            )

    def lam_at(self, epoch: int, start: float) -> float:
        """λ at ``epoch`` ≥ start_epoch, having been ``start`` at start_epoch."""
        if epoch >= self.end_epoch:
            return float(self.lam)
        t = (epoch - self.start_epoch) / (self.end_epoch - self.start_epoch)
        if t == 0:
            return start
        if self.shape == "exponential":
            return start * (self.lam / start) ** t
        if self.shape == "cosine":
            t = (1 - math.cos(math.pi * t)) / 2
        inverse = (1 - t) / start + t / self.lam
        return 1 / inverse if inverse else self.lam


class LamScheduler:
    """Sets λ of an optimizer or a loss by the epoch; ``step()`` once an epoch, as an LR scheduler.

        schedule = LamScheduler(opt, milestones={160: 1.0})              # the paper's two stages
        schedule = LamScheduler(opt, damping=Damping(100, 160, lam=1.0)) # from inf, 1/λ linear

    The epoch is 0 at construction and ``step()`` adds 1. λ of a milestone holds from that epoch on;
    the milestone 0 is applied by the constructor. λ is a function of the epoch alone: the later of
    the last milestone and the damping's start rules.

    Args:
        target: an :class:`ABSGD`, an :class:`AttentionalLoss`, or any object that has a settable
            ``lam`` and ``restart(lam=…)``. Its λ at construction holds until the first event.
        milestones: epoch -> λ, each by ``target.restart(lam=λ)``. Negative λ, ±inf, and an
            :class:`EffectiveSampleSize` or :class:`KLRadius` are allowed.
        damping: a :class:`Damping`, which sets ``target.lam`` each epoch and restarts nothing.

    Raises:
        TypeError, ValueError: naming the argument at fault; ``target`` is then unchanged.
    """

    def __init__(
        self,
        target: _HasLam,
        milestones: Mapping[int, float | LamRule] | None = None,
        damping: Damping | None = None,
    ) -> None:
        if not (hasattr(target, "lam") and callable(getattr(target, "restart", None))):
            raise TypeError(
                "target must have lam and restart(lam=...), as ABSGD and AttentionalLoss do; "
                f"got {type(target).__name__}"
            )
        if milestones is not None and not isinstance(milestones, Mapping):
            raise TypeError(f"milestones must be a mapping of epoch to lam, got {milestones!r}")
        if damping is not None and not isinstance(damping, Damping):
            raise TypeError(f"damping must be a Damping, got {damping!r}")
        self.target = target
        self.milestones = {
            _check_epoch("milestone", epoch): lam
            if isinstance(lam, LamRule)
            else _check_lam(f"lam of milestone {epoch}", lam)
            for epoch, lam in sorted((milestones or {}).items())
        }
        self.damping = damping
        self.initial_lam = float(target.lam)
        self.last_epoch = 0
        if damping is not None:
            for epoch in self.milestones:
                if damping.start_epoch < epoch <= damping.end_epoch:
                    raise ValueError(
                        f"Invalid milestone: {epoch} (within the damping of epochs "
                        f"{damping.start_epoch} to {damping.end_epoch})"
                    )
            damping.check_start(self._lam_by_milestones(damping.start_epoch))
        self._apply(0)

    def _lam_by_milestones(self, epoch: int) -> float | LamRule:
        past = [e for e in self.milestones if e <= epoch]
        return self.milestones[past[-1]] if past else self.initial_lam

    def lam_at(self, epoch: int) -> float | LamRule:
        """λ that this schedule gives ``epoch``."""
        damping = self.damping
        if damping is None or epoch < damping.start_epoch:
            return self._lam_by_milestones(epoch)
        if any(damping.end_epoch < e <= epoch for e in self.milestones):
            return self._lam_by_milestones(epoch)
        return damping.lam_at(epoch, self._lam_by_milestones(damping.start_epoch))

    def _apply(self, epoch: int) -> None:
        if epoch in self.milestones:
            self.target.restart(lam=self.milestones[epoch])
        elif self.damping is not None and self.lam_at(epoch) != self.lam_at(max(epoch - 1, 0)):
            self.target.lam = self.lam_at(epoch)

    def step(self) -> None:
        """Begins the next epoch. If the weights of the last one were those of a few samples,
        reading the statistics warns, once."""
        if hasattr(self.target, "stats"):
            _ = self.target.stats().mean
        self._apply(self.last_epoch + 1)
        self.last_epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the λ that the run began with. λ itself is in the target's own state."""
        return {"last_epoch": self.last_epoch, "initial_lam": self.initial_lam}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues at the saved epoch; load the target's own state too.

        Raises:
            KeyError, TypeError, ValueError: an entry is missing or wrong; nothing is changed then.
        """
        last_epoch = _check_epoch("last_epoch", state_dict["last_epoch"])
        initial_lam = state_dict["initial_lam"]
        if initial_lam == initial_lam:  # NaN where a rule had not found its first λ
            _check_lam("initial_lam", initial_lam)
        self.last_epoch, self.initial_lam = last_epoch, initial_lam
