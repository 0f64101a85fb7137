"""Ranks that run out of batches go on with empty ones; to be joined is refused."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join

import torch_absgd as ta
from parallel import batches, largest_difference, losses, pair
from ranks import Ranks


def run_out(lam: float | ta.LamRule) -> tuple[float, float]:
    """Rank 0 has 6 batches, rank 1 has 9; one process, the batches of both."""
    (reference, reference_opt), (model, opt) = pair("ddp", 1.0)
    for o in (reference_opt, opt):
        o.lam = lam
    of_rank = [list(batches(6 + 3 * rank, seed=rank)) for rank in range(2)]
    steps = torch.tensor(len(of_rank[dist.get_rank()]))
    dist.all_reduce(steps, op=dist.ReduceOp.MAX)
    for step in range(steps):
        shares = [b[step] if step < len(b) else tuple(t[:0] for t in b[0]) for b in of_rank]
        mine = shares[dist.get_rank()]
        both = tuple(torch.cat(parts) for parts in zip(*shares, strict=True))
        for m, o, batch in ((reference, reference_opt, both), (model, opt, mine)):
            o.weigh(losses(m, batch)).backward()
            o.step()
            o.zero_grad()
    return largest_difference(model, reference), (opt.log_s - reference_opt.log_s).abs().item()


@pytest.mark.parametrize("lam", [1.0, ta.EffectiveSampleSize(0.8)], ids=str)
def test_empty_batches_count_nothing(two: Ranks, lam: float | ta.LamRule) -> None:
    for parameters, log_s in two.run(run_out, lam):
        assert parameters < 1e-10 and log_s < 1e-9


def join() -> str:
    _, (model, opt) = pair("ddp", 1.0)
    with pytest.raises(NotImplementedError) as error, Join([model, opt]):
        pass
    return str(error.value)


def test_to_be_joined_is_refused(two: Ranks) -> None:
    for message in two.run(join):
        assert "goes on with empty ones" in message
