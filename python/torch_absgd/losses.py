"""Fused per-sample classification losses, for `ABSGD.weigh` and `AttentionalLoss`.

Each returns one loss an element of the target; there is no ``reduction``. Forward reads the logits
once, backward reads them once and writes their gradient: no other tensor of their size is made.
The formula of them all stands in ``csrc/absgd.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from . import _checks
from ._checks import check_integer, positive_counts
from ._loss_ops import arithmetic_type, softmax_loss


class PerSampleLoss(nn.Module):
    """What the losses share: class weights, ``ignore_index`` and the checks of a call.

    Class weights, margins and offsets are buffers that keep their dtype (float32, or the float64
    that they came in) through ``.half()`` and ``.to(dtype)``; they may differ from the logits'.
    """

    weight: Tensor | None
    scale = 1.0
    gamma = 0.0
    takes_probabilities = False

    def __init__(self, weight: Tensor | None, ignore_index: int, label_smoothing: float) -> None:
        _check_weight(weight)
        check_integer("ignore_index", ignore_index)
        _checks.check_number(
            "label_smoothing",
            label_smoothing,
            "in [0, 1]",
            _checks.is_real(label_smoothing) and 0 <= label_smoothing <= 1,
        )
        super().__init__()
        self.register_buffer("weight", None if weight is None else _at_least_float32(weight))
        self.ignore_index = int(ignore_index)
        self.label_smoothing = float(label_smoothing)

    def options(self, dtype: torch.dtype) -> tuple[Tensor | float | None, ...]:
        """What the operators take after the target, values of a class in ``dtype``."""
        per_class = map(self._buffers.get, ("weight", "margin", "offset"))
        return (
            *[v if v is None or v.dtype is dtype else v.to(dtype) for v in per_class],
            self.scale,
            self.gamma,
            self.label_smoothing,
            self.ignore_index,
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of each element.

        Args:
            input: logits, (C), (N, C) or (N, C, d1, …); float32, float64, float16 or bfloat16.
            target: int64 class indices in [0, C) or ``ignore_index``, of shape (), (N) or
                (N, d1, …). Where the loss takes class probabilities: these, in input's shape.

        Returns:
            losses in the shape of class indices, float64 for float64 logits and else float32; 0
            where ``target`` is ``ignore_index``. The gradient comes in the logits' dtype.

        Raises:
            TypeError: a dtype is none of those named, or the loss takes class indices only.
            ValueError: shapes or devices do not go together.
            RuntimeError: a target is outside [0, C) (on the CPU).
        """
        self.check_call(input, target)
        return softmax_loss(input, target, *self.options(arithmetic_type(input.dtype)))

    def counted(self, target: Tensor) -> Tensor | None:
        """True where an element of ``target`` counts; None if all do (class probabilities)."""
        return None if target.is_floating_point() else target != self.ignore_index

    def extra_repr(self) -> str:
        names = ("scale", "gamma", "label_smoothing", "ignore_index")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def check_call(self, input: Tensor, target: Tensor) -> None:
        """Raises what `forward` documents, but for the range of targets."""
        for name, value in (("input", input), ("target", target)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value)}")
        if not input.is_floating_point():
            raise TypeError(f"input must be floating point, got {input.dtype}")
        if input.device != target.device:
            raise ValueError(
                f"input and target must be on one device, got {input.device} and {target.device}"
            )
        if input.dim() == 0:
            raise ValueError("input must have shape (C), (N, C) or (N, C, d1, …), got ()")
        shape = input.shape
        classes = shape[0] if input.dim() == 1 else shape[1]
        if classes == 0:
            raise ValueError(f"input must have at least one class, got shape {tuple(shape)}")
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.numel() != classes:
                raise ValueError(
                    f"input must have as many classes as {name}, {buffer.numel()}, got {classes}"
                )
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PerSampleLoss:
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer).device)
        return self


class PerSampleCrossEntropy(PerSampleLoss):
    """Cross-entropy, as ``nn.CrossEntropyLoss(reduction="none")`` computes it.

    Takes class indices or class probabilities (mixup, CutMix, soft labels).

    Args:
        weight: (C) class weights ≥ 0. A weight of 0 is not a mask: the element counts.
        ignore_index: target of elements whose loss is 0 and which do not count; class indices only.
        label_smoothing: in [0, 1].

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """

    takes_probabilities = True

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, ignore_index, label_smoothing)


class PerSampleFocal(PerSampleLoss):
    """Focal loss, −w_y·(1 − P_y)^γ·log P_y.

    Lin et al.: Focal Loss for Dense Object Detection. ICCV 2017, Equation 4, over the softmax.

    Args:
        gamma: γ ≥ 0; 0 is cross-entropy.
        weight, ignore_index: as in `PerSampleCrossEntropy`; class indices only.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """

    def __init__(
        self, gamma: float = 2.0, weight: Tensor | None = None, ignore_index: int = -100
    ) -> None:
        _checks.check_finite_nonnegative("gamma", gamma)
        super().__init__(weight, ignore_index, label_smoothing=0.0)
        self.gamma = float(gamma)


class PerSampleLDAM(PerSampleLoss):
    """Label-distribution-aware margin loss: cross-entropy of scale·(x_c − Δ_y·[c = y]).

    Cao et al.: Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss. NeurIPS
    2019, Equations 11–13: Δ_j ∝ n_j^(−1/4), the largest being ``max_margin``.

    Margins and scale are meant for logits that are cosines in [−1, 1]: make the last layer a
    `NormedLinear`. On unbounded logits, a loss and gradients 30 times as large can end in NaN.

    Args:
        class_counts: n_j > 0, the training samples of each class; any sequence, array or tensor.
        max_margin: margin of the rarest class, ≥ 0.
        scale: > 0.
        weight, ignore_index: as in `PerSampleCrossEntropy`; class indices only.
        label_smoothing: in [0, 1], on the margin-shifted, scaled logits.

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
    ) -> None:
        counts = positive_counts(class_counts)
        _checks.check_finite_nonnegative("max_margin", max_margin)
        _checks.check_positive("scale", scale)
        super().__init__(weight, ignore_index, label_smoothing)
        self.scale = float(scale)
        margin = counts**-0.25
        self.register_buffer("margin", (margin * (max_margin / margin.max())).float())


class PerSampleLogitAdjusted(PerSampleLoss):
    """Logit-adjusted cross-entropy: of x_c + τ·log π_c, π_c being the share of class c.

    Menon et al.: Long-Tail Learning via Logit Adjustment. ICLR 2021, Equation 10. Predict with the
    bare logits.

    Args:
        class_counts: > 0, the training samples of each class; any sequence, array or tensor.
        tau: τ, finite; 0 is cross-entropy.
        weight, ignore_index, label_smoothing: as in `PerSampleCrossEntropy`.

    Raises:
        TypeError, ValueError: an argument is not what is said above; a class is empty.
    """

    takes_probabilities = True
    offset: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        tau: float = 1.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        counts = positive_counts(class_counts)
        _checks.check_finite("tau", tau)
        super().__init__(weight, ignore_index, label_smoothing)
        self.register_buffer("offset", (tau * (counts / counts.sum()).log()).float())


def _check_weight(weight: object) -> None:
    if weight is None:
        return
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor of class weights or None, got {type(weight)}")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, got {weight.dtype}")
    if weight.dim() != 1 or weight.numel() == 0:
        raise ValueError(f"weight must have shape (C) with C ≥ 1, got {tuple(weight.shape)}")
    if not weight.is_meta and not bool((weight.isfinite() & (weight >= 0)).all()):
        raise ValueError(f"weight must be finite and ≥ 0, got {weight.tolist()}")


def _at_least_float32(values: Tensor) -> Tensor:
    return values.detach() if values.dtype is torch.float64 else values.detach().float()
