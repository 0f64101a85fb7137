"""torch.optim.SGD's own step of a parameter group: what the fused kernel does not take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.sgd import sgd

from .fused_step import MOMENTUM_KEYS


def torch_step(
    opt: SGD, group: dict[str, Any], grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """Steps ``group``, a group of ``opt`` or part of one, and keeps its momentum in ``opt.state``.

    Args:
        grad_scale, found_inf: GradScaler's, where it leaves them to the step.

    Raises:
        RuntimeError: the group has ``momentum_form="polyak"``, or a momentum is not of its
            parameter's shape; nothing is changed then.
    """
    if found_inf is not None and found_inf.item() != 0:
        return
    key = MOMENTUM_KEYS[group["momentum_form"]]
    for i, p in enumerate(group["params"]):
        momentum = opt.state.get(p, {}).get(key)
        if momentum is not None and momentum.shape != p.shape:
            raise RuntimeError(
                f"momenta[{i}] must have the shape of params[{i}], {tuple(p.shape)}, got "
                f"{tuple(momentum.shape)}"
            )
    if group["momentum_form"] == "polyak" and group["momentum"] != 0:
        raise RuntimeError(
            "momentum_form='polyak' needs parameters and gradients that the fused kernel takes: "
            "dense, of one dtype, device and placement"
        )
    params: list[Tensor] = []
    grads: list[Tensor] = []
    momenta: list[Tensor | None] = []
    has_sparse_grad = opt._init_group(group, params, grads, momenta)
    if grad_scale is not None:
        grads = [g / grad_scale.to(g.device) for g in grads]
    with torch.set_grad_enabled(group["differentiable"]):
        sgd(
            params,
            grads,
            momenta,
            has_sparse_grad=has_sparse_grad,
            foreach=group["foreach"],
            fused=group["fused"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
    if group["momentum"] != 0:
        for p, momentum in zip(params, momenta, strict=True):
            opt.state[p]["momentum_buffer"] = momentum
