"""The momentum step of a parameter group in one kernel: what the kernel takes, and the launch.

The operators read everything about a tensor anew at each step, so nothing that is remembered can be
out of date, and check before they write: `FusedStep` hands them a group of plain tensors as they
are, and looks more closely only where they refuse. Handing tensors over costs more than the
arithmetic of a small model; so the library keeps lists that come twice, in a record.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import MutableMapping, Sequence
from operator import attrgetter, is_, itemgetter
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ._step_ops import DTYPES

MOMENTUM_KEYS = {"torch": "momentum_buffer", "polyak": "displacement_buffer"}
COMPLEX_DTYPES = (torch.complex64, torch.complex128)
PLAIN = frozenset((Tensor, Parameter))
FEW = 4  # tensors, for which a record saves nothing

Group = dict[str, Any]
State = MutableMapping[Tensor, dict[str, Any]]


class FusedStep:
    """Takes the steps of one parameter group."""

    def __init__(self) -> None:
        self._was_refused = False  # at the last step; then the closer look comes first
        self._record: _Record | None = None
        self._last: list[int] = []  # whose step it was

    def step(
        self, group: Group, state: State, grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> bool:
        """The group's momentum step, v ← βv + (1−dampening)·g, w ← w − ηv, or Equation 2.

        Momentum buffers are made, under the group's key of `MOMENTUM_KEYS`, once the step has
        succeeded. Called without grad mode.

        Args:
            group: a parameter group of `ABSGD`.
            state: the optimizer's state of each parameter.
            grad_scale: what gradients are to be divided by, a scalar tensor.
            found_inf: a scalar tensor; where it is not 0, the step is skipped.

        Returns:
            whether the step was taken (or skipped). If not, nothing was changed, and torch's own
            implementation has to take it.
        """
        record, self._record = self._record, None
        if _chooses_torch(group):
            return False
        params, grads = _with_gradients(group["params"])
        if not params or _is_overflow(found_inf):
            self._record = record
            return True
        momenta = _momenta(group, state, params)
        if not (torch.compiler.is_compiling() or self._was_refused):
            if record is not None and not record.holds(params, momenta):
                record = None
            try:
                if self._step_of_plain(
                    group, params, grads, momenta, record, grad_scale, found_inf
                ):
                    return True
            except RuntimeError:  # what the operators raise leaves everything as it was
                self._was_refused = True
        record = None  # frees the buffers before there are others
        return self._step_of_any(group, state, params, grads, momenta, grad_scale, found_inf)

    def _step_of_plain(
        self,
        group: Group,
        params: list[Tensor],
        grads: list[Tensor],
        momenta: list[Tensor],
        record: _Record | None,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> bool:
        """Tensors of no other kind, with momenta that exist, as they are."""
        if not {*map(type, grads)} <= PLAIN:
            return False
        written = params + momenta
        if record is None:
            if not {*map(type, written)} <= PLAIN:
                return False
            last, self._last = self._last, [*map(id, written)]
            if last == self._last and len(params) > FEW:
                record = _Record(params, momenta)
        if record is None:
            arguments = _hyper_parameters(group, params[0].device, grad_scale, found_inf)
            torch.ops.absgd.sgd_step_.default(params, grads, momenta, False, *arguments)
        else:
            if any(map(Tensor.is_neg, written)):  # which the dispatcher cannot see
                return False
            arguments = _hyper_parameters(group, params[0].device, grad_scale, found_inf)
            torch.ops.absgd.sgd_step_recorded.default(record.id, grads, *arguments)
        torch.autograd.graph.increment_version(written)
        self._record = record
        return True

    def _step_of_any(
        self,
        group: Group,
        state: State,
        params: list[Tensor],
        grads: list[Tensor],
        momenta: Sequence[Tensor | None],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> bool:
        """First steps, several devices, complex tensors, DTensors."""
        rows = [*zip(params, grads, momenta or [None] * len(params), strict=True)]
        if not all(_takes_row(*row) for row in rows):
            return False
        has_momentum = group["momentum"] != 0
        if has_momentum and any(v is None for _, _, v in rows) and _is_captured(params[0]):
            raise RuntimeError(
                "ABSGD: a first step makes the momentum buffers, which each replay of a CUDA graph "
                "would make anew: take one step before the capture"
            )
        may_be_skipped = found_inf is not None and has_momentum
        if found_inf is not None and group["dampening"] != 0 and any(v is None for v in momenta):
            if found_inf.item() != 0:  # whether a buffer exists from now on is the host's to know
                return True
            may_be_skipped = False
        # Zeros are a buffer that has seen no step, whether or not the device skips this one.
        new = torch.zeros_like if may_be_skipped else torch.empty_like
        batches: dict[tuple[torch.device, bool], list[tuple[Tensor, ...]]] = {}
        for p, g, v in rows:
            is_fresh = has_momentum and v is None
            v = new(p) if is_fresh else v
            key = (p.device, is_fresh and not may_be_skipped)
            batches.setdefault(key, []).append((p, g, v) if v is not None else (p, g))
        # Fresh ones first: they may be refused, and then nothing has been changed.
        ordered = sorted(batches.items(), key=lambda item: not item[0][1])
        for index, ((device, is_fresh), batch) in enumerate(ordered):
            columns = [[*column] for column in zip(*batch, strict=True)]
            local = [[*map(_memory, column)] for column in columns]
            written, *_, buffers = (*columns, []) if not has_momentum else columns
            try:
                velocities = local[2] if has_momentum else []
                torch.ops.absgd.sgd_step_.default(
                    *local[:2],
                    velocities,
                    is_fresh,
                    *_hyper_parameters(group, device, grad_scale, found_inf),
                )
            except RuntimeError:
                if torch.compiler.is_compiling() or index > 0:
                    raise
                return False  # memory that is shared, or not there
            if torch.compiler.is_compiling():
                _copy_back(written + buffers, local[0] + velocities)
            torch.autograd.graph.increment_version(written + buffers)
            for p, v in zip(written, buffers, strict=False):
                state[p][MOMENTUM_KEYS[group["momentum_form"]]] = v
        self._was_refused = len(batches) > 1 or any(_memory(t) is not t for t in params + grads)
        return True


class _Record:
    """Parameters and momenta that the library holds."""

    def __init__(self, params: list[Tensor], momenta: list[Tensor]) -> None:
        self.params, self.momenta = params[:], momenta[:]
        self.id: int = torch.ops.absgd.sgd_record.default(params, momenta)
        is_cpu = params[0].device.type == "cpu"
        weakref.finalize(self, _forget, "CPU" if is_cpu else "CUDA", self.id)

    def holds(self, params: list[Tensor], momenta: list[Tensor]) -> bool:
        return _are_same(params, self.params) and _are_same(momenta, self.momenta)


def _forget(key: str, record: int) -> None:
    """Past the dispatcher, because a finalizer may run inside anybody's dispatch mode."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    torch.ops.absgd.sgd_forget.default.redispatch(keys, record)


def _are_same(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(tensors) == len(others) and all(map(is_, tensors, others))


def takes(group: Group, state: State | None = None) -> bool:
    """Whether the kernel, rather than torch's own implementation, takes the group's step."""
    if _chooses_torch(group):
        return False
    params, grads = _with_gradients(group["params"])
    momenta = _momenta(group, state or {}, params) or [None] * len(params)
    return all(map(_takes_row, params, grads, momenta))


def _chooses_torch(group: Group) -> bool:
    """Whether the hyper-parameters ask for torch's own implementation."""
    return (
        group["differentiable"]
        or group["foreach"] is not None
        or group["fused"] is False
        or isinstance(group["weight_decay"], Tensor)
    )


def _takes_row(param: Tensor, grad: Tensor, momentum: Tensor | None) -> bool:
    """Whether the kernel takes a parameter, its gradient and its momentum, if that exists."""
    row: list[Any] = [t for t in (param, momentum, grad) if t is not None]
    if hasattr(param, "to_local"):
        if not all(_is_sharded_alike(t, param) for t in row):
            return False
        row = [t.to_local() for t in row]
    first = row[0]
    return (
        _has_kernel(first.device)
        and first.dtype in (*DTYPES, *COMPLEX_DTYPES)
        and all(
            type(t) in PLAIN
            and t.layout is torch.strided
            and (t.dtype, t.device, t.shape) == (first.dtype, first.device, first.shape)
            for t in row
        )
        and not any(map(_is_lazy, row[:-1]))
    )


def _is_lazy(t: Tensor) -> bool:
    """Whether memory holds the negatives or conjugates of the values; a graph knows no such."""
    return not torch.compiler.is_compiling() and (t.is_neg() or t.is_conj())


def _is_sharded_alike(t: Any, param: Any) -> bool:
    return hasattr(t, "to_local") and (t.device_mesh, t.placements) == (
        param.device_mesh,
        param.placements,
    )


def _has_kernel(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch._C._dispatch_has_kernel_for_dispatch_key("absgd::sgd_step_", "CUDA")
    return device.type == "cpu"


def _memory(t: Any) -> Tensor:
    """The memory that the kernel works on: a DTensor's own shard, a complex tensor's reals."""
    if hasattr(t, "to_local"):
        t = t.to_local()
    if torch.compiler.is_compiling():  # which would hand the operator view_as_real's base, complex
        return torch.view_as_real(t).clone() if t.is_complex() else t
    t = t.resolve_neg()
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def _copy_back(tensors: list[Any], memories: list[Tensor]) -> None:
    """What was written to copies."""
    for t, memory in zip(tensors, memories, strict=True):
        if t.is_complex():
            local = t.to_local() if hasattr(t, "to_local") else t
            local.copy_(torch.view_as_complex(memory))


def _with_gradients(params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that have a gradient, and their gradients."""
    grads = [*map(attrgetter("grad"), params)]
    if NoneType in map(type, grads):
        params = [p for p, g in zip(params, grads, strict=True) if g is not None]
        grads = [g for g in grads if g is not None]
    return params, grads


def _momenta(group: Group, state: State, params: list[Tensor]) -> list[Any]:
    """The momentum buffers, None where there is none yet; empty without momentum."""
    if group["momentum"] == 0:
        return []
    key = MOMENTUM_KEYS[group["momentum_form"]]
    if torch.compiler.is_compiling() or len(state) != len(params):
        slots: Any = map(state.get, params)
    elif all(map(is_, state, params)):
        slots = state.values()  # without hashing: a tensor's hash is a function of Python's
    else:
        slots = map(state.get, params)
    try:
        return [*map(itemgetter(key), slots)]
    except (KeyError, TypeError):
        return [(state.get(p) or {}).get(key) for p in params]


def _is_captured(param: Tensor) -> bool:
    if torch.compiler.is_compiling() or not param.is_cuda:
        return False
    return torch.cuda.is_current_stream_capturing()


def _is_overflow(found_inf: Tensor | None) -> bool:
    """Whether the host can see that the step is to be skipped. On a device, the kernel looks."""
    return found_inf is not None and found_inf.device.type == "cpu" and found_inf.item() != 0


def _hyper_parameters(
    group: Group, device: torch.device, grad_scale: Tensor | None, found_inf: Tensor | None
) -> tuple[Any, ...]:
    """In the operators' order."""
    lr = group["lr"]
    if torch.compiler.is_compiling():
        if not isinstance(lr, Tensor):
            # As an operator's float it would be a constant of the graph, compiled for each value;
            # the compiler keeps a product with a tensor symbolic.
            lr = torch.ones((), dtype=torch.float64, device=device) * lr
    elif isinstance(lr, Tensor) and lr.device.type == "cpu":
        lr = lr.item()  # by value: a copy to the device would wait for it
    is_tensor = isinstance(lr, Tensor)
    return (
        math.nan if is_tensor else lr,
        _float64_on(lr, device) if is_tensor else None,
        group["momentum"],
        group["dampening"],
        group["weight_decay"],
        group["nesterov"],
        group["maximize"],
        group["momentum_form"] == "polyak",
        None if grad_scale is None else _float64_on(grad_scale, device),
        None if found_inf is None else _float64_on(found_inf, device),
    )


def _float64_on(value: Tensor, device: torch.device) -> Tensor:
    """A scalar as the kernel reads it."""
    return value.to(device, torch.float64).reshape(())
