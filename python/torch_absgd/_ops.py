"""Loads the compiled operators ``torch.ops.absgd.*`` and gives them their fake kernels.

The schemas stand in ``csrc/register.cpp``; shapes and meanings in ``csrc/absgd.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ._cuda import load_cuda_operators

Function = TypeVar("Function", bound=Callable[..., Any])

STATS_SIZE = 10  # doubles of absgd_stats
REPORT_SIZE = 9  # of absgd_report
ACCUMULATION_SIZE = 13  # of absgd_accumulation
LAM_RULE_SIZE = 6  # of absgd_lam_rule
LAM_ROW_SIZE = 10  # of absgd_lam_row
LAM_SEARCH_SIZE = 9  # of absgd_lam_search
LAM_ROUNDS = 24  # ABSGD_LAM_ROUNDS

torch.ops.load_library(str(Path(__file__).with_name("torch_absgd_cpu.so")))
load_cuda_operators()


def register_fake(name: str) -> Callable[[Function], Function]:
    """torch's, called from one file: for the first call from each, torch searches all modules of
    the process for it, which takes as long as loading the operators does."""

    def register(kernel: Function) -> Function:
        torch.library.register_fake(name, kernel)
        return kernel

    return register


FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def arithmetic_type(dtype: torch.dtype) -> torch.dtype:
    """The type that values of dtype are computed in, and that their losses have."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def require(condition: bool, message: str) -> None:
    """As ``STD_TORCH_CHECK`` in the registration, for fake kernels."""
    torch._check(condition, lambda: message)


def check_per_class(name: str, values: Tensor | None, classes: int, logits: Tensor) -> None:
    """Of an optional argument with a value for each class."""
    if values is None:
        return
    dtype = arithmetic_type(logits.dtype)
    require(values.shape == (classes,), f"{name} must have shape (C) with C = {classes}")
    require(values.dtype is dtype, f"{name} must be {dtype} for {logits.dtype} logits")
    require(values.device == logits.device, f"{name} must be on the logits' device")


def check_factor(factor: Tensor | None, dtype: torch.dtype, logits: Tensor) -> None:
    """Of a scalar that multiplies a backward operator's whole ``grad_loss``."""
    require(
        factor is None
        or (factor.numel() == 1 and factor.dtype is dtype and factor.device == logits.device),
        f"factor must be one value of {dtype} on the logits' device",
    )


# ---- fake kernels: the checks of csrc/register_batch.h, and shapes


def _check_device(like: Tensor, name: str, tensor: Tensor) -> None:
    on, got = like.device, tensor.device
    require(got == on, f"{name} must be on {on} as the other arguments, got {got}")


def _check_batch(losses: Tensor, mask: Tensor | None, weight: Tensor | None) -> None:
    dtype = losses.dtype
    require(dtype in FLOATING, f"losses must be float32, float64, float16 or bfloat16, got {dtype}")
    wanted = {"mask": (mask, torch.bool), "weight": (weight, arithmetic_type(dtype))}
    for name, (tensor, type_) in wanted.items():
        if tensor is None:
            continue
        require(tensor.dtype is type_, f"{name} must be {type_}, got {tensor.dtype}")
        require(
            tensor.shape == losses.shape,
            f"{name} must have the losses' shape {tuple(losses.shape)}, got {tuple(tensor.shape)}",
        )
        _check_device(losses, name, tensor)


def _check_doubles(like: Tensor, **tensors: tuple[Tensor | None, int]) -> None:
    """Each of ``tensors``, given with its size, is float64, contiguous and beside ``like``."""
    for name, (tensor, size) in tensors.items():
        if tensor is None:
            continue
        require(
            tensor.dtype is torch.float64 and tensor.numel() == size and tensor.is_contiguous(),
            f"{name} must be a contiguous float64 tensor of {size} element(s), "
            f"got {tensor.numel()} of {tensor.dtype}",
        )
        _check_device(like, name, tensor)


def _row_size(rows: Tensor | None, size: int) -> int:
    """The elements that rows of ``size`` numbers have, at most as many as there are."""
    return 0 if rows is None else rows.numel() // size * size


def _check_state(
    like: Tensor,
    lam: Tensor,
    log_s: Tensor,
    log_s_lam: Tensor,
    reports: Tensor | None = None,
    rows: Tensor | None = None,
    lam_rule: Tensor | None = None,
) -> None:
    """What the normaliser and the rule have, and all ranks' rows of statistics."""
    _check_doubles(
        like,
        rows=(rows, _row_size(rows, STATS_SIZE)),
        lam_rule=(lam_rule, LAM_RULE_SIZE),
        lam=(lam, 1),
        log_s=(log_s, 1),
        log_s_lam=(log_s_lam, 1),
        reports=(reports, 2 * REPORT_SIZE),
    )


def _weights_like(losses: Tensor) -> Tensor:
    return losses.new_empty((2, *losses.shape), dtype=arithmetic_type(losses.dtype))


@register_fake("absgd::batch_stats")
def _(losses: Tensor, mask: Tensor | None, weight: Tensor | None, lam: Tensor) -> Tensor:
    _check_batch(losses, mask, weight)
    _check_doubles(losses, lam=(lam, 1))
    return losses.new_empty(STATS_SIZE, dtype=torch.float64)


@register_fake("absgd::weigh")
def _(
    losses: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    rows: Tensor | None,
    lam_rule: Tensor | None,
    lam: Tensor,
    log_s: Tensor,
    log_s_lam: Tensor,
    reports: Tensor,
    *numbers: float,
) -> Tensor:
    _check_batch(losses, mask, weight)
    _check_state(losses, lam, log_s, log_s_lam, reports, rows, lam_rule)
    require(rows is None or lam_rule is None, "lam_rule must be None where rows are given")
    return _weights_like(losses)


@register_fake("absgd::carry_log_s")
def _(lam: Tensor, log_s: Tensor, log_s_lam: Tensor, s_init: float) -> None:
    _check_state(lam, lam, log_s, log_s_lam)


@register_fake("absgd::weigh_provisionally")
def _(
    losses: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    rows: Tensor | None,
    lam: Tensor,
    log_s: Tensor,
    log_s_lam: Tensor,
    accumulation: Tensor,
    shrink: Tensor,
    *numbers: float,
) -> Tensor:
    _check_batch(losses, mask, weight)
    _check_state(losses, lam, log_s, log_s_lam, rows=rows)
    _check_doubles(losses, accumulation=(accumulation, ACCUMULATION_SIZE), shrink=(shrink, 1))
    return _weights_like(losses)


@register_fake("absgd::settle")
def _(
    accumulation: Tensor,
    rows: Tensor | None,
    lam: Tensor,
    log_s: Tensor,
    log_s_lam: Tensor,
    reports: Tensor,
    *numbers: float,
) -> Tensor:
    _check_doubles(lam, accumulation=(accumulation, ACCUMULATION_SIZE))
    _check_state(lam, lam, log_s, log_s_lam, reports, rows)
    return lam.new_empty((), dtype=torch.float64)


@register_fake("absgd::follow_lam")
def _(
    losses: Tensor, mask: Tensor | None, weight: Tensor | None, lam_rule: Tensor, lam: Tensor
) -> None:
    _check_batch(losses, mask, weight)
    _check_doubles(losses, lam_rule=(lam_rule, LAM_RULE_SIZE), lam=(lam, 1))


@register_fake("absgd::lam_sums")
def _(
    losses: Tensor, mask: Tensor | None, weight: Tensor | None, lam_rule: Tensor, search: Tensor
) -> Tensor:
    _check_batch(losses, mask, weight)
    _check_doubles(losses, lam_rule=(lam_rule, LAM_RULE_SIZE), search=(search, LAM_SEARCH_SIZE))
    return losses.new_empty(LAM_ROW_SIZE, dtype=torch.float64)


@register_fake("absgd::lam_round")
def _(lam_rule: Tensor, rows: Tensor, search: Tensor) -> None:
    _check_doubles(
        lam_rule,
        lam_rule=(lam_rule, LAM_RULE_SIZE),
        rows=(rows, _row_size(rows, LAM_ROW_SIZE)),
        search=(search, LAM_SEARCH_SIZE),
    )


@register_fake("absgd::lam_update")
def _(lam_rule: Tensor, search: Tensor, lam: Tensor) -> None:
    _check_doubles(
        lam_rule,
        lam_rule=(lam_rule, LAM_RULE_SIZE),
        search=(search, LAM_SEARCH_SIZE),
        lam=(lam, 1),
    )


@register_fake("absgd::weighted_softmax_loss")
def _(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    margin: Tensor | None,
    offset: Tensor | None,
    scale: float,
    focal_gamma: float,
    label_smoothing: float,
    ignore_index: int,
    mask: Tensor | None,
    base_weight: Tensor | None,
    class_weight: Tensor | None,
    lam_rule: Tensor | None,
    lam: Tensor,
    log_s: Tensor,
    log_s_lam: Tensor,
    reports: Tensor,
    gamma: float,
    alpha: float,
    s_init: float,
    max_weight: float,
    keep_loss: bool,
    bounded: bool,
    at_once: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = (weight, margin, offset, scale, focal_gamma, label_smoothing, ignore_index)
    per_class = {"weight": weight, "margin": margin, "offset": offset, "class_weight": class_weight}
    for name, tensor in {"target": target, **per_class}.items():
        if tensor is not None:
            _check_device(logits, name, tensor)
    losses, saved = torch.ops.absgd.softmax_loss(logits, target, *options)
    _check_batch(losses, mask, base_weight)
    if class_weight is not None:
        classes = logits.shape[0 if logits.dim() == 1 else 1]
        require(
            class_weight.shape == (classes,) and class_weight.dtype is losses.dtype,
            f"class_weight must be {classes} value(s) of {losses.dtype}, "
            f"got {tuple(class_weight.shape)} of {class_weight.dtype}",
        )
    _check_state(losses, lam, log_s, log_s_lam, reports, lam_rule=lam_rule)
    if at_once:
        saved = torch.ops.absgd.softmax_loss_backward(losses, logits, target, saved, *options)
    return losses.new_empty(()), losses, _weights_like(losses), saved


@register_fake("absgd::weighted_sigmoid_loss")
def _(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    label_smoothing: float,
    focal_alpha: float,
    focal_gamma: float,
    ignore_index: float | None,
    per_sample: bool,
    mask: Tensor | None,
    base_weight: Tensor | None,
    lam_rule: Tensor | None,
    lam: Tensor,
    log_s: Tensor,
    log_s_lam: Tensor,
    reports: Tensor,
    gamma: float,
    alpha: float,
    s_init: float,
    max_weight: float,
    keep_loss: bool,
    bounded: bool,
    at_once: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    numbers = (label_smoothing, focal_alpha, focal_gamma, ignore_index, per_sample)
    options = (weight, pos_weight, *numbers)
    losses, known = torch.ops.absgd.sigmoid_loss(logits, target, *options)
    _check_batch(losses, mask, base_weight)
    _check_state(losses, lam, log_s, log_s_lam, reports, lam_rule=lam_rule)
    if at_once:
        known = torch.ops.absgd.sigmoid_loss_backward(losses, logits, target, known, *options)
    return losses.new_empty(()), losses, _weights_like(losses), known
