"""Checks of arguments, with messages that name the argument, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from numbers import Integral, Real
from typing import Any, SupportsFloat, cast

import torch
from torch import Tensor


def is_real(value: object) -> bool:
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


def check_lam(lam: object) -> None:
    """λ is a number other than 0 and NaN, a real one-element tensor (whose value, on a device, is
    not read), or a rule, which has checked itself."""
    if hasattr(lam, "to_tensor"):
        return
    allowed = "≠ 0 and not NaN (±inf: plain SGD), a 0-dim tensor, or an EffectiveSampleSize"
    if isinstance(lam, Tensor):
        if lam.numel() != 1 or lam.dtype is torch.bool or lam.is_complex():
            raise ValueError(
                f"Invalid lam value: tensor of shape {tuple(lam.shape)} and {lam.dtype} "
                f"(must be a number {allowed})"
            )
        if lam.device.type == "meta":
            raise ValueError(f"Invalid lam value: a tensor on meta (must be a number {allowed})")
        if lam.device.type != "cpu":
            return
        lam = lam.item()
    check_number("lam", lam, allowed, is_real(lam) and lam != 0 and not math.isnan(lam))


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    # numpy's arrays and the like compare to something else than a truth value.
    if not isinstance(value, (bool, int, float, str, type(None))) or value not in allowed:
        raise ValueError(f"Invalid {name} value: {value!r} (must be one of {allowed})")


def check_process_group(process_group: object) -> None:
    if isinstance(process_group, str) and process_group != "local":
        raise ValueError(
            f"Invalid process_group value: {process_group!r} "
            "(must be a process group, None or 'local')"
        )


def check_rule(
    lam: object,
    gamma: object,
    s_init: object,
    alpha: object,
    max_weight: object,
    keep_loss: object,
    process_group: object,
) -> None:
    """Raises unless λ, γ, s_1, α, the guards and the group are what `ABSGD` documents."""
    check_lam(lam)
    if gamma is not None:
        check_number("gamma", gamma, "in (0, 1]", is_real(gamma) and 0 < gamma <= 1)
    if max_weight is not None:
        allowed = "finite and ≥ 1, or None"
        check_number(
            "max_weight", max_weight, allowed, is_real(max_weight) and 1 <= max_weight < math.inf
        )
    check_choice("keep_loss", keep_loss, (True, False))
    if s_init is not None:
        check_finite_nonnegative("s_init", s_init)
    check_positive("alpha", alpha)
    check_process_group(process_group)


def check_losses(losses: object, mask: object, weight: object) -> None:
    """Raises unless per-sample losses, their mask and their base measure are what `ABSGD.weigh`
    documents. Weights on a device are not looked at: there they make the batch a bad one."""
    if not isinstance(losses, Tensor):
        raise TypeError(f"losses must be a tensor of per-sample losses, got {type(losses)}")
    if not losses.is_floating_point():
        raise TypeError(f"losses must be floating point, got {losses.dtype}")
    if losses.device.type == "meta":
        raise ValueError("losses must be on a device that holds values, got meta")
    if losses.dim() == 0:
        raise ValueError(
            "losses must hold one loss a sample, got a scalar: "
            'give the loss function reduction="none"'
        )
    check_mask_and_weight(losses.shape, losses.device, mask, weight)


def check_mask_and_weight(
    shape: torch.Size, device: torch.device, mask: object, weight: object
) -> None:
    """Raises unless a mask and a base measure, or None, go with losses of this shape."""
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
            raise TypeError(
                f"mask must be a bool tensor, True where a loss counts, got {_type_of(mask)}"
            )
        _check_alike("mask", mask, shape, device)
    if weight is not None:
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise TypeError(f"weight must be a floating-point tensor, got {_type_of(weight)}")
        _check_alike("weight", weight, shape, device)
        if device.type == "cpu" and not torch.compiler.is_compiling():
            read = weight.detach() if mask is None else weight.detach()[mask]
            _check_nonnegative("weight", read)


def _type_of(value: object) -> object:
    return value.dtype if isinstance(value, Tensor) else type(value)


def _check_alike(name: str, value: Tensor, shape: torch.Size, device: torch.device) -> None:
    if value.shape != shape or value.device != device:
        raise ValueError(
            f"{name} must have the losses' shape {tuple(shape)} and device {device}, "
            f"got {tuple(value.shape)} on {value.device}"
        )


def _check_nonnegative(name: str, values: Tensor) -> None:
    bad = ~((values >= 0) & values.isfinite())
    if bool(bad.any()):
        raise ValueError(f"{name} must be finite and ≥ 0, got {values[bad][0].item()}")


def check_beside(input: Tensor, target: Tensor, mask: object, weight: object) -> None:
    """`check_mask_and_weight` for the losses that a criterion would give for these logits."""
    if mask is None and weight is None:
        return
    class_dim = min(input.dim() - 1, 1)
    shape = torch.Size([*input.shape[:class_dim], *input.shape[class_dim + 1 :]])
    check_mask_and_weight(shape, input.device, mask, weight)


def check_criterion(criterion: object) -> None:
    if not callable(criterion):
        raise TypeError(f"criterion must be a module or a function, got {criterion!r}")
    reduction = getattr(criterion, "reduction", "none")
    if reduction != "none":
        raise ValueError(
            f'criterion must return one loss a sample: give it reduction="none", not {reduction!r}'
        )


def check_base_weight(class_weight: object) -> None:
    if class_weight is None:
        return
    if not isinstance(class_weight, Tensor) or not class_weight.is_floating_point():
        raise TypeError(
            "class_weight must be a floating-point tensor of shape (C), got "
            f"{_type_of(class_weight)}"
        )
    if class_weight.dim() != 1 or class_weight.numel() == 0:
        raise ValueError(
            f"class_weight must have shape (C) with C ≥ 1, got {tuple(class_weight.shape)}"
        )
    if not class_weight.is_meta:
        _check_nonnegative("class_weight", class_weight)


def check_class_target(
    class_weight: Tensor, target: object, losses: Tensor, mask: Tensor | None
) -> None:
    """Raises unless ``target`` says the class of each loss, by index or by probabilities. Indices
    on a device are not looked at."""
    if not isinstance(target, Tensor):
        raise TypeError(f"class_weight needs target to be a tensor of classes, got {type(target)}")
    classes = len(class_weight)
    if target.is_floating_point():
        if target.dim() == 0 or target.shape[min(target.dim() - 1, 1)] != classes:
            raise ValueError(
                f"class_weight of {classes} classes needs class probabilities of shape (N, "
                f"{classes}, …), got {tuple(target.shape)}"
            )
    elif target.shape != losses.shape or target.dtype is torch.bool:
        raise ValueError(
            f"class_weight needs one class index a loss, of shape {tuple(losses.shape)}, got "
            f"{tuple(target.shape)} of {target.dtype}"
        )
    elif target.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = target >= classes if mask is None else (target >= classes) & mask
        if bool(outside.any()):
            raise ValueError(
                f"class_weight has {classes} classes, got target {target[outside][0].item()}"
            )


def tensors(name: str, values: object) -> list[Tensor]:
    """``values`` as a list; raises TypeError unless all of them are tensors."""
    if isinstance(values, Tensor) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be several tensors, got {_type_of(values)}")
    found = list(values)
    for value in found:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be tensors, got {type(value)}")
    return found


def check_group(group: dict[str, Any]) -> None:
    """Raises unless SGD's hyper-parameters of a group are in their ranges and go together."""
    for name in ("lr", "weight_decay"):
        value = group[name]
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(
                    f"Invalid {name} value: tensor of shape {tuple(value.shape)} (must be "
                    "finite and ≥ 0, a number or a tensor of one element)"
                )
            if value.device.type != "cpu":
                continue
            value = value.item()
        check_finite_nonnegative(name, value)
    check_finite_nonnegative("momentum", group["momentum"])
    check_finite("dampening", group["dampening"])
    for name in ("nesterov", "maximize", "differentiable"):
        check_choice(name, group[name], (True, False))
    for name in ("foreach", "fused"):
        check_choice(name, group[name], (True, False, None))
    if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError(
            "Nesterov momentum requires a momentum and zero dampening, got "
            f"nesterov=True, momentum={group['momentum']}, dampening={group['dampening']}"
        )
    if group["momentum_form"] == "polyak":
        for name, allowed in (
            ("dampening", (0,)),
            ("nesterov", (False,)),
            ("differentiable", (False,)),
            ("foreach", (None,)),
            ("fused", (None, True)),
        ):
            if group[name] not in allowed:
                raise ValueError(
                    f"momentum_form='polyak' needs {name} in {allowed}, got {group[name]}"
                )


# ---- epochs, class counts and labels


def check_integer(name: str, value: object, least: int | None = None) -> int:
    """``value`` as an int; TypeError unless it is one, ValueError if it is below ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"Invalid {name} value: {value} (must be ≥ {least})")
    return int(value)


def check_profile(n_max: object, num_classes: object, imbalance_ratio: object) -> None:
    """Raises unless they are what `long_tailed_counts` documents."""
    largest = check_integer("n_max", n_max, least=1)
    check_integer("num_classes", num_classes, least=1)
    is_allowed = is_real(imbalance_ratio) and 1 <= cast(float, imbalance_ratio) <= largest
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
        return class_counts.detach().to("cpu", torch.float64)
    shape = tuple(getattr(class_counts, "shape", (1,)))
    if len(shape) != 1:
        raise ValueError(f"class_counts must have shape (C) with C ≥ 1, got shape {shape}")
    if isinstance(class_counts, Mapping) or hasattr(class_counts, "items"):
        class_counts = _values_by_class(dict(class_counts.items()))
    is_list = isinstance(class_counts, Iterable) and not isinstance(class_counts, (str, Set))
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


def check_class_weight(name: str, weight: object, shape: tuple[int, ...] | None) -> Tensor:
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


# ---- targets of a schedule


def check_milestones(milestones: object) -> dict[int, Any]:
    """epoch -> λ in order of the epochs; λ as a float, or the rule that it is.

    Raises:
        TypeError, ValueError: naming the milestone.
    """
    if milestones is not None and not isinstance(milestones, Mapping):
        raise TypeError(f"milestones must be a mapping of epoch to lam, got {milestones!r}")
    checked = {}
    for epoch, lam in (milestones or {}).items():
        epoch = check_integer("milestone", epoch, least=0)
        try:
            check_lam(lam)
        except (TypeError, ValueError) as error:
            raise type(error)(f"milestone {epoch}: {error}") from error
        is_rule = hasattr(lam, "to_tensor")
        checked[epoch] = lam if is_rule else _finite_or_infinite(f"milestone {epoch}", lam)
    return dict(sorted(checked.items()))


def _finite_or_infinite(name: str, lam: SupportsFloat) -> float:
    value = float(lam)  # of a tensor on a device too: a schedule is made once
    if value == 0 or math.isnan(value):
        raise ValueError(f"{name}: Invalid lam value: {value} (must be ≠ 0 and not NaN)")
    return value


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
    prediction: object, target: object, groups: object = None, ignore_index: int = -100
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """(predicted classes, logits or None, targets, groups or None) of the N elements that count,
    flat: int64 [N], [N, C], int64 [N], int64 [N], on the predictions' device.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    for name, values in (("target", target), ("groups", groups)):
        if not is_integral(values) and not (name == "groups" and values is None):
            raise TypeError(f"{name} must be a tensor of integers, got {_kind(values)}")
    if not isinstance(prediction, Tensor) or not (
        prediction.is_floating_point() or is_integral(prediction)
    ):
        raise TypeError(f"prediction must be logits or integer classes, got {_kind(prediction)}")
    target, logits = cast(Tensor, target), None
    shape = tuple(prediction.shape)
    if prediction.is_floating_point():
        if prediction.dim() < 2 or shape[:1] + shape[2:] != tuple(target.shape):
            raise ValueError(
                f"prediction must be logits (N, C, …) for target's {tuple(target.shape)}, got "
                f"{shape}"
            )
        logits = prediction.detach().movedim(1, -1).reshape(-1, shape[1])
        predicted = logits.argmax(1)
    elif shape != tuple(target.shape):
        raise ValueError(f"prediction must have target's shape {tuple(target.shape)}, got {shape}")
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
    for name, labels in (("prediction", predicted), ("target", target), ("groups", groups)):
        if isinstance(labels, Tensor) and int(labels.min()) < 0:
            raise ValueError(f"{name} must be ≥ 0, got {int(labels.min())}")
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
    size: int, indices: object, losses: object, weights: object, capped: object
) -> None:
    """Raises unless these are a batch of a `SampleRecord` of ``size`` samples."""
    losses, _ = check_losses_and_weights(losses, weights)
    if not isinstance(indices, Tensor) or not is_integral(indices):
        raise TypeError(f"indices must be a tensor of integers, got {_kind(indices)}")
    if indices.shape != losses.shape:
        raise ValueError(
            f"indices must have the losses' shape {tuple(losses.shape)}, got {tuple(indices.shape)}"
        )
    if capped is not None:
        if not isinstance(capped, Tensor) or capped.dtype is not torch.bool:
            raise TypeError(f"capped must be a bool tensor, got {_kind(capped)}")
        if capped.shape != losses.shape:
            raise ValueError(
                f"capped must have the losses' shape {tuple(losses.shape)}, got "
                f"{tuple(capped.shape)}"
            )
    if indices.device.type == "cpu" and indices.numel() > 0:
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= size:
            raise IndexError(f"indices must be in [0, {size}), got {low if low < 0 else high}")
