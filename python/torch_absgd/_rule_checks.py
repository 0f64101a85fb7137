"""Checks of the rule's and the optimizer's arguments, and of losses that are weighed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat

import torch
import torch.distributed as dist
from torch import Tensor

from ._checks import (
    check_choice,
    check_finite,
    check_finite_nonnegative,
    check_integer,
    check_number,
    check_positive,
    is_real,
)


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


def check_process_group(process_group: object) -> None:
    is_text = isinstance(process_group, str)
    if process_group is None or (is_text and process_group == "local"):
        return
    if is_text or not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
        raise (ValueError if is_text else TypeError)(
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
    if losses.layout is not torch.strided:
        raise TypeError(f"losses must be dense, got {losses.layout}")
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


def check_criterion(criterion: object) -> None:
    if not callable(criterion):
        raise TypeError(f"criterion must be a module or a function, got {criterion!r}")
    reduction = getattr(criterion, "reduction", "none")
    if reduction != "none":
        raise ValueError(
            f'criterion must return one loss a sample: give it reduction="none", not {reduction!r}'
        )


def check_class_target(
    class_weight: Tensor, target: object, losses: Tensor, mask: Tensor | None
) -> None:
    """Raises unless ``target`` says the class of each loss, by index or by probabilities. The
    values on a device are not looked at."""
    if not isinstance(target, Tensor):
        raise TypeError(f"class_weight needs target to be a tensor of classes, got {type(target)}")
    classes = len(class_weight)
    if target.is_floating_point():
        if target.dim() == 0 or target.shape[min(target.dim() - 1, 1)] != classes:
            raise ValueError(
                f"class_weight of {classes} classes needs class probabilities of shape (N, "
                f"{classes}, …), got {tuple(target.shape)}"
            )
        if target.device.type == "cpu" and not torch.compiler.is_compiling():
            total = target.detach().float().sum(min(target.dim() - 1, 1))
            odd = (total - 1).abs() > 0.01
            odd = odd if mask is None else odd & mask
            if bool(odd.any()):
                raise ValueError(
                    "class_weight needs class probabilities that sum to 1, got a sum of "
                    f"{total[odd][0].item():g}. Several labels a sample: pos_weight= of the "
                    "criterion, or weight= in the call"
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
        if isinstance(group["weight_decay"], Tensor):
            raise TypeError("momentum_form='polyak' needs a weight_decay that is a number")
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
