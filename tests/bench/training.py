"""The training step that bench_training.py times; as a program, the peak memory of a few of them.

python training.py ours|sgd THREADS   →   {"allocated": MiB, "resident": MiB}
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import torch_absgd as ta

sys.path.append(str(Path(__file__).resolve().parents[2] / "recipes"))
from models import build

BATCH, CLASSES = 128, 10
HYPER = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


def resnet32() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet32", CLASSES)


def batch() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 32, 32, generator=random)
    return x, torch.randint(CLASSES, (BATCH,), generator=random)


def make_step(kind: str) -> Callable[[], None]:
    """``ours``: ABSGD with the fused loss; ``sgd``: torch's fused SGD with the mean loss."""
    model, (x, y) = resnet32(), batch()
    if kind == "ours":
        opt = ta.ABSGD(model.parameters(), **HYPER, lam=5.0)
        criterion = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), optimizer=opt)
    else:
        opt = torch.optim.SGD(model.parameters(), **HYPER, fused=True)
        criterion = F.cross_entropy

    def step() -> None:
        criterion(model(x), y).backward()
        opt.step()
        opt.zero_grad()

    return step


def peak_allocated(trace: Path) -> float:
    """MiB, from the running total that the profiler keeps of torch's allocations."""
    events = json.loads(trace.read_text())["traceEvents"]
    totals = [e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]"]
    return max(totals) / 2**20


def peak_resident() -> float:
    """MiB, of this program alone: getrusage's maximum would begin at the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = make_step(sys.argv[1])
        for _ in range(3):
            step()
    resident = peak_resident()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        print(json.dumps({"allocated": peak_allocated(trace), "resident": resident}))


if __name__ == "__main__":
    main()
