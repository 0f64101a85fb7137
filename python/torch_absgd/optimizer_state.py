"""What `ABSGD` keeps in its parameter groups and buffers, and how loaded state becomes it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _checks
from .weighting import STATE

MOMENTUM_KEYS = {"torch": "momentum_buffer", "polyak": "displacement_buffer"}
OPTIMIZER_WIDE = (*STATE, "gamma", "alpha", "s_init", "momentum_form")


def same(a: object, b: object) -> bool:
    """Equality in which NaN, an unset log_s, equals itself."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.equal(*(torch.as_tensor(x).double().cpu().nan_to_num(-1.5) for x in (a, b)))
    both_nan = all(isinstance(x, float) and math.isnan(x) for x in (a, b))
    return a == b or both_nan


def agreed_entries(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The optimizer-wide entries of loaded groups; an error if the groups do not agree."""
    loaded = {name: groups[0][name] for name in OPTIMIZER_WIDE if name in groups[0]}
    for group in groups[1:]:
        for name, value in loaded.items():
            if name in group and not same(group[name], value):
                raise ValueError(
                    f"loaded state dict: {name} is the whole optimizer's, but parameter groups "
                    f"disagree: {value} and {group[name]}"
                )
    if "lam" in loaded:
        _checks.check_lam(loaded["lam"])
        loaded.setdefault("log_s_lam", loaded["lam"])
    return loaded


def convert_momentum(state: dict[str, Any], form: str, own_form: str) -> None:
    """Turns loaded buffers of the other form into this one's: d = −ηv, by the saved η."""
    rates = [float(group["lr"]) for group in state["param_groups"]]
    if own_form == "torch" and any(rate == 0 for rate in rates):
        raise ValueError(
            "loaded state dict: momentum of form 'polyak', d = −ηv, cannot be turned into form "
            "'torch' where lr is 0: load it into ABSGD(momentum_form='polyak')"
        )
    for group, rate in zip(state["param_groups"], rates, strict=True):
        for p in group["params"]:
            buffers = state["state"].get(p, {})
            buffer = buffers.pop(MOMENTUM_KEYS[form], None)
            if buffer is not None:
                factor = -rate if own_form == "polyak" else -1 / rate
                buffers[MOMENTUM_KEYS[own_form]] = buffer.mul_(factor)
