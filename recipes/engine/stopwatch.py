"""Where the time of an epoch goes: --profile."""

from __future__ import annotations

import time
from collections import defaultdict

import torch


class Stopwatch:
    """Seconds by what they were spent on. Not enabled, it costs nothing and waits for nothing;
    enabled, it waits for the GPU at each lap, so the epoch takes longer than without it."""

    def __init__(self, device: str, enabled: bool) -> None:
        self.enabled, self.on_cuda = enabled, torch.device(device).type == "cuda"
        self.start()

    def start(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Books the time since the last lap, or since the start, on ``name``."""
        if not self.enabled:
            return
        if self.on_cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] += now - self.last
        self.last = now

    def line(self) -> str:
        """ "profile: 12.3 s: data 10 %, forward 30 %, …" """
        total = sum(self.seconds.values())
        shares = (f"{name} {100 * s / total:.0f} %" for name, s in self.seconds.items())
        return f"profile: {total:.1f} s: {', '.join(shares)}"
