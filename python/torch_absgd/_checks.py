"""Checks of arguments: numbers, classes, labels and records. Messages name the argument, its value
and what is allowed. The rule's and the optimizer's arguments: `_rule_checks`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from numbers import Integral, Real
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor


def is_real(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(name: str, value: object, allowed: str, is_allowed: bool | None = None) -> None:
    """Raises TypeError unless ``value`` is a real number, ValueError unless ``is_allowed``."""
    if not is_real(value):
        raise TypeError(f"{name} must be a number {allowed}, got {value!r}")
    if not is_allowed:
        raise ValueError(f"Invalid {name} value: {value} (must be {allowed})")


def check_finite_nonnegative(name: str, value: object) -> None:
    """Raises unless ``value`` is a finite number ≥ 0."""
    check_number(
        name, value, "finite and ≥ 0", is_real(value) and math.isfinite(value) and value >= 0
    )


def check_finite(name: str, value: object) -> None:
    check_number(name, value, "finite", is_real(value) and math.isfinite(value))


def check_positive(name: str, value: object) -> None:
    check_number(name, value, "finite and > 0", is_real(value) and 0 < value < math.inf)


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    # numpy's arrays and the like compare to something else than a truth value.
    if not isinstance(value, (bool, int, float, str, type(None))) or value not in allowed:
        raise ValueError(f"Invalid {name} value: {value!r} (must be one of {allowed})")


# ---- epochs, class counts and labels


INT64 = -(2**63), 2**63 - 1
MOST_CLASSES = 10_000_000  # that fit into memory


def check_integer(name: str, value: object, least: int = INT64[0], most: int = INT64[1]) -> int:
    """``value`` as an int; TypeError unless it is one, ValueError if it is out of bounds."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = int(value)
    if number < least:
        raise ValueError(f"Invalid {name} value: {value} (must be ≥ {least})")
    if number > most:
        raise ValueError(f"Invalid {name} value: {value} (must be ≤ {most})")
    return number


def check_profile(n_max: object, num_classes: object, imbalance_ratio: object) -> None:
    """Raises unless they are what `long_tailed_counts` documents."""
    largest = check_integer("n_max", n_max, least=1)
    check_integer("num_classes", num_classes, least=1, most=MOST_CLASSES)
    is_allowed = is_real(imbalance_ratio) and 1 <= imbalance_ratio <= largest
    check_number("imbalance_ratio", imbalance_ratio, f"in [1, n_max = {n_max}]", is_allowed)


Counts = Sequence[int] | Mapping[int, int] | Tensor | Any  # Any: arrays and pandas' Series


def positive_counts(class_counts: Counts) -> Tensor:
    """``class_counts`` as float64 [C] on the CPU: by class where they have keys or an index (a
    dict, a Counter, a pandas Series), else in their order.

    Raises:
        TypeError: they are not numbers, or have no order.
        ValueError: the classes are not 0 … C−1, C is 0, or a count is not finite and > 0; names
            the classes.
    """
    counts = _counts(class_counts)
    return _check_counts(counts, counts > 0, "> 0")


def nonnegative_counts(class_counts: Counts) -> Tensor:
    """As `positive_counts`, where a class may be empty."""
    counts = _counts(class_counts)
    return _check_counts(counts, counts >= 0, "≥ 0")


def _check_counts(counts: Tensor, is_allowed: Tensor, allowed: str) -> Tensor:
    if counts.dim() != 1 or counts.numel() == 0:
        raise ValueError(
            f"class_counts must have shape (C) with C ≥ 1, got shape {tuple(counts.shape)}"
        )
    wrong = (~is_allowed | ~counts.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"class_counts must be finite and {allowed}, got {counts[wrong].tolist()} for "
            f"class(es) {wrong}"
        )
    return counts


def _counts(class_counts: Any) -> Tensor:
    if isinstance(class_counts, Tensor):
        if class_counts.is_complex() or class_counts.dtype is torch.bool or class_counts.is_meta:
            raise TypeError(f"class_counts must be numbers, one a class, got {class_counts!r}")
        if class_counts.layout is not torch.strided:
            raise TypeError(f"class_counts must be dense, got {class_counts.layout}")
        return class_counts.detach().to("cpu", torch.float64)
    shape = tuple(getattr(class_counts, "shape", (1,)))
    if len(shape) != 1:
        raise ValueError(f"class_counts must have shape (C) with C ≥ 1, got shape {shape}")
    if isinstance(class_counts, Mapping) or hasattr(class_counts, "items"):
        class_counts = _values_by_class(dict(class_counts.items()))
    is_list = isinstance(class_counts, Iterable) and not isinstance(class_counts, (str, bytes, Set))
    # One by one: arrays of any byte order, stride and dtype give numbers that way.
    values: list[Any] = list(class_counts) if is_list else [None]
    if values and isinstance(values[0], (list, tuple)):
        shape = (len(values), len(values[0]))
        raise ValueError(f"class_counts must have shape (C) with C ≥ 1, got shape {shape}")
    if not all(is_real(value) or is_scalar(value) for value in values):
        raise TypeError(f"class_counts must be numbers, one a class, got {class_counts!r}")
    return torch.tensor([float(value) for value in values], dtype=torch.float64, device="cpu")


def _values_by_class(counts: dict[Any, Any]) -> list[Any]:
    if set(counts) != set(range(len(counts))):
        strange = [key for key in counts if key not in range(len(counts))]
        missing = [c for c in range(len(counts)) if c not in counts]
        raise ValueError(
            f"class_counts by class must have the classes 0 … {len(counts) - 1}, got {strange[:5]} "
            f"and none of {missing[:5]}"
        )
    return [counts[c] for c in range(len(counts))]


def is_scalar(value: object) -> bool:
    """Whether ``value`` is a real tensor without dimensions."""
    if not isinstance(value, Tensor) or value.is_meta or value.dtype is torch.bool:
        return False
    return value.dim() == 0 and not value.is_complex()


def check_labels(labels: object, size: int) -> Tensor:
    """``labels`` as int64 [size] on the CPU.

    Raises:
        TypeError: they are not integers.
        ValueError: they are not one a sample, or one is negative.
    """
    try:
        # As a list, an array of any byte order and stride gives integers.
        read = labels if isinstance(labels, Tensor) else torch.tensor(_listed(labels), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"targets must be integers, one a sample: {error}") from error
    if read.numel() > 0 and (read.is_floating_point() or read.is_complex()):
        raise TypeError(f"targets must be integers, got {read.dtype}")
    if read.dtype is torch.bool:
        raise TypeError(f"targets must be integers, got {read.dtype}")
    if read.dim() != 1 or len(read) != size or size == 0:
        raise ValueError(
            f"targets must be one a sample of dataset, {size} ≥ 1, got shape {tuple(read.shape)}"
        )
    read = read.detach().to("cpu", torch.int64)
    if read.min() < 0:
        raise ValueError(f"targets must be ≥ 0, got {read.min()}")
    return read


def _listed(values: Any) -> list[Any]:
    return cast("list[Any]", values.tolist()) if hasattr(values, "tolist") else list(values)


def check_no_class_missing(present: Tensor) -> None:
    """Raises ValueError if a class has no sample; ``present`` counts them, [C]."""
    missing = (present == 0).nonzero().flatten().tolist()
    if missing:
        raise ValueError(
            f"targets must hold every class in [0, {len(present)}), got none of {missing}"
        )


def check_class_weight_buffer(criterion: object, name: object) -> str:
    """Which buffer of ``criterion`` holds class weights: ``name``, or the one that it has."""
    names = ("weight", "class_weight")
    check_choice("name", name, (*names, None))
    buffers = getattr(criterion, "_buffers", {})
    found = [n for n in names if n in buffers and name in (n, None)]
    if not found:
        wanted = name or "weight (or class_weight, as AttentionalLoss)"
        raise TypeError(f"criterion must have a buffer named {wanted}, got {criterion!r}")
    return found[0]


def check_class_weight(name: str, weight: object, shape: tuple[int, ...] | None = None) -> Tensor:
    """Raises unless ``weight`` is a floating tensor of class weights, finite and ≥ 0, of ``shape``
    where one is given."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a tensor of class weights, got {type(weight)}")
    if not weight.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {weight.dtype}")
    if shape is not None and tuple(weight.shape) != shape:
        raise ValueError(
            f"{name} must have the shape of the criterion's, {shape}, got {tuple(weight.shape)}"
        )
    if weight.dim() != 1 or weight.numel() == 0:
        raise ValueError(f"{name} must have shape (C) with C ≥ 1, got {tuple(weight.shape)}")
    if not weight.is_meta and not bool((weight.isfinite() & (weight >= 0)).all()):
        raise ValueError(f"{name} must be finite and ≥ 0, got {weight.tolist()}")
    return weight


def check_module_names(names: tuple[str, ...], available: Collection[str]) -> None:
    """Raises ValueError unless ``names`` are some of ``available``. The message lists the upper two
    levels of those: enough to choose from in the deepest network."""
    listed = ", ".join(name for name in available if name.count(".") < 2)
    if not names:
        raise ValueError(f"names must name at least one module; available: {listed}")
    for name in names:
        if name not in available:
            raise ValueError(f"Invalid name: {name!r}; available: {listed}")


# ---- what is recorded and reported


def is_integral(values: object) -> bool:
    if not isinstance(values, Tensor):
        return False
    return not (values.is_floating_point() or values.is_complex() or values.dtype is torch.bool)


def check_predictions(
    prediction: object,
    target: object,
    groups: object = None,
    ignore_index: int = -100,
    name: str = "prediction",
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """(predicted classes, logits or None, targets, groups or None) of the N elements that count,
    flat: int64 [N], [N, C], int64 [N], int64 [N], on the predictions' device.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    ignore_index = check_integer("ignore_index", ignore_index)
    for other, values in (("target", target), ("groups", groups)):
        if not is_integral(values) and not (other == "groups" and values is None):
            raise TypeError(f"{other} must be a tensor of integers, got {_kind(values)}")
    if not isinstance(prediction, Tensor) or not (
        prediction.is_floating_point() or is_integral(prediction)
    ):
        raise TypeError(f"{name} must be logits or integer classes, got {_kind(prediction)}")
    target, logits = cast(Tensor, target), None
    shape = tuple(prediction.shape)
    if prediction.is_floating_point():
        if prediction.dim() < 2 or shape[:1] + shape[2:] != tuple(target.shape):
            raise ValueError(
                f"{name} must be logits (N, C, …) for target's {tuple(target.shape)}, got {shape}"
            )
        logits = prediction.detach().movedim(1, -1).reshape(-1, shape[1])
        predicted = logits.argmax(1)
    elif shape != tuple(target.shape):
        raise ValueError(f"{name} must have target's shape {tuple(target.shape)}, got {shape}")
    else:
        predicted = prediction.flatten().long()
    target = target.flatten().to(predicted.device, torch.int64)
    counts = target != ignore_index
    if not bool(counts.any()):
        raise ValueError("target must hold at least one element that counts")
    if isinstance(groups, Tensor):
        if groups.numel() != target.numel():
            raise ValueError(
                f"groups must hold one a target, {target.numel()}, got {groups.numel()}"
            )
        groups = groups.flatten().to(predicted.device, torch.int64)[counts]
    predicted, target = predicted[counts], target[counts]
    for other, labels in ((name, predicted), ("target", target), ("groups", groups)):
        if isinstance(labels, Tensor) and int(labels.min()) < 0:
            raise ValueError(f"{other} must be ≥ 0, got {int(labels.min())}")
    return predicted, None if logits is None else logits[counts], target, cast(Any, groups)


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else str(type(value))


def check_losses_and_weights(losses: object, weights: object) -> tuple[Tensor, Tensor]:
    """Raises unless both are floating tensors of one shape."""
    for name, values in (("losses", losses), ("weights", weights)):
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {_kind(values)}")
    losses, weights = cast(Tensor, losses), cast(Tensor, weights)
    if weights.shape != losses.shape:
        raise ValueError(
            f"weights must have the losses' shape {tuple(losses.shape)}, got {tuple(weights.shape)}"
        )
    return losses, weights


def check_record_update(
    size: int,
    indices: object,
    losses: object,
    weights: object,
    capped: object,
    mask: object,
) -> None:
    """Raises unless these are a batch of a `SampleRecord` of ``size`` samples."""
    losses, _ = check_losses_and_weights(losses, weights)
    if not isinstance(indices, Tensor) or not is_integral(indices):
        raise TypeError(f"indices must be a tensor of integers, got {_kind(indices)}")
    if indices.shape != losses.shape:
        raise ValueError(
            f"indices must have the losses' shape {tuple(losses.shape)}, got {tuple(indices.shape)}"
        )
    for name, flags in (("capped", capped), ("mask", mask)):
        if flags is None:
            continue
        if not isinstance(flags, Tensor) or flags.dtype is not torch.bool:
            raise TypeError(f"{name} must be a bool tensor, got {_kind(flags)}")
        if flags.shape != losses.shape:
            raise ValueError(
                f"{name} must have the losses' shape {tuple(losses.shape)}, got "
                f"{tuple(flags.shape)}"
            )
    if indices.device.type == "cpu" and indices.numel() > 0:
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= size:
            raise IndexError(f"indices must be in [0, {size}), got {low if low < 0 else high}")
