"""Which samples the weights attend to: what each sample's weight and loss were over an epoch.

A large weight at λ > 0 marks what is hard or rare; a small one at λ < 0 what is likely mislabelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from . import _checks

Column = Literal["weight", "loss", "capped"]


class SampleRecord:
    """Means per sample index, to be fed by the training loop::

        record = SampleRecord(len(dataset))          # a data set that returns (index, x, y)
        for index, x, y in loader:
            losses = F.cross_entropy(model(x), y, reduction="none")
            opt.weigh(losses).backward()
            record.update(index, losses, opt.weights)
            ...
        print(record.table(10))                      # the ten largest mean weights
        suspects = record.top(10, largest=False)     # at λ < 0: the likeliest wrong labels

    The sums live on the losses' device, and updating them does not wait for it. Those of several
    processes add up: ``all_reduce(record.sums)``.

    Args:
        size: samples of the data set, ≥ 1.

    Attributes:
        sums: float64 [4, size]: how often seen, Σ weight, Σ loss, how often capped.

    Raises:
        TypeError, ValueError: ``size`` is not an integer ≥ 1.
    """

    def __init__(self, size: int) -> None:
        self.size = _checks.check_integer("size", size, least=1)
        self.sums = torch.zeros(4, self.size, dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def update(
        self,
        indices: Tensor,
        losses: Tensor,
        weights: Tensor,
        capped: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Takes in a batch. A sample whose loss or weight is not finite is left out.

        Args:
            indices: integers in [0, size), one a sample. (On a device the range is its own to
                check.)
            losses, weights: per sample, in the shape of ``indices``; any floating dtype.
            capped: bool in that shape: where ``max_weight`` bound.
            mask: likewise, as `ABSGD.weigh` has it: the others are left out.

        Raises:
            TypeError, ValueError, IndexError: naming the argument; nothing is changed then.
        """
        _checks.check_record_update(self.size, indices, losses, weights, capped, mask)
        device = losses.device
        columns = [torch.ones_like(losses), weights, losses]
        columns.append(torch.zeros_like(losses) if capped is None else capped)
        batch = torch.stack([column.detach().flatten().to(device).double() for column in columns])
        counts = batch.isfinite().all(0)
        if mask is not None:
            counts &= mask.flatten().to(device)
        batch = batch.masked_fill(~counts, 0)
        self.sums = self.sums.to(device)
        self.sums.index_add_(1, indices.flatten().to(device, torch.int64), batch)

    def clear(self) -> None:
        """Forgets all, as at the beginning of an epoch."""
        self.sums.zero_()

    @property
    def times(self) -> Tensor:
        """How often each sample was seen, [size]."""
        return self.sums[0]

    @property
    def weight(self) -> Tensor:
        """The mean weight of each sample, float64 [size]; NaN for one that was not seen."""
        return self.sums[1] / self.sums[0]

    @property
    def loss(self) -> Tensor:
        """The mean loss, likewise."""
        return self.sums[2] / self.sums[0]

    @property
    def capped(self) -> Tensor:
        """The share of times that its weight was capped, likewise."""
        return self.sums[3] / self.sums[0]

    def top(self, k: int, by: Column = "weight", largest: bool = True) -> Tensor:
        """The indices of the ``k`` samples (fewer, if fewer were seen) with the largest, or
        smallest, mean, in that order; ties in order of the index.

        Raises:
            TypeError, ValueError: ``k`` is not an integer ≥ 0, or ``by`` no column.
        """
        k = _checks.check_integer("k", k, least=0)
        _checks.check_choice("by", by, ("weight", "loss", "capped"))
        values: Tensor = getattr(self, by)
        seen = self.times.nonzero().flatten()
        order = values[seen].sort(descending=largest, stable=True).indices
        return seen[order[:k]]

    def table(self, k: int = 10, by: Column = "weight", largest: bool = True) -> str:
        """`top` for a terminal, a line a sample."""
        rows = [f"{'index':>9} {'weight':>10} {'loss':>10} {'capped':>8} {'seen':>6}"]
        means = torch.stack([self.weight, self.loss, 100 * self.capped, self.times]).cpu()
        for index in self.top(k, by, largest).tolist():
            weight, loss, capped, times = means[:, index].tolist()
            rows.append(f"{index:9} {weight:10.4g} {loss:10.4g} {capped:6.1f} % {times:6.0f}")
        return "\n".join(rows)

    def __repr__(self) -> str:
        return f"SampleRecord({self.size}), {int((self.times > 0).sum())} samples seen"

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.clone()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises ValueError, and changes nothing, if it is of another number of samples."""
        sums = state_dict["sums"]
        if tuple(sums.shape) != (4, self.size):
            raise ValueError(
                f"sums must have shape {(4, self.size)}, got {tuple(sums.shape)}: the state is of "
                "a record of another size"
            )
        self.sums = sums.to(self.sums.device, torch.float64, copy=True)
