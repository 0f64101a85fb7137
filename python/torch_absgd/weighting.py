"""The weighting rule of Algorithm 1, for everything that carries its state.

`Weighting` is mixed into `ABSGD`, which keeps the state in its parameter groups, and into
`AttentionalLoss`, which keeps it in buffers. Arithmetic is the operators'; see ``csrc/absgd.h``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from . import _checks, _ops
from .accumulation import Accumulation
from .lam_rules import LamRule
from .stats import Stats

if TYPE_CHECKING:
    from .step_in_backward import StepInBackward

ProcessGroup = Any  # torch.distributed.ProcessGroup, where torch was built with it

WEIGH_STATE = ("lam", "log_s", "log_s_lam", "reports")  # tensors, float64, as `weigh` takes them
STATE = (*WEIGH_STATE, "lam_rule")
SUM_CHUNK = 4096  # elements that one thread adds up

Lam = float | Tensor | LamRule


def new_state(lam: Lam, s_init: float, device: torch.device) -> dict[str, Tensor]:
    """The tensors of the rule's state, before the first batch."""

    def scalar(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=device)

    lam_rule = torch.zeros(_ops.LAM_RULE_SIZE, dtype=torch.float64, device=device)
    if isinstance(lam, LamRule):
        lam_rule, lam = lam.to_tensor(device), math.nan
    lam = lam.detach() if isinstance(lam, Tensor) else scalar(float(lam))
    lam = lam.to(device=device, dtype=torch.float64, copy=True).reshape(())
    return {
        "lam": lam,
        "log_s": scalar(initial_log_s(s_init)),
        "log_s_lam": lam.clone(),
        "reports": torch.full((2, _ops.REPORT_SIZE), math.nan, dtype=torch.float64, device=device),
        "lam_rule": lam_rule,
    }


def number_or_nan(s_init: float | None) -> float:
    return math.nan if s_init is None else float(s_init)


def initial_log_s(s_init: float) -> float:
    """log s_1; NaN, "unset", where s_1 is NaN."""
    return -math.inf if s_init == 0 else math.log(s_init)


def weighted_sum(coefficients: Tensor, losses: Tensor) -> Tensor:
    """Σ c_i L_i, of the same bits for any number of threads: on a CPU torch.dot would share out
    more than a few thousand elements among them."""
    n = losses.numel() // SUM_CHUNK * SUM_CHUNK
    if n == 0 or losses.device.type != "cpu":
        return torch.dot(coefficients, losses)
    if n < losses.numel():
        whole = weighted_sum(coefficients[:n], losses[:n])
        return whole + torch.dot(coefficients[n:], losses[n:])
    return (coefficients * losses).view(-1, SUM_CHUNK).sum(1).sum()


def plain_mean(losses: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of the losses that count; 0, attached to the graph, if none does."""
    if losses.dtype in (torch.float16, torch.bfloat16):
        losses = losses.float()
    if mask is None:
        return losses.mean() if losses.numel() > 0 else losses.sum()
    return losses.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


class Memory:
    """What a `Weighting` remembers beside its state. A copy starts without the last batch: it is
    not needed to go on."""

    def __init__(self, follows: bool = False) -> None:
        self.rows: Tensor | None = None  # of the last batch: p and coefficients
        self.weights: Tensor | None = None  # its p, once asked for
        self.losses: Tensor | None = None
        self.accumulation: Accumulation | None = None  # begun and not yet settled
        self.has_history = False  # log_s has taken in a batch since λ was last set
        self.follows = follows  # λ follows a rule: the state's lam_rule, known without asking it

    def __reduce__(self) -> tuple[type[Memory], tuple[bool]]:
        return Memory, (self.follows,)


class Weighting:
    """`weigh`, and the state behind it: λ, log_s and what is reported of the last batch."""

    process_group: ProcessGroup | Literal["local"] | None = None
    _memory: Memory
    _stepper: StepInBackward | None = None  # set while the backward pass takes the steps

    # ---- what a subclass provides

    def _state(self) -> MutableMapping[str, Tensor]:
        """The mapping that holds the tensors named in STATE."""
        raise NotImplementedError

    def _rule(self) -> tuple[float, float, float]:
        """γ, α and s_1, which is NaN without one."""
        raise NotImplementedError

    def _weighs(self) -> bool:
        """Whether this is training: elsewhere `weigh` is the plain mean."""
        return torch.is_grad_enabled()

    def _forget(self) -> None:
        """Drops what is remembered of before a state was loaded."""
        self._memory = Memory(follows=bool(self._state()["lam_rule"].any()))

    def _move_state(self, device: torch.device) -> None:
        """Puts the state on the losses' device."""
        state = self._state()
        for name in STATE:
            state[name] = state[name].to(device)

    # ---- the rule

    def weigh(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        r"""Weighs per-sample losses by Algorithm 1 and returns the scalar to differentiate.

        .. math::
            p_i = \exp(L_i/\lambda - \log s), \qquad \frac{1}{B} \sum_i p_i L_i

        with :math:`p` a constant in the backward pass (Qi et al. 2023, Algorithm 1), after
        :math:`\log s` has taken in this batch. The batch is that of all ranks of
        ``process_group``; the result is scaled so that gradients averaged over the ranks are those
        of one process with the whole batch.

        Under ``torch.no_grad()`` (and in ``eval()``, for a module) the result is the plain mean,
        and nothing changes.

        Args:
            losses: per-sample losses, of any shape but (), in any floating dtype. Half precision
                is computed in float32.
            mask: bool, the losses' shape and device: True where a loss counts. The others count
                neither in B nor in log_s, and their weight is 0.

        Returns:
            a scalar, float64 for float64 losses and float32 otherwise; 0, attached to the graph,
            if no loss counts; non-finite if one that counts is (``log_s`` then stays as it was).

        Raises:
            TypeError: ``losses`` is not a floating-point tensor, or ``mask`` not a bool one.
            ValueError: ``losses`` is a scalar, or ``mask`` differs in shape or device.
        """
        _checks.check_losses(losses, mask)
        if not self._weighs():
            return plain_mean(losses, mask)
        with torch.no_grad():
            rows = self._next_weights(losses.detach(), mask)
        self._remember(rows, losses.detach())
        if losses.dtype in (torch.float16, torch.bfloat16):
            losses = losses.float()
        if mask is not None:
            losses = losses.masked_fill(~mask, 0)
        total = weighted_sum(rows[1].reshape(-1), losses.reshape(-1))
        if self._memory.accumulation is not None:
            self._memory.accumulation.expect_backward(total)
        if self._stepper is not None:
            self._stepper.expect_backward(total)
        return total

    def _next_weights(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        """p and its coefficients in the scalar, [2, losses.shape]; takes the batch into log_s."""
        state = self._state_on(losses.device)
        accumulation = self._memory.accumulation
        if accumulation is not None and accumulation.is_abandoned:
            accumulation = self._memory.accumulation = accumulation.restarted()
        if accumulation is not None:
            return accumulation.weigh(losses, mask)
        self._follow_lam(losses, mask)
        rows, world_size = self._gather_stats(losses, mask)
        tensors = [state[name] for name in WEIGH_STATE]
        out = torch.ops.absgd.weigh(
            losses, mask, None, rows, *tensors, *self._rule(), math.inf, False, False, world_size
        )
        torch.autograd.graph.increment_version(tensors[1:])  # operators leave it to their caller
        return out

    def _state_on(self, device: torch.device) -> MutableMapping[str, Tensor]:
        state = self._state()
        if state["log_s"].device != device:
            self._move_state(device)
        return state

    def _remember(self, rows: Tensor, losses: Tensor) -> None:
        """Keeps the last batch: p and coefficients, and the losses, detached."""
        memory = self._memory
        memory.rows, memory.weights, memory.losses = rows, None, losses
        memory.has_history = memory.accumulation is None or memory.has_history

    def _follow_lam(self, losses: Tensor, mask: Tensor | None) -> None:
        """Moves λ towards what this batch asks for, where it follows a `LamRule`."""
        state = self._state()
        if not self._memory.follows:
            return
        if self._world_size() == 1:
            torch.ops.absgd.follow_lam(losses, mask, None, state["lam_rule"], state["lam"])
        else:
            search = state["lam_rule"].new_zeros(_ops.LAM_SEARCH_SIZE)
            for _ in range(_ops.LAM_ROUNDS):
                own = torch.ops.absgd.lam_sums(losses, mask, None, state["lam_rule"], search)
                torch.ops.absgd.lam_round(state["lam_rule"], self._gather(own), search)
            torch.ops.absgd.lam_update(state["lam_rule"], search, state["lam"])
        torch.autograd.graph.increment_version([state["lam"]])

    def _gather_stats(self, losses: Tensor, mask: Tensor | None) -> tuple[Tensor | None, int]:
        """The statistics of all ranks, a row each, and how many ranks; None for one process."""
        world_size = self._world_size()
        if world_size == 1:
            return None, 1
        own = torch.ops.absgd.batch_stats(losses, mask, None, self._state()["lam"])
        return self._gather(own), world_size

    def _gather(self, own: Tensor) -> Tensor:
        """The ranks' rows, one after the other."""
        rows = own.new_empty(self._world_size() * own.numel())
        dist.all_gather_into_tensor(rows, own, group=self._group())
        return rows

    def _world_size(self) -> int:
        group = self._group()
        return 1 if group is None else dist.get_world_size(group)

    def _group(self) -> ProcessGroup | None:
        """The group whose gradients are averaged; None for one process."""
        if isinstance(self.process_group, str):
            return None
        if self.process_group is not None:
            return self.process_group
        return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None

    # ---- what can be read and set

    @property
    def weights(self) -> Tensor | None:
        """p_i of the last batch that was weighed, detached, in the shape of its losses; float64
        for float64 losses, float32 otherwise. None before the first."""
        if self._memory.weights is None and self._memory.rows is not None:
            self._memory.weights = self._memory.rows[0]
        return self._memory.weights

    @property
    def lam(self) -> Tensor:
        """λ, a 0-dim float64 tensor (``float(opt.lam)`` for a number). Assign a number or a 0-dim
        tensor to change it: within one sign, ``log_s`` is carried over as
        ``log_s · λ_old/λ_new``; on a change of sign, or from ±inf, the next batch initialises it.
        Assign an `EffectiveSampleSize` or a `KLRadius` to let it be found; it then reads NaN until
        the next batch, and the current value from there on."""
        return self._state()["lam"]

    @lam.setter
    def lam(self, value: Lam) -> None:
        self.set_lam(value)

    @torch.no_grad()
    def set_lam(self, value: Lam) -> None:
        """What assigning to ``lam`` does."""
        _checks.check_lam(value)
        if self._memory.accumulation is not None and self._memory.accumulation.memory is not None:
            raise RuntimeError(
                "lam cannot change between the micro-batches of a step: "
                "call finalize_grads_(), step() or zero_grad() first"
            )
        state = self._state()
        self._memory.has_history = False
        self._memory.follows = isinstance(value, LamRule)
        if isinstance(value, LamRule):
            state["lam_rule"].copy_(value.to_tensor(state["lam_rule"].device))
            state["lam"].fill_(math.nan)
            return
        state["lam_rule"].zero_()
        if isinstance(value, Tensor):
            state["lam"].copy_(value.detach().reshape(()))
        else:
            state["lam"].fill_(float(value))
        _, _, s_init = self._rule()
        torch.ops.absgd.carry_log_s(state["lam"], state["log_s"], state["log_s_lam"], s_init)
        torch.autograd.graph.increment_version([state["log_s"], state["log_s_lam"]])

    @property
    def log_s(self) -> Tensor:
        """log s, a 0-dim float64 tensor: the normaliser, in the log domain. NaN while unset."""
        return self._state()["log_s"]

    @torch.no_grad()
    def restart(self, lam: Lam) -> None:
        """Begins Algorithm 1 anew at another λ: forgets ``log_s`` ("restarting it with a decayed
        λ", Qi et al. 2023, Section 4.3)."""
        self.set_lam(lam)
        state = self._state()
        state["log_s"].fill_(initial_log_s(self._rule()[2]))
        state["reports"].fill_(math.nan)
        self._memory.has_history = False
        self._memory.accumulation = None

    def stats(self) -> Stats:
        """What the weights did in the last batch and as a running mean: see `Stats`. Reading a
        number from it is what synchronises, not this call."""
        state = self._state()
        return Stats(state["reports"].clone(), self._memory.losses, state["lam"].clone())

    # ---- gradient accumulation

    def _gradients(self) -> Iterable[Tensor]:
        """The gradients that `finalize_grads_` is to scale."""
        raise NotImplementedError

    @contextmanager
    def _accumulate(self, gradients, divisor: float, overlap: bool) -> Iterator[None]:
        _checks.check_positive("divisor", divisor)
        if self._stepper is not None:
            raise RuntimeError(
                "accumulate() cannot go with step_in_backward, which has stepped with a "
                "micro-batch's gradients before the next one comes"
            )
        if self._memory.accumulation is None:
            self._memory.accumulation = Accumulation(self, gradients, divisor, overlap)
        self._memory.accumulation.is_open = True
        try:
            yield
        finally:
            if self._memory.accumulation is not None:
                self._memory.accumulation.is_open = False

    @torch.no_grad()
    def finalize_grads_(self) -> None:
        """Turns gradients accumulated under `accumulate` into those of the whole batch, in place,
        and takes that batch into ``log_s``. It belongs after ``GradScaler.unscale_`` and before
        clipping; `ABSGD.step` calls it if nobody has. Without an accumulation it does nothing.
        """
        if self._memory.accumulation is not None:
            accumulation, self._memory.accumulation = self._memory.accumulation, None
            accumulation.settle()
