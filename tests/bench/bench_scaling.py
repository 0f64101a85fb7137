"""How ours goes with threads, and how ours and the peers grow with B and C.

In the rows on threads the only peer is ours on one thread: the ratio is the speed-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bench_loss import both_passes, logits, ours_of, weighed_loss
from bench_step import HYPER, cifar_resnet32, parameters, torchvision_resnet
from contest import Case, Contender, Result, Settings, contest

import torch_absgd as ta


def speed_up(settings: Settings, make: Callable[[], Callable[[], Any]]) -> Result:
    call = make()
    return contest(
        settings,
        [
            Contender("2 threads", call, partial(torch.set_num_threads, 2)),
            Contender("1 thread", call, partial(torch.set_num_threads, 1)),
        ],
    )


def _loss(kind: str, batch: int, classes: int) -> Callable[[], None]:
    x, y = logits(batch, classes, torch.float32, kind == "LDAM")
    return both_passes(ta.AttentionalLoss(ours_of(kind, classes), lam=5.0), x, y)


def _step(shapes: Callable[[], Any]) -> Callable[[], Any]:
    opt = ta.ABSGD(parameters(shapes()), **HYPER)
    opt.step()
    return opt.step


def cases() -> Iterator[Case]:
    works: dict[str, Callable[[], Callable[[], Any]]] = {
        "step, ResNet-32": partial(_step, cifar_resnet32),
        "step, ResNet-50": partial(_step, partial(torchvision_resnet, "resnet50")),
        "CE 128×10": partial(_loss, "CE", 128, 10),
        "CE 512×1000": partial(_loss, "CE", 512, 1000),
        "CE 512×8142": partial(_loss, "CE", 512, 8142),
    }
    for name, make in works.items():
        yield Case(f"threads/{name}", lambda s, make=make: speed_up(s, make))
    for batch in (32, 128, 512, 2048):
        yield _growth(batch, 100)
    for classes in (2, 10, 33, 1000, 10000):
        yield _growth(128, classes)


def _growth(batch: int, classes: int) -> Case:
    return Case(
        f"growth/CE {batch}×{classes}",
        lambda s: weighed_loss(s, "CE", batch, classes, torch.float32),
    )
