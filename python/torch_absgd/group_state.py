"""What is the whole optimizer's in its parameter groups, and how loaded groups become it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .fused_step import MOMENTUM_KEYS
from .rule_state import CONSTANTS, TENSORS

OPTIMIZER_WIDE = (*TENSORS, *CONSTANTS, "momentum_form")


def same(a: object, b: object) -> bool:
    """Equality in which NaN, an unset log_s, equals itself."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        try:
            x, y = (torch.as_tensor(v).double().cpu().nan_to_num(-1.5) for v in (a, b))
        except (TypeError, ValueError, RuntimeError):
            return False
        return torch.equal(x.reshape(-1), y.reshape(-1))
    both_nan = all(isinstance(x, float) and math.isnan(x) for x in (a, b))
    return a == b or both_nan


def agreed(groups: list[dict[str, Any]], known: dict[str, Any]) -> dict[str, Any]:
    """The optimizer-wide entries of ``groups`` that differ from ``known``.

    Raises:
        ValueError: the groups disagree.
    """
    found: dict[str, Any] = {}
    for group in groups:
        for name in OPTIMIZER_WIDE:
            if name not in group or (name in known and group[name] is known[name]):
                continue
            if name in found and not same(found[name], group[name]):
                raise ValueError(
                    f"{name} is the whole optimizer's, but parameter groups disagree: "
                    f"{found[name]} and {group[name]}"
                )
            found.setdefault(name, group[name])
    return found


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
                buffers[MOMENTUM_KEYS[own_form]] = buffer * factor  # the caller keeps its own
