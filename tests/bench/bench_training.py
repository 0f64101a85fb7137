"""A whole training step of ResNet-32 at batch 128: ours against SGD and the plain mean.

The limit is the model's forward and backward pass alone. Memory is the peak of a process of its
own that makes the model and trains a few steps: what torch's allocator handed out, and the resident
set.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch.nn.functional as F
from contest import Case, Contender, Result, Settings, contest
from machine import BENCH
from training import BATCH, batch, make_step, resnet32

PROCESSES = 3  # of each kind, for its peak memory


def training_step(settings: Settings) -> Result:
    contenders = [Contender("ours", make_step("ours")), Contender("SGD fused", make_step("sgd"))]
    return contest(settings, contenders, _passes())


def _passes() -> Callable[[], None]:
    model, (x, y) = resnet32(), batch()

    def call() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    return call


def peak_memory(settings: Settings, what: str) -> Result:
    """In MiB; ``what`` is "allocated" or "resident"."""
    samples: dict[str, list[float]] = {"ours": [], "SGD fused": []}
    for _ in range(PROCESSES):
        for name, kind in (("ours", "ours"), ("SGD fused", "sgd")):
            command = [sys.executable, str(BENCH / "training.py"), kind, str(settings.threads)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
            samples[name].append(json.loads(done.stdout)[what])
    return Result(samples, ["SGD fused"], unit="MiB")


def cases() -> Iterator[Case]:
    name = f"training/ResNet-32, batch {BATCH}"
    yield Case(f"{name}, a step", training_step, target=1.0, reaches=True)
    name = f"memory/ResNet-32, batch {BATCH}"
    # "Not more" within the allocator's noise: to two digits, and for some process to process.
    allocated, resident = (
        lambda s, what=what: peak_memory(s, what) for what in ("allocated", "resident")
    )
    yield Case(f"{name}, allocated", allocated, target=0.995)
    yield Case(f"{name}, resident", resident, target=1.0, reaches=True)
