"""Loads the compiled operators ``torch.ops.absgd.*`` and gives them their fake kernels.

The schemas stand in ``csrc/register.cpp``; shapes and meanings in ``csrc/absgd.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ._cuda import load_cuda_operators

STATS_SIZE = 7  # doubles of absgd_stats
REPORT_SIZE = 7  # of absgd_report
ACCUMULATION_SIZE = 9  # of absgd_accumulation
LAM_RULE_SIZE = 6  # of absgd_lam_rule
LAM_ROW_SIZE = 9  # of absgd_lam_row
LAM_SEARCH_SIZE = 7  # of absgd_lam_search
LAM_ROUNDS = 24  # ABSGD_LAM_ROUNDS

torch.ops.load_library(str(Path(__file__).with_name("torch_absgd_cpu.so")))
load_cuda_operators()


def _weights_like(losses: Tensor) -> Tensor:
    dtype = torch.float64 if losses.dtype is torch.float64 else torch.float32
    return losses.new_empty((2, *losses.shape), dtype=dtype)


@torch.library.register_fake("absgd::batch_stats")
def _(losses: Tensor, mask: Tensor | None, lam: Tensor) -> Tensor:
    return losses.new_empty(STATS_SIZE, dtype=torch.float64)


@torch.library.register_fake("absgd::weigh")
def _(
    losses: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    lam: Tensor,
    log_s: Tensor,
    log_s_lam: Tensor,
    reports: Tensor,
    gamma: float,
    alpha: float,
    s_init: float,
    factor: float,
) -> Tensor:
    return _weights_like(losses)


@torch.library.register_fake("absgd::carry_log_s")
def _(lam: Tensor, log_s: Tensor, log_s_lam: Tensor, s_init: float) -> None:
    return None


@torch.library.register_fake("absgd::weigh_provisionally")
def _(
    losses: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    lam: Tensor,
    log_s: Tensor,
    log_s_lam: Tensor,
    accumulation: Tensor,
    shrink: Tensor,
    alpha: float,
    s_init: float,
    factor: float,
) -> Tensor:
    return _weights_like(losses)


@torch.library.register_fake("absgd::settle")
def _(
    accumulation: Tensor,
    rows: Tensor | None,
    lam: Tensor,
    log_s: Tensor,
    log_s_lam: Tensor,
    reports: Tensor,
    gamma: float,
    alpha: float,
    s_init: float,
    divisor: float,
) -> Tensor:
    return lam.new_empty((), dtype=torch.float64)


@torch.library.register_fake("absgd::follow_lam")
def _(losses: Tensor, mask: Tensor | None, lam_rule: Tensor, lam: Tensor) -> None:
    return None


@torch.library.register_fake("absgd::lam_sums")
def _(losses: Tensor, mask: Tensor | None, lam_rule: Tensor, search: Tensor) -> Tensor:
    return losses.new_empty(LAM_ROW_SIZE, dtype=torch.float64)


@torch.library.register_fake("absgd::lam_round")
def _(lam_rule: Tensor, rows: Tensor, search: Tensor) -> None:
    return None


@torch.library.register_fake("absgd::lam_update")
def _(lam_rule: Tensor, search: Tensor, lam: Tensor) -> None:
    return None


@torch.library.register_fake("absgd::sgd_step_")
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
    return None


@torch.library.register_fake("absgd::sgd_step_table")
def _(
    table: Tensor,
    anchor: Tensor,
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
    return None
