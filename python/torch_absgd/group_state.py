"""What is the whole optimizer's in its parameter groups, and how loaded groups become it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import is_
from typing import Any

import torch
from torch import Tensor

from . import _checks
from .fused_step import MOMENTUM_KEYS
from .rule_state import CONSTANTS, TENSORS, checked_entries

OPTIMIZER_WIDE = (*TENSORS, *CONSTANTS, "momentum_form")


Groups = list[dict[str, Any]]


def carry(groups: Groups, wide: Mapping[str, Any]) -> bool:
    """Whether every group holds these very objects."""
    names, values = [*wide], [*wide.values()]
    return all(all(map(is_, map(group.get, names), values)) for group in groups)


def taken_back(groups: Groups, wide: Mapping[str, Any]) -> dict[str, Any]:
    """What somebody has set in ``groups`` other than ``wide``, which they hold again afterwards: an
    error in what was set leaves nothing behind.

    Raises:
        ValueError: the groups disagree, or it is what cannot change.
    """
    try:
        new = agreed(groups, wide)
    finally:
        for group in groups:
            group.update(wide)
    if "momentum_form" in new:
        raise ValueError("momentum_form cannot change: it is given at construction")
    return new


def check_group_entries(group: Mapping[str, Any], wide: Mapping[str, Any]) -> None:
    """Raises if a new group names another value of what is the whole optimizer's."""
    for name, value in wide.items():
        if name in group and not same(group[name], value):
            raise ValueError(
                f"{name} is the whole optimizer's: a parameter group may not set it to "
                f"{group[name]} (it is {value})"
            )


def loadable(state: dict[str, Any], defaults: dict[str, Any], own_form: str) -> dict[str, Any]:
    """The optimizer-wide entries of a loaded state, checked; momentum of the other form than
    ``own_form`` is converted within it.

    Raises:
        ValueError, TypeError: the groups disagree, or an entry is not allowed.
    """
    loaded = agreed(state["param_groups"], {})
    form = loaded.pop("momentum_form", "torch")
    _checks.check_choice("momentum_form", form, tuple(MOMENTUM_KEYS))
    checked_entries(loaded)
    for group in state["param_groups"]:
        _checks.check_group({**defaults, **group, "momentum_form": own_form})
    if form != own_form:
        convert_momentum(state, form, own_form)
    return loaded


def listed(groups: Groups) -> str:
    """SGD's hyper-parameters of each group, as torch's optimizers print them."""
    lines = [""]
    for i, group in enumerate(groups):
        lines.append(f"Parameter Group {i}")
        names = sorted(group.keys() - {"params", "keep_loss", "max_weight", *TENSORS})
        lines += [f"    {name}: {group[name]}" for name in names]
    return "\n".join([*lines, ""])


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


def agreed(groups: Groups, known: Mapping[str, Any]) -> dict[str, Any]:
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
