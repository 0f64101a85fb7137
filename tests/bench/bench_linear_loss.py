"""Cross-entropy of a last layer without its logits, with Algorithm 1's weights: one training pass
to the gradients of features and layer, against the layer and `F.cross_entropy` in turn.

Each pass runs in a process of its own, which prints its seconds and its peak memory:

    python bench_linear_loss.py chunked|eager|compiled N C D THREADS
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from contest import Case, Result, Settings
from machine import BENCH
from torch import Tensor
from training import peak_resident

import torch_absgd as ta

SHAPES = ((512, 8142, 512), (4096, 128000, 512))  # N, C, D
PROCESSES = 3
WARM_UP = 1 << 32  # products of the layer in a pass beyond which none is run to warm up


def losses_of(kind: str, features: Tensor, layer: Tensor, y: Tensor) -> Tensor:
    if kind == "chunked":
        return ta.PerSampleLinearCrossEntropy()(features, layer, y)

    def eager(features: Tensor, layer: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(features, layer), y, reduction="none")

    return (torch.compile(eager) if kind == "compiled" else eager)(features, layer, y)


def one_pass(kind: str, n: int, classes: int, d: int) -> dict[str, float]:
    torch.manual_seed(0)
    features = torch.randn(n, d, requires_grad=True)
    layer = (0.05 * torch.randn(classes, d)).requires_grad_()
    y = torch.randint(classes, (n,))
    opt = ta.ABSGD([layer], lr=0.1, lam=5.0)
    before = peak_resident()
    for _ in range(1 if n * classes * d > WARM_UP and kind != "compiled" else 2):
        features.grad = layer.grad = None
        start = time.perf_counter()
        opt.weigh(losses_of(kind, features, layer, y)).backward()
        seconds = time.perf_counter() - start
    return {"time": 1e6 * seconds, "memory": peak_resident() - before}


def contest_of_processes(settings: Settings, what: str, shape: tuple[int, int, int]) -> Result:
    kinds = {"ours": "chunked", "eager": "eager"}
    if settings.compiles and what == "time":  # the compiler's own memory is no tensor's
        kinds["compiled"] = "compiled"
    samples: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(PROCESSES):
        for name, kind in kinds.items():
            command = [sys.executable, __file__, kind, *map(str, shape), str(settings.threads)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=BENCH)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
            samples[name].append(json.loads(done.stdout)[what])
    return Result(samples, list(kinds)[1:], unit="µs" if what == "time" else "MiB")


def cases() -> Iterator[Case]:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return
    for shape in SHAPES:
        for what in ("time", "memory"):
            yield Case(
                "linear/{}×{}, D = {}".format(*shape) + f", {what}",
                lambda s, what=what, shape=shape: contest_of_processes(s, what, shape),
            )


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    print(json.dumps(one_pass(sys.argv[1], *map(int, sys.argv[2:5]))))
