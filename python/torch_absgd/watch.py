"""One warning, early: when the weights that have just begun are too selective for training.

The first batches after λ was set are added up where the losses are, and looked at once, without
waiting for a device.
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor

from .lam_rules import unreachable
from .rule_state import RuleState
from .stats import Report

LOOK = 20  # batches that are added up
FEW = 0.1  # of a batch effective: fewer make a step of a handful of samples
LONG = 3.0  # times as long a step as plain SGD's, which the learning rate was chosen for
DROPPED = 0.05  # of the average weight: a class with less is hardly trained on
CLASS_SAMPLES = 10  # of a class, before its share says anything


class Watch:
    """Looks at the first batches after λ was set; warns once in an optimizer's life."""

    def __init__(self) -> None:
        self.has_warned = self.has_named = False
        self.begin()

    def begin(self) -> None:
        """λ was set: the next batches are looked at."""
        self.batches = 0
        self.total: Tensor | None = None  # of their reports
        self.host: Tensor | None = None  # the same, on its way to the host
        self.arrived: torch.cuda.Event | None = None
        self.by_class: Tensor | None = None  # [2, C]: Σp and count of each class

    def look(self, state: RuleState) -> None:
        """Takes in the batch that ``state`` reports."""
        if self.has_warned or self.batches > LOOK or _must_not_look(state.reports):
            return
        if self.batches < LOOK:
            last = state.reports[0]
            self.total = last.clone() if self.total is None else self.total.add_(last)
            self.batches += 1
            if self.batches == LOOK:
                self.host = self.total.to("cpu", non_blocking=True)
                if self.total.is_cuda:
                    self.arrived = torch.cuda.Event()
                    self.arrived.record()
        if self.host is not None and (self.arrived is None or self.arrived.query()):
            mean = Report(*(self.host / LOOK).tolist())
            self.batches, self.total, self.host = LOOK + 1, None, None
            self._judge(mean, state)

    def _judge(self, mean: Report, state: RuleState) -> None:
        length = mean.kappa * mean.weighted_loss / mean.mean_loss if mean.mean_loss > 0 else 1.0
        effective = mean.effective_samples / mean.count
        guarded = state.keep_loss or state.max_weight is not None
        if not (length > LONG or (effective < FEW and not guarded)):
            return
        self.has_warned = True
        warnings.warn(
            f"the weights leave {mean.effective_samples:.3g} of {mean.count:.4g} samples of a batch "
            f"effective and make its step {length:.3g} times as long as plain SGD's (mean of the "
            f"{LOOK} batches since λ was set): training may collapse. Choose "
            "lam=EffectiveSampleSize(0.8) in place of a number for λ, and keep_loss=True, which "
            "keeps the step's length",
            stacklevel=_outside(),
        )

    def look_at_classes(self, state: RuleState, weights: Tensor, target: Tensor) -> None:
        """Where λ < 0 gives up samples as wrongly labelled: whether it gives up a class.

        Args:
            weights: p of the batch; 0 where a sample does not count.
            target: int64 class indices in the weights' shape; negative where ignored.
        """
        if not state.is_negative or self.has_named or not 0 < self.batches <= LOOK:
            return
        if target.device.type != "cpu" or target.numel() == 0:  # asked where nobody has to wait
            return
        counts = target >= 0
        classes = target[counts]
        rows = torch.stack([weights[counts].double(), torch.ones_like(classes).double()])
        size = max(int(classes.max()) + 1 if len(classes) else 0, _classes(self.by_class))
        grown = rows.new_zeros(2, size)
        if self.by_class is not None:
            grown[:, : self.by_class.shape[1]] = self.by_class
        self.by_class = grown.index_add_(1, classes, rows)
        if self.batches < LOOK:
            return
        p, n = self.by_class
        share = (p / n) / (p.sum() / n.sum())
        dropped = ((n >= CLASS_SAMPLES) & (share < DROPPED)).nonzero().flatten().tolist()
        self.by_class = None
        if dropped:
            self.has_named = True
            warnings.warn(
                f"λ < 0 gives class(es) {dropped} less than {DROPPED:.0%} of the average weight: "
                "all of their samples are taken for wrongly labelled, and they will not be learned. "
                "Choose a larger |λ|, or EffectiveSampleSize(0.8, noisy=True); and class weights "
                "as class_weight=, not in the criterion",
                stacklevel=_outside(),
            )

    def check_reachable(self, state: RuleState, batch_size: int) -> None:
        """Says once that a batch of this size cannot meet the rule's target."""
        if self.has_warned or self.batches > 0 or state.rule is None:
            return
        sentence = unreachable(state.rule, batch_size)
        if sentence is not None:
            self.has_warned = True
            warnings.warn(sentence, stacklevel=_outside())


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
