"""The whole call ``opt.step()`` against torch.optim.SGD in each of its implementations.

The limit is memory: three arrays of the model's size read, two written, in place.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from contest import Case, Contender, Result, Settings, contest
from machine import BENCH, Flush, read3_write2
from torch import Tensor, nn

import torch_absgd as ta

Shapes = Sequence[Sequence[int]]
COMPILABLE = 200  # tensors; torch.compile takes many minutes over the step of a thousand
HYPER = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}


def cifar_resnet32() -> Shapes:
    """95 tensors, 0.46 M parameters; of the recipes."""
    recipes = str(BENCH.parents[1] / "recipes")
    if recipes not in sys.path:
        sys.path.append(recipes)
    import models

    return _shapes(models.build("resnet32", 10))


def torchvision_resnet(name: str) -> Shapes:
    import torchvision

    with torch.device("meta"):
        return _shapes(getattr(torchvision.models, name)())


def equal_tensors(count: int, total: int = 1 << 20) -> Shapes:
    return [(total // count,)] * count


def _shapes(model: nn.Module) -> Shapes:
    return [tuple(p.shape) for p in model.parameters()]


def parameters(shapes: Shapes, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape).to(dtype)
    return params


def optimizers(params: list[Tensor], compiles: bool) -> list[Contender]:
    """All of them on the same parameters and gradients, with a momentum of each one's own."""
    sgd = torch.optim.SGD
    kinds: dict[str, dict[str, Any]] = {
        "default": {},
        "foreach": {"foreach": True},
        "fused": {"fused": True},
    }
    contenders = [Contender("ours", ta.ABSGD(params, **HYPER).step)]
    contenders += [
        Contender(name, sgd(params, **HYPER, **kind).step) for name, kind in kinds.items()
    ]
    if compiles:
        compiled = sgd(params, **HYPER)
        contenders.append(Contender("compiled", torch.compile(lambda: compiled.step())))
    for contender in contenders:
        contender.call()  # makes the buffers
    return contenders


def memory_limit(params: list[Tensor]) -> partial[None]:
    """On as many bytes as the step moves."""
    size = sum(p.nbytes for p in params) // 4
    return partial(read3_write2, *(torch.zeros(size) for _ in range(3)))


def step(
    settings: Settings, shapes: Shapes, flushes: bool, dtype: torch.dtype = torch.float32
) -> Result:
    params = parameters(shapes, dtype)
    contenders = optimizers(params, settings.compiles and len(params) <= COMPILABLE)
    return contest(settings, contenders, memory_limit(params), Flush() if flushes else None)


def _case(name: str, shapes: partial[Shapes], flushes: bool = False, **options: Any) -> Case:
    dtype = options.pop("dtype", torch.float32)
    return Case(f"step/{name}", lambda s: step(s, shapes(), flushes, dtype), **options)


def cases() -> Iterator[Case]:
    small = partial(cifar_resnet32)
    resnet50, resnet152 = (partial(torchvision_resnet, f"resnet{depth}") for depth in (50, 152))
    yield _case("ResNet-32, warm", small, target=2.5)
    yield _case("ResNet-32, flushed", small, flushes=True, target=1.3)
    yield _case("ResNet-32 bfloat16, warm", small, dtype=torch.bfloat16)
    yield _case("ResNet-32 float64, warm", small, dtype=torch.float64)
    yield _case("ResNet-50", resnet50, target=1.05)
    yield _case("ResNet-152", resnet152, target=1.1, limit_target=0.95)
    for count in (1, 10, 100, 1000):
        yield _case(f"1 Mi parameters in {count} tensor(s)", partial(equal_tensors, count))
