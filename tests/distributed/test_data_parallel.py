"""The ranks' run under DDP and FSDP2 against one process with the whole batch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist

import torch_absgd as ta
from parallel import batches, copy_state, cut, largest_difference, losses, pair, small_model
from ranks import Ranks

WRAPPERS = ["ddp", "fsdp2"]
LAMBDAS = [0.3, math.inf, -1.0]


def train(wrapper: str, lam: float, steps: int, synchronise: bool) -> dict[str, list[float]]:
    """Differences between the ranks' run and one process's, at every step."""
    single, ranks = pair(wrapper, lam)
    gaps: dict[str, list[float]] = {
        name: [] for name in ("weights", "log_s", "stats", "parameters")
    }
    for step, batch in enumerate(batches(steps)):
        if synchronise:
            copy_state(single, ranks)
        parts = cut(batch, dist.get_world_size(), seed=step)
        for (model, opt), data in ((single, batch), (ranks, parts[dist.get_rank()])):
            opt.weigh(losses(model, data)).backward()
            opt.step()
            opt.zero_grad()
        begin = sum(len(y) for _, y in parts[: dist.get_rank()])
        expected = single[1].weights[begin : begin + len(ranks[1].weights)]
        gaps["weights"] += ((ranks[1].weights - expected) / expected).abs().tolist()
        if math.isfinite(lam):
            gaps["log_s"].append((ranks[1].log_s - single[1].log_s).abs().item())
        for ours, theirs in zip(ranks[1].stats().last, single[1].stats().last, strict=True):
            gaps["stats"].append(abs(ours - theirs) / (abs(theirs) or 1))
        gaps["parameters"].append(largest_difference(ranks[0], single[0]))
    assert largest_difference(single[0], small_model()) > 1e-2  # it went somewhere
    return gaps


def assert_within(tolerance: float, results: list[dict[str, list[float]]]) -> None:
    for gaps in results:
        for name, values in gaps.items():
            assert all(value < tolerance for value in values), name  # NaN fails too


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_step_is_that_of_the_whole_batch(ranks: Ranks, wrapper: str, lam: float) -> None:
    assert_within(1e-12, ranks.run(train, wrapper, lam, 16, True))


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_whole_run_is_that_of_one_process(ranks: Ranks, wrapper: str, lam: float) -> None:
    assert_within(1e-10, ranks.run(train, wrapper, lam, 40, False))


def train_in_two_groups() -> tuple[float, float]:
    rank = dist.get_rank()
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine = rank // 2
    single, ranks = pair("ddp", 0.5, groups[mine])
    for step, batch in enumerate(batches(10, seed=mine)):
        data = cut(batch, 2, seed=step)[rank % 2]
        for (model, opt), part in ((single, batch), (ranks, data)):
            opt.weigh(losses(model, part)).backward()
            opt.step()
            opt.zero_grad()
    return largest_difference(ranks[0], single[0]), ranks[1].log_s.item()


def test_a_process_group_is_the_batch(four: Ranks) -> None:
    results = four.run(train_in_two_groups)
    assert max(difference for difference, _ in results) < 1e-10
    log_s = [log_s for _, log_s in results]
    assert log_s[0] == log_s[1] != log_s[2] == log_s[3]


def weigh_locally() -> tuple[list[float], list[float]]:
    """log_s of "local" and of one process that has this rank's batch alone."""
    values = torch.tensor([1.0, 2.0, 4.0]) * (dist.get_rank() + 1)
    parameter = torch.zeros(1, requires_grad=True)
    opt = ta.ABSGD([parameter], lam=1.0, process_group="local")
    opt.weigh(values)
    return opt.log_s.item(), (values.double().logsumexp(0) - math.log(3)).item()


def test_local_weights_stay_local(two: Ranks) -> None:
    for ours, alone in two.run(weigh_locally):
        assert ours == pytest.approx(alone, abs=1e-12)


def validate_on_rank_0() -> tuple[float, float]:
    parameter = torch.zeros(1, requires_grad=True)
    opt = ta.ABSGD([parameter], lam=1.0)
    criterion = ta.AttentionalLoss(lambda input, target: input, lam=1.0)
    values = torch.tensor([1.0, 2.0])
    opt.weigh(values)
    criterion(values, None)
    before = opt.log_s.item(), criterion.log_s.item()
    if dist.get_rank() == 0:
        with torch.no_grad():
            assert opt.weigh(torch.tensor([5.0, 7.0])) == 6
        assert criterion.eval()(torch.tensor([5.0, 7.0]), None) == 6
    dist.barrier()
    assert (opt.log_s.item(), criterion.log_s.item()) == before
    return before


def test_validation_on_one_rank_does_not_wait_for_the_others(two: Ranks) -> None:
    first, second = two.run(validate_on_rank_0)
    assert first == second


def nan_on_rank_1(wrapper: str) -> tuple[list[float], list[bool]]:
    _, (model, opt) = pair(wrapper, 1.0)
    log_s, finite = [], []
    for step, (x, y) in enumerate(batches(3)):
        if step == 1 and dist.get_rank() == 1:
            x[0] = math.nan
        loss = opt.weigh(losses(model, (x, y)))
        log_s.append(opt.log_s.item())
        finite.append(bool(loss.isfinite()))
        loss.backward()
        opt.zero_grad()
    return log_s, finite


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_nan_on_one_rank_leaves_log_s_on_every_rank(two: Ranks, wrapper: str) -> None:
    (log_s, finite), other = two.run(nan_on_rank_1, wrapper)
    assert (log_s, finite) == other
    assert log_s[0] == log_s[1] != log_s[2]
    assert finite == [True, False, True]  # on both ranks: both can skip the step


def share_a_loss(wrapper: str) -> tuple[float, float]:
    """The same, with AttentionalLoss and torch's own SGD."""
    (reference, _), (model, _) = pair(wrapper, 1.0)
    runs = []
    for m, group in ((reference, "local"), (model, None)):
        criterion = ta.AttentionalLoss(
            torch.nn.CrossEntropyLoss(reduction="none"), lam=0.5, process_group=group
        )
        runs.append((m, criterion, torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9)))
    for step, batch in enumerate(batches(20)):
        mine = cut(batch, dist.get_world_size(), seed=step)[dist.get_rank()]
        for (m, criterion, opt), (x, y) in zip(runs, (batch, mine), strict=True):
            criterion(m(x), y).backward()
            opt.step()
            opt.zero_grad()
    return largest_difference(model, reference), (runs[0][1].log_s - runs[1][1].log_s).abs().item()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_attentional_loss_takes_the_whole_batch(ranks: Ranks, wrapper: str) -> None:
    for parameters, log_s in ranks.run(share_a_loss, wrapper):
        assert parameters < 1e-10
        assert log_s < 1e-10


def mask_a_rank_out() -> tuple[float, float]:
    """Losses of rank 1 masked out; rank 0 alone has none."""
    parameter = torch.zeros(1, requires_grad=True)
    opt = ta.ABSGD([parameter], lam=1.0)
    values = torch.tensor([1.0, 2.0], dtype=torch.float64)
    mask = torch.tensor([True, dist.get_rank() == 0]) & (dist.get_rank() == 0)
    total = opt.weigh(values + 0 * parameter, mask)
    total.backward()
    return opt.log_s.item(), total.item()


def test_a_masked_rank_counts_nothing(two: Ranks) -> None:
    (log_s, total), (other_log_s, other_total) = two.run(mask_a_rank_out)
    assert log_s == other_log_s == pytest.approx(math.log((math.e + math.e**2) / 2), abs=1e-12)
    assert other_total == 0
    p = [math.exp(v - log_s) for v in (1, 2)]
    assert total == pytest.approx(2 * (p[0] + 2 * p[1]) / 2)  # 2 ranks are averaged
