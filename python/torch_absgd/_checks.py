"""Checks of arguments, with messages that name the argument, its value and what is allowed."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

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
    if value not in allowed:
        raise ValueError(f"Invalid {name} value: {value!r} (must be one of {allowed})")


def check_process_group(process_group: object) -> None:
    if isinstance(process_group, str) and process_group != "local":
        raise ValueError(
            f"Invalid process_group value: {process_group!r} "
            "(must be a process group, None or 'local')"
        )


def check_rule(
    lam: object, gamma: object, s_init: object, alpha: object, process_group: object
) -> None:
    """Raises unless λ, γ, s_1, α and the group are what `ABSGD` documents."""
    check_lam(lam)
    check_number("gamma", gamma, "in (0, 1]", is_real(gamma) and 0 < gamma <= 1)
    if s_init is not None:
        check_finite_nonnegative("s_init", s_init)
    check_positive("alpha", alpha)
    check_process_group(process_group)


def check_losses(losses: object, mask: object) -> None:
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
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask)
        raise TypeError(f"mask must be a bool tensor, True where a loss counts, got {kind}")
    if mask.shape != losses.shape or mask.device != losses.device:
        raise ValueError(
            f"mask must have the losses' shape {tuple(losses.shape)} and device {losses.device}, "
            f"got {tuple(mask.shape)} on {mask.device}"
        )


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
