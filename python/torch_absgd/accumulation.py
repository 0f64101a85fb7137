"""Gradient accumulation: k micro-batches that make the step of one large batch.

Gradients are linear in 1/s, and in κ. Micro-batches are weighted with a provisional normaliser
log_c, and once the whole batch is known its gradients are multiplied by κ·exp(log_c − log_s) and
the like: ``absgd_accumulate`` and ``absgd_settle`` in ``csrc/absgd.h``. A cap alone is not linear:
it is taken against the provisional normaliser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable

from . import _ops
from .collective import Collective
from .rule_state import RuleState

# Of absgd_stats: B, max z, and Σw, Σwe, Σwe².
COUNT, MAX, SUMS = 0, 3, [2, 4, 5]


class Phase(Enum):
    """Where an accumulation stands. What moves it: `weigh`, a backward pass that begins, and
    ``zero_grad``; `Accumulation.settle` and ``discard`` end it::

        EMPTY    -weigh->     FIRST    -backward->  PARTIAL
        PARTIAL  -weigh->     AWAITING -backward->  PARTIAL
        FIRST    -zero_grad-> DOUBTFUL -backward->  PARTIAL,  -weigh-> FIRST, of a new step
        PARTIAL, AWAITING -zero_grad-> EMPTY
    """

    EMPTY = "no micro-batch yet"
    FIRST = "the first scalar was handed out, and its backward pass has not begun"
    DOUBTFUL = "zero_grad() came before that backward pass, which may never come"
    PARTIAL = "the gradients of some micro-batches are in .grad"
    AWAITING = "another scalar was handed out, and its backward pass has not begun"


class Accumulation:
    """The micro-batches of one step, from the first `weigh` to `settle`.

    Args:
        gradients: what is in ``.grad`` now, of everything that is to be scaled.
        divisor: what the loop divides each micro-batch's scalar by.
        overlap: start the ranks' collective, and go on with the backward pass.
    """

    def __init__(
        self,
        state: RuleState,
        ranks: Collective,
        gradients: Callable[[], Iterable[Tensor]],
        divisor: float,
        overlap: bool,
    ) -> None:
        self.state, self.ranks = state, ranks
        self.gradients, self.divisor, self.overlap = gradients, float(divisor), overlap
        self.is_open = False  # inside `accumulate`
        self.phase = Phase.EMPTY
        self.memory: Tensor | None = None  # absgd_accumulation, from the first micro-batch on
        self.in_flight: list[tuple[Tensor, Any]] = []  # rows of all ranks, being gathered
        self.left: list[tuple[Tensor, int]] = []  # as backward left the gradients

    # ---- transitions

    def open(self, divisor: float) -> None:
        """Enters `accumulate` (again)."""
        if divisor != self.divisor and self.memory is not None:
            raise ValueError(
                f"Invalid divisor value: {divisor} (the micro-batches of this step began with "
                f"{self.divisor:g}; discard() drops them)"
            )
        self.divisor, self.is_open = float(divisor), True

    def before_weigh(self) -> None:
        if not self.is_open:
            raise RuntimeError(
                "weigh() outside accumulate(), with micro-batches not yet turned into a step: "
                "call finalize_grads_(), step() or zero_grad() first; discard() drops them"
            )
        if self.phase in (Phase.FIRST, Phase.AWAITING):
            raise RuntimeError(
                "accumulate(): run the backward pass of each micro-batch before the next weigh(), "
                "for its gradients may have to be scaled; discard() drops them all"
            )
        if self.phase is Phase.DOUBTFUL or (self.phase is Phase.PARTIAL and self._were_zeroed()):
            self.discard()
        elif self.phase is Phase.PARTIAL and not self.overlap and not [*self.gradients()]:
            raise RuntimeError(
                "accumulate(): the gradients of earlier micro-batches are not in .grad, and may "
                "have to be scaled. Was finalize_grads_() not called before another optimizer's "
                "step()? Were they dropped, by model.zero_grad()? Call discard(). FSDP2 keeps them "
                "elsewhere after set_requires_gradient_sync(False): leave it True"
            )

    def expect_backward(self, total: Tensor) -> None:
        """Watches for the backward pass of a scalar that is handed out."""
        if total.requires_grad:
            self.phase = Phase.FIRST if self.phase is Phase.EMPTY else Phase.AWAITING
            total.register_hook(self._on_backward)

    def _on_backward(self, _: Tensor) -> None:
        if self.phase is Phase.EMPTY:
            raise RuntimeError(
                "accumulate(): zero_grad() or discard() dropped the micro-batch whose backward "
                "pass this is"
            )
        self.phase = Phase.PARTIAL  # a second pass, of retain_graph=True, adds its gradients again
        # Twice in the queue: DDP and FSDP put there, during the pass, what writes the gradients.
        queue = Variable._execution_engine.queue_callback
        queue(lambda: queue(self._after_backward))

    def _after_backward(self) -> None:
        self.left = [(g, g._version) for g in self.gradients()]

    def on_zero_grad(self) -> None:
        """Gradients are dropped. Before the first backward pass they are the step's before:
        Lightning calls zero_grad() between the first forward pass and its backward pass. Unless
        that never comes: the next `weigh` will tell."""
        if self.phase is Phase.FIRST:
            self.phase = Phase.DOUBTFUL
        elif self.phase is not Phase.DOUBTFUL:
            self.discard()

    def discard(self) -> None:
        """Drops the micro-batches so far. What they left in ``.grad`` is the caller's to clear."""
        self.phase, self.memory, self.in_flight, self.left = Phase.EMPTY, None, [], []

    # ---- arithmetic

    @torch.no_grad()
    def weigh(
        self,
        losses: Tensor,
        mask: Tensor | None,
        weight: Tensor | None,
        follow_lam: Callable[[], None],
    ) -> Tensor:
        """Provisional weights and their coefficients, [2, losses.shape]."""
        self.before_weigh()
        state = self.state
        is_first = self.memory is None
        if self.memory is None:
            follow_lam()  # one λ for all micro-batches
            self.memory = state.log_s.new_zeros(_ops.ACCUMULATION_SIZE)
            # The stand-in below is a normaliser that every rank knows: there has to be one.
            self.overlap = (
                self.overlap
                and state.has_history
                and state.rule is None
                and self.ranks.world_size() > 1
            )
        rows = None
        if self.ranks.world_size() > 1:
            own = torch.ops.absgd.batch_stats(losses, mask, weight, state.lam)
            rows = self._launch(own) if self.overlap else self.ranks.gather(own)
        shrink = torch.empty_like(state.log_s)
        out: Tensor = torch.ops.absgd.weigh_provisionally(
            losses,
            mask,
            weight,
            rows,
            state.lam,
            state.log_s,
            state.log_s_lam,
            self.memory,
            shrink,
            *state.constants(),
            self.ranks.world_size(),
        )
        if not is_first:
            scale_(self.gradients(), shrink)
        self.left = []
        return out

    def _launch(self, own: Tensor) -> Tensor:
        """Starts to gather the ranks' statistics, and stands in a row of which the weights only
        take what every rank knows already: log_s for log_c, and the last batch's B."""
        self.in_flight.append(self.ranks.start_gather(own))
        stand_in = torch.zeros_like(own)
        stand_in[COUNT] = self.state.reports[0, 0]
        stand_in[MAX] = self.state.log_s * self.state.log_s_lam / self.state.lam
        stand_in[SUMS] = 1
        return stand_in

    def settle(self) -> None:
        """Takes the whole batch into log_s and scales the gradients to match."""
        if self.memory is None or self.phase is Phase.DOUBTFUL:
            return
        for _, work in self.in_flight:
            work.wait()
        rows = torch.cat([rows for rows, _ in self.in_flight]) if self.in_flight else None
        state = self.state
        written = state.normaliser()
        factor = torch.ops.absgd.settle(
            self.memory, rows, *written, *state.constants(), self.divisor
        )
        torch.autograd.graph.increment_version(written[1:])
        state.has_history = True
        scale_(self.gradients(), factor)

    def _were_zeroed(self) -> bool:
        """Whether the gradients were set to 0 since their backward pass, as by
        ``model.zero_grad(set_to_none=False)``, which nobody else hears of. Their values are looked
        at, and a device waited for, only where they were written to."""
        if not any(g._version != version for g, version in self.left):
            return False
        local = [_local(g) for g, _ in self.left]
        return all(g.layout is torch.strided and not g.any() for g in local)


def _local(t: Tensor) -> Tensor:
    """A DTensor's own shard: looking at it takes no collective."""
    local: Tensor = t.to_local() if hasattr(t, "to_local") else t
    return local


def scale_(gradients: Iterable[Tensor], factor: Tensor) -> None:
    """Multiplies gradients by a 0-dim tensor, in place, with few launches."""
    if factor.device.type == "cpu" and factor.item() == 1.0:
        return
    dense: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in map(_local, gradients):
        if gradient.layout is torch.strided:
            dense.setdefault((gradient.device, gradient.dtype), []).append(gradient)
        else:
            gradient.mul_(factor.to(gradient.device))
    for (device, dtype), tensors in dense.items():
        # A CPU takes the factor in the type that it computes in, finer than half precision.
        here = factor if device.type == "cpu" else factor.to(device, dtype)
        torch._foreach_mul_(tensors, here)
