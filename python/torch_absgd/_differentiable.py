"""How an operator that returns losses joins autograd, compilers and function transforms.

Three ways lead to it. Eager code takes an ``autograd.Function``, the fastest on a small batch;
``torch.compile`` and ``torch.export`` see the operator itself, with its registered formula, which
an exported program keeps; ``torch.func`` needs a Function of another form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def is_transformed() -> bool:
    """Whether ``torch.func`` calls, outside of a compiler."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def backward_twice(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "the per-sample losses can be differentiated once; for second derivatives use "
        "torch.nn.functional.cross_entropy(reduction='none')"
    )


class LossOperator:
    """``loss, saved = absgd::name(logits, target, *per_class, *numbers)``, differentiable once in
    logits by ``absgd::name_backward(grad_loss, logits, target, saved, *per_class, *numbers)``.

    Args:
        name: as registered.
        per_class: how many arguments have a value for each class.
        add_up: for forward mode: the losses' tangent, from slopes times tangents, in the logits'
            shape, and the numbers.
    """

    def __init__(self, name: str, per_class: int, add_up: Callable[..., Tensor]) -> None:
        self.per_class, self.add_up = per_class, add_up
        self.loss = getattr(torch.ops.absgd, name).default
        self.gradient = getattr(torch.ops.absgd, f"{name}_backward").default
        torch.library.register_autograd(
            f"absgd::{name}", self.backward, setup_context=self.setup_context
        )
        torch.library.register_autograd(f"absgd::{name}_backward", backward_twice)

    def __call__(self, *arguments: Any) -> Tensor:
        """The losses, by the way that suits who calls."""
        loss: Tensor
        if torch.compiler.is_compiling():
            loss, _ = self.loss(*arguments)
        elif is_transformed():
            loss, _ = TransformableLoss.apply(*arguments, self)
        else:
            loss = EagerLoss.apply(*arguments, self)
        return loss

    def save(self, ctx: Any, inputs: tuple[Any, ...], saved: Tensor) -> None:
        logits, target, *rest = inputs
        ctx.numbers = rest[self.per_class :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, saved, *rest[: self.per_class])

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        self.save(ctx, inputs, output[1])

    def backward(self, ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        grad = None
        if grad_loss is not None and ctx.needs_input_grad[0]:
            grad = self.gradient(grad_loss, *ctx.saved_tensors, *ctx.numbers)
        return grad, *[None] * (len(ctx.needs_input_grad) - 1)


class EagerLoss(torch.autograd.Function):
    """The formula of a `LossOperator`, the last argument, at two thirds of its time on a small
    batch."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *rest: Any) -> Tensor:
        *options, ctx.operator = rest
        loss: Tensor
        loss, saved = ctx.operator.loss(logits.detach(), *options)
        ctx.operator.save(ctx, (logits, *options), saved)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        operator: LossOperator = ctx.operator
        return operator.backward(ctx, grad_loss)


class TransformableLoss(torch.autograd.Function):
    """The same for torch.func: ``grad`` and its kin, ``vmap`` and ``jvp``, also of one another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, operator = arguments
        loss, saved = operator.loss(*inputs)
        return loss, saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *arguments, operator = inputs
        operator.setup_context(ctx, tuple(arguments), output)
        logits, target, *rest = arguments
        ctx.save_for_forward(logits, target, output[1], *rest[: operator.per_class])
        ctx.operator, ctx.shape = operator, output[0].shape

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        grad = None
        if grad_loss is not None and ctx.needs_input_grad[0]:
            grad = TransformableGradient.apply(
                ctx.operator.gradient, grad_loss, *ctx.saved_tensors, *ctx.numbers
            )
        return grad, *[None] * (len(ctx.needs_input_grad) - 1)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        logits, target, saved, *per_class = ctx.saved_tensors
        ones = saved.new_ones(ctx.shape)
        slope = ctx.operator.gradient(ones, logits, target, saved, *per_class, *ctx.numbers)
        return ctx.operator.add_up((slope * tangent).to(saved.dtype), *ctx.numbers), None


class TransformableGradient(torch.autograd.Function):
    """``operator(*arguments)``, a gradient, for torch.func: it cannot be differentiated in turn."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operator: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return operator(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    backward = staticmethod(backward_twice)
    jvp = staticmethod(backward_twice)


class DifferentiatedOnce(torch.autograd.Function):
    """A gradient that cannot be differentiated in turn."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    backward = staticmethod(backward_twice)


# ---- vmap: a batch of calls as one call with more samples ----


def in_front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """``tensor`` with the mapped dimension, of ``size``, first; repeated if it has none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def as_samples(batched: Tensor) -> Tensor:
    """(B, N, …) as (B·N, …); (B) and (B, …) of single samples as they are."""
    return batched.flatten(0, 1)


def refuse_mapped_options(dims: tuple[Any, ...]) -> None:
    if any(d is not None for d in dims):
        raise NotImplementedError("vmap over class weights, margins or offsets is not supported")
