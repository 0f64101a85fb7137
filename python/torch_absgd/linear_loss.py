"""Cross-entropy of a last layer's outputs without ever holding them all, for huge class counts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_integer
from ._class_values import ClassValues, check_class_weight, check_pair
from ._ops import arithmetic_type


class PerSampleLinearCrossEntropy(ClassValues):
    """``PerSampleCrossEntropy(weight, ignore_index)(F.linear(input, linear_weight, linear_bias),
    target)`` by torch's chunked ``F.linear_cross_entropy``, which never holds all N·C logits::

        criterion = PerSampleLinearCrossEntropy()
        losses = criterion(features, head.weight, target, head.bias)
        loss = opt.weigh(losses, mask=criterion.counted(target))

    What torch excepts there is excepted here: it is differentiated once, by ``backward()`` and not
    by ``torch.func``, ``torch.compile`` leaves it to eager, and there is no label smoothing. It
    pays off where C is much larger than D.

    Args:
        weight: (C) class weights ≥ 0.
        ignore_index: target of samples whose loss is 0; ``counted(target)`` masks them.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
        RuntimeError: torch has no ``nn.LinearCrossEntropyOptions``; it came with 2.15.
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, ignore_index: int = -100) -> None:
        check_class_weight("weight", weight)
        check_integer("ignore_index", ignore_index)
        if not hasattr(nn, "LinearCrossEntropyOptions"):
            raise RuntimeError(
                "PerSampleLinearCrossEntropy needs torch.nn.LinearCrossEntropyOptions, of torch "
                f"2.15 or newer, and this is torch {torch.__version__}"
            )
        super().__init__()
        self.hold("weight", weight)
        self.ignore_index = int(ignore_index)

    def forward(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
    ) -> Tensor:
        """The loss of each sample.

        Args:
            input: features, (N, D).
            linear_weight: (C, D), in input's dtype; under autocast in any.
            target: int64 class indices in [0, C) or ``ignore_index``, of shape (N).
            linear_bias: (C), like ``linear_weight``.

        Returns:
            losses (N), float64 for float64 features and else float32: half-precision arguments are
            computed in float32, by way of copies. Gradients come in the arguments' dtypes.

        Raises:
            TypeError: a dtype is none of those named.
            ValueError: shapes or devices do not go together.
        """
        check_pair(input, target)
        if target.dtype is not torch.int64:
            raise TypeError(f"target must hold int64 class indices, got {target.dtype}")
        if input.dim() != 2 or target.shape != input.shape[:1]:
            raise ValueError(
                "input must have shape (N, D) and target (N), got "
                f"{tuple(input.shape)} and {tuple(target.shape)}"
            )
        if linear_weight.dim() != 2 or linear_weight.shape[1] != input.shape[1]:
            raise ValueError(
                f"linear_weight must have shape (C, D) with D = {input.shape[1]}, got "
                f"{tuple(linear_weight.shape)}"
            )
        self.check_classes(linear_weight.shape[0])
        dtype = arithmetic_type(input.dtype)
        losses: Tensor = F.linear_cross_entropy(
            input.to(dtype),
            linear_weight.to(dtype),
            target,
            linear_bias=None if linear_bias is None else linear_bias.to(dtype),
            weight=self.values_in(dtype, "weight")[0],
            reduction="none",
            ignore_index=self.ignore_index,
            options=nn.LinearCrossEntropyOptions(),
        )
        return losses

    def counted(self, target: Tensor) -> Tensor:
        """True where a sample counts."""
        return target != self.ignore_index

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}"
