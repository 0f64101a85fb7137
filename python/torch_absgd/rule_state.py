"""What the rule of Algorithm 1 keeps: λ, log_s, the reports, and its constants.

Five float64 tensors on the losses' device, changed in place and never replaced but to move, so that
a compiled or captured step goes on reading them; and the constants γ, α, s_1 and the two guards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import _ops, _rule_checks
from .lam_rules import LamRule

Lam = float | Tensor | LamRule

TENSORS = ("lam", "log_s", "log_s_lam", "reports", "lam_rule")
CONSTANTS = ("gamma", "alpha", "s_init", "max_weight", "keep_loss")


class RuleState:
    """λ, log_s, what is reported of the batches, and the rule's constants.

    Attributes:
        lam: λ; ±∞ while a rule for it has not had a batch with an answer.
        log_s, log_s_lam: the normaliser, NaN while unset, and the λ that it was written at.
        reports: [2, REPORT_SIZE], the last batch's and the running mean.
        lam_rule: ``absgd_lam_rule``; zeros where λ is a number.
        gamma: γ, or None: 0.9 where λ is a number, 1 where a rule moves it.
        s_init: s_1; NaN: the first batch sets log_s.
        max_weight: the cap c, or None.
    """

    def __init__(
        self,
        lam: Lam,
        gamma: float | None,
        s_init: float | None,
        alpha: float,
        max_weight: float | None,
        keep_loss: bool,
    ) -> None:
        self.gamma = None if gamma is None else float(gamma)
        self.alpha = float(alpha)
        self.s_init = math.nan if s_init is None else float(s_init)
        self.max_weight = None if max_weight is None else float(max_weight)
        self.keep_loss = bool(keep_loss)
        self.lam = _scalar(math.inf)
        self.log_s = _scalar(self.initial_log_s)
        self.log_s_lam = _scalar(math.inf)
        self.reports = torch.full(
            (2, _ops.REPORT_SIZE), math.nan, dtype=torch.float64, device="cpu"
        )
        self.lam_rule = torch.zeros(_ops.LAM_RULE_SIZE, dtype=torch.float64, device="cpu")
        self.rule: LamRule | None = None  # lam_rule, and λ's sign, known without asking a device
        self.is_negative = False
        self.has_history = False  # log_s has taken in a batch since λ was last set
        self.was_changed = False  # by the last `load`
        self.version = 0  # of the objects that `entries` gives
        self.set_lam(lam)
        self.log_s_lam.copy_(self.lam)

    # ---- what the operators take

    def normaliser(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """λ, and what `weigh` writes: log_s, log_s_lam and the reports."""
        return self.lam, self.log_s, self.log_s_lam, self.reports

    @property
    def followed(self) -> Tensor | None:
        """The rule that λ follows, as the operators take it."""
        return None if self.rule is None else self.lam_rule

    def constants(self) -> tuple[float, float, float, float, bool, bool]:
        """``absgd_rule``: γ, α, s_1, c, keep_loss, and whether s is bounded by the batch's own."""
        gamma = (0.9 if self.rule is None else 1.0) if self.gamma is None else self.gamma
        cap = math.inf if self.max_weight is None else self.max_weight
        bounded = self.keep_loss or self.rule is not None or self.max_weight is not None
        return gamma, self.alpha, self.s_init, cap, self.keep_loss, bounded

    @property
    def initial_log_s(self) -> float:
        """log s_1; NaN, "unset", without one."""
        return -math.inf if self.s_init == 0 else math.log(self.s_init)

    # ---- changes

    @torch.no_grad()
    def set_lam(self, lam: Lam) -> None:
        """Sets λ, which has been checked, in place. Within one sign log_s is carried over,
        log_s·λ_old/λ_new; on a change of sign, or from ±∞, the next batch initialises it."""
        self.has_history = False
        self.rule = lam if isinstance(lam, LamRule) else None
        self.is_negative = _is_negative(lam)
        if isinstance(lam, LamRule):
            self.lam_rule.copy_(lam.to_tensor(self.lam_rule.device))
            self.lam.fill_(-math.inf if lam.noisy else math.inf)
            return
        self.lam_rule.zero_()
        if isinstance(lam, Tensor):
            self.lam.copy_(lam.detach().reshape(()))
        else:
            self.lam.fill_(float(lam))
        torch.ops.absgd.carry_log_s(self.lam, self.log_s, self.log_s_lam, self.s_init)
        torch.autograd.graph.increment_version([self.log_s, self.log_s_lam])

    @torch.no_grad()
    def restart(self, lam: Lam) -> None:
        """Begins Algorithm 1 anew at another λ."""
        self.set_lam(lam)
        self.log_s.fill_(self.initial_log_s)
        self.log_s_lam.copy_(self.lam)
        self.reports.fill_(math.nan)

    def move(self, device: torch.device) -> None:
        for name in TENSORS:
            setattr(self, name, getattr(self, name).to(device))
        self.version += 1

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Puts everything back at the end, as if nothing had been weighed."""
        before = {name: getattr(self, name).clone() for name in TENSORS}
        has_history = self.has_history
        try:
            yield
        finally:
            for name, value in before.items():
                getattr(self, name).copy_(value)
            self.has_history = has_history

    # ---- saved and loaded

    def entries(self) -> dict[str, Any]:
        """Tensors and constants by name: what a parameter group carries."""
        return {name: getattr(self, name) for name in (*TENSORS, *CONSTANTS)}

    @torch.no_grad()
    def load(self, entries: Mapping[str, Any]) -> None:
        """Copies loaded entries into the existing tensors; what is not there stays as it was.

        Raises:
            TypeError, ValueError: an entry is not what `ABSGD` documents; nothing is changed then.
        """
        loaded = checked_entries(entries)
        tensors = {name: value for name, value in loaded.items() if name in TENSORS}
        self.was_changed = not all(same(getattr(self, name), v) for name, v in tensors.items())
        for name, value in loaded.items():
            if name in CONSTANTS:
                setattr(self, name, value)
            else:
                getattr(self, name).copy_(value)
        self.rule = LamRule.from_tensor(self.lam_rule)
        self.is_negative = bool(self.lam < 0)
        self.has_history = False
        self.version += 1

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> RuleState:
        """A state that is ``entries``: of an optimizer that was unpickled or copied."""
        state = cls(math.inf, None, None, 1.0, None, False)
        state.load(entries)
        state.was_changed = False
        for name in TENSORS:
            if isinstance(entries.get(name), Tensor):
                setattr(state, name, getattr(state, name).to(entries[name].device))
        return state


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


def described(state: RuleState) -> str:
    """λ, or the rule that moves it, and the guards, for a ``repr``."""
    lam = f"{float(state.lam):g}" if state.rule is None else repr(state.rule)
    guards = "" if state.max_weight is None else f", max_weight={state.max_weight:g}"
    return f"lam={lam}" + guards + (", keep_loss=True" if state.keep_loss else "")


def _is_negative(lam: Lam) -> bool:
    """Whether λ < 0, as far as that is known without asking a device."""
    if isinstance(lam, LamRule):
        return lam.noisy
    return (not isinstance(lam, Tensor) or lam.device.type == "cpu") and float(lam) < 0


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def checked_entries(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The rule's own among ``entries``, checked, in today's form: reports of older checkpoints are
    shorter, and where they had no λ yet, under a rule, it read NaN.

    Raises:
        TypeError, ValueError: an entry is not what `ABSGD` documents.
    """
    loaded = {name: entries[name] for name in (*TENSORS, *CONSTANTS) if name in entries}
    sizes = {"lam": 1, "log_s": 1, "log_s_lam": 1, "lam_rule": _ops.LAM_RULE_SIZE}
    for name, size in sizes.items():
        if name in loaded:
            loaded[name] = _loaded_tensor(name, loaded[name], (size,))
    if "reports" in loaded:
        rows = _loaded_tensor(
            "reports", loaded["reports"], (2 * _ops.REPORT_SIZE, 2 * OLD_REPORT_SIZE)
        ).view(2, -1)
        loaded["reports"] = padded_reports(rows)
    rule = LamRule.from_tensor(loaded["lam_rule"]) if "lam_rule" in loaded else None
    if rule is not None and "lam" in loaded and bool(loaded["lam"].isnan()):
        loaded["lam"] = torch.full_like(loaded["lam"], -math.inf if rule.noisy else math.inf)
    if "lam" in loaded:
        loaded.setdefault("log_s_lam", loaded["lam"])
    if loaded.get("s_init", 0.0) is None:
        loaded["s_init"] = math.nan
    s_init = loaded.get("s_init")
    _rule_checks.check_rule(
        lam=loaded.get("lam", math.inf),
        gamma=loaded.get("gamma"),
        s_init=None if isinstance(s_init, float) and math.isnan(s_init) else s_init,
        alpha=loaded.get("alpha", 1.0),
        max_weight=loaded.get("max_weight"),
        keep_loss=loaded.get("keep_loss", False),
        process_group=None,
    )
    return loaded


OLD_REPORT_SIZE = 7  # of checkpoints before the guards


def padded_reports(rows: Tensor) -> Tensor:
    """Reports as they are now: those of before the guards had κ = 1 and capped nothing."""
    if rows.shape[1] == _ops.REPORT_SIZE:
        return rows
    guards = rows.new_tensor([1.0, 0.0]).repeat(2, 1)
    guards = torch.where(rows[:, :1].isnan(), rows[:, :1], guards)  # no batch yet: NaN
    return torch.cat([rows, guards], dim=1)


def _loaded_tensor(name: str, value: Any, sizes: tuple[int, ...]) -> Tensor:
    tensor = torch.as_tensor(value).detach().to(torch.float64)
    if tensor.numel() not in sizes:
        raise ValueError(f"loaded state dict: {name} must hold {sizes[0]} number(s)")
    return tensor.reshape(()) if sizes[0] == 1 else tensor
