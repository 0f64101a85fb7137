"""Cross-entropy of a last layer without its logits, with Algorithm 1's weights: one training pass
to the gradients of features and layer, against the layer and `F.cross_entropy` in turn.

Each pass runs in a process of its own, which prints its seconds and its peak memory:

    python bench_linear_loss.py chunked|eager|compiled N C D THREADS [autocast]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache

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


def one_pass(kind: str, n: int, classes: int, d: int, autocast: bool) -> dict[str, float]:
    """Microseconds and MiB. Under autocast the features come in bfloat16, as from a layer."""
    torch.manual_seed(0)
    features = torch.randn(n, d, requires_grad=True)
    layer = torch.randn(classes, d).mul_(0.05).requires_grad_()  # in place: no peak of its own
    y = torch.randint(classes, (n,))
    opt = ta.ABSGD([layer], lr=0.1, lam=5.0)
    before = peak_resident()
    for _ in range(1 if n * classes * d > WARM_UP and kind != "compiled" else 2):
        features.grad = layer.grad = None
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            x = features.bfloat16() if autocast else features
            losses = losses_of(kind, x, layer, y)
        opt.weigh(losses).backward()
        seconds = time.perf_counter() - start
    return {"time": 1e6 * seconds, "memory": peak_resident() - before}


@cache  # a pass gives a row of times and a row of memory
def passes(
    kinds: tuple[str, ...], shape: tuple[int, int, int], autocast: bool, threads: int
) -> dict[str, list[dict[str, float]]]:
    done: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(PROCESSES):
        for kind in kinds:
            command = [sys.executable, __file__, kind, *map(str, shape), str(threads)]
            command += ["autocast"] if autocast else []
            process = subprocess.run(command, capture_output=True, text=True, cwd=BENCH)
            if process.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr}")
            done[kind].append(json.loads(process.stdout))
    return done


def row(settings: Settings, what: str, shape: tuple[int, int, int], autocast: bool) -> Result:
    kinds = ("chunked", "eager", *["compiled"] * settings.compiles)
    samples = {
        "ours" if kind == "chunked" else kind: [one[what] for one in done]
        for kind, done in passes(kinds, shape, autocast, settings.threads).items()
        if what == "time" or kind != "compiled"  # the compiler's own memory is no tensor's
    }
    return Result(samples, list(samples)[1:], unit="µs" if what == "time" else "MiB")


def cases() -> Iterator[Case]:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return
    for shape in SHAPES:
        for autocast in (False, True):
            suffix = " autocast" if autocast else ""
            for what in ("time", "memory"):
                yield Case(
                    "linear/{}×{}, D = {}".format(*shape) + f"{suffix}, {what}",
                    lambda s, what=what, shape=shape, autocast=autocast: row(
                        s, what, shape, autocast
                    ),
                )


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    print(json.dumps(one_pass(sys.argv[1], *map(int, sys.argv[2:5]), "autocast" in sys.argv)))
