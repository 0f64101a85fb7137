"""A loss of ours, its weights and, on a CPU, its gradient in one operator, for `AttentionalLoss`.

The same numbers as ``weigh(criterion(input, target))``. On a small batch the dispatch and autograd
of two steps cost more than their arithmetic; and on a CPU, logits that are still in the cache when
the weights are known give their gradient at once.

On a card the gradient is left to the backward pass, whatever the size. At once, it would be written
in the forward pass, and read and written again by a product with what comes from above, of which no
CPU can tell that it is 1 without waiting: with the logits read twice, five passes over (N, C) and a
launch more than the three of the later gradient, which takes that factor along. Counted in bytes
and launches; not measured.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ._differentiable import DifferentiatedOnce, is_transformed
from ._ops import arithmetic_type
from ._rule_checks import check_mask_and_weight
from .losses import PerSampleLoss
from .sigmoid_losses import PerSampleSigmoidLoss
from .weigher import Weigher, base_measure, is_checkpointing

AT_ONCE = 2**20  # logits on a CPU; of more, what has left the cache costs more than is saved


class WithGradient(torch.autograd.Function):
    """``total``, whose gradient in logits is ``grad``; differentiable once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, total: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return total.detach()  # not total itself, which could then not be divided in place

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        if not _is_one(grad_total):
            grad = grad * grad_total
        if torch.is_grad_enabled():  # create_graph=True
            grad = DifferentiatedOnce.apply(grad.detach().requires_grad_())
        return grad, None, None


def _is_one(grad_total: Tensor) -> bool:
    """Whether it is known, without waiting for a device, that there is nothing to multiply by."""
    return not torch.compiler.is_compiling() and grad_total.is_cpu and grad_total.item() == 1


class WithLaterGradient(torch.autograd.Function):
    """``total``, whose gradient in logits the loss's backward operator gives when it is asked for.

    ``kept`` is what that operator takes after the logits, up to ``numbers``."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        total: Tensor,
        rows: Tensor,
        operator: Any,
        numbers: tuple[Any, ...],
        *kept: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(rows, logits, *kept)
        ctx.operator, ctx.numbers = operator, numbers
        return total.detach()

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        rows, *tensors = ctx.saved_tensors
        grad = ctx.operator(rows[1], *tensors, *ctx.numbers, grad_total)
        return grad, *[None] * (3 + len(tensors))


def gives_gradient_at_once(logits: Tensor) -> bool:
    return logits.is_cpu


def can_weigh_at_once(
    criterion: Any, input: Any, target: Any, weigher: Weigher, class_weight: Tensor | None = None
) -> TypeGuard[PerSampleLoss | PerSampleSigmoidLoss]:
    """Whether `weigh_at_once` applies: a loss of ours as it stands, one loss an element, logits to
    differentiate, by autograd and not by ``torch.func``, one process, one batch,
    and nobody who waits for the scalar's backward pass. If the gradient comes at once: no great
    size, and not float16, where it may need its scale to be representable."""
    return (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and _is_one_operator(criterion, input, target, class_weight)
        and is_untouched(criterion)
        and input.requires_grad
        and not target.requires_grad
        and not (
            gives_gradient_at_once(input)
            and (input.numel() > AT_ONCE or input.dtype is torch.float16)
        )
        and weigher.accumulation is None
        and weigher.stepper is None
        and not weigher.is_frozen
        and weigher.ranks.world_size() == 1
        and not is_checkpointing()
        and not is_transformed()
    )


def _is_one_operator(
    criterion: Any, input: Tensor, target: Tensor, class_weight: Tensor | None
) -> bool:
    if isinstance(criterion, PerSampleSigmoidLoss):
        return class_weight is None
    return isinstance(criterion, PerSampleLoss) and criterion.is_one_operator(input, target)


def is_untouched(criterion: nn.Module) -> bool:
    """Whether calling it is no more than its class's ``forward``: no override, no hook."""
    return (
        type(criterion).forward in (PerSampleLoss.forward, PerSampleSigmoidLoss.forward)
        and "forward" not in criterion.__dict__
        and not (
            criterion._forward_hooks
            or criterion._forward_pre_hooks
            or criterion._backward_hooks
            or criterion._backward_pre_hooks
            or _global_hooks()
        )
    )


def _global_hooks() -> bool:
    module = torch.nn.modules.module
    return bool(
        module._global_forward_hooks
        or module._global_forward_pre_hooks
        or module._global_backward_hooks
        or module._global_backward_pre_hooks
    )


def weigh_at_once(
    criterion: PerSampleLoss | PerSampleSigmoidLoss,
    input: Tensor,
    target: Tensor,
    weigher: Weigher,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    class_weight: Tensor | None = None,
) -> Tensor:
    """``weigher.weigh(criterion(input, target), …)`` with the mask of ``ignore_index`` beside
    ``mask``, and the base measure weight_i·class_weight[y_i]."""
    criterion.check_call(input, target)
    shape = criterion.losses_shape(input)
    check_mask_and_weight(shape, input.device, mask, weight)
    dtype = arithmetic_type(input.dtype)
    base = base_measure(weight, input)
    arguments: tuple[Any, ...]
    if isinstance(criterion, PerSampleLoss):
        operator = torch.ops.absgd.weighted_softmax_loss.default
        backward, n_tensors = torch.ops.absgd.softmax_loss_backward.default, 3
        target = target.to(dtype) if target.is_floating_point() else target
        of_classes = None if class_weight is None else class_weight.to(dtype)
        arguments = (mask, base, of_classes)
    else:
        operator = torch.ops.absgd.weighted_sigmoid_loss.default
        backward, n_tensors = torch.ops.absgd.sigmoid_loss_backward.default, 2
        known = criterion.counted(target)
        if known is not None:
            mask = known if mask is None else known & mask
        target = target.to(dtype)
        arguments = (mask, base)
    state = weigher.state_on(input.device)
    weigher.watch.check_reachable(state, shape.numel())
    lam, *written = state.normaliser()
    options = criterion.options(input)
    at_once = gives_gradient_at_once(input)
    total, losses, rows, grad = operator(
        input.detach(),
        target,
        *options,
        *arguments,
        state.followed,
        lam,
        *written,
        *state.constants(),
        at_once,
    )
    torch.autograd.graph.increment_version(written if state.rule is None else [lam, *written])
    weigher.remember(rows, losses, mask, base)
    scalar: Tensor
    if at_once:
        scalar = WithGradient.apply(input, total, grad)
    else:
        per_class, numbers = options[:n_tensors], options[n_tensors:]
        kept = (target, grad, *per_class)
        scalar = WithLaterGradient.apply(input, total, rows, backward, numbers, *kept)
    return scalar
