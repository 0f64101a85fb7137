"""Timing one piece of work by several contenders, interleaved, and what the times come to.

In each round every contender runs a block of calls, in an order drawn anew: a slow moment of the
machine then falls on all of them, and none always finds the caches as the same other left them.
Ratios are of medians; their interval is a bootstrap over rounds, which keeps the times of one round
together.
"""

from __future__ import annotations

import gc
import random
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

BLOCK_SECONDS = 2e-3  # of calls in a round, for one contender,
BLOCK_CALLS = 3  # and at least so many
ROUNDS = (7, 1000)  # at least, at most
RESAMPLES = 2000

clock = time.perf_counter_ns


@dataclass(frozen=True)
class Settings:
    """How a run measures."""

    threads: int
    seconds: float  # for one case, without its set-up
    compiles: bool  # whether torch.compile is among the peers


@dataclass(frozen=True)
class Contender:
    """What is timed: ``call``, and ``before`` ahead of each block, which is not.

    The first of a contest is ours. One that is no peer is shown beside it, and not compared.
    """

    name: str
    call: Callable[[], Any]
    before: Callable[[], Any] | None = None
    is_peer: bool = True


@dataclass(frozen=True)
class Result:
    """Samples of one case: microseconds a call (or MiB), a number for each round."""

    samples: dict[str, list[float]]  # ours first
    peers: list[str]
    limit: list[float] = field(default_factory=list)  # what the machine takes at the least
    unit: str = "µs"


@dataclass(frozen=True)
class Case:
    """A row of the report. ``group/…`` is its name; the table of a group has a heading.

    Args:
        target: the ratio of the best peer to ours that is aimed at.
        reaches: the target is met if the ratio's interval reaches it; otherwise the ratio has to.
        limit_target: the fraction of the limit that is aimed at.
    """

    name: str
    run: Callable[[Settings], Result]
    target: float | None = None
    reaches: bool = False
    limit_target: float | None = None

    @property
    def group(self) -> str:
        return self.name.split("/")[0]


def contest(
    settings: Settings,
    contenders: Sequence[Contender],
    limit: Callable[[], Any] | None = None,
    flush: Callable[[], Any] | None = None,
) -> Result:
    """Times the contenders, ours first, and the limit among them.

    Args:
        flush: empties the caches before each single call; without it, blocks of calls are timed.
    """
    torch.set_num_threads(settings.threads)
    timed = [*contenders]
    if limit is not None:
        timed.append(Contender("limit", limit))
    calls = [_calls_in_a_block(c) for c in timed]
    if flush:
        calls = [1] * len(timed)
    samples: list[list[float]] = [[] for _ in timed]
    order = random.Random(0)
    enough = time.perf_counter() + settings.seconds
    gc.collect()
    gc.disable()
    try:
        for done in range(ROUNDS[1]):
            if done >= ROUNDS[0] and time.perf_counter() > enough:
                break
            for i in order.sample(range(len(timed)), len(timed)):
                if flush:
                    flush()
                samples[i].append(_time(timed[i], calls[i]))
    finally:
        gc.enable()
    by_name = {c.name: times for c, times in zip(contenders, samples, strict=False)}
    peers = [c.name for c in contenders[1:] if c.is_peer]
    return Result(by_name, peers, samples[-1] if limit else [])


def _time(contender: Contender, calls: int) -> float:
    """Microseconds a call."""
    if contender.before:
        contender.before()
    call = contender.call
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls / 1e3


def _calls_in_a_block(contender: Contender) -> int:
    once = min(_time(contender, 1) for _ in range(5))  # warms up, compiles
    return max(BLOCK_CALLS, round(BLOCK_SECONDS * 1e6 / once))


# ---- what the samples say


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    low, median, high = torch.tensor(samples, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return low.item(), median.item(), high.item()


def ratio_interval(peer: Sequence[float], ours: Sequence[float]) -> tuple[float, float, float]:
    """median(peer)/median(ours) and its 95 % bootstrap interval: (low, ratio, high)."""
    peer_, ours_ = (torch.tensor(s, dtype=torch.float64) for s in (peer, ours))
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(ours_), (RESAMPLES, len(ours_)), generator=generator)
    ratios = _median(peer_[picks]) / _median(ours_[picks])
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return low.item(), (_median(peer_) / _median(ours_)).item(), high.item()


def _median(samples: Tensor) -> Tensor:
    return samples.quantile(0.5, dim=-1)


def summary(case: Case, result: Result) -> dict[str, Any]:
    """The row as the JSON file holds it."""
    spread = {name: quartiles(samples) for name, samples in result.samples.items()}
    ours = next(iter(result.samples))
    best = min(result.peers, key=lambda name: spread[name][1])
    low, ratio, high = ratio_interval(result.samples[best], result.samples[ours])
    fraction = quartiles(result.limit)[1] / spread[ours][1] if result.limit else None
    is_met = None
    if case.target is not None:
        is_met = (high if case.reaches else ratio) >= case.target
        if case.limit_target is not None:
            is_met = is_met and fraction is not None and fraction >= case.limit_target
    return {
        "name": case.name,
        "unit": result.unit,
        "rounds": len(result.samples[ours]),
        "ours": ours,
        "peers": result.peers,
        "best_peer": best,
        "contenders": {
            name: {"median": q[1], "quartiles": [q[0], q[2]]} for name, q in spread.items()
        },
        "ratio": ratio,
        "ratio_interval": [low, high],
        "limit": quartiles(result.limit)[1] if result.limit else None,
        "fraction_of_limit": fraction,
        "target": case.target,
        "limit_target": case.limit_target,
        "is_met": is_met,
    }


def measured(case: Case, settings: Settings) -> dict[str, Any]:
    """The row of a case; one that fails has an "error" in place of numbers."""
    torch.manual_seed(0)
    if settings.compiles:
        torch.compiler.reset()  # what one case compiled is not the next one's
    try:
        return summary(case, case.run(settings))
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"name": case.name, "error": message}
