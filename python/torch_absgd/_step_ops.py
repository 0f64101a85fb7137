"""The step's operators for tensors without memory: they raise what the real ones raise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._ops import register_fake

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@register_fake("absgd::sgd_step_")
def _(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    fresh: bool,
    lr: float,
    lr_tensor: Tensor | None,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    polyak: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    if len(grads) != len(params) or len(momenta) not in (0, len(params)):
        raise RuntimeError(
            "params, grads and momenta must have one length (momenta may be empty), got "
            f"{len(params)}, {len(grads)} and {len(momenta)}"
        )
    for i, p in enumerate(params):
        if p.device != params[0].device:
            raise RuntimeError(f"params[{i}] must be on the device of params[0]")
        if p.dtype not in DTYPES:
            raise RuntimeError(f"params[{i}] must be float32, float64, float16 or bfloat16")
        for name, others in (("grads", grads), ("momenta", momenta)):
            t = others[i] if others else p
            if (t.dtype, t.device, t.shape) != (p.dtype, p.device, p.shape):
                raise RuntimeError(
                    f"{name}[{i}] must have the dtype, shape and device of params[{i}]"
                )
    scalars = {"lr_tensor": lr_tensor, "grad_scale": grad_scale, "found_inf": found_inf}
    for name, value in scalars.items():
        if value is not None and (
            (value.dtype, value.numel()) != (torch.float64, 1) or value.device != params[0].device
        ):
            raise RuntimeError(
                f"{name} must be a contiguous float64 tensor of 1 element on the params' device"
            )


@register_fake("absgd::sgd_record")
def _(params: Sequence[Tensor], momenta: Sequence[Tensor]) -> int:
    raise RuntimeError("absgd::sgd_record: tensors without memory cannot be recorded")


@register_fake("absgd::sgd_step_recorded")
def _(record: int, grads: Sequence[Tensor], *_: object) -> None:
    raise RuntimeError("absgd::sgd_step_recorded: a record cannot be traced: use sgd_step_")


_library = torch.library.Library("absgd", "IMPL")


def _refuse_negative(*_: object) -> None:
    """torch would hand the kernel copies of such tensors, and forget what is written to them."""
    raise RuntimeError("absgd::sgd_step_: tensors must not have the neg bit: call resolve_neg()")


_library.impl("sgd_step_", _refuse_negative, "Negative")
