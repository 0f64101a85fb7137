"""What a step of each method costs: time as a multiple of plain SGD's, and memory beside it."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import train
from engine.run import Run

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its every start otherwise

WARM_UP = 3


def measure(words: dict[str, Sequence[str]], rounds: int) -> dict[str, dict[str, float]]:
    """Steps of stage two, all methods in turn on the same batches.

    Args:
        words: train.py's options of each method by name; "sgd" is among them.
        rounds: of one step each. A round's ratio to SGD is one measurement: whatever slows the
            machine meanwhile slows all.

    Returns:
        for each name, ratio: median over the rounds, with quartiles low and high; seconds: the
        median step; memory: bytes at the peak of making the run and its first two steps, SGD's
        subtracted. Time is the process's CPU time on a CPU, and the clock's on a GPU.
    """
    device = train.parse([*words["sgd"], "--output-dir", "-"]).device
    clock = _clock(device)
    begun, peaks = {}, {}
    for name, of in words.items():
        peaks[name] = peak_memory(lambda of=of: _begun(of), device)
        begun[name] = _begun(of)
    batches = [next(iter(run.loader)) for run in begun.values()]
    times: dict[str, list[float]] = {name: [] for name in words}
    order = random.Random(0)
    for i in range(WARM_UP + rounds):
        # Not in a fixed cycle: what runs before a step leaves it a cold or a warm cache.
        for name in order.sample(list(words), len(words)):
            start = clock()
            _step(begun[name], *batches[i % len(batches)])
            times[name].append(clock() - start)
    times = {name: values[WARM_UP:] for name, values in times.items()}
    return {name: _summary(times[name], times["sgd"], peaks[name] - peaks["sgd"]) for name in times}


def _summary(own: list[float], sgd: list[float], memory: int) -> dict[str, float]:
    low, middle, high = statistics.quantiles([a / b for a, b in zip(own, sgd, strict=True)], n=4)
    seconds = statistics.median(own)
    return {"ratio": middle, "low": low, "high": high, "seconds": seconds, "memory": memory}


def _begun(words: Sequence[str]) -> Run:
    """At the first step of stage two, untrained."""
    args = train.parse([*words, "--output-dir", "-"])
    torch.manual_seed(args.seed)
    with contextlib.redirect_stdout(None):
        run = Run(args, *train.build(args))
    run.epoch = args.stage_two
    run.begin_epoch()
    run.model.train()
    return run


def _step(run: Run, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    run.changes.step(run, run.criterion(), inputs, targets)


def _clock(device: str) -> Callable[[], float]:
    if torch.device(device).type != "cuda":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def peak_memory(begin: Callable[[], Run], device: str) -> int:
    """Bytes of tensors alive at once, at most, in beginning a run and taking two steps."""

    def work() -> None:
        run = begin()
        run.batches.start(run.epoch)
        for (inputs, targets), _ in zip(run.loader, range(2), strict=False):
            _step(run, inputs, targets)

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    return _peak(profiler.profiler.kineto_results.events())


def _peak(events: list[Any]) -> int:
    """Of the running sum of allocations and releases, in the order of time."""
    alive = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
