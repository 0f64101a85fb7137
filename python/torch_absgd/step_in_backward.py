"""The step of each parameter as soon as its gradient is ready, so that no two gradients are alive.

For a small batch of a large model, gradients take as much memory as the parameters. Here the
backward pass itself applies the momentum step to a parameter and frees its gradient. That needs no
gradient again: nothing that looks at all gradients together can go with it.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor

from .optimizer import ABSGD

_INSTEAD = "take opt.step() after backward() instead"


class StepInBackward:
    """What `step_in_backward` returns; `remove` undoes it, and so does the optimizer's end."""

    def __init__(self, opt: ABSGD) -> None:
        self._opt = weakref.ref(opt, lambda _: self.remove())  # the parameters hold the hooks
        self._has_begun = False
        self._batch = 0  # scalars of `weigh` so far
        self._stepped: dict[int, int] = {}  # a parameter's number: its last step's batch
        self._handles: list[Any] = [opt.register_step_pre_hook(self._check_scaler)]
        for group in opt.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    hook = partial(self._step, len(self._stepped))
                    self._stepped[len(self._stepped)] = 0
                    self._handles.append(p.register_post_accumulate_grad_hook(hook))

    @property
    def opt(self) -> ABSGD | None:
        """The optimizer; None once it is gone."""
        return self._opt()

    def remove(self) -> None:
        """Leaves the step to ``opt.step()`` again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        opt = self._opt()
        if opt is not None and opt.weigher.stepper is self:
            opt.weigher.stepper = None

    def expect_backward(self, total: Tensor) -> None:
        """Looks at how the first scalar of `weigh` is differentiated."""
        self._batch += 1
        if not self._has_begun and total.requires_grad:
            total.register_hook(self._check_gradient)

    def _check_gradient(self, gradient: Tensor) -> None:
        if self._has_begun:
            return
        check_one_process()
        if gradient.item() != 1.0:  # read once, of the first batch: no other waits for the device
            raise RuntimeError(
                f"step_in_backward: the scalar of weigh() was multiplied by {gradient.item():g} "
                "before backward(), by a GradScaler or for accumulation: parameters are stepped "
                f"with these gradients before anyone can scale them back. {_INSTEAD}"
            )
        self._has_begun = True

    def _step(self, index: int, p: Tensor) -> None:
        opt = self._opt()
        if opt is None:
            return
        if self._batch > 0 and self._stepped[index] == self._batch:
            raise RuntimeError(
                f"step_in_backward: the gradient of a parameter of shape {tuple(p.shape)} was "
                "ready twice for one weigh(): of a layer that is shared under reentrant activation "
                "checkpointing each is but a part (give checkpoint use_reentrant=False), and a "
                f"second backward() needs a weigh() of its own. Or {_INSTEAD}"
            )
        self._stepped[index] = self._batch
        opt.step_parameter(p)
        p.grad = None

    def _check_scaler(self, opt: ABSGD, *_: object) -> None:
        if getattr(opt, "found_inf", None) is not None:
            raise RuntimeError(
                "step_in_backward cannot go with GradScaler: whether a gradient overflowed is "
                f"known when the first parameters have been stepped already. {_INSTEAD}, or "
                "bfloat16, which needs no scaler"
            )


def check_one_process() -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise RuntimeError(
            "step_in_backward cannot go with DDP or FSDP: a gradient is ready before it has been "
            f"averaged over the {dist.get_world_size()} ranks. {_INSTEAD}"
        )


def step_in_backward(opt: ABSGD) -> StepInBackward:
    """Makes ``backward()`` apply ``opt``'s step to each parameter as its gradient is ready, and
    free the gradient::

        handle = step_in_backward(opt)
        for x, y in batches:
            opt.weigh(F.cross_entropy(model(x), y, reduction="none")).backward()
        handle.remove()

    The trajectory is that of ``backward(); step(); zero_grad()``, with the gradient of one
    parameter in memory at a time. ``opt.step()`` finds no gradients and changes nothing, so a loop
    may go on calling it (torch's schedulers warn if it does not); likewise ``zero_grad()``.
    Learning-rate schedulers, parameter groups, λ and `restart` work as ever. Each ``backward()`` is
    a step. Groups added afterwards, and parameters unfrozen, are left to ``opt.step()``.

    What looks at all gradients together cannot go with it. Accumulation, GradScaler, DDP and FSDP
    raise. ``clip_grad_norm_`` finds no gradients, and returns 0: it clips nothing. A batch with a
    non-finite loss is stepped too: look at the loss before ``backward()``.

    Returns:
        a handle whose ``remove()`` restores the ordinary ``opt.step()``. It does not keep ``opt``
        alive.

    Raises:
        TypeError: ``opt`` is not an `ABSGD`.
        RuntimeError: it steps in the backward pass already, gradients are being accumulated or
            averaged over ranks, or ``differentiable=True``. Later, from ``backward()``: the scalar
            was scaled; from ``accumulate()`` and from ``GradScaler.step``: they cannot go with it.
    """
    if not isinstance(opt, ABSGD):
        raise TypeError(f"opt must be an ABSGD, got {type(opt)}")
    if opt.weigher.stepper is not None:
        raise RuntimeError("step_in_backward: this optimizer steps in the backward pass already")
    if opt.weigher.accumulation is not None:
        raise RuntimeError(
            "step_in_backward: micro-batches wait to be made a step: call opt.step() or discard()"
        )
    if any(group["differentiable"] for group in opt.param_groups):
        raise RuntimeError("step_in_backward cannot go with differentiable=True")
    if any(hasattr(p, "to_local") for group in opt.param_groups for p in group["params"]):
        raise RuntimeError(
            f"step_in_backward cannot go with FSDP, whose gradients are reduced later. {_INSTEAD}"
        )
    check_one_process()
    stepper = StepInBackward(opt)
    opt.weigher.stepper = stepper
    return stepper
