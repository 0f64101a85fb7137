"""A rank that dies, or no longer answers: the others have an error within the time-out, their state
is that of the last step, and torchrun starts all anew (test_torchrun.py)."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import torch_absgd as ta
from forked import Forked

TIMEOUT = 3  # seconds


def train(rank: int, store: Path, fate: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT)
    )
    w = torch.ones(3, requires_grad=True)
    opt = ta.ABSGD([w], lr=0.1, lam=0.5)
    for step in range(4):
        if rank == 1 and step == 2:
            if fate == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        before, log_s = w.detach().clone(), opt.log_s
        try:
            opt.weigh(w**2).backward()
        except RuntimeError as error:
            assert (
                step == 2
                and torch.equal(w, before)
                and torch.equal(opt.log_s, log_s)
                and w.grad is None
            )
            print("error:", error)
            return
        opt.step()
        opt.zero_grad()


@pytest.mark.parametrize("fate", ["dies", "hangs"])
def test_the_other_rank_has_an_error(tmp_path: Path, fate: str) -> None:
    ranks = [
        Forked(lambda rank=rank: train(rank, tmp_path / "store", fate), tmp_path / f"{rank}.out")
        for rank in range(2)
    ]
    output, _ = ranks[0].communicate(timeout=120)
    ranks[1].send_signal(signal.SIGKILL)
    ranks[1].wait()
    assert ranks[0].returncode == 0, output
    assert output.startswith("error:") and ("peer" in output or "imed out" in output)
