"""What the losses hold a value a class of: weights, margins, offsets, and what they come from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import _checks
from ._checks import Counts

PER = ("element", "sample")


class ClassValues(nn.Module):
    """A module whose buffers hold a value a class, and keep their dtype (float32, or the float64
    that they came in) through ``.half()`` and ``.to(dtype)``; it may differ from the logits'."""

    def hold(self, name: str, values: Tensor | None) -> None:
        self.register_buffer(name, None if values is None else at_least_float32(values))

    def values_in(self, dtype: torch.dtype, *names: str) -> list[Tensor | None]:
        """The buffers of these names, None where there is none, in ``dtype``."""
        values = map(self._buffers.get, names)
        return [v if v is None or v.dtype is dtype else v.to(dtype) for v in values]

    def check_classes(self, classes: int, or_one: bool = False) -> None:
        """Raises unless every buffer has ``classes`` values, or, where that is allowed, one."""
        for name, buffer in self._buffers.items():
            n = classes if buffer is None else buffer.numel()
            if n != classes and not (or_one and n == 1):
                raise ValueError(f"input must have as many classes as {name}, {n}, got {classes}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassValues:
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = moved(buffer, fn(buffer).device)
        return self


def moved(buffer: Tensor, device: torch.device) -> Tensor:
    """``buffer`` on ``device``, in its own dtype; memory alone where it has no values yet."""
    return torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device)


def check_pair(input: object, target: object) -> None:
    """Raises unless both are tensors on one device, ``input`` of floating point."""
    for name, value in (("input", input), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value)}")
    assert isinstance(input, Tensor) and isinstance(target, Tensor)
    if not input.is_floating_point():
        raise TypeError(f"input must be floating point, got {input.dtype}")
    if input.device != target.device:
        raise ValueError(
            f"input and target must be on one device, got {input.device} and {target.device}"
        )


def positive_counts(class_counts: Counts, empty_count: float | None = None) -> Tensor:
    """``class_counts`` as float64 [C], ``empty_count`` in place of 0 where it is given.

    Raises:
        TypeError, ValueError: as `_checks.positive_counts`.
    """
    if empty_count is None:
        return _checks.positive_counts(class_counts)
    _checks.check_positive("empty_count", empty_count)
    counts = _checks.nonnegative_counts(class_counts)
    return counts.masked_fill(counts == 0, float(empty_count))


def check_class_weight(name: str, weight: object) -> None:
    if weight is not None:
        _checks.check_class_weight(name, weight)


def check_label_smoothing(value: object) -> None:
    allowed = _checks.is_real(value) and 0 <= value <= 1
    _checks.check_number("label_smoothing", value, "in [0, 1]", allowed)


def at_least_float32(values: Tensor) -> Tensor:
    return values.detach() if values.dtype is torch.float64 else values.detach().float()
