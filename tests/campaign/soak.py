"""Many steps of a small model with everything on: memory stays flat, log_s stays that of float64.

python tests/campaign/soak.py 1000000
"""

from __future__ import annotations

import gc
import math
import resource
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch_absgd as ta
from reference import Algorithm1

INPUTS, CLASSES, BATCH = 6, 4, 8
EVERY = 50  # steps between changes of what a loop changes now and then


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def soak(steps: int) -> tuple[float, float, int]:
    """(growth of the resident memory in MiB from a fifth of the way on, the largest relative
    distance of log_s from the reference, growth of the number of objects)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    criterion = ta.PerSampleCrossEntropy(label_smoothing=0.1)
    opt = ta.ABSGD(model.parameters(), 0.01, 0.9, weight_decay=1e-3, lam=2.0, keep_loss=True,
                   max_weight=5.0)  # fmt: skip
    lr = torch.optim.lr_scheduler.StepLR(opt, 10**5, 0.9)
    record = ta.SampleRecord(64)
    plain = Algorithm1(torch.zeros(1), lr=0, lam=2.0, max_weight=5.0, keep_loss=True)
    away, start, objects = 0.0, math.nan, 0
    for step in trange(steps, unit="step", mininterval=5):
        if step == steps // 5:
            gc.collect()
            start, objects = resident(), len(gc.get_objects())
        indices = torch.randint(64, (BATCH,))
        x = torch.randn(BATCH, INPUTS)
        y = x[:, :CLASSES].argmax(1)
        weight = torch.rand(BATCH)
        losses = criterion(model(x), y)
        with torch.no_grad():
            plain.weigh(losses.double().tolist(), weight.double().tolist())
        opt.weigh(losses, weight=weight).backward()
        record.update(indices, losses.detach(), opt.weights)
        opt.step()
        lr.step()
        opt.zero_grad()
        away = max(away, abs(opt.log_s.item() - plain.log_s) / max(1.0, abs(plain.log_s)))
        if step % EVERY == 0:
            dict(opt.stats())
            with torch.no_grad():
                opt.weigh(F.cross_entropy(model(x), y, reduction="none"))
            opt.load_state_dict(opt.state_dict())
            with opt.frozen():
                opt.weigh(criterion(model(x), y)).backward()
            opt.zero_grad()
    gc.collect()
    return resident() - start, away, len(gc.get_objects()) - objects


def main(steps: int) -> int:
    growth, away, objects = soak(steps)
    print(
        f"{steps} steps: {growth:+.1f} MiB of resident memory and {objects:+d} objects from a "
        f"fifth of the way on; log_s at most {away:.2g} (relative) from float64"
    )
    return int(growth > 8 or away > 1e-9 or objects > 1000)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
