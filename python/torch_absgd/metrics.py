"""The numbers that work on imbalanced and noisy data reports, from predictions and targets.

    print(ta.metrics.report(logits, target, class_counts=train_counts, groups=group))

Weighting moves probabilities, so calibration stands beside accuracy. All are of one process' data:
with several, gather predictions first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from . import _checks

SHOWN_CLASSES = 20  # rows of a table; of more classes, the worst


@dataclass(frozen=True, eq=False)
class Report:
    """What `report` found; ``print`` shows a table, ``dict(report)`` is its numbers, for loggers.

    Accuracies are in [0, 1], None where they are not defined.
    """

    overall: float  # of the samples
    balanced: float  # the mean over the classes that have samples
    worst_class: float
    many: float | None  # means over classes with > 100 training samples,
    medium: float | None  # 20 to 100,
    few: float | None  # and < 20 (Liu et al. 2019)
    worst_group: float | None
    worst_three_groups: float | None  # their mean
    ece: float | None  # where logits were given
    per_class: Tensor  # float64 [C], NaN where a class has no sample
    per_group: Tensor | None  # float64 [G], likewise
    evaluated: Tensor  # int64 [C], samples of each class
    class_counts: Tensor | None  # float64 [C], training samples

    def keys(self) -> Iterator[str]:
        """The names of the numbers that are defined."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return iter([name for name, value in values if isinstance(value, float)])

    def __getitem__(self, name: str) -> float:
        if name not in self.keys():
            raise KeyError(name)
        return float(getattr(self, name))

    def __str__(self) -> str:
        numbers = [
            f"{name.replace('_', ' '):18} {value:8.4f}"
            if name == "ece"
            else f"{name.replace('_', ' '):18} {100 * value:6.2f} %"
            for name, value in dict(self).items()
        ]
        return "\n".join([*self._class_rows(), "", *numbers])

    def _class_rows(self) -> list[str]:
        classes = self.evaluated.nonzero().flatten()
        title = ""
        if len(classes) > SHOWN_CLASSES:
            title = f" (the worst {SHOWN_CLASSES} of {len(classes)} classes)"
            worst = self.per_class[classes].sort(stable=True).indices[:SHOWN_CLASSES]
            classes = classes[worst]
        rows = [f"{'class':>6} {'training':>9} {'evaluated':>9}  accuracy{title}"]
        for c in classes.tolist():
            training = "" if self.class_counts is None else f"{float(self.class_counts[c]):.0f}"
            accuracy = 100 * float(self.per_class[c])
            rows.append(f"{c:6} {training:>9} {int(self.evaluated[c]):9}  {accuracy:6.2f} %")
        return rows


def report(
    prediction: Tensor,
    target: Tensor,
    class_counts: _checks.Counts | None = None,
    groups: Tensor | None = None,
    ignore_index: int = -100,
) -> Report:
    """Accuracy by sample, class, shots and group, and the calibration error.

    Args:
        prediction: logits, floating point (N, C) or (N, C, d1, …), or predicted classes, integers
            in the shape of ``target``.
        target: the classes, integers (N) or (N, d1, …).
        class_counts: the training samples of each class, for many, medium and few; as
            `class_balanced_weights` takes them, 0 allowed.
        groups: integers ≥ 0 in the shape of ``target``: which group (a hidden sub-population, an
            attribute) each belongs to.
        ignore_index: targets that do not count.

    Returns:
        a `Report`, on the CPU.

    Raises:
        TypeError, ValueError: an argument is not what is said above, or no target counts.
    """
    predicted, logits, target, groups = _checks.check_predictions(
        prediction, target, groups, ignore_index
    )
    counts = None if class_counts is None else _checks.nonnegative_counts(class_counts)
    classes = 1 + int(torch.stack([predicted.max(), target.max()]).max())
    if logits is not None:
        classes = max(classes, logits.shape[1])
    if counts is not None:
        if len(counts) < classes:
            raise ValueError(f"class_counts must have {classes} classes, got {len(counts)}")
        classes = len(counts)
    correct = predicted == target
    per_class, evaluated = _mean_by(correct, target, classes)
    per_group = None
    if groups is not None:
        per_group, _ = _mean_by(correct, groups, 1 + int(groups.max()))
    return Report(
        overall=float(correct.double().mean()),
        balanced=float(per_class.nanmean()),
        worst_class=_worst(per_class, 1),
        many=None if counts is None else _mean_of(per_class, counts > 100),
        medium=None if counts is None else _mean_of(per_class, (counts >= 20) & (counts <= 100)),
        few=None if counts is None else _mean_of(per_class, counts < 20),
        worst_group=None if per_group is None else _worst(per_group, 1),
        worst_three_groups=None if per_group is None else _worst(per_group, 3),
        ece=None if logits is None else expected_calibration_error(logits, target),
        per_class=per_class,
        per_group=per_group,
        evaluated=evaluated,
        class_counts=counts,
    )


def expected_calibration_error(logits: Tensor, target: Tensor, bins: int = 15) -> float:
    """Σ_m |B_m|/N · |accuracy(B_m) − confidence(B_m)| over ``bins`` bins of equal width of the
    largest probability (Guo et al.: On Calibration of Modern Neural Networks. ICML 2017).

    Args:
        logits: (N, C), whose softmax are the probabilities.
        target: (N), integers.

    Raises:
        TypeError, ValueError: as in `report`; ``bins`` is not an integer ≥ 1.
    """
    bins = _checks.check_integer("bins", bins, least=1, most=_checks.MOST_CLASSES)
    predicted, checked, target, _ = _checks.check_predictions(logits, target, name="logits")
    if checked is None:
        raise TypeError(f"logits must be floating point (N, C), got {logits.dtype}")
    parts = checked.split(4096)  # of many samples and classes, float64 would take too much memory
    confidence = torch.cat([part.double().softmax(1).amax(1) for part in parts])
    bin_of = (confidence * bins).ceil().long().sub_(1).clamp_(0, bins - 1)
    gaps = confidence.new_zeros(bins)
    gaps.index_add_(0, bin_of, (predicted == target).double() - confidence)
    return float(gaps.abs().sum() / len(target))


def _mean_by(correct: Tensor, label: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(accuracy, float64 [size], NaN for a label that none has; samples of each label)."""
    samples = label.bincount(minlength=size)
    right = label[correct].bincount(minlength=size)
    return (right.double() / samples).cpu(), samples.cpu()


def _mean_of(values: Tensor, chosen: Tensor) -> float | None:
    mean = float(values[chosen].nanmean())
    return None if math.isnan(mean) else mean


def _worst(values: Tensor, how_many: int) -> float:
    return float(values[~values.isnan()].sort().values[:how_many].mean())
