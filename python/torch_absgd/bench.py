"""``python -m torch_absgd.bench`` measures, in a minute and on the reader's own machine, the three
times that matter: the optimizer's step, the loss with its weights, and a whole training step.

The contenders of a row take turns in random order, so that a slow moment of the machine falls on
all of them; shown are medians. ``tests/bench`` in the sources has more rows, with their limits.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._config import show_config
from .attentional_loss import AttentionalLoss
from .losses import PerSampleCrossEntropy
from .optimizer import ABSGD

LAM = 5.0
HYPER: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
TURN = 5e-3  # seconds of calls
FEWEST_TURNS = 5
Calls = dict[str, Callable[[], object]]  # ours first


def network(device: str) -> nn.Module:
    """The layers of ResNet-32 for 32×32 images, in a row: its 95 tensors, 0.46 M parameters."""
    widths = [3, *[16] * 11, *[32] * 10, *[64] * 10]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        stride = 2 if after > before > 3 else 1
        conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers, *pooled).to(device)


def steps(device: str) -> Calls:
    def step_of(make: Callable[[Iterator[Tensor]], torch.optim.Optimizer]) -> Callable[[], object]:
        model = network(device)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        return make(model.parameters()).step

    return {
        "ABSGD": step_of(lambda ps: ABSGD(ps, **HYPER, lam=LAM)),
        "SGD": step_of(lambda ps: torch.optim.SGD(ps, **HYPER)),
        "SGD(fused=True)": step_of(lambda ps: torch.optim.SGD(ps, **HYPER, fused=True)),
    }


def losses(device: str) -> Calls:
    x = (2 * torch.randn(512, 1000, device=device)).requires_grad_()
    y = torch.randint(1000, (512,), device=device)

    def composed(x: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(x, y, reduction="none")
        z = losses.detach() / LAM
        return ((z - z.logsumexp(0) + math.log(len(z))).exp() * losses).mean()

    def both_passes(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        def call() -> None:
            x.grad = None
            loss(x, y).backward()

        return call

    return {
        "PerSampleCrossEntropy, weighed": both_passes(
            AttentionalLoss(PerSampleCrossEntropy(), lam=LAM, gamma=1.0)
        ),
        "the same of torch's operators": both_passes(composed),
        "plain mean": both_passes(F.cross_entropy),
    }


def training(device: str) -> Calls:
    x = torch.randn(64, 3, 32, 32, device=device)
    y = torch.randint(10, (64,), device=device)

    def step_of(
        model: nn.Module, opt: torch.optim.Optimizer, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[], object]:
        def call() -> None:
            loss(model(x), y).backward()
            opt.step()
            opt.zero_grad()

        return call

    ours, theirs = network(device), network(device)
    opt = ABSGD(ours.parameters(), **HYPER, lam=LAM)
    sgd = torch.optim.SGD(theirs.parameters(), **HYPER, fused=True)
    attention = AttentionalLoss(PerSampleCrossEntropy(), optimizer=opt)
    return {
        "ABSGD": step_of(ours, opt, attention),
        "SGD(fused=True), plain mean": step_of(theirs, sgd, F.cross_entropy),
    }


ROWS = {
    "step(), ResNet-32": steps,
    "loss and its gradient, 512×1000": losses,
    "training step, ResNet-32, batch 64": training,
}


def medians(calls: Calls, seconds: float, device: str) -> dict[str, float]:
    """Microseconds a call of each."""

    def turn(call: Callable[[], object], n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / n

    sizes = {name: 1 for name in calls}
    for name, call in calls.items():
        once = min(turn(call, 1) for _ in range(3))
        sizes[name] = max(1, round(TURN / once))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    end, order = time.perf_counter() + seconds, random.Random(0)
    while time.perf_counter() < end or len(samples[next(iter(calls))]) < FEWEST_TURNS:
        for name in order.sample(list(calls), len(calls)):
            samples[name].append(turn(calls[name], sizes[name]))
    return {name: 1e6 * statistics.median(times) for name, times in samples.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m torch_absgd.bench", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=15.0, help="of timing a row (default: 15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    if not args.seconds > 0:
        parser.error(f"--seconds must be > 0, got {args.seconds}")
    if args.threads < 1:
        parser.error(f"--threads must be at least 1, got {args.threads}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    show_config()
    print(
        f"\n{args.threads} thread(s), device {args.device}; medians, and how they compare to ours"
    )
    for row, make in ROWS.items():
        print(f"\n{row}")
        found = medians(make(args.device), args.seconds, args.device)
        ours = next(iter(found.values()))
        for name, time_ in found.items():
            print(f"  {name:32}{time_:12,.1f} µs{time_ / ours:8.2f}×")


if __name__ == "__main__":
    main()
