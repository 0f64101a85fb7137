"""λ against the epoch: the paper's two stages, by a restart or by a ramp.

The paper trains with λ = ∞ (plain SGD), then restarts ABSGD "with a decayed λ" (Section 5):
log_s is forgotten. A ramp moves λ a little each epoch instead, and log_s carries over (λ·log_s, the
estimate of the objective, is kept): the safe way in, for selective weights lengthen the step.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch

from . import _checks, _rule_checks
from .lam_rules import LamRule

__all__ = ["LamScheduler"]

WRAPPERS = ("_orig_mod", "optimizer", "module")  # torch.compile; accelerate, Lightning; DDP


class _HasLam(Protocol):
    """ABSGD, AttentionalLoss, or anything else with a settable ``lam`` and ``restart(lam=…)``."""

    lam: Any

    def restart(self, lam: float | LamRule) -> None: ...


def unwrapped(target: object) -> _HasLam:
    """The first of ``target`` and what it wraps that itself has ``lam`` and ``restart``: a wrapper
    may pass on what it is asked for, and keep what is assigned."""
    found, seen = target, []
    while found is not None and found not in seen:
        if inspect.getattr_static(found, "lam", None) is not None and hasattr(found, "restart"):
            return cast(_HasLam, found)
        seen.append(found)
        found = next((getattr(found, w) for w in WRAPPERS if hasattr(found, w)), None)
    raise TypeError(
        "target must have lam and restart(lam=...), as ABSGD and AttentionalLoss do, or wrap what "
        f"has; got {type(target).__name__}"
    )


def lam_of(target: _HasLam) -> float | LamRule:
    """The rule that λ of ``target`` follows, where it says which, or λ itself."""
    rule = getattr(target, "lam_rule", None)
    return rule if isinstance(rule, LamRule) else float(target.lam)


def selectivity(lam: float | LamRule) -> float:
    """How far λ is from plain SGD, with its sign; 0 at λ = ±∞, and where it is not set (NaN)."""
    if isinstance(lam, LamRule):
        return lam.selectivity
    return 0.0 if math.isnan(lam) else 1 / lam


def between(start: float | LamRule, end: float | LamRule, t: float) -> float | LamRule:
    """λ at t in [0, 1] of the line from ``start`` to ``end``, which are of one kind, or one is
    plain SGD."""
    if t == 1:
        return end
    a, b = (1 - t) * selectivity(start), t * selectivity(end)
    value = a + b
    if abs(value) <= 1e-12 * abs(a):  # 0 but for rounding, where the sign changes
        return math.inf
    kind = end if selectivity(end) != 0 else start
    return kind.with_selectivity(value) if isinstance(kind, LamRule) else 1 / value


class LamScheduler:
    """Sets λ of an optimizer or a loss by the epoch; ``step()`` once an epoch, as an LR scheduler.

        schedule = LamScheduler(opt, {160: 1.0})                               # the paper's stages
        schedule = LamScheduler(opt, {160: EffectiveSampleSize(0.8)}, over=10) # the safe start

    The epoch is 0 at construction and ``step()`` adds 1. Without ``over``, a milestone is a restart
    and its λ holds from that epoch on.

    With ``over=n`` nothing restarts. In the milestone's epoch e λ is still what it was, and at
    e + n it is the milestone's. Between, a line leads from the one to the other:

    - for a number, 1/λ is linear in the epoch (0 at ∞; a change of sign passes through ∞);
    - for an `EffectiveSampleSize`, the fraction is (1 at ∞, so it starts unselective);
    - for a `KLRadius`, the radius is (0 at ∞).

    Where the kind changes (a number to a rule, or one rule to another), no line leads across: λ is
    ∞ in epoch e, and the ramp starts there. A later milestone ends a ramp and goes on from what λ
    is then.

    Milestone 0 is applied by the constructor, unless the target has loaded a state: what was saved
    goes on then. (To begin a stage from a checkpoint, call ``target.restart(lam=…)``.)

    Args:
        target: an :class:`ABSGD`, an :class:`AttentionalLoss`, or any object that has a settable
            ``lam`` and ``restart(lam=…)``; or a framework's wrapper of one (``.optimizer``), as
            Lightning's and accelerate's. Its λ at construction holds until the first milestone.
        milestones: epoch -> λ: a number other than 0 (negative and ±inf too), a 0-dim tensor, a
            numpy scalar, an :class:`EffectiveSampleSize` or a :class:`KLRadius`.
        over: epochs that each change takes, ≥ 0; 0: a restart.

    Raises:
        TypeError, ValueError: naming the argument at fault; ``target`` is then unchanged.
    """

    def __init__(
        self,
        target: object,
        milestones: Mapping[int, Any] | None = None,
        over: int = 0,
    ) -> None:
        self.target = unwrapped(target)
        self.milestones: dict[int, float | LamRule] = _rule_checks.check_milestones(milestones)
        self.over = _checks.check_integer("over", over, least=0)
        self.last_epoch = 0
        self.ramp_start: float | LamRule = math.inf  # λ where the last ramp began
        self._was_loaded = False
        self._enter(0, goes_on=self._target_was_loaded)

    @property
    def _target_was_loaded(self) -> bool:
        return getattr(self.target, "has_loaded_state", False)

    def step(self) -> None:
        """Begins the next epoch."""
        if self.last_epoch == 0 and not self._was_loaded and self._target_was_loaded:
            warnings.warn(
                "the target goes on from a loaded state, and its schedule from epoch 0: load "
                "schedule.state_dict() too, or the milestones come late",
                stacklevel=2,
            )
        self._enter(self.last_epoch + 1)
        self.last_epoch += 1

    def _enter(self, epoch: int, goes_on: bool = False) -> None:
        if self.over == 0:
            if epoch in self.milestones and not goes_on:
                self.target.restart(lam=self.milestones[epoch])
            return
        earlier = [e for e in self.milestones if e < epoch]
        if earlier and epoch <= earlier[-1] + self.over:
            t = (epoch - earlier[-1]) / self.over
            self.target.lam = between(self.ramp_start, self.milestones[earlier[-1]], t)
        if epoch in self.milestones:
            self._begin_ramp(self.milestones[epoch], goes_on)

    def _begin_ramp(self, lam: float | LamRule, goes_on: bool) -> None:
        start = lam_of(self.target)
        is_one_kind = type(start) is type(lam) or 0 in (selectivity(start), selectivity(lam))
        if not is_one_kind and not goes_on:
            self.target.lam = math.inf
        self.ramp_start = start if is_one_kind else math.inf

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and λ where the last ramp began: a number, or the row of a rule. λ itself is
        in the target's own state."""
        start = self.ramp_start
        return {
            "last_epoch": self.last_epoch,
            "ramp_start": start.row() if isinstance(start, LamRule) else start,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues at the saved epoch, in the middle of a ramp too; load the target's own state,
        before or after.

        Raises:
            KeyError, TypeError, ValueError: an entry is missing or wrong; nothing is changed then.
        """
        last_epoch = _checks.check_integer("last_epoch", state_dict["last_epoch"], least=0)
        if "ramp_start" in state_dict:
            start = _loaded_lam(state_dict["ramp_start"])
        else:  # of a version that kept the λ before the first milestone
            initial_lam = state_dict["initial_lam"]
            begun = [lam for e, lam in self.milestones.items() if e <= last_epoch]
            start = _loaded_lam([initial_lam, initial_lam, *begun][-2])
        self.last_epoch, self.ramp_start, self._was_loaded = last_epoch, start, True


def _loaded_lam(saved: Any) -> float | LamRule:
    if isinstance(saved, (list, tuple)):
        saved = LamRule.from_tensor(torch.tensor(saved, dtype=torch.float64, device="cpu"))
    if isinstance(saved, float) and math.isnan(saved):  # a rule had not found its first λ
        return math.inf
    _rule_checks.check_lam(saved)
    return saved if isinstance(saved, LamRule) else float(saved)
