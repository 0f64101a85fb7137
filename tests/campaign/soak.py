"""Many steps of a small model with everything on: memory stays flat, log_s stays that of float64.

    python tests/campaign/soak.py 1000000 [FILE]

With a FILE it goes on where it was stopped: the run and what was measured are in it.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch_absgd as ta
from reference import Algorithm1

INPUTS, CLASSES, BATCH, SAMPLES = 6, 4, 8, 64
BLOCK = 50  # steps whose data are drawn at once; what a loop does now and then comes between
WARM = 1000  # steps of a process before its memory is measured
SAVE = 20_000  # steps


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Soak:
    """The run, and what is measured: how far log_s is from the reference (relative), and by how
    much memory (MiB) and the number of objects grow, the most in one process."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, CLASSES))
        self.criterion = ta.PerSampleCrossEntropy(label_smoothing=0.1)
        self.opt = ta.ABSGD(self.model.parameters(), 0.01, 0.9, weight_decay=1e-3, lam=2.0,
                            keep_loss=True, max_weight=5.0)  # fmt: skip
        self.lr = torch.optim.lr_scheduler.StepLR(self.opt, 10**5, 0.9)
        self.record = ta.SampleRecord(SAMPLES)
        self.plain = Algorithm1(torch.zeros(1), 0, lam=2.0, max_weight=5.0, keep_loss=True)
        self.done, self.away = 0, 0.0
        self.before = [math.nan, math.nan]  # MiB and objects of this process, warm
        self.most = [0.0, 0.0]

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "opt": self.opt, "lr": self.lr, "record": self.record}

    def save(self, file: Path) -> None:
        state = {name: part.state_dict() for name, part in self.parts().items()}
        state |= {"random": torch.get_rng_state(), "log_s": self.plain.log_s}
        state |= {"done": self.done, "away": self.away, "most": self.most}
        beside = file.with_name(file.name + ".tmp")
        torch.save(state, beside)
        os.replace(beside, file)

    def load(self, file: Path) -> None:
        state = torch.load(file, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        self.plain.log_s = state["log_s"]
        self.done, self.away, self.most = state["done"], state["away"], state["most"]

    def measure(self) -> None:
        gc.collect()
        now = [resident(), float(len(gc.get_objects()))]
        if math.isnan(self.before[0]):
            self.before = now
        self.most = [max(m, n - b) for m, n, b in zip(self.most, now, self.before, strict=True)]

    def step(self, x: Tensor, y: Tensor, weight: Tensor, indices: Tensor) -> None:
        losses = self.criterion(self.model(x), y)
        self.plain.weigh(losses.detach().double().tolist(), weight.double().tolist())
        self.opt.weigh(losses, weight=weight).backward()
        self.record.update(indices, losses.detach(), self.opt.weights)
        self.opt.step()
        self.lr.step()
        self.opt.zero_grad()
        away = abs(self.opt.log_s.item() - self.plain.log_s) / max(1.0, abs(self.plain.log_s))
        self.away = max(self.away, away)

    def now_and_then(self, x: Tensor, y: Tensor) -> None:
        opt = self.opt
        dict(opt.stats())
        with torch.no_grad():
            opt.weigh(F.cross_entropy(self.model(x), y, reduction="none"))
        opt.load_state_dict(opt.state_dict())
        with opt.frozen():
            opt.weigh(self.criterion(self.model(x), y)).backward()
        opt.zero_grad()
        with opt.accumulate():
            opt.weigh(self.criterion(self.model(x), y)).backward()
        opt.discard()

    def block(self) -> None:
        x = torch.randn(BLOCK, BATCH, INPUTS)
        y = x[..., :CLASSES].argmax(-1)
        weight = torch.rand(BLOCK, BATCH)
        indices = torch.randint(SAMPLES, (BLOCK, BATCH))
        for batch in zip(x, y, weight, indices, strict=True):
            self.step(*batch)
        self.now_and_then(x[0], y[0])
        self.done += BLOCK


def soak(steps: int, file: Path | None = None) -> Soak:
    run = Soak()
    if file is not None and file.exists():
        run.load(file)
    begin = run.done
    for _ in trange(begin, steps, BLOCK, unit="block", mininterval=10):
        run.block()
        here = run.done - begin  # steps in this process
        if here == WARM or (here > WARM and run.done % SAVE == 0):
            run.measure()
        if file is not None and run.done % SAVE == 0:
            run.save(file)
    run.measure()
    return run


def main(steps: int, file: Path | None = None) -> int:
    torch.set_num_threads(1)
    run = soak(steps, file)
    growth, objects = run.most
    print(
        f"{run.done} steps: at most {growth:+.1f} MiB of resident memory and {objects:+.0f} "
        f"objects in one process once warm; log_s at most {run.away:.2g} (relative) from float64"
    )
    return int(growth > 8 or objects > 1000 or not run.away <= 1e-9)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *map(Path, sys.argv[2:])))
