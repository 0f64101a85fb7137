"""Fused per-sample classification losses, for `ABSGD.weigh` and `AttentionalLoss`.

Each returns one loss an element of the target; there is no ``reduction``. Forward reads the logits
once (twice for class probabilities in focal and LDAM), backward reads them once and writes their
gradient: no other tensor of their size is made, unless probabilities are differentiated as well.
The formula of them all stands in ``csrc/absgd.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._checks import check_integer
from ._class_values import (
    PER,
    ClassValues,
    check_class_weight,
    check_label_smoothing,
    check_pair,
    positive_counts,
)
from ._loss_ops import softmax_loss
from ._ops import arithmetic_type


class PerSampleLoss(ClassValues):
    """What the softmax losses share: class weights, ``ignore_index`` and the checks of a call."""

    weight: Tensor | None
    scale = 1.0
    gamma = 0.0
    takes_probabilities = True

    def __init__(
        self, weight: Tensor | None, ignore_index: int, label_smoothing: float, per: str
    ) -> None:
        check_class_weight("weight", weight)
        check_integer("ignore_index", ignore_index)
        check_label_smoothing(label_smoothing)
        _checks.check_choice("per", per, PER)
        super().__init__()
        self.hold("weight", weight)
        self.ignore_index = int(ignore_index)
        self.label_smoothing = float(label_smoothing)
        self.per = per

    def options(self, input: Tensor) -> tuple[Any, ...]:
        """What the operators take after the target."""
        return (
            *self.values_in(arithmetic_type(input.dtype), "weight", "margin", "offset"),
            self.scale,
            self.gamma,
            self.label_smoothing,
            self.ignore_index,
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of each element, or of each sample.

        Args:
            input: logits, (C), (N, C) or (N, C, d1, …); float32, float64, float16 or bfloat16.
            target: int64 class indices in [0, C) or ``ignore_index``, of shape (), (N) or
                (N, d1, …); or class probabilities (mixup, CutMix, distillation) in input's shape,
                for which the loss is the mean under them of the losses of the classes.

        Returns:
            losses in the shape of class indices, or () and (N) for ``per="sample"``; float64 for
            float64 logits and else float32; 0 where ``target`` is ``ignore_index``. The gradient
            comes in the logits' dtype.

        Raises:
            TypeError: a dtype is none of those named.
            ValueError: shapes or devices do not go together.
            RuntimeError: a target is outside [0, C) (on the CPU).
        """
        self.check_call(input, target)
        losses = softmax_loss(input, target, *self.options(input))
        if self.per == "element" or losses.dim() < 2:
            return losses
        counted = _not_ignored(target, self.ignore_index)
        if counted is None:
            return losses.flatten(1).mean(1)
        return losses.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)

    def counted(self, target: Tensor) -> Tensor | None:
        """True where a loss counts: an element that is not ignored, a sample with such an element;
        None if all do (class probabilities)."""
        counted = _not_ignored(target, self.ignore_index)
        if counted is None or self.per == "element" or counted.dim() < 2:
            return counted
        return counted.flatten(1).any(1)

    def losses_shape(self, input: Tensor) -> torch.Size:
        """Of the losses of class indices, before a mean over a sample's."""
        class_dim = min(input.dim() - 1, 1)
        return torch.Size([*input.shape[:class_dim], *input.shape[class_dim + 1 :]])

    def is_one_operator(self, input: Tensor, target: Tensor) -> bool:
        """Whether `forward` is the operator that takes `options`, and nothing after it."""
        return self.per == "element" or input.dim() <= 2

    def extra_repr(self) -> str:
        names = ("scale", "gamma", "label_smoothing", "ignore_index", "per")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def check_call(self, input: Tensor, target: Tensor) -> None:
        """Raises what `forward` documents, but for the range of targets."""
        check_pair(input, target)
        if input.dim() == 0:
            raise ValueError("input must have shape (C), (N, C) or (N, C, d1, …), got ()")
        shape = input.shape
        classes = shape[0] if input.dim() == 1 else shape[1]
        if classes == 0:
            raise ValueError(f"input must have at least one class, got shape {tuple(shape)}")
        self.check_classes(classes)
        if target.is_floating_point() and self.takes_probabilities:
            expected, kind = shape, "class probabilities"
        elif target.dtype is torch.int64:
            expected, kind = shape[:0] if input.dim() == 1 else shape[:1] + shape[2:], "indices"
        else:
            allowed = "int64 class indices" + " or probabilities" * self.takes_probabilities
            raise TypeError(f"target must hold {allowed}, got {target.dtype}")
        if target.shape != expected:
            raise ValueError(
                f"target must have shape {tuple(expected)} ({kind}) for input of shape "
                f"{tuple(shape)}, got {tuple(target.shape)}"
            )


class PerSampleCrossEntropy(PerSampleLoss):
    """Cross-entropy, as ``nn.CrossEntropyLoss(reduction="none")`` computes it.

    Takes class indices or class probabilities (mixup, CutMix, soft labels).

    Args:
        weight: (C) class weights ≥ 0. A weight of 0 is not a mask: the element counts.
        ignore_index: target of elements whose loss is 0, class indices only. They do not count in
            `AttentionalLoss`; for `ABSGD.weigh`, mask them with ``counted(target)``.
        label_smoothing: in [0, 1].
        per: "element", or "sample": for logits (N, C, d1, …) the mean over those elements of each
            of N that are not ignored, so that attention is on images or sequences, and not on
            pixels or tokens; one without any has loss 0 and does not count.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        per: str = "element",
    ) -> None:
        super().__init__(weight, ignore_index, label_smoothing, per)


class PerSampleFocal(PerSampleLoss):
    """Focal loss, −w_y·(1 − P_y)^γ·log P_y.

    Lin et al.: Focal Loss for Dense Object Detection. ICCV 2017, Equation 4, over the softmax.

    With class probabilities q: −Σ_c q_c·w_c·(1 − P_c)^γ·log P_c, the mean of the loss under q,
    which for mixup is the same mixture of the two labels' losses.

    Args:
        gamma: γ ≥ 0; 0 is cross-entropy.
        weight, ignore_index, per: as in `PerSampleCrossEntropy`.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        per: str = "element",
    ) -> None:
        _checks.check_finite_nonnegative("gamma", gamma)
        super().__init__(weight, ignore_index, 0.0, per)
        self.gamma = float(gamma)


class PerSampleLDAM(PerSampleLoss):
    """Label-distribution-aware margin loss: cross-entropy of scale·(x_c − Δ_y·[c = y]).

    Cao et al.: Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss. NeurIPS
    2019, Equations 11–13: Δ_j ∝ n_j^(−1/4), the largest being ``max_margin``.

    Margins and scale are meant for logits that are cosines in [−1, 1]: make the last layer a
    `NormedLinear`. On unbounded logits, a loss and gradients 30 times as large can end in NaN.

    With class probabilities q: Σ_y q_y·(the loss of class y, with y's margin on x_y alone), the
    mean of the loss under q, which for mixup is the same mixture of the two labels' losses: each
    class keeps its own margin, where a margin averaged over q would shift rare and frequent
    classes alike. With label smoothing, q sums to 1.

    Args:
        class_counts: n_j > 0, the training samples of each class; any sequence, array or tensor.
        max_margin: margin of the rarest class, ≥ 0.
        scale: > 0.
        weight, ignore_index, per: as in `PerSampleCrossEntropy`.
        label_smoothing: in [0, 1], on the margin-shifted, scaled logits.
        empty_count: > 0, stands for counts of 0; without it these are an error, for their margin
            would be infinite.

    Raises:
        TypeError, ValueError: an argument is not what is said above; a class is empty.
    """

    margin: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        max_margin: float = 0.5,
        scale: float = 30.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        empty_count: float | None = None,
        per: str = "element",
    ) -> None:
        counts = positive_counts(class_counts, empty_count)
        _checks.check_finite_nonnegative("max_margin", max_margin)
        _checks.check_positive("scale", scale)
        super().__init__(weight, ignore_index, label_smoothing, per)
        self.scale = float(scale)
        margin = counts**-0.25
        self.hold("margin", (margin * (float(max_margin) / margin.max())).float())


class PerSampleLogitAdjusted(PerSampleLoss):
    """Logit-adjusted cross-entropy: of x_c/T + τ·log π_c, π_c being the share of class c.

    Menon et al.: Long-Tail Learning via Logit Adjustment. ICLR 2021, Equation 10. Predict with the
    bare logits.

    Args:
        class_counts: > 0, the training samples of each class; any sequence, array or tensor.
        tau: τ, finite; 0 is cross-entropy.
        weight, ignore_index, label_smoothing, per: as in `PerSampleCrossEntropy`.
        temperature: T > 0, by which the logits are divided; the prior's part is not.
        empty_count: > 0, stands for counts of 0; without it these are an error, for their log π
            would be −∞.

    Raises:
        TypeError, ValueError: an argument is not what is said above; a class is empty.
    """

    offset: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        tau: float = 1.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        empty_count: float | None = None,
        per: str = "element",
    ) -> None:
        counts = positive_counts(class_counts, empty_count)
        _checks.check_finite("tau", tau)
        _checks.check_positive("temperature", temperature)
        super().__init__(weight, ignore_index, label_smoothing, per)
        self.scale = 1 / float(temperature)
        self.hold("offset", (float(tau) * (counts / counts.sum()).log()).float())


def logit_adjust(
    logits: Tensor,
    class_counts: Sequence[int] | Tensor,
    tau: float = 1.0,
    empty_count: float | None = None,
) -> Tensor:
    """Post-hoc logit adjustment: x_c − τ·log π_c, π_c being the share of class c in training.

    Menon et al.: Long-Tail Learning via Logit Adjustment. ICLR 2021, Equation 9. Predict with the
    largest; for a model that was trained with plain cross-entropy.

    Args:
        logits: (C), (N, C) or (N, C, d1, …), floating point.
        class_counts, empty_count: as in `PerSampleLogitAdjusted`.
        tau: τ, finite; 0 changes nothing.

    Returns:
        logits in their shape, dtype and device.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """
    counts = positive_counts(class_counts, empty_count)
    _checks.check_finite("tau", tau)
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits)
        raise TypeError(f"logits must be a floating-point tensor, got {kind}")
    if logits.layout is not torch.strided:
        raise TypeError(f"logits must be dense, got {logits.layout}")
    class_dim = min(logits.dim() - 1, 1)
    if logits.dim() == 0 or logits.shape[class_dim] != len(counts):
        raise ValueError(
            f"logits must have shape (C), (N, C) or (N, C, d1, …) with C = {len(counts)}, the "
            f"number of class_counts, got {tuple(logits.shape)}"
        )
    offset = float(tau) * (counts / counts.sum()).log()
    offset = offset.to(logits.device, arithmetic_type(logits.dtype))
    return (logits - offset.view([-1, *[1] * (logits.dim() - 1 - class_dim)])).to(logits.dtype)


def _not_ignored(target: Tensor, ignore_index: int) -> Tensor | None:
    return None if target.is_floating_point() else target != ignore_index
