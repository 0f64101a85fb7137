"""One warning, early: when the weights that have just begun are too selective for training.

The first batches after λ was set are added up where the losses are, and looked at once, without
waiting for a device. Weights collapse where few samples are effective and the losses are large
throughout: a mean that is not far below λ, and does not fall. (Where it is far below, a small share
says that most samples are learned.)

The bounds were chosen on the runs of recipes/studies/results/suite.md with λ > 0 to the letter: 170
of the 180 that lost more than 5 points to SGD are warned of, and 51 of the 570 that lost nothing.
"""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from .lam_rules import EffectiveSampleSize, unreachable
from .rule_state import RuleState
from .stats import Report

LOOK = 50  # batches that are added up
MISSED = 10  # steps without a batch that was weighed
# Least share of a batch that may be effective: for λ > 0, for λ > 0 with a kept loss, for λ < 0.
SELECTIVE, SELECTIVE_KEPT, SELECTIVE_NEGATIVE = 0.6, 0.3, 0.5
# For λ > 0, the mean loss: least in units of λ, and least of the later batches over the first ones.
LEVEL, FALL = 0.5, 0.5
SAFE = 0.8  # the share that λ is advised for
DROPPED = 0.05  # of the average weight: a class with less is hardly trained on
CLASS_SAMPLES = 10  # of a class, before its share says anything


class Watch:
    """Looks at the first batches after λ was set; warns once in an optimizer's life."""

    def __init__(self) -> None:
        self.has_warned = self.has_named = False
        self.begin()

    def __getstate__(self) -> dict[str, Any]:
        """A copy looks at batches of its own: an event of a device cannot be copied."""
        return {"has_warned": self.has_warned, "has_named": self.has_named}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.begin()

    def begin(self) -> None:
        """λ was set: the next batches are looked at."""
        self.batches = self.missed = 0
        self.was_reachable = False  # the rule's target, of a batch
        self.halves: Tensor | None = None  # [2, …]: their reports, of each half added up
        self.host: Tensor | None = None  # these, λ, and the λ that would be safe, on their way
        self.arrived: torch.cuda.Event | None = None
        self.class_batches = 0
        self.by_class: Tensor | None = None  # [2, C]: Σp and count of each class

    def look(
        self,
        state: RuleState,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> None:
        """Takes in the batch that ``state`` reports.

        Args:
            losses, mask, weight: as the operators take them: what advice is found from.
        """
        if self.has_warned or self.batches > LOOK or _must_not_look(state.reports):
            return
        if least_share(state) == 0:  # nothing to judge: no work for it either
            return
        if self.batches < LOOK:
            if self.halves is None or self.halves.device != state.reports.device:
                self.halves = torch.zeros_like(state.reports)
            last = state.reports[0].nan_to_num(0.0, 0.0, 0.0)  # of a bad batch, or before the first
            self.halves[2 * self.batches // LOOK].add_(last)
            self.batches += 1
            if self.batches == LOOK:
                advice = _safe_lam(state, losses, mask, weight)
                ends = [t.reshape(1) for t in (state.lam, advice)]
                found = torch.cat([self.halves.flatten(), *ends])
                self.host = found.to("cpu", non_blocking=True)
                if found.is_cuda:
                    self.arrived = torch.cuda.Event()
                    self.arrived.record()
        if self.host is not None and (self.arrived is None or self.arrived.query()):
            *halves, lam, advised = self.host.tolist()
            n = len(halves) // 2
            first, later = Report(*halves[:n]), Report(*halves[n:])
            self.batches, self.halves, self.host, self.arrived = LOOK + 1, None, None, None
            self._judge(first, later, lam, advised, state)

    def _judge(
        self, first: Report, later: Report, lam: float, advised: float, state: RuleState
    ) -> None:
        """From sums over each half of the batches."""
        count = first.count + later.count
        if count == 0:
            return
        share = (first.effective_samples + later.effective_samples) / count
        least = least_share(state)
        if not (share < least and (lam < 0 or _weighs_the_bulk(first, later, lam))):
            return
        self.has_warned = True
        larger = f", or λ = {advised:.2g}" if math.isfinite(advised) else ""
        remedy = "" if state.is_negative else ", with keep_loss=True"
        noisy = ", noisy=True" if state.is_negative else ""
        warnings.warn(
            f"the effective sample size was {share:.2g} of a batch over the first {LOOK} batches "
            f"since λ was set; where it is below {least:g}, training often collapses. Set "
            f"lam=EffectiveSampleSize({SAFE:g}{noisy}){larger}{remedy}",
            stacklevel=_outside(),
        )

    def miss(self, state: RuleState) -> None:
        """A step was taken, and no batch has been weighed yet: says once that this is SGD."""
        self.missed += 1
        if self.missed != MISSED or _must_not_look(state.reports):
            return
        if state.rule is not None or math.isfinite(float(state.lam)):
            warnings.warn(
                f"{MISSED} steps were taken and no batch was weighed: this is plain SGD, whatever "
                "lam says. Call loss = opt.weigh(losses) on the per-sample losses "
                '(reduction="none"), or let AttentionalLoss(criterion, optimizer=opt) do it',
                stacklevel=_outside(),
            )

    def wants_classes(self, state: RuleState) -> bool:
        """Whether `look_at_classes` has still something to find out."""
        return state.is_negative and not self.has_named and self.class_batches < LOOK

    def look_at_classes(self, weights: Tensor, target: Tensor) -> None:
        """Where λ < 0 gives up samples as wrongly labelled: whether it gives up a class.

        Args:
            weights: p of the batch; 0 where a sample does not count.
            target: int64 class indices in the weights' shape, on the CPU, where nobody has to
                wait; negative where a sample does not count, or has a base measure of 0.
        """
        counts = target >= 0
        classes = target[counts]
        rows = torch.stack([weights[counts].double(), torch.ones_like(classes).double()])
        size = max(int(classes.max()) + 1 if len(classes) else 0, _classes(self.by_class))
        grown = rows.new_zeros(2, size)
        if self.by_class is not None:
            grown[:, : self.by_class.shape[1]] = self.by_class
        self.by_class = grown.index_add_(1, classes, rows)
        self.class_batches += 1
        if self.class_batches < LOOK:
            return
        p, n = self.by_class
        share = (p / n) / (p.sum() / n.sum())
        dropped = ((n >= CLASS_SAMPLES) & (share < DROPPED)).nonzero().flatten().tolist()
        self.by_class = None
        if dropped:
            self.has_named = True
            warnings.warn(
                f"λ < 0 gives class(es) {dropped} less than {DROPPED:.0%} of the average weight: "
                "their samples are all taken for wrongly labelled, and will not be learned. "
                "Choose a larger |λ|, or EffectiveSampleSize(0.8, noisy=True); and class weights "
                "as class_weight=, not in the criterion",
                stacklevel=_outside(),
            )

    def check_reachable(self, state: RuleState, batch_size: int) -> None:
        """Says once that a batch of this size cannot meet the rule's target."""
        if state.rule is None or self.has_warned or self.was_reachable:
            return
        if torch.compiler.is_compiling():
            return
        sentence = unreachable(state.rule, batch_size)
        self.was_reachable = sentence is None  # then only an epoch's last batch can be too small
        if sentence is not None:
            self.has_warned = True
            warnings.warn(sentence, stacklevel=_outside())


def least_share(state: RuleState) -> float:
    """The share of a batch that has to be effective; 0 where a rule or both guards see to it."""
    if state.rule is not None or (state.keep_loss and state.max_weight is not None):
        return 0.0
    if state.is_negative:
        return SELECTIVE_NEGATIVE
    return SELECTIVE_KEPT if state.keep_loss or state.max_weight is not None else SELECTIVE


def _weighs_the_bulk(first: Report, later: Report, lam: float) -> bool:
    """Whether the mean loss is of λ's size, and does not fall."""
    is_large = first.mean_loss + later.mean_loss > LOOK * LEVEL * lam
    return is_large and later.mean_loss > FALL * first.mean_loss


def _safe_lam(
    state: RuleState, losses: Tensor | None, mask: Tensor | None, weight: Tensor | None
) -> Tensor:
    """λ at which `SAFE` of these losses would be effective; ±∞ if nobody can tell."""
    rule = EffectiveSampleSize(SAFE, noisy=state.is_negative)
    lam = torch.full_like(state.lam, -math.inf if state.is_negative else math.inf)
    if losses is not None:
        torch.ops.absgd.follow_lam(losses, mask, weight, rule.to_tensor(lam.device), lam)
    return lam


def _classes(by_class: Tensor | None) -> int:
    return 0 if by_class is None else by_class.shape[1]


def _must_not_look(reports: Tensor) -> bool:
    return torch.compiler.is_compiling() or (
        reports.is_cuda and torch.cuda.is_current_stream_capturing()
    )


def _outside() -> int:
    """The stack level, as ``warnings.warn`` in its caller counts it, of whoever called into this
    package (and torch's own modules between them)."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        ("torch_absgd", "torch.", "contextlib")
    ):
        frame, level = frame.f_back, level + 1
    return level
