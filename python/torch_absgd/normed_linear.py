"""The last layer that LDAM needs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class NormedLinear(nn.Linear):
    """Cosines between the features and each class's weight: a linear layer, both normalised.

    Logits lie in [−1, 1], as `PerSampleLDAM`'s margins and scale take them to (Cao et al. 2019).
    It has no bias.

    Args:
        in_features: size of the features.
        out_features: C.
        device, dtype: as in ``nn.Linear``.
    """

    def __init__(
        self, in_features: int, out_features: int, device: object = None, dtype: object = None
    ) -> None:
        super().__init__(in_features, out_features, bias=False, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        return F.linear(F.normalize(input, dim=-1), F.normalize(self.weight, dim=-1))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
