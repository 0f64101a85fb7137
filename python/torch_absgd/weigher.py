"""Losses in, scalar out: the weighting of Algorithm 1.

`ABSGD` and `AttentionalLoss` each hold a `Weigher`, or share one. Arithmetic is the operators'; see
``csrc/absgd.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from . import _checks, _ops, _rule_checks
from .accumulation import Accumulation
from .collective import Collective
from .rule_state import Lam, RuleState, checked_entries
from .stats import Stats
from .watch import Watch

SUM_CHUNK = 4096  # elements that one thread adds up
HALF = (torch.float16, torch.bfloat16)


class Stepper(Protocol):
    """What takes the steps within the backward pass, and so has to see how that begins."""

    def expect_backward(self, total: Tensor) -> None: ...


class Weigher:
    """The rule's state, the ranks that share a batch, and what is remembered of the last one."""

    def __init__(self, state: RuleState, ranks: Collective) -> None:
        self.state, self.ranks = state, ranks
        self.accumulation: Accumulation | None = None  # begun and not yet settled
        self.stepper: Stepper | None = None  # set while the backward pass takes the steps
        self.rows: Tensor | None = None  # of the last batch: weights and coefficients
        self._weights: Tensor | None = None  # the former, once asked for
        self.watch = Watch()
        self.is_frozen = False
        self.was_loaded = False

    # ---- the rule

    def weigh(
        self, losses: Tensor, mask: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """What `ABSGD.weigh` documents."""
        _rule_checks.check_losses(losses, mask, weight)
        if not torch.is_grad_enabled():
            return plain_mean(losses, mask, weight)
        rows = self._next_weights(losses.detach(), mask, base_measure(weight, losses))
        total = weighted_sum(rows[1], losses, mask)
        if self.accumulation is not None and not self.is_frozen:
            self.accumulation.expect_backward(total)
        if self.stepper is not None:
            self.stepper.expect_backward(total)
        return total

    def _next_weights(self, losses: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
        """Weights and coefficients, [2, losses.shape]; takes the batch into log_s."""
        state = self.state_on(losses.device)
        if is_recomputing():
            return self._weights_again(losses, mask, weight)
        if self.accumulation is not None and not self.is_frozen:
            rows = self.accumulation.weigh(
                losses, mask, weight, lambda: self._follow_lam(losses, mask, weight)
            )
            self.rows, self._weights = rows, None
            return rows
        with state.restored() if self.is_frozen else nullcontext():
            ranks = self.ranks.world_size()
            if ranks == 1:
                self.watch.check_reachable(state, losses.numel())
                rows = self._weigh_with(losses, mask, weight, follows=True)
            else:
                self._follow_lam(losses, mask, weight)
                own = torch.ops.absgd.batch_stats(losses, mask, weight, state.lam)
                gathered = self.ranks.gather(own)
                rows = self._weigh_with(losses, mask, weight, gathered, ranks)
        self.remember(rows, losses, mask, weight)
        return rows

    def _weigh_with(
        self,
        losses: Tensor,
        mask: Tensor | None,
        weight: Tensor | None,
        gathered: Tensor | None = None,
        ranks: int = 1,
        follows: bool = False,
        gamma: float | None = None,
    ) -> Tensor:
        """The operator, on the ranks' statistics or, for one process, on these losses; λ moves to
        what they ask for if it ``follows`` its rule here."""
        lam_rule = self.state.followed if follows else None
        lam, *written = self.state.normaliser()
        own_gamma, *constants = self.state.constants()
        gamma = own_gamma if gamma is None else gamma
        out: Tensor = torch.ops.absgd.weigh(
            losses, mask, weight, gathered, lam_rule, lam, *written, gamma, *constants, ranks
        )
        # Operators leave it to their caller.
        torch.autograd.graph.increment_version(written if lam_rule is None else [lam, *written])
        return out

    def state_on(self, device: torch.device) -> RuleState:
        if self.state.log_s.device != device:
            self.state.move(device)
        return self.state

    def remember(
        self, rows: Tensor, losses: Tensor, mask: Tensor | None, weight: Tensor | None
    ) -> None:
        """Keeps the last batch's weights, and looks whether they are too selective."""
        self.rows, self._weights = rows, None
        if not self.is_frozen:
            self.state.has_history = True
            self.watch.look(self.state, losses, mask, weight)

    def _follow_lam(self, losses: Tensor, mask: Tensor | None, weight: Tensor | None) -> None:
        """Moves λ to what this batch asks for, where it follows a rule."""
        state = self.state
        if state.rule is None:
            return
        ranks = self.ranks.world_size()
        self.watch.check_reachable(state, losses.numel() * ranks)
        if ranks == 1:
            torch.ops.absgd.follow_lam(losses, mask, weight, state.lam_rule, state.lam)
        else:
            search = state.lam_rule.new_zeros(_ops.LAM_SEARCH_SIZE)
            for _ in range(_ops.LAM_ROUNDS):
                own = torch.ops.absgd.lam_sums(losses, mask, weight, state.lam_rule, search)
                torch.ops.absgd.lam_round(state.lam_rule, self.ranks.gather(own), search)
            torch.ops.absgd.lam_update(state.lam_rule, search, state.lam)
        torch.autograd.graph.increment_version([state.lam])

    def _weights_again(self, losses: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
        """The last batch's weights once more, for activation checkpointing, which runs the forward
        pass again within the backward pass: log_s has taken the batch in already."""
        rows = self.rows
        if rows is not None and rows.shape[1:] == losses.shape:
            with self.state.restored():
                if self.is_frozen:  # the state is that of before the batch
                    self._follow_lam(losses, mask, weight)
                gamma = None if self.is_frozen else 1e-300  # so small that log_s stays as it is
                again = self._weigh_with(losses, mask, weight, gamma=gamma)[0]
            # Another batch than the last one is noticed where no device has to be waited for.
            if losses.device.type != "cpu" or self.ranks.world_size() > 1 or _alike(again, rows[0]):
                return rows
        raise RuntimeError(
            "weigh() was called in the backward pass, by activation checkpointing, on other losses "
            "than the last batch's: call weigh() outside the checkpointed function"
        )

    # ---- λ, and what can be read

    def check_no_micro_batches(self, change: str) -> None:
        """Raises if micro-batches wait to be made a step."""
        if self.accumulation is not None and self.accumulation.memory is not None:
            raise RuntimeError(
                f"{change} between the micro-batches of a step: call finalize_grads_(), step() or "
                "zero_grad() first; discard() drops the micro-batches"
            )

    def set_lam(self, lam: Lam) -> None:
        _rule_checks.check_lam(lam)
        self.check_no_micro_batches("lam cannot change")
        self.state.set_lam(lam)
        self.watch.begin()

    def restart(self, lam: Lam) -> None:
        _rule_checks.check_lam(lam)
        self.check_no_micro_batches("lam cannot change")
        self.state.restart(lam)
        self.watch.begin()

    def change(self, entries: dict[str, Any]) -> None:
        """Assigns λ and constants by name."""
        rest = {k: v for k, v in entries.items() if k not in ("lam", "log_s_lam")}
        checked_entries(rest)
        if "lam" in entries:
            self.set_lam(entries["lam"])
        self.state.load(rest)

    @property
    def weights(self) -> Tensor | None:
        """The last batch's weights."""
        if self._weights is None and self.rows is not None:
            self._weights = self.rows[0]
        return self._weights

    def stats(self) -> Stats:
        return Stats(self.state.reports.clone(), self.state.lam.clone())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Weighs without taking the batch in."""
        was, self.is_frozen = self.is_frozen, True
        try:
            yield
        finally:
            self.is_frozen = was

    def forget(self) -> None:
        """A state was loaded: drops what is remembered of before. One that has seen no batch and
        changes nothing is none to go on from: accelerate loads a new optimizer's own into it."""
        has_batch = not bool(self.state.reports[0, 0].isnan())
        self.was_loaded = has_batch or self.state.was_changed
        self.rows = self._weights = self.accumulation = None
        self.watch.begin()

    # ---- gradient accumulation

    @contextmanager
    def accumulate(
        self, gradients: Callable[[], Iterable[Tensor]], divisor: float, overlap: bool
    ) -> Iterator[None]:
        _checks.check_positive("divisor", divisor)
        _checks.check_choice("overlap", overlap, (True, False))
        if self.stepper is not None:
            raise RuntimeError(
                "accumulate() cannot go with step_in_backward, which has stepped with a "
                "micro-batch's gradients before the next one comes"
            )
        if self.accumulation is None:
            self.accumulation = Accumulation(self.state, self.ranks, gradients, divisor, overlap)
        accumulation = self.accumulation
        accumulation.open(divisor)
        try:
            yield
        finally:
            accumulation.is_open = False
            self._drop_if_empty()

    @torch.no_grad()
    def finalize_grads_(self) -> None:
        if self.accumulation is not None:
            self.accumulation.settle()
            self.discard()
            self.watch.look(self.state)

    def on_zero_grad(self) -> None:
        if self.accumulation is not None:
            self.accumulation.on_zero_grad()
            self._drop_if_empty()

    def discard(self) -> None:
        """Drops an accumulation, whatever its phase."""
        if self.accumulation is not None:
            self.accumulation.discard()
            self._drop_if_empty()

    def _drop_if_empty(self) -> None:
        accumulation = self.accumulation
        if accumulation is not None and accumulation.memory is None and not accumulation.is_open:
            self.accumulation = None


def weighted_sum(coefficients: Tensor, losses: Tensor, mask: Tensor | None) -> Tensor:
    """Σ c_i L_i over the losses that count, of the same bits for any number of threads: on a CPU
    torch.dot would share out more than a few thousand elements among them."""
    if losses.dtype in HALF:
        losses = losses.float()
    if mask is not None:
        losses = losses.masked_fill(~mask, 0)
    if losses.dim() > 1:  # else a node more in the graph, for nothing
        coefficients, losses = coefficients.reshape(-1), losses.reshape(-1)
    return _dot(coefficients, losses)


def _dot(coefficients: Tensor, losses: Tensor) -> Tensor:
    n = losses.numel() // SUM_CHUNK * SUM_CHUNK
    if n == 0 or losses.device.type != "cpu":
        return torch.dot(coefficients, losses)
    if n < losses.numel():
        return _dot(coefficients[:n], losses[:n]) + torch.dot(coefficients[n:], losses[n:])
    return (coefficients * losses).view(-1, SUM_CHUNK).sum(1).sum()


def plain_mean(losses: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
    """(1/B) Σ w_i L_i over the losses that count; 0, attached to the graph, if none does."""
    if losses.dtype in HALF:
        losses = losses.float()
    if weight is not None:
        losses = losses * weight.detach().to(losses.dtype)
    if mask is None:
        return losses.mean() if losses.numel() > 0 else losses.sum()
    return losses.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def base_measure(weight: Tensor | None, like: Tensor) -> Tensor | None:
    """The weights w_i as the operators take them: detached, in the arithmetic type of ``like``."""
    return None if weight is None else weight.detach().to(_ops.arithmetic_type(like.dtype))


def is_recomputing() -> bool:
    """Whether activation checkpointing runs the forward pass again, within the backward pass. Its
    reentrant form does not count: there the first run is without grad mode, an evaluation."""
    return is_checkpointing() and torch._C._current_graph_task_id() != -1


def is_checkpointing() -> bool:
    """Whether somebody takes charge of the tensors that are saved for the backward pass, as
    activation checkpointing does: both of its runs have to save the same."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    )


def _alike(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-6, equal_nan=True)
