"""Addresses of a parameter group's tensors, kept between steps.

Handing n tensors through the dispatcher costs about 1.5 µs each, more than the arithmetic of a
small model's step. A `StepTable` keeps their addresses in the layout of ``absgd_tensor`` and, at
each step, only makes sure that they still hold. It takes plain tensors alone; anything else
(subclasses, sparse or oddly strided tensors, tracing) goes the general way.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import attrgetter, is_

import torch
from torch import Tensor
from torch.nn import Parameter

COLUMNS = 5  # param, grad, momentum, numel, fresh
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class StepTable:
    """The table of one group's tensors, all of one device and dtype, dense and laid out alike."""

    def __init__(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], momenta: Sequence[Tensor]
    ) -> None:
        self.params, self.momenta = list(params), list(momenta)
        self.changed = self.params + self.momenta  # kept alive, as long as their addresses are
        self.anchor = params[0]
        self.is_plain = _are_plain(params, grads, momenta)
        if not self.is_plain:
            return
        self.addresses = [*map(Tensor.data_ptr, self.changed)]
        self.sizes = [*map(Tensor.numel, params)]
        self.strides = None if _are_contiguous(params) else [*map(Tensor.stride, params)]
        self.rows = array("q", bytes(8 * COLUMNS * len(params)))
        self.rows[0::COLUMNS] = array("q", self.addresses[: len(params)])
        if momenta:
            self.rows[2::COLUMNS] = array("q", self.addresses[len(params) :])
        self.rows[3::COLUMNS] = array("q", self.sizes)
        self.tensor = torch.frombuffer(self.rows, dtype=torch.int64).view(-1, COLUMNS)

    def describes(self, params: Sequence[Tensor], momenta: Sequence[Tensor]) -> bool:
        """Whether the tensors are still the same objects."""
        return _are_same(params, self.params) and _are_same(momenta, self.momenta)

    def update(self, grads: Sequence[Tensor]) -> bool:
        """Takes in this step's gradients. False if addresses or layouts are not what they were."""
        if not self.is_plain or [*map(Tensor.data_ptr, self.changed)] != self.addresses:
            return False
        if {*map(_dtype, grads)} != {self.anchor.dtype} or [
            *map(Tensor.numel, grads)
        ] != self.sizes:
            return False
        try:
            if not (self._are_laid_out(self.params) and self._are_laid_out(grads)):
                return False
            self.rows[1::COLUMNS] = array("q", map(Tensor.data_ptr, grads))
        except RuntimeError:  # a sparse gradient has no strides and no address
            return False
        return True

    def _are_laid_out(self, tensors: Sequence[Tensor]) -> bool:
        if self.strides is None:
            return _are_contiguous(tensors)
        return [*map(Tensor.stride, tensors)] == self.strides


# map() with a method of Tensor: a comprehension takes half as long again.
_dtype = attrgetter("dtype")


def _are_same(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(tensors) == len(others) and all(map(is_, tensors, others))


def _are_contiguous(tensors: Sequence[Tensor]) -> bool:
    return all(map(Tensor.is_contiguous, tensors))


def _are_plain(
    params: Sequence[Tensor], grads: Sequence[Tensor], momenta: Sequence[Tensor]
) -> bool:
    """Whether an address and a length say all that the kernel has to know."""
    first = params[0]
    if first.dtype not in DTYPES or first.device.type not in ("cpu", "cuda"):
        return False
    columns = [params, grads, momenta] if momenta else [params, grads]
    return all(
        type(t) in (Parameter, Tensor)
        and t.layout is torch.strided
        and (t.dtype, t.device) == (first.dtype, first.device)
        and (t.shape, t.stride()) == (row[0].shape, row[0].stride())
        and (t.is_contiguous() or _is_dense(t))
        for row in zip(*columns, strict=True)
        for t in row
    )


def _is_dense(t: Tensor) -> bool:
    """Whether elements lie without gaps or overlaps: only then does empty_like keep the strides."""
    return torch.empty_like(t, device="meta").stride() == t.stride()
