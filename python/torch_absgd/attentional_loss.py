"""AttentionalLoss: the weighting rule as a module, for any optimizer and any framework."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import _rule_checks
from ._class_values import check_class_weight, moved
from .collective import Collective, ProcessGroup
from .lam_rules import LamRule
from .optimizer import ABSGD
from .rule_state import CONSTANTS, TENSORS, Lam, RuleState, described
from .stats import Stats
from .weigher import Weigher, plain_mean
from .weighted_loss import can_weigh_at_once, weigh_at_once


class AttentionState(nn.Module):
    """A weigher of the module's own, saved with it and moved with it.

    Its tensors are no buffers. Ranks may hold different ones (``process_group="local"``), which DDP
    would overwrite with rank 0's; an averaged model would average them; and they stay float64
    through ``.half()`` and ``.to(dtype)``.
    """

    def __init__(self, state: RuleState, ranks: Collective) -> None:
        super().__init__()
        self.weigher = Weigher(state, ranks)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AttentionState:
        # fn(t), not its result, which may be of another dtype: share_memory() changes t itself.
        state = self.weigher.state
        made = [fn(getattr(state, name)) for name in TENSORS]
        state.move(made[0].device)
        return self

    def __getattr__(self, name: str) -> Any:
        if name in (*TENSORS, "rule"):  # torch's checkpoint tools look for what is in state_dict()
            return self.state_dict()[name]
        return super().__getattr__(name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.weigher.forget()

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        state = self.weigher.state
        for name in TENSORS:
            destination[prefix + name] = getattr(state, name)
        numbers = [math.nan if v is None else float(v) for v in map(state.entries().get, CONSTANTS)]
        destination[prefix + "rule"] = torch.tensor(numbers, dtype=torch.float64)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        ours = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        entries = {name: ours.pop(name) for name in TENSORS if name in ours}
        if "rule" in ours:  # checkpoints of before it was saved leave the instance's
            entries.update(_constants(ours.pop("rule")))
        unexpected_keys += [prefix + name for name in ours] if strict else []
        missing_keys += [prefix + name for name in TENSORS if name not in entries]
        try:
            self.weigher.check_no_micro_batches("no state can be loaded")
            self.weigher.state.load(entries)
        except (TypeError, ValueError, RuntimeError) as error:
            error_msgs.append(f"{prefix}: {error}")
            return
        self.weigher.forget()


def _constants(row: Tensor) -> dict[str, Any]:
    """γ, α, s_1 and the guards from their row, in which NaN stands for None."""
    values: dict[str, Any] = dict(zip(CONSTANTS, row.tolist(), strict=True))
    for name in ("gamma", "max_weight"):
        if math.isnan(values[name]):
            values[name] = None
    values["keep_loss"] = bool(values["keep_loss"])
    return values


class AttentionalLoss(nn.Module):
    r"""Wraps a per-sample criterion; returns the scalar that Algorithm 1 differentiates.

    ::

        criterion = AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=1.0)
        loss = criterion(model(x), y)

    The same rule as `ABSGD.weigh`, with state of its own (in the module's ``state_dict``; it moves
    with ``.to(device)``, and works with any optimizer), or sharing an `ABSGD`'s λ and state; it
    owns none then. In ``eval()`` and under ``torch.no_grad()`` the result is the plain mean.

    Args:
        criterion: a module or function that returns one loss a sample (``reduction="none"``).
            Over this package's losses, ``nn.CrossEntropyLoss`` and ``nn.NLLLoss``, elements of
            ``ignore_index`` are masked out. For others, give ``mask=`` in the call.
        lam, gamma, s_init, alpha, max_weight, keep_loss, process_group: as in `ABSGD`.
        class_weight: (C), finite and ≥ 0: the base measure of each class, outside the exponential
            (w_y for class indices, Σ_c w_c q_c for probabilities, which sum to 1). A buffer. The
            criterion's own ``weight`` multiplies the loss, and so stands inside the exponential.
        optimizer: an `ABSGD` whose λ and state to share; λ and the like are then its.

    Raises:
        TypeError: ``criterion`` is not callable, ``optimizer`` not an `ABSGD`, or a number not one.
        ValueError: a number is out of its range, stands beside ``optimizer``, or ``criterion``
            reduces its losses.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        criterion: nn.Module | Callable[..., Tensor],
        lam: Lam | None = None,
        gamma: float | None = None,
        s_init: float | None = None,
        alpha: float | None = None,
        *,
        max_weight: float | None = None,
        keep_loss: bool | None = None,
        class_weight: Tensor | None = None,
        optimizer: ABSGD | None = None,
        process_group: ProcessGroup | Literal["local"] | None = None,
    ) -> None:
        _rule_checks.check_criterion(criterion)
        check_class_weight("class_weight", class_weight)
        rule: dict[str, Any] = {
            "lam": lam,
            "gamma": gamma,
            "s_init": s_init,
            "alpha": alpha,
            "max_weight": max_weight,
            "keep_loss": keep_loss,
            "process_group": process_group,
        }
        if optimizer is not None:
            given = [name for name, value in rule.items() if value is not None]
            if not isinstance(optimizer, ABSGD):
                raise TypeError(f"optimizer must be an ABSGD, got {type(optimizer)}")
            if given:
                raise ValueError(f"{', '.join(given)}: these are the optimizer's, give one or both")
        defaults: dict[str, Any] = {"lam": math.inf, "alpha": 1.0, "keep_loss": False}
        rule = {name: defaults.get(name) if v is None else v for name, v in rule.items()}
        _rule_checks.check_rule(**rule)
        super().__init__()
        self.criterion = criterion
        ranks = Collective(rule.pop("process_group"))
        self.attention: ABSGD | AttentionState = (
            AttentionState(RuleState(**rule), ranks) if optimizer is None else optimizer
        )
        weight = None if class_weight is None else class_weight.detach().clone()
        self.register_buffer("class_weight", weight)

    @property
    def weigher(self) -> Weigher:
        if isinstance(self.attention, ABSGD):
            self.attention._adopt()  # somebody may have set λ in a parameter group
        return self.attention.weigher

    def forward(
        self,
        input: Tensor,
        target: Any,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The weighted loss of a batch, or its plain mean in evaluation.

        Args:
            input, target: what ``criterion`` takes.
            mask: as in `ABSGD.weigh`; beside ``ignore_index``.
            weight: as in `ABSGD.weigh`; multiplies ``class_weight``.

        Returns:
            a scalar tensor.
        """
        criterion, weigher = self.criterion, self.weigher
        if (
            self.training
            and torch.is_grad_enabled()
            and can_weigh_at_once(criterion, input, target, weigher, self.class_weight)
        ):
            total = weigh_at_once(
                criterion, input, target, weigher, mask, weight, self.class_weight
            )
            self._watch_classes(weigher, target, mask, weight)
            return total
        losses = criterion(input, target)
        not_ignored = counted(criterion, target)
        if not_ignored is not None:
            mask = not_ignored if mask is None else mask & not_ignored
        if self.class_weight is not None:
            base = gathered(self.class_weight, target, losses, mask)
            weight = base if weight is None else weight * base
        total = self.weigh(losses, mask, weight)
        if self.training and torch.is_grad_enabled():
            self._watch_classes(weigher, target, mask, weight)
        return total

    def _watch_classes(
        self, weigher: Weigher, target: Any, mask: Tensor | None, weight: Tensor | None
    ) -> None:
        """Shows the watch the weights of each class that has samples to learn from."""
        if torch.compiler.is_compiling() or weigher.is_frozen:
            return
        weights = weigher.weights
        if (
            not weigher.watch.wants_classes(weigher.state)
            or not isinstance(target, Tensor)
            or (target.dtype, target.device.type) != (torch.int64, "cpu")
            or weights is None
            or weights.shape != target.shape
        ):
            return
        counts = target >= 0
        for those in (counted(self.criterion, target), mask, weight):
            if those is not None:
                counts = counts & (those > 0)
        if self.class_weight is not None:
            counts = counts & (self.class_weight[target.masked_fill(~counts, 0)] > 0)
        weigher.watch.look_at_classes(weights, target.masked_fill(~counts, -1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AttentionalLoss:
        kept = self.class_weight
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if kept is not None and self.class_weight is not None:
            self.class_weight = moved(kept, self.class_weight.device)  # in its own dtype
        return self

    def weigh(
        self, losses: Tensor, mask: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """As `ABSGD.weigh`; in ``eval()`` the plain mean."""
        if self.training:
            return self.weigher.weigh(losses, mask, weight)
        _rule_checks.check_losses(losses, mask, weight)
        return plain_mean(losses, mask, weight)

    @property
    def weights(self) -> Tensor | None:
        """As `ABSGD.weights`."""
        return self.weigher.weights

    @property
    def lam(self) -> Tensor:
        """As `ABSGD.lam`; settable."""
        return self.weigher.state.lam.clone()

    @lam.setter
    def lam(self, value: Lam) -> None:
        self.weigher.set_lam(value)

    @property
    def lam_rule(self) -> LamRule | None:
        """As `ABSGD.lam_rule`."""
        return self.weigher.state.rule

    @property
    def log_s(self) -> Tensor:
        """As `ABSGD.log_s`."""
        return self.weigher.state.log_s.clone()

    @property
    def has_loaded_state(self) -> bool:
        """Whether a state dict has been loaded: a schedule then does not begin anew."""
        return self.weigher.was_loaded

    def restart(self, lam: Lam) -> None:
        """Stage two: forgets ``log_s`` and goes on at another λ."""
        self.weigher.restart(lam)

    def stats(self) -> Stats:
        """As `ABSGD.stats`."""
        return self.weigher.stats()

    def frozen(self) -> AbstractContextManager[None]:
        """As `ABSGD.frozen`."""
        return self.weigher.frozen()

    def accumulate(
        self, params: Iterable[Tensor], divisor: float = 1, overlap: bool = False
    ) -> AbstractContextManager[None]:
        """As `ABSGD.accumulate`, for the gradients of ``params``, which are kept until
        `finalize_grads_`::

            with criterion.accumulate(model.parameters()):
                criterion(model(x), y).backward()
        """
        kept = dict.fromkeys(_rule_checks.tensors("params", params))  # tied ones once
        return self.weigher.accumulate(
            lambda: [p.grad for p in kept if p.grad is not None], divisor, overlap
        )

    def finalize_grads_(self) -> None:
        """As `ABSGD.finalize_grads_`; call it before the optimizer's step."""
        self.weigher.finalize_grads_()

    def discard(self) -> None:
        """Drops micro-batches that cannot be made a step. What they left in ``.grad`` is the
        optimizer's ``zero_grad()`` to clear."""
        self.weigher.discard()

    def extra_repr(self) -> str:
        return described(self.weigher.state)


def counted(criterion: Any, target: Any) -> Tensor | None:
    """True where an element of ``target`` counts; None if all do, or nobody can tell."""
    criterion = getattr(criterion, "_orig_mod", criterion)  # of torch.compile
    own = getattr(criterion, "counted", None)  # this package's losses have it
    if own is not None:
        mask: Tensor | None = own(target)
        return mask
    ignoring = isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss))
    if not ignoring or not isinstance(target, Tensor) or target.is_floating_point():
        return None
    mask = target != criterion.ignore_index
    if target.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all()):
        return None  # as without a mask to the last bit, and faster
    return mask


def gathered(class_weight: Tensor, target: Tensor, losses: Tensor, mask: Tensor | None) -> Tensor:
    """The base measure of each sample: w_y for class indices (1 where they are ignored, which is
    masked), Σ_c w_c q_c for class probabilities of shape (N, C, …)."""
    _rule_checks.check_class_target(class_weight, target, losses, mask)
    if target.is_floating_point():
        axis = min(target.dim() - 1, 1)
        of_class = class_weight.view(-1, *[1] * (target.dim() - 1 - axis))
        # No matrix product, which autocast would take in half precision.
        return (target.to(class_weight.dtype) * of_class).sum(axis)
    target = target.long()  # uint8 would be a mask
    out = (target < 0) | (target >= len(class_weight))
    measure: Tensor = class_weight[target.masked_fill(out, 0)].masked_fill(out, 1)
    return measure
