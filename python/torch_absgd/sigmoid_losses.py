"""Fused per-sample losses for binary and multi-label problems, where each class is a question of
its own.

Forward reads logits and targets once, backward reads them once and writes the gradient: no other
tensor of their size is made. The formula of both losses stands in ``csrc/absgd.h``.
"""

from __future__ import annotations

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
)
from ._ops import arithmetic_type
from ._sigmoid_ops import sigmoid_loss


class PerSampleSigmoidLoss(ClassValues):
    """What the sigmoid losses share: unknown labels, and the mean over a sample's labels."""

    weight: Tensor | None
    label_smoothing = 0.0
    alpha = -1.0
    gamma = 0.0

    def __init__(self, ignore_index: int | None, per: str) -> None:
        if ignore_index is not None:
            check_integer("ignore_index", ignore_index)
            if ignore_index in (0, 1):
                raise ValueError(
                    f"Invalid ignore_index value: {ignore_index} (must be an integer that is no "
                    "target: neither 0 nor 1)"
                )
        _checks.check_choice("per", per, PER)
        super().__init__()
        self.ignore_index = None if ignore_index is None else int(ignore_index)
        self.per = per

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of each sample, or of each element.

        Args:
            input: logits, (N), (N, C) or (N, C, d1, …); float32, float64, float16 or bfloat16.
            target: in input's shape and of any real dtype: 0, 1, between them, or
                ``ignore_index``. Of float32 (float64 beside float64 logits) it is read as it is,
                and else converted. A constant.

        Returns:
            losses, (N), or in input's shape for ``per="element"``; float64 for float64 logits and
            else float32; 0 where no label is known. The gradient comes in the logits' dtype.

        Raises:
            TypeError: a dtype is none of those named.
            ValueError: shapes or devices do not go together, or target requires a gradient.
            RuntimeError: a target is outside [0, 1] (on the CPU; on CUDA its loss is NaN).
        """
        self.check_call(input, target)
        return sigmoid_loss(input, target, *self.options(input))

    def options(self, input: Tensor) -> tuple[Any, ...]:
        """What the operators take after the target."""
        classes = 1 if input.dim() == 1 else input.shape[1]
        weight, pos_weight = (
            v if v is None or v.numel() == classes else v.expand(classes)
            for v in self.values_in(arithmetic_type(input.dtype), "weight", "pos_weight")
        )
        return (
            weight,
            pos_weight,
            self.label_smoothing,
            self.alpha,
            self.gamma,
            self.ignore_index,
            self.per == "sample",
        )

    def losses_shape(self, input: Tensor) -> torch.Size:
        return input.shape if self.per == "element" else input.shape[:1]

    def counted(self, target: Tensor) -> Tensor | None:
        """True where a loss counts: an element whose label is known, a sample with such an
        element; None if all do."""
        if self.ignore_index is None:
            return None
        known = target != self.ignore_index
        return known if self.per == "element" or known.dim() < 2 else known.flatten(1).any(1)

    def check_call(self, input: Tensor, target: Tensor) -> None:
        """Raises what `forward` documents, but for the range of targets."""
        check_pair(input, target)
        if target.is_complex():
            raise TypeError(f"target must be real, got {target.dtype}")
        if input.dim() == 0:
            raise ValueError("input must have shape (N), (N, C) or (N, C, d1, …), got ()")
        if target.shape != input.shape:
            raise ValueError(
                f"target must have input's shape {tuple(input.shape)}, got {tuple(target.shape)}"
            )
        if target.requires_grad and torch.is_grad_enabled():
            raise ValueError("target must not require a gradient: detach it")
        self.check_classes(1 if input.dim() == 1 else input.shape[1], or_one=True)

    def extra_repr(self) -> str:
        names = ("alpha", "gamma", "label_smoothing", "ignore_index", "per")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class PerSampleBCE(PerSampleSigmoidLoss):
    """Binary cross-entropy of logits, as ``binary_cross_entropy_with_logits`` computes it.

    Takes soft targets (mixup, distillation).

    Args:
        weight: (C) or (1), class weights ≥ 0 of the loss. A weight of 0 is not a mask.
        pos_weight: (C) or (1), factors ≥ 0 of the positives' term, as torch's.
        label_smoothing: ε in [0, 1]; the target becomes (1−ε)·target + ε/2.
        ignore_index: target of labels that are not known, an integer other than 0 and 1, such as
            −1; their loss is 0, and they do not count in `AttentionalLoss`, or in `ABSGD.weigh`
            with ``mask=criterion.counted(target)``. None: all are known.
        per: "sample", a loss for each of N, the mean over its known labels: attention is on
            samples; one without any known label does not count. "element", a loss for each label:
            attention is on labels.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        per: str = "sample",
    ) -> None:
        check_class_weight("weight", weight)
        check_class_weight("pos_weight", pos_weight)
        check_label_smoothing(label_smoothing)
        super().__init__(ignore_index, per)
        self.hold("weight", weight)
        self.hold("pos_weight", pos_weight)
        self.label_smoothing = float(label_smoothing)


class PerSampleSigmoidFocal(PerSampleSigmoidLoss):
    """Focal loss of each label, α_t·(1 − P_t)^γ·(−log P_t), as torchvision's
    ``sigmoid_focal_loss`` computes it, for soft targets too.

    Lin et al.: Focal Loss for Dense Object Detection. ICCV 2017, Equation 5.

    Args:
        alpha: α in [0, 1], the factor of positives, 1 − α being that of negatives; −1: no factor.
        gamma: γ ≥ 0.
        ignore_index, per: as in `PerSampleBCE`.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        ignore_index: int | None = None,
        per: str = "sample",
    ) -> None:
        is_allowed = _checks.is_real(alpha) and (0 <= alpha <= 1 or alpha == -1)
        _checks.check_number("alpha", alpha, "in [0, 1], or −1 for none", is_allowed)
        _checks.check_finite_nonnegative("gamma", gamma)
        super().__init__(ignore_index, per)
        self.alpha, self.gamma = float(alpha), float(gamma)
