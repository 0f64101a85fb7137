"""The weighting rule of Algorithm 1, for everything that carries its state.

`Weighting` is mixed into `ABSGD`, which keeps the state in its parameter groups, and into
`AttentionalLoss`, which keeps it in buffers. Arithmetic is the operators'; see ``csrc/absgd.h``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from . import _checks, _ops
from .accumulation import Accumulation
from .stats import Stats

ProcessGroup = Any  # torch.distributed.ProcessGroup, where torch was built with it

STATE = ("lam", "log_s", "log_s_lam", "reports")  # tensors, float64


def new_state(lam: float | Tensor, s_init: float, device: torch.device) -> dict[str, Tensor]:
    """The four tensors of the rule's state, before the first batch."""

    def scalar(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=device)

    lam = lam.detach() if isinstance(lam, Tensor) else scalar(float(lam))
    lam = lam.to(device=device, dtype=torch.float64, copy=True).reshape(())
    return {
        "lam": lam,
        "log_s": scalar(initial_log_s(s_init)),
        "log_s_lam": lam.clone(),
        "reports": torch.full((2, _ops.REPORT_SIZE), math.nan, dtype=torch.float64, device=device),
    }


def number_or_nan(s_init: float | None) -> float:
    return math.nan if s_init is None else float(s_init)


def initial_log_s(s_init: float) -> float:
    """log s_1; NaN, "unset", where s_1 is NaN."""
    return -math.inf if s_init == 0 else math.log(s_init)


def plain_mean(losses: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of the losses that count; 0, attached to the graph, if none does."""
    if mask is None:
        return losses.mean() if losses.numel() > 0 else losses.sum()
    return losses.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


class Memory:
    """What a `Weighting` remembers beside its state. A copy starts without: none of it is needed
    to go on."""

    def __init__(self) -> None:
        self.weights: Tensor | None = None  # of the last batch
        self.losses: Tensor | None = None
        self.accumulation: Accumulation | None = None  # begun and not yet settled
        self.has_history = False  # log_s has taken in a batch since λ was last set

    def __reduce__(self) -> tuple[type[Memory], tuple[()]]:
        return Memory, ()


class Weighting:
    """`weigh`, and the state behind it: λ, log_s and what is reported of the last batch."""

    process_group: ProcessGroup | Literal["local"] | None = None
    _memory: Memory

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
            weights, coefficients = self._next_weights(losses.detach(), mask)
        self._memory.weights, self._memory.losses = weights, losses.detach()
        if losses.dtype in (torch.float16, torch.bfloat16):
            losses = losses.float()
        if mask is not None:
            losses = losses.masked_fill(~mask, 0)
        total = torch.dot(coefficients.reshape(-1), losses.reshape(-1))
        if self._memory.accumulation is not None:
            self._memory.accumulation.expect_backward(total)
        return total

    def _next_weights(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        """p and its coefficients in the scalar, [2, losses.shape]; takes the batch into log_s."""
        state = self._state()
        if state["log_s"].device != losses.device:
            self._move_state(losses.device)
            state = self._state()
        if self._memory.accumulation is not None:
            return self._memory.accumulation.weigh(losses, mask)
        rows, world_size = self._gather_stats(losses, mask)
        self._memory.has_history = True
        return torch.ops.absgd.weigh(
            losses, mask, rows, *(state[name] for name in STATE), *self._rule(), world_size
        )

    def _gather_stats(self, losses: Tensor, mask: Tensor | None) -> tuple[Tensor | None, int]:
        """The statistics of all ranks, a row each, and how many ranks; None for one process."""
        world_size = self._world_size()
        if world_size == 1:
            return None, 1
        own = torch.ops.absgd.batch_stats(losses, mask, self._state()["lam"])
        rows = own.new_empty(world_size * _ops.STATS_SIZE)
        dist.all_gather_into_tensor(rows, own, group=self._group())
        return rows, world_size

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
        return self._memory.weights

    @property
    def lam(self) -> Tensor:
        """λ, a 0-dim float64 tensor (``float(opt.lam)`` for a number). Assign a number or a 0-dim
        tensor to change it: within one sign, ``log_s`` is carried over as
        ``log_s · λ_old/λ_new``; on a change of sign, or from ±inf, the next batch initialises it.
        """
        return self._state()["lam"]

    @lam.setter
    def lam(self, value: float | Tensor) -> None:
        self.set_lam(value)

    def set_lam(self, value: float | Tensor) -> None:
        """What assigning to ``lam`` does."""
        _checks.check_lam(value)
        state = self._state()
        with torch.no_grad():
            if isinstance(value, Tensor):
                state["lam"].copy_(value.detach().reshape(()))
            else:
                state["lam"].fill_(float(value))
            _, _, s_init = self._rule()
            torch.ops.absgd.carry_log_s(state["lam"], state["log_s"], state["log_s_lam"], s_init)
        self._memory.has_history = False

    @property
    def log_s(self) -> Tensor:
        """log s, a 0-dim float64 tensor: the normaliser, in the log domain. NaN while unset."""
        return self._state()["log_s"]

    @torch.no_grad()
    def restart(self, lam: float | Tensor) -> None:
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
        return Stats(self._state()["reports"].clone(), self._memory.losses)

    # ---- gradient accumulation

    def _gradients(self) -> Iterable[Tensor]:
        """The gradients that `finalize_grads_` is to scale."""
        raise NotImplementedError

    @contextmanager
    def _accumulate(self, gradients, divisor: float, overlap: bool) -> Iterator[None]:
        _checks.check_positive("divisor", divisor)
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
