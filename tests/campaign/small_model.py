"""The model that random programs train and its batches, as functions of named parameters."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from programs import Program, Step

INPUTS, CLASSES = 4, 3


def dtype_of(program: Program) -> torch.dtype:
    """Of the parameters."""
    name = "float32" if is_autocast(program) else program.precision
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def is_autocast(program: Program) -> bool:
    return program.precision.endswith("autocast")


def autocast(program: Program) -> AbstractContextManager[object]:
    if not is_autocast(program):
        return nullcontext()
    return torch.autocast("cpu", getattr(torch, program.precision.split()[0]))


def parameters(program: Program) -> dict[str, Tensor]:
    values = torch.Generator().manual_seed(program.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=values, dtype=torch.float64) * 0.5

    named = {"w1": normal(INPUTS, INPUTS), "b1": normal(INPUTS), "w2": normal(INPUTS, CLASSES)}
    if "empty" in program.features:
        named["empty"] = normal(0, 3)
    if "complex" in program.features:
        named["complex"] = torch.complex(normal(INPUTS), normal(INPUTS))
    if "embedding" in program.features:
        named["embedding"] = normal(6, INPUTS)
    if "strided" in program.features:
        named["w2"] = normal(CLASSES, INPUTS).t()
    if "late" in program.features:
        named["late"] = normal(INPUTS)
    dtype = dtype_of(program)
    if dtype is torch.float64:
        return named
    return {
        name: p.to(dtype.to_complex() if p.is_complex() else dtype) for name, p in named.items()
    }


def logits(program: Program, named: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = torch.tanh(x @ named["w1"] + named["b1"])
    if "tied" in program.features:
        hidden = torch.tanh(hidden @ named["w1"])
    if "complex" in program.features:
        hidden = hidden * (named["complex"] * named["complex"].conj().resolve_conj()).real
    if "embedding" in program.features:
        rows = (x[:, 0].abs() * 10).long() % 6
        hidden = hidden + F.embedding(rows, named["embedding"], sparse="sparse" in program.features)
    if "empty" in program.features:
        hidden = hidden + named["empty"].sum()
    if "late" in program.features:
        hidden = hidden + named["late"]
    return hidden @ named["w2"]


Batch = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def batch_of(program: Program, step: Step) -> Batch:
    """x, y, mask and weight."""
    values = torch.Generator().manual_seed(step.seed)
    x = torch.randn(step.n, INPUTS, generator=values, dtype=torch.float64)
    y = torch.randint(CLASSES, (step.n,), generator=values)
    mask = torch.rand(step.n, generator=values) < 0.7 if step.has_mask else None
    weight = None
    if step.has_weight:
        weight = torch.rand(step.n, generator=values, dtype=torch.float64) * 3
        weight[weight < 0.5] = 0
    return x.to(dtype_of(program)), y, mask, weight


def micro_batches(step: Step, batch: Batch) -> list[Batch]:
    cuts = [t.tensor_split(step.parts) if t is not None else [None] * step.parts for t in batch]
    return [*zip(*cuts, strict=True)]  # type: ignore[arg-type]


def losses_of(
    program: Program, named: dict[str, Tensor], scale: float, x: Tensor, y: Tensor
) -> Tensor:
    with autocast(program):
        return scale * F.cross_entropy(logits(program, named, x), y, reduction="none")
