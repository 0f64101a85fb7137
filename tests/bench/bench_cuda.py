"""Times the CUDA kernels against torch's on the card that is present, and writes a table.

    python tests/bench/bench_cuda.py --output cuda/BENCHMARKS.md

Times are medians over --repeats of CUDA-event timings, each after the cache was swept. Bandwidth is
the least traffic that the work needs (each input read once, each output written once) over the
time, as a fraction of a device-to-device copy measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import torch_absgd as ta
from torch_absgd._cuda import cuda_status

LOSS_SHAPES = ((128, 10), (512, 8142), (4096, 32000))
STEP_SIZES = {"95 tensors, 0.46 M": [4840] * 95, "161 tensors, 25 M": [155_280] * 161}
BATCHES = (128, 4096, 1_000_000)


def time_of(work: Callable[[], object], repeats: int, sweep: torch.Tensor) -> float:
    """Median seconds of one call on the device."""
    for _ in range(5):
        work()
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


def losses(repeats: int, sweep: torch.Tensor) -> list[tuple[str, str, float, int]]:
    rows = []
    for shape in LOSS_SHAPES:
        x = torch.randn(shape, device="cuda", requires_grad=True)
        y = torch.randint(shape[1], shape[:1], device="cuda")
        ours = ta.PerSampleCrossEntropy()

        def eager(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(x, y, reduction="none")

        peers = {
            "torch_absgd": ours,
            "torch eager": eager,
            "torch.compile": torch.compile(eager),
        }
        for name, criterion in peers.items():

            def both(criterion: Callable = criterion, x=x, y=y) -> None:
                x.grad = None
                criterion(x, y).sum().backward()

            moved = 3 * x.numel() * x.element_size()  # read, read again, gradient written
            what = f"cross-entropy, forward and backward, {shape[0]} × {shape[1]}"
            rows.append((what, name, time_of(both, repeats, sweep), moved))
    return rows


def steps(repeats: int, sweep: torch.Tensor) -> list[tuple[str, str, float, int]]:
    rows = []
    for what, sizes in STEP_SIZES.items():
        for name, make in (
            ("torch_absgd", lambda p: ta.ABSGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4)),
            (
                "SGD(fused=True)",
                lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=5e-4, fused=True),
            ),
            ("SGD, foreach", lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=5e-4)),
        ):
            params = [nn.Parameter(torch.randn(n, device="cuda")) for n in sizes]
            for p in params:
                p.grad = torch.randn_like(p)
            rows.append(
                (f"step, {what}", name, time_of(make(params).step, repeats, sweep), 20 * sum(sizes))
            )
    return rows


def weights(repeats: int, sweep: torch.Tensor) -> list[tuple[str, str, float, int]]:
    rows = []
    for n in BATCHES:
        opt = ta.ABSGD([nn.Parameter(torch.zeros(1, device="cuda"))], lam=1.0)
        batch = torch.rand(n, device="cuda", requires_grad=True)
        rows.append(
            (
                f"weigh, B = {n}",
                "torch_absgd",
                time_of(lambda opt=opt, batch=batch: opt.weigh(batch), repeats, sweep),
                16 * n,
            )
        )
    return rows


def copy_bandwidth(repeats: int, sweep: torch.Tensor) -> float:
    """Bytes read and written a second by a copy of 256 MiB."""
    source = torch.zeros(64 << 20, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / time_of(lambda: target.copy_(source), repeats, sweep)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    if cuda_status() != "loaded":
        raise SystemExit(f"bench_cuda: nothing measured: {cuda_status()}")
    sweep = torch.empty(64 << 20, device="cuda")
    copy = copy_bandwidth(args.repeats, sweep)
    lines = [
        "# CUDA benchmarks",
        "",
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}; "
        f"written by `tests/bench/bench_cuda.py` (median of {args.repeats}). "
        f"A device-to-device copy: {copy / 1e9:.0f} GB/s.",
        "",
        "| work | by | µs | GB/s | of the copy |",
        "|---|---|---:|---:|---:|",
    ]
    for part in (losses, steps, weights):
        for what, name, seconds, moved in part(args.repeats, sweep):
            speed = moved / seconds
            lines.append(
                f"| {what} | {name} | {seconds * 1e6:.1f} | {speed / 1e9:.0f} "
                f"| {speed / copy:.2f} |"
            )
    args.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
