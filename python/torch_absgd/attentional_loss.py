"""AttentionalLoss: the weighting rule as a module, for any optimizer and any framework."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import _checks
from .lam_rules import LamRule
from .optimizer import ABSGD
from .stats import Stats
from .weighted_loss import can_weigh_at_once, weigh_at_once
from .weighting import Lam, Memory, ProcessGroup, Weighting, new_state, number_or_nan, plain_mean


class AttentionState(Weighting, nn.Module):
    """The rule with its state in buffers, which stay float64 through ``.half()`` and ``.to()``."""

    def __init__(
        self,
        lam: Lam,
        gamma: float,
        s_init: float | None,
        alpha: float,
        process_group: ProcessGroup | Literal["local"] | None,
    ) -> None:
        super().__init__()
        self.gamma, self.alpha = float(gamma), float(alpha)
        self.s_init = number_or_nan(s_init)
        self.process_group = process_group
        self._memory = Memory(follows=isinstance(lam, LamRule))
        # Not by register_buffer: it refuses the names of Weighting's properties.
        self._buffers.update(new_state(lam, self.s_init, torch.device("cpu")))

    def _state(self) -> MutableMapping[str, Tensor]:
        return self._buffers

    def _rule(self) -> tuple[float, float, float]:
        return self.gamma, self.alpha, self.s_init

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AttentionState:
        for name, tensor in self._buffers.items():
            self._buffers[name] = tensor.to(fn(tensor).device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        is_local = isinstance(self.process_group, str)  # a process group cannot be copied
        return {**self.__dict__, "process_group": "local" if is_local else None}


class AttentionalLoss(nn.Module):
    r"""Wraps a per-sample criterion; returns the scalar that Algorithm 1 differentiates.

    ::

        criterion = AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=1.0)
        loss = criterion(model(x), y)

    The same rule as `ABSGD.weigh`, with state of its own in buffers (so it is in the module's
    ``state_dict``, moves with ``.to(device)``, and works with any optimizer), or sharing an
    `ABSGD`'s λ and state; it owns no buffers then. In ``eval()`` and under ``torch.no_grad()`` the
    result is the plain mean.

    Args:
        criterion: a module or function that returns one loss a sample (``reduction="none"``).
            With one of this package's losses, elements of ``ignore_index`` are masked out. For
            others, give ``mask=`` in the call.
        lam, gamma, s_init, alpha, process_group: as in `ABSGD`.
        optimizer: an `ABSGD` whose λ and state to share; the arguments above are then its.

    Raises:
        TypeError: ``criterion`` is not callable, ``optimizer`` not an `ABSGD`, or a number not one.
        ValueError: a number is out of its range, stands beside ``optimizer``, or ``criterion``
            reduces its losses.
    """

    def __init__(
        self,
        criterion: nn.Module | Callable[..., Tensor],
        lam: Lam | None = None,
        gamma: float | None = None,
        s_init: float | None = None,
        alpha: float | None = None,
        *,
        optimizer: ABSGD | None = None,
        process_group: ProcessGroup | Literal["local"] | None = None,
    ) -> None:
        if not callable(criterion):
            raise TypeError(f"criterion must be a module or a function, got {criterion!r}")
        reduction = getattr(criterion, "reduction", "none")
        if reduction != "none":
            raise ValueError(
                f'criterion must return one loss a sample: give it reduction="none", '
                f"not {reduction!r}"
            )
        given = {
            "lam": lam,
            "gamma": gamma,
            "s_init": s_init,
            "alpha": alpha,
            "process_group": process_group,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if optimizer is not None:
            if not isinstance(optimizer, ABSGD):
                raise TypeError(f"optimizer must be an ABSGD, got {type(optimizer)}")
            if given:
                raise ValueError(f"{', '.join(given)}: these are the optimizer's, give one or both")
        rule = {"lam": math.inf, "gamma": 0.9, "s_init": None, "alpha": 1.0, "process_group": None}
        rule.update(given)
        _checks.check_rule(**rule)
        super().__init__()
        self.criterion = criterion
        self.attention: Weighting = optimizer or AttentionState(**rule)

    def forward(self, input: Tensor, target: Any, mask: Tensor | None = None) -> Tensor:
        """The weighted loss of a batch, or its plain mean in evaluation.

        Args:
            input, target: what ``criterion`` takes.
            mask: as in `ABSGD.weigh`; beside ``ignore_index``.

        Returns:
            a scalar tensor.
        """
        criterion, attention = self.criterion, self.attention
        if (
            mask is None
            and self.training
            and torch.is_grad_enabled()
            and can_weigh_at_once(criterion, input, target, attention)
        ):
            return weigh_at_once(criterion, input, target, attention)
        losses = criterion(input, target)
        counted = getattr(criterion, "counted", None)
        if counted is not None:
            not_ignored = counted(target)
            if not_ignored is not None:
                mask = not_ignored if mask is None else mask & not_ignored
        return self.weigh(losses, mask)

    def weigh(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `ABSGD.weigh`; in ``eval()`` the plain mean."""
        if self.training:
            return self.attention.weigh(losses, mask)
        _checks.check_losses(losses, mask)
        return plain_mean(losses, mask)

    @property
    def weights(self) -> Tensor | None:
        """As `ABSGD.weights`."""
        return self.attention.weights

    @property
    def lam(self) -> Tensor:
        """As `ABSGD.lam`; settable."""
        return self.attention.lam

    @lam.setter
    def lam(self, value: Lam) -> None:
        self.attention.set_lam(value)

    @property
    def log_s(self) -> Tensor:
        """As `ABSGD.log_s`."""
        return self.attention.log_s

    def restart(self, lam: Lam) -> None:
        """Stage two: forgets ``log_s`` and goes on at another λ."""
        self.attention.restart(lam)

    def stats(self) -> Stats:
        """As `ABSGD.stats`."""
        return self.attention.stats()

    def accumulate(
        self, params: Iterable[Tensor], divisor: float = 1, overlap: bool = False
    ) -> AbstractContextManager[None]:
        """As `ABSGD.accumulate`, for the gradients of ``params``, which are kept until
        `finalize_grads_`::

            with criterion.accumulate(model.parameters()):
                criterion(model(x), y).backward()
        """
        params = list(params)
        return self.attention._accumulate(
            lambda: [p.grad for p in params if p.grad is not None], divisor, overlap
        )

    def finalize_grads_(self) -> None:
        """As `ABSGD.finalize_grads_`; call it before the optimizer's step."""
        self.attention.finalize_grads_()

    def extra_repr(self) -> str:
        return f"lam={float(self.lam):g}"
