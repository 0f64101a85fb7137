"""Time against size, one line a method, to see that there is no cliff: writes a picture.

    python tests/bench/growth.py tests/bench/growth.png

Forward and backward pass of loss and weights: batches of 1 to 4,096 at 100 classes, and 2 to
200,000 classes at a batch of 32. CPU time of one thread, for machines in use; each point is the
median of a contest's rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")
import contest
import matplotlib.pyplot as plt
import torch
from bench_loss import LAM, both_passes, logits, ours_of
from peers import ReleasedABLoss, cross_entropy

import torch_absgd as ta

BATCHES = [2**k for k in range(13)]
CLASSES = [2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000]
SETTINGS = contest.Settings(threads=1, seconds=0.1, compiles=False)
HALF = "CE, bfloat16 logits"
METHODS = ("CE", "LDAM", "focal", HALF, "CE composed in torch")


def work(method: str, batch: int, classes: int) -> Callable[[], None]:
    dtype = torch.bfloat16 if method == HALF else torch.float32
    x, y = logits(batch, classes, dtype, method == "LDAM")
    if method == METHODS[-1]:
        return both_passes(ReleasedABLoss(cross_entropy, LAM), x, y)
    loss = ours_of(method.split(",")[0], classes)
    return both_passes(ta.AttentionalLoss(loss, lam=LAM), x, y)


def medians(batch: int, classes: int) -> list[float]:
    """Microseconds a call of each method."""
    contenders = [contest.Contender(method, work(method, batch, classes)) for method in METHODS]
    samples = contest.contest(SETTINGS, contenders).samples
    return [statistics.median(samples[method]) for method in METHODS]


def draw(ax: plt.Axes, sizes: list[int], times: list[list[float]], label: str) -> None:
    for method, line in zip(METHODS, zip(*times, strict=True), strict=True):
        style = "--" if method == METHODS[-1] else "-"
        ax.loglog(sizes, line, style, marker=".", linewidth=1, label=method)
    ax.set_xlabel(label)
    ax.grid(alpha=0.3)


def main(path: str) -> None:
    torch.manual_seed(0)
    contest.clock = time.thread_time_ns
    by_batch = [medians(batch, 100) for batch in BATCHES]
    by_classes = [medians(32, classes) for classes in CLASSES]
    for name, sizes, times in (("B", BATCHES, by_batch), ("C", CLASSES, by_classes)):
        for size, row in zip(sizes, times, strict=True):
            print(f"{name} = {size:6}", *(f"{time:10.1f}" for time in row))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    draw(left, BATCHES, by_batch, "batch, of 100 classes")
    draw(right, CLASSES, by_classes, "classes, batch of 32")
    left.set_ylabel("µs, forward and backward")
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main(sys.argv[1])
