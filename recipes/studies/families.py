"""The methods of PLAN.md's part A, and the settings that each is tried with, as many for each."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

from studies.reference import Weighting
from studies.tasks import Task
from studies.trials import Way

LRS = [0.0125 * 2**k for k in range(8)]
DECAYS, TWO_DECAYS = (0.0, 5e-4, 5e-3), (5e-4, 5e-3)
ADAMW_LR, ADAMW_DECAY = 1 / 32, 20.0  # of the above


def size(target: float, noisy: bool = False) -> Weighting:
    return Weighting(-math.inf if noisy else math.inf, target, keep_loss=not noisy)


def number(lam: float, **guards: Any) -> Weighting:
    return Weighting(lam, **guards)


SGD = Way("SGD")
SNIPPET = Way("ABSGD", weighting=size(0.8))
SIZES = [Way("ABSGD, size tuned", weighting=size(t)) for t in (0.8, 0.5, 0.3)]
NUMBERS = [Way("ABSGD, λ tuned", weighting=number(lam, keep_loss=True)) for lam in (0.3, 1.0, 3.0)]
FOCAL = [Way("focal", focal=g) for g in (0.5, 1.0, 2.0)]
WEIGHTS = Way("class weights", class_weights=True)
LONG_TAIL = [
    [SGD], [SNIPPET], SIZES, NUMBERS, FOCAL, [WEIGHTS],
    [Way("class weights, ABSGD", weighting=size(0.8), class_weights=True)],
    [Way("logit-adjusted loss", tau=t) for t in (0.5, 1.0, 1.5)],
    [Way("logit-adjusted loss, ABSGD", weighting=size(0.8), tau=t) for t in (0.5, 1.0, 1.5)],
]  # fmt: skip
HIDDEN = [
    [SGD], [SNIPPET], SIZES, NUMBERS, FOCAL, [WEIGHTS],
    [Way("two passes (JTT)", kind="jtt", value=w) for w in (4.0, 16.0, 64.0)],
    [Way("group DRO, true groups", kind="dro", value=eta) for eta in (0.01, 0.1, 1.0)],
]  # fmt: skip
NOISY = [
    [SGD], [Way("ABSGD", weighting=size(0.8, True), start=0.25)],
    [Way("ABSGD, size tuned", weighting=size(t, True), start=0.25) for t in (0.8, 0.7, 0.6)],
    [Way("ABSGD, λ tuned", weighting=number(lam, keep_loss=True), start=0.25)
     for lam in (-0.5, -1.0, -2.0)],
    [Way("label smoothing", smooth=e) for e in (0.1, 0.3, 0.6)],
    [Way("generalised cross-entropy", gce=q) for q in (0.3, 0.5, 0.7)],
    [Way("small losses kept", kind="small", value=k) for k in (0.8, 0.7, 0.6)],
    [Way("TERM, tilt of the batch", weighting=number(1 / t, gamma=1.0))
     for t in (-0.25, -0.5, -1.0)],
]  # fmt: skip


def normalisers(noisy: bool) -> list[list[Way]]:
    """λ as a number without guards, four ways to divide exp(L/λ)."""
    lams, start = ((-0.5, -1.0, -2.0), 0.25) if noisy else ((0.3, 1.0, 3.0), 0.0)
    one = -1.0 if noisy else 1.0
    return [
        [SGD],
        [Way("moving average (Algorithm 1)", weighting=number(x), start=start) for x in lams],
        [Way("of the batch", weighting=number(x, gamma=1.0), start=start) for x in lams],
        [Way("of the batch's class", weighting=number(x), start=start, kind="per class")
         for x in lams],
        [Way("SCENT", weighting=number(one), start=start, kind="scent", value=a)
         for a in (0.1, 1.0, 10.0)],
    ]  # fmt: skip


def families(task: Task) -> list[list[Way]]:
    """Of a task: one list a method, its values of its own parameter, if it has one."""
    if task.noise:
        return NOISY
    is_hidden = len(task.counts) > task.num_classes
    return HIDDEN if is_hidden else LONG_TAIL


def trials(family: list[Way], optimizer: str = "sgd", noisy: bool = False) -> list[Way]:
    """The 24 settings of a method; 36 for noisy labels, which ask for more weight decay."""
    is_one = len(family) == 1
    lrs, decays = (LRS, DECAYS) if is_one else (LRS[1::2], TWO_DECAYS)
    if noisy:
        lrs, decays = ([LRS[0] / 2, *LRS] if is_one else lrs), (*decays, 5e-2)
    by_lr, by_decay = (ADAMW_LR, ADAMW_DECAY) if optimizer == "adamw" else (1.0, 1.0)
    return [
        replace(way, lr=by_lr * lr, weight_decay=by_decay * decay)
        for way, lr, decay in itertools.product(family, lrs, decays)
    ]
