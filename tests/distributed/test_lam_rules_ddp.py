"""λ that follows a target, over ranks: that of one process with the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import torch_absgd as ta
from parallel import batches, cut, largest_difference, losses, pair
from ranks import Ranks

RULES = {
    "ess": ta.EffectiveSampleSize(0.6),
    "ess, noisy": ta.EffectiveSampleSize(0.7, noisy=True),
    "kl, each batch's own": ta.KLRadius(0.3, rate=1.0),
}
STEPS = 6
K = 3  # micro-batches


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs) / theirs).abs().max().item() if len(ours) else 0.0


def train(rule: ta.EffectiveSampleSize | ta.KLRadius, empty_rank: int | None) -> dict[str, list]:
    """λ of every step, and relative differences of λ and of the weights from one process's. The
    rank ``empty_rank`` has no sample at any step."""
    rank, size = dist.get_rank(), dist.get_world_size()
    single, ranks = pair("ddp", rule)
    result: dict[str, list] = {"lam": [], "lam gap": [], "weights gap": []}
    for step, batch in enumerate(batches(STEPS)):
        if empty_rank is None:
            parts = cut(batch, size, seed=step)
        else:
            parts = cut(batch, size - 1, seed=2 * step + 1)
            parts.insert(empty_rank, (batch[0][:0], batch[1][:0]))
        for (model, opt), data in ((single, batch), (ranks, parts[rank])):
            opt.weigh(losses(model, data)).backward()
            opt.step()
            opt.zero_grad()
        begin = sum(len(y) for _, y in parts[:rank])
        expected = single[1].weights[begin : begin + len(ranks[1].weights)]
        result["lam"].append(ranks[1].lam.item())
        result["lam gap"].append(relative(ranks[1].lam[None], single[1].lam[None]))
        result["weights gap"].append(relative(ranks[1].weights, expected))
    assert largest_difference(ranks[0], single[0]) < 1e-11
    return result


@pytest.mark.parametrize(
    ("rule", "empty_rank"), [*((rule, None) for rule in RULES), ("ess", 0), ("ess", 1)]
)
def test_lam_is_that_of_the_whole_batch(two: Ranks, rule: str, empty_rank: int | None) -> None:
    results = two.run(train, RULES[rule], empty_rank)
    for result in results:
        assert result["lam"] == results[0]["lam"]  # the same bits on every rank
        assert all(gap < 1e-12 for gap in result["lam gap"])  # NaN fails too
        assert all(gap < 1e-10 for gap in result["weights gap"])
    assert len(set(results[0]["lam"])) == STEPS  # it moved


def bad_batches() -> list[float]:
    """λ after a good batch, after one with a NaN on the last rank, and after one that is empty."""
    values = torch.arange(1.0, 5.0, dtype=torch.float64) * (dist.get_rank() + 1)
    bad = values.clone()
    if dist.get_rank() == dist.get_world_size() - 1:
        bad[0] = torch.nan
    opt = ta.ABSGD([torch.zeros(1, requires_grad=True)], lam=ta.EffectiveSampleSize(0.6, rate=1.0))
    lams = []
    for batch in (values, bad, values[:0]):
        opt.weigh(batch)
        lams.append(opt.lam.item())
    return lams


def test_a_batch_without_an_answer_leaves_lam_on_every_rank(two: Ranks) -> None:
    first, second = two.run(bad_batches)
    assert first == second
    assert first[0] > 0 and first == first[:1] * 3


def accumulate(rule: ta.EffectiveSampleSize, overlap: bool) -> dict[str, list[float]]:
    """K micro-batches a step over the ranks, against K micro-batches of one process: λ is found
    from the first, that of all ranks, for all of them."""
    rank, size = dist.get_rank(), dist.get_world_size()
    (single, single_opt), (model, opt) = pair("ddp", rule)
    result: dict[str, list[float]] = {"lam": [], "gap": []}
    for step, (x, y) in enumerate(batches(STEPS)):
        order = torch.arange(len(y)).tensor_split(K)
        for k, chosen in enumerate(order):
            micro_batch = x[chosen], y[chosen]
            with single_opt.accumulate():
                single_opt.weigh(losses(single, micro_batch)).backward()
            part = cut(micro_batch, size, seed=step + k)[rank]
            with opt.accumulate(overlap=overlap):
                opt.weigh(losses(model, part)).backward()
            if k == 0:
                first = opt.lam.item()
            assert opt.lam.item() == first  # one λ for all micro-batches
        result["lam"].append(first)
        result["gap"].append(relative(opt.lam[None], single_opt.lam[None]))
        for o in (single_opt, opt):
            o.step()
            o.zero_grad()
        result["gap"].append((opt.log_s - single_opt.log_s).abs().item())
        result["gap"].append(largest_difference(model, single))
    return result


@pytest.mark.parametrize("overlap", [False, True])
def test_micro_batches_share_the_lam_of_the_first(two: Ranks, overlap: bool) -> None:
    results = two.run(accumulate, RULES["ess"], overlap)
    for result in results:
        assert result["lam"] == results[0]["lam"]
        assert all(gap < 1e-10 for gap in result["gap"])
    assert len(set(results[0]["lam"])) == STEPS
