"""A whole training step as one graph, beside it in parts, in eager mode, and with torch's SGD.

"ours": forward pass, weights with λ found, backward pass, step and zero_grad in one graph. torch's
step breaks a graph, so its forward pass with the mean loss is compiled, and its step fused, or
compiled by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch._dynamo
import torch.nn.functional as F
from contest import Case, Contender, Result, Settings, contest
from torch import Tensor, nn

import torch_absgd as ta

sys.path.append(str(Path(__file__).resolve().parents[2] / "recipes"))
import models

HYPER = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
Step = Callable[[Tensor, Tensor], object]


def ours(model: nn.Module, compiles: str) -> Step:
    """compiles: "all", "forward" or "nothing"."""
    opt = ta.ABSGD(model.parameters(), **HYPER, lam=ta.EffectiveSampleSize(0.8), keep_loss=True)

    def forward(x: Tensor, y: Tensor) -> Tensor:
        return opt.weigh(F.cross_entropy(model(x), y, reduction="none"))

    forward = torch.compile(forward) if compiles == "forward" else forward

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = forward(x, y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        return loss.detach()

    return torch.compile(step, fullgraph=True) if compiles == "all" else step


def torchs(model: nn.Module, compiles_step: bool) -> Step:
    opt = torch.optim.SGD(model.parameters(), **HYPER, fused=None if compiles_step else True)
    forward = torch.compile(lambda x, y: F.cross_entropy(model(x), y))
    opt_step = torch.compile(opt.step) if compiles_step else opt.step

    def step(x: Tensor, y: Tensor) -> None:
        forward(x, y).backward()
        opt_step()
        opt.zero_grad()

    return step


def training_step(
    settings: Settings, make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> Result:
    x, y = torch.randn(shape), torch.randint(10, shape[:1])
    kinds: dict[str, Callable[[nn.Module], Step]] = {
        "ours": partial(ours, compiles="all"),
        "ours, forward compiled": partial(ours, compiles="forward"),
        "ours, eager": partial(ours, compiles="nothing"),
        "SGD fused, forward compiled": partial(torchs, compiles_step=False),
        "SGD, both compiled": partial(torchs, compiles_step=True),
    }
    contenders = [
        Contender(name, partial(make_step(make()), x, y), is_peer=name.startswith("SGD"))
        for name, make_step in kinds.items()
    ]
    with torch._dynamo.config.patch(trace_autograd_ops=True):  # torch 2.15 has it
        return contest(settings, contenders)


def cases() -> Iterator[Case]:
    tried = {
        "MLP 64-64-10, batch 64": (partial(models.MLP, 64, 64, 10), (64, 64)),
        "ResNet-8, batch 64": (partial(models.build, "resnet8", 10), (64, 3, 32, 32)),
    }
    for name, (make, shape) in tried.items():
        yield Case(f"compiled/{name}", partial(training_step, make=make, shape=shape))
