"""What the global batch's collective costs a training step, waited for and overlapped.

    python tests/bench/bench_collective.py --processes 2

Processes train a small network under DDP (gloo, on this machine). A round has one step of each
kind, in an order that rotates; the table shows medians over the rounds, in µs, of rank 0.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import torch_absgd as ta

KINDS = ("local weights", "global, waited for", "global, overlapped")
BATCH, INPUTS, WIDTH, CLASSES = 64, 64, 256, 10
WARM_UP = 10


def train(rank: int, processes: int, store: Path, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=processes)
    torch.manual_seed(rank)
    x, y = torch.randn(BATCH, INPUTS), torch.randint(CLASSES, (BATCH,))
    steps = []
    for kind in KINDS:
        layers = nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
        model = DistributedDataParallel(nn.Sequential(*layers))
        group = "local" if kind == KINDS[0] else None
        opt = ta.ABSGD(model.parameters(), lr=0.01, momentum=0.9, lam=1.0, process_group=group)
        steps.append((kind, model, opt))
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for i in range(WARM_UP + rounds):
        for kind, model, opt in steps[i % 3 :] + steps[: i % 3]:
            dist.barrier()
            begin = time.perf_counter()
            if kind == KINDS[2]:
                with opt.accumulate(overlap=True):
                    opt.weigh(cross_entropy(model(x), y, reduction="none")).backward()
            else:
                opt.weigh(cross_entropy(model(x), y, reduction="none")).backward()
            opt.step()
            opt.zero_grad()
            if i >= WARM_UP:
                times[kind].append(1e6 * (time.perf_counter() - begin))
    if rank == 0:
        print(f"{processes} processes, {rounds} rounds: a step's median")
        for kind in KINDS:
            above = median(a - b for a, b in zip(times[kind], times[KINDS[0]], strict=True))
            print(f"{kind:20} {median(times[kind]):8.0f} µs {above:+8.0f} µs")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=300)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        arguments = (args.processes, Path(directory) / "store", args.rounds)
        mp.spawn(train, arguments, args.processes)


if __name__ == "__main__":
    main()
