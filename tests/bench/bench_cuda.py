"""Times the CUDA kernels against their peers on the card that is present: the table for
cuda/BENCHMARKS.md.

    python tests/bench/bench_cuda.py --output table.md

Three times of each piece of work, medians over --repeats: on the device, by CUDA events with the
cache swept before; of the replay of a CUDA graph; and the wall time of a call with its Python, in a
queue of calls. Bandwidth is the least traffic that the work needs (inputs read once, outputs
written once) over the first, as a fraction of a device-to-device copy measured in the same run.
Each is an NVTX range, for ncu and nsys, within one of "cross-entropy", "step" or "weigh".
--rehearse runs everything once, tiny and on the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_absgd as ta
from torch_absgd._cuda import cuda_status

LOSS_SHAPES = ((128, 10), (512, 1000), (4096, 8142), (4096, 32000))
STEP_SIZES = {"95 tensors, 0.46 M": [4840] * 95, "161 tensors, 25 M": [155_280] * 161}
BATCHES = (128, 4096, 1_000_000)
TINY = ((4, 10),), {"3 tensors": [5] * 3}, (16,)


@dataclass
class Work:
    """What is timed: who does it, how, and the bytes that it has to move."""

    what: str
    by: str
    do: Callable[[], object]
    moved: int


def losses(shapes: tuple[tuple[int, int], ...], device: str) -> Iterator[Work]:
    def eager(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(x, y, reduction="none")

    peers = {"torch_absgd": ta.PerSampleCrossEntropy(), "torch eager": eager}
    if device == "cuda":
        peers["torch.compile"] = torch.compile(eager)
        try:
            from liger_kernel.transformers import LigerCrossEntropyLoss
        except ImportError:
            print("Liger is not installed: left out")
        else:
            peers["Liger"] = LigerCrossEntropyLoss(reduction="none")
    for shape in shapes:
        x = torch.randn(shape, device=device, requires_grad=True)
        y = torch.randint(shape[1], shape[:1], device=device)
        for name, criterion in peers.items():

            def both(criterion: Callable = criterion, x: Tensor = x, y: Tensor = y) -> None:
                x.grad = None
                criterion(x, y).sum().backward()

            what = f"cross-entropy, forward and backward, {shape[0]} × {shape[1]}"
            yield Work(what, name, both, 3 * x.numel() * x.element_size())


def weighted_losses(shapes: tuple[tuple[int, int], ...], device: str) -> Iterator[Work]:
    for n, classes in shapes:
        x = torch.randn(n, classes, device=device, requires_grad=True)
        y = torch.randint(classes, (n,), device=device)
        loss = ta.PerSampleCrossEntropy()
        opt = ta.ABSGD([nn.Parameter(torch.zeros(1, device=device))], lam=1.0)
        ways = {
            "AttentionalLoss": ta.AttentionalLoss(loss, lam=1.0).to(device),
            "loss, then weigh": lambda x, y, loss=loss, opt=opt: opt.weigh(loss(x, y)),
        }
        for name, criterion in ways.items():

            def both(criterion: Callable = criterion, x: Tensor = x, y: Tensor = y) -> None:
                x.grad = None
                criterion(x, y).backward()

            what = f"cross-entropy, weighted, forward and backward, {n} × {classes}"
            yield Work(what, name, both, 3 * x.numel() * x.element_size())


def steps(lists: dict[str, list[int]], device: str) -> Iterator[Work]:
    usual = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    optimizers = {
        "torch_absgd": lambda p: ta.ABSGD(p, **usual),
        "SGD(fused=True)": lambda p: torch.optim.SGD(p, **usual, fused=True),
        "SGD, foreach": lambda p: torch.optim.SGD(p, **usual, foreach=True),
    }
    for what, sizes in lists.items():
        for name, make in optimizers.items():
            params = [nn.Parameter(torch.randn(n, device=device)) for n in sizes]
            for p in params:
                p.grad = torch.randn_like(p)
            yield Work(f"step, {what}", name, make(params).step, 20 * sum(sizes))


def weights(batches: tuple[int, ...], device: str) -> Iterator[Work]:
    for n in batches:
        for name, guards in (("Algorithm 1", {}), ("guards", {"max_weight": 5, "keep_loss": True})):
            opt = ta.ABSGD([nn.Parameter(torch.zeros(1, device=device))], lam=1.0, **guards)
            batch = torch.rand(n, device=device, requires_grad=True)
            yield Work(
                f"weigh, B = {n}", name, lambda opt=opt, batch=batch: opt.weigh(batch), 16 * n
            )


def device_time(work: Callable[[], object], repeats: int, sweep: Tensor) -> float:
    """Median seconds of one call on the device."""
    times = []
    for _ in range(repeats):
        sweep.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def graph_of(work: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def wall_time(work: Callable[[], object], repeats: int, synchronize: Callable[[], None]) -> float:
    """Seconds of a call in a queue of repeats."""
    synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize()
    return (time.perf_counter() - begin) / repeats


def row_of(work: Work, repeats: int, sweep: Tensor, copy: float) -> str:
    with torch.cuda.nvtx.range(work.what.split(",")[0]), torch.cuda.nvtx.range(work.what):
        for _ in range(5):
            work.do()
        on_device = device_time(work.do, repeats, sweep)
        wall = wall_time(work.do, repeats, torch.cuda.synchronize)
        try:
            graph = f"{device_time(graph_of(work.do), repeats, sweep) * 1e6:.1f}"
        except RuntimeError as error:
            graph = "no"
            print(f"{work.what} by {work.by} cannot be captured: {error}")
    speed = work.moved / on_device
    return (
        f"| {work.what} | {work.by} | {on_device * 1e6:.1f} | {graph} | {wall * 1e6:.1f} "
        f"| {speed / 1e9:.0f} | {speed / copy:.2f} |"
    )


def rehearsed_row(work: Work) -> str:
    seconds = wall_time(work.do, 1, lambda: None)
    assert seconds > 0 and work.moved > 0
    return f"| {work.what} | {work.by} | rehearsed |"


def copy_bandwidth(repeats: int, sweep: Tensor) -> float:
    """Bytes read and written a second by a copy of 256 MiB."""
    source = torch.zeros(64 << 20, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / device_time(lambda: target.copy_(source), repeats, sweep)


def table(repeats: int) -> list[str]:
    sweep = torch.empty(64 << 20, device="cuda")
    copy = copy_bandwidth(repeats, sweep)
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}; "
        f"written by `tests/bench/bench_cuda.py` (median of {repeats}). "
        f"A device-to-device copy: {copy / 1e9:.0f} GB/s.",
        "",
        "| work | by | µs | µs, graph | µs, wall | GB/s | of the copy |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for works in (
        losses(LOSS_SHAPES, "cuda"),
        weighted_losses(LOSS_SHAPES, "cuda"),
        steps(STEP_SIZES, "cuda"),
        weights(BATCHES, "cuda"),
    ):
        for work in works:
            lines.append(row_of(work, repeats, sweep, copy))
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    if args.rehearse:
        shapes, lists, batches = TINY
        works = [*losses(shapes, "cpu"), *weighted_losses(shapes, "cpu")]
        works += [*steps(lists, "cpu"), *weights(batches, "cpu")]
        lines = [rehearsed_row(work) for work in works]
    elif cuda_status() != "loaded":
        raise SystemExit(f"bench_cuda: nothing measured: {cuda_status()}")
    else:
        lines = table(args.repeats)
    args.output.write_text("\n".join(["# CUDA benchmarks", "", *lines]) + "\n")


if __name__ == "__main__":
    main()
