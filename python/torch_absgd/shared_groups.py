"""SGD whose parameter groups carry what is the whole optimizer's: λ, log_s and their kin.

torch's checkpoint tools keep parameter groups, so the rule's state is there too: every group holds
the very same tensors. Here they are put there, taken back where somebody sets another value, saved
and loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from operator import is_
from typing import Any, Literal

import torch
from torch.optim import SGD
from torch.optim.optimizer import ParamsT

from . import _checks, _rule_checks
from .collective import Collective, ProcessGroup
from .fused_step import MOMENTUM_KEYS, FusedStep
from .rule_state import CONSTANTS, TENSORS, RuleState, checked_entries, described, same
from .weigher import Weigher

OPTIMIZER_WIDE = (*TENSORS, *CONSTANTS, "momentum_form")


Groups = list[dict[str, Any]]


def carry(groups: Groups, wide: Mapping[str, Any]) -> bool:
    """Whether every group holds these very objects."""
    return all(all(map(is_, map(group.get, wide), wide.values())) for group in groups)


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
        given = math.nan if name == "s_init" and group.get(name, 0) is None else group.get(name)
        if name in group and not same(given, value):
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
        _rule_checks.check_group({**defaults, **group, "momentum_form": own_form})
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


class SharedGroups(SGD):
    """torch.optim.SGD with a weigher, whose state every parameter group carries."""

    def __init__(
        self,
        params: ParamsT,
        sgd_arguments: dict[str, Any],
        weigher: Weigher,
        momentum_form: str,
    ) -> None:
        if not isinstance(params, Iterable):
            raise TypeError(f"params must be tensors or parameter groups, got {params!r}")
        self.weigher = weigher
        self.momentum_form = momentum_form
        self._fused: list[FusedStep] = []  # one a group, made at the first step
        self._had_momentum = False  # in a state that was loaded
        self._published, self._version = self._wide(), -1
        super().__init__(params, **sgd_arguments)
        device = next((p.device for g in self.param_groups for p in g["params"]), None)
        if device is not None and device.type != "meta":
            weigher.state.move(device)
            self._publish()

    def _wide(self) -> dict[str, Any]:
        """What is the whole optimizer's, by name."""
        return {**self.weigher.state.entries(), "momentum_form": self.momentum_form}

    def _publish(self) -> None:
        """Puts it into every parameter group."""
        self._published, self._version = self._wide(), self.weigher.state.version
        for group in self.param_groups:
            group.update(self._published)

    def _adopt(self) -> None:
        """Takes over what a user has set in a parameter group.

        Raises:
            ValueError: the groups now disagree, or a value is not allowed.
        """
        if torch.compiler.is_compiling():
            return
        if self._version != self.weigher.state.version:  # a criterion that shares it has moved it
            self._publish()
        if not carry(self.param_groups, self._published):
            self.weigher.change(taken_back(self.param_groups, self._published))
            self._publish()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.add_param_group`. The group may name SGD's hyper-parameters;
        another value of λ or what else is the whole optimizer's is an error."""
        if isinstance(param_group, dict):
            if "params" not in param_group:
                raise ValueError(f"param_group must have 'params', got {[*param_group]}")
            wide = self._wide()
            check_group_entries(param_group, wide)
            param_group = {**param_group, **wide}
            _rule_checks.check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @property
    def process_group(self) -> ProcessGroup | Literal["local"] | None:
        """The group over which the batch is one."""
        return self.weigher.ranks.process_group

    @property
    def has_loaded_state(self) -> bool:
        """Whether a state dict has been loaded: a schedule then does not begin anew."""
        return self.weigher.was_loaded or self._had_momentum

    def state_dict(self) -> dict[str, Any]:
        self._adopt()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`. Loads into the tensors that exist, on their
        device. What the state lacks (a plain SGD's has no λ) stays as it was.

        Raises:
            ValueError, TypeError: it is no optimizer's, or an entry is not allowed; nothing is
                changed then.
            RuntimeError: micro-batches wait to be made a step.
        """
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= {*state_dict}:
            kind = [*state_dict] if isinstance(state_dict, Mapping) else type(state_dict)
            raise TypeError(f"state_dict must have 'state' and 'param_groups', got {kind}")
        self.weigher.check_no_micro_batches("no state can be loaded")
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        ranks, form = self.weigher.ranks, self.momentum_form
        return {**super().__getstate__(), "ranks": ranks, "momentum_form": form}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over a pickled optimizer or, from load_state_dict, loaded state."""
        if "param_groups" not in self.__dict__:
            ranks = state.pop("ranks", None) or Collective(state.pop("process_group", None))
            super().__setstate__(state)  # type: ignore[no-untyped-call]
            form = self.param_groups[0].get("momentum_form", "torch")
            self.momentum_form = self.__dict__.get("momentum_form", form)
            rule = RuleState.of(self.param_groups[0])
            self.weigher = Weigher(rule, ranks)
            self.weigher.forget()
        else:
            loaded = loadable(state, self.defaults, self.momentum_form)
            for group in state["param_groups"]:  # torch's SGD would take its own step for it
                group.setdefault("fused", self.defaults["fused"])
            super().__setstate__(state)  # type: ignore[no-untyped-call]
            self.weigher.state.load(loaded)
            self.weigher.forget()
        self._had_momentum = any(self.state.values())
        self._publish()
        self._fused = []

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({described(self.weigher.state)}{listed(self.param_groups)})"
