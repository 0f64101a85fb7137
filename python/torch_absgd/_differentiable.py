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


def arithmetic_type(dtype: torch.dtype) -> torch.dtype:
    """The type that values of dtype are computed in, and that their losses have."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def require(condition: bool, message: str) -> None:
    """As ``STD_TORCH_CHECK`` in the registration, for fake kernels."""
    if not condition:
        raise RuntimeError(message)


def check_factor(factor: Tensor | None, dtype: torch.dtype, logits: Tensor) -> None:
    """Of a scalar that multiplies a backward operator's whole ``grad_loss``."""
    require(
        factor is None
        or (factor.numel() == 1 and factor.dtype is dtype and factor.device == logits.device),
        f"factor must be one value of {dtype} on the logits' device",
    )


def is_transformed() -> bool:
    """Whether ``torch.func`` calls, outside of a compiler."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def loss_of(
    arguments: tuple[Any, ...],
    operator: Callable[..., tuple[Tensor, Tensor]],
    eager: type[torch.autograd.Function],
    transformable: type[torch.autograd.Function],
) -> Tensor:
    """The operator's first result, by the way that suits who calls."""
    loss: Tensor
    if torch.compiler.is_compiling():
        loss, _ = operator(*arguments)
    elif is_transformed():
        loss, _ = transformable.apply(*arguments)
    else:
        loss = eager.apply(*arguments)
    return loss


def backward_twice(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "the per-sample losses can be differentiated once; for second derivatives use "
        "torch.nn.functional.cross_entropy(reduction='none')"
    )


class DifferentiatedOnce(torch.autograd.Function):
    """A gradient that cannot be differentiated in turn."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    backward = staticmethod(backward_twice)


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
