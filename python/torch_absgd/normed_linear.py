"""The last layer that LDAM needs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _checks


def unit(rows: Tensor) -> Tensor:
    """Each row over its norm, which half precision would overflow: computed in float32 for it. A
    row of zeros stays one, and its gradient is 0."""
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    norm: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    norm = norm.masked_fill(norm == 0, math.inf)
    return (wide / norm).to(rows.dtype)


class NormedLinear(nn.Linear):
    """Cosines between the features and each class's weight: a linear layer, both normalised.

    Logits lie in [−1, 1], as `PerSampleLDAM`'s margins and scale take them to (Cao et al. 2019).
    It has no bias.

    Args:
        in_features: size of the features.
        out_features: C.
        device, dtype: as in ``nn.Linear``.

    Raises:
        TypeError, ValueError: a size is not an integer ≥ 0.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            _checks.check_integer(name, value, least=0, most=2**31 - 1)
        super().__init__(in_features, out_features, bias=False, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        return F.linear(unit(input), unit(self.weight))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
