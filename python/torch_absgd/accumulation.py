"""Gradient accumulation: k micro-batches that make the step of one large batch, exactly.

Gradients are linear in 1/s. Micro-batches are weighted with a provisional normaliser log_c, and
once the whole batch is known its gradients are multiplied by exp(log_c − log_s) and the like:
``absgd_accumulate`` and ``absgd_settle`` in ``csrc/absgd.h``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from . import _ops

if TYPE_CHECKING:
    from .weighting import Weighting


def scale_(gradients: Iterable[Tensor], factor: Tensor) -> None:
    """Multiplies dense and sparse gradients by a 0-dim tensor, in place."""
    if factor.device.type == "cpu" and factor.item() == 1.0:
        return
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device))


class Accumulation:
    """The micro-batches of one step, from the first `weigh` to `finalize_grads_`."""

    def __init__(
        self,
        owner: Weighting,
        gradients: Callable[[], Iterable[Tensor]],
        divisor: float,
        overlap: bool,
    ) -> None:
        self.owner = owner
        self.gradients = gradients
        self.divisor = float(divisor)
        self.overlap = overlap
        self.is_open = False
        self.awaited = 0  # scalars handed out whose backward pass has not begun
        self.has_gradients = False  # a backward pass has begun
        self.may_be_abandoned = False  # zero_grad() was called before it
        self.memory: Tensor | None = None  # absgd_accumulation
        self.in_flight: list[tuple[Tensor, dist.Work]] = []  # rows of all ranks, being gathered

    def after_zero_grad(self) -> Accumulation | None:
        """What is left when gradients are dropped: an empty accumulation inside the context."""
        if self.awaited and not self.has_gradients:
            # What was dropped is the step before: Lightning calls zero_grad() between the first
            # forward pass and its backward pass. Unless that never comes.
            self.may_be_abandoned = True
            return self
        return self.restarted()

    def restarted(self) -> Accumulation | None:
        if not self.is_open:
            return None
        fresh = Accumulation(self.owner, self.gradients, self.divisor, self.overlap)
        fresh.is_open = True
        return fresh

    @property
    def is_abandoned(self) -> bool:
        return self.may_be_abandoned and self.awaited > 0 and not self.has_gradients

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        """Provisional weights and their coefficients, [2, losses.shape]."""
        if not self.is_open:
            raise RuntimeError(
                "weigh() outside accumulate(), with micro-batches not yet turned into a step: "
                "call finalize_grads_(), step() or zero_grad() first"
            )
        if self.awaited:
            raise RuntimeError(
                "accumulate(): run the backward pass of each micro-batch before the next weigh(), "
                "for its gradients may have to be scaled"
            )
        if self.has_gradients and not self.overlap and not any(True for _ in self.gradients()):
            raise RuntimeError(
                "accumulate(): the gradients of earlier micro-batches are not in .grad, and may "
                "have to be scaled (FSDP2 keeps them elsewhere after "
                "set_requires_gradient_sync(False): leave it True)"
            )
        state = self.owner._state()
        is_first = self.memory is None
        if is_first:
            self.owner._follow_lam(losses, mask)  # one λ for all micro-batches
            self.memory = state["log_s"].new_zeros(_ops.ACCUMULATION_SIZE)
            self.overlap = (
                self.overlap and self.owner._memory.has_history and self.owner._world_size() > 1
            )
        rows, world_size = (self._launch if self.overlap else self.owner._gather_stats)(
            losses, mask
        )
        shrink = torch.empty_like(state["log_s"])
        out = torch.ops.absgd.weigh_provisionally(
            losses,
            mask,
            None,
            rows,
            state["lam"],
            state["log_s"],
            state["log_s_lam"],
            self.memory,
            shrink,
            *self.owner._rule(),
            *(math.inf, False, False),
            world_size,
        )
        if not is_first:
            scale_(self.gradients(), shrink)
        return out

    def _launch(self, losses: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
        """Starts to gather the ranks' statistics, and stands in a row of which the weights only
        take what every rank knows already: log_s for log_c, and the last batch's B."""
        state, world_size = self.owner._state(), self.owner._world_size()
        own = torch.ops.absgd.batch_stats(losses, mask, None, state["lam"])
        rows = own.new_empty(world_size * _ops.STATS_SIZE)
        work = dist.all_gather_into_tensor(rows, own, group=self.owner._group(), async_op=True)
        self.in_flight.append((rows, work))
        stand_in = torch.zeros_like(own)
        stand_in[0] = state["reports"][0, 0]
        stand_in[2] = 1
        stand_in[3] = state["log_s"] * state["log_s_lam"] / state["lam"]
        stand_in[4:6] = 1
        return stand_in, world_size

    def expect_backward(self, total: Tensor) -> None:
        if total.requires_grad:
            self.awaited += 1
            total.register_hook(self._on_backward)

    def _on_backward(self, _: Tensor) -> None:
        self.awaited -= 1
        self.has_gradients = True

    def settle(self) -> None:
        """Takes the whole batch into log_s and scales the gradients to match."""
        if self.memory is None:
            return
        for _, work in self.in_flight:
            work.wait()
        rows = torch.cat([rows for rows, _ in self.in_flight]) if self.in_flight else None
        state = self.owner._state()
        factor = torch.ops.absgd.settle(
            self.memory,
            rows,
            state["lam"],
            state["log_s"],
            state["log_s_lam"],
            state["reports"],
            *self.owner._rule(),
            *(math.inf, False, False),
            self.divisor,
        )
        changed = [state["log_s"], state["log_s_lam"], state["reports"]]
        torch.autograd.graph.increment_version(changed)
        self.owner._memory.has_history = True
        scale_(self.gradients(), factor)
