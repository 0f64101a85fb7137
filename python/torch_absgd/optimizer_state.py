"""What `ABSGD` keeps in its parameter groups and buffers, and how loaded state becomes it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._ops import LAM_RULE_SIZE, REPORT_SIZE
from .fused_step import MOMENTUM_KEYS
from .weighting import STATE

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
    _check_loaded(loaded)
    if "lam" in loaded:
        loaded.setdefault("log_s_lam", loaded["lam"])
    return loaded


def _check_loaded(loaded: dict[str, Any]) -> None:
    s_init = loaded.get("s_init")
    follows = "lam_rule" in loaded and bool(torch.as_tensor(loaded["lam_rule"]).any())
    _checks.check_rule(
        lam=math.inf if follows else loaded.get("lam", math.inf),
        gamma=loaded.get("gamma", 1.0),
        s_init=None if same(s_init, math.nan) else s_init,
        alpha=loaded.get("alpha", 1.0),
        process_group=None,
    )
    form = loaded.get("momentum_form", "torch")
    _checks.check_choice("momentum_form", form, tuple(MOMENTUM_KEYS))
    sizes = {
        "lam": 1,
        "log_s": 1,
        "log_s_lam": 1,
        "reports": 2 * REPORT_SIZE,
        "lam_rule": LAM_RULE_SIZE,
    }
    for name, size in sizes.items():
        if name in loaded and torch.as_tensor(loaded[name]).numel() != size:
            raise ValueError(f"loaded state dict: {name} must hold {size} number(s)")


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
