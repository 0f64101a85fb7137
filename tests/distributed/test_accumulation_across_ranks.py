"""Micro-batches over several ranks: the step of the whole batch in one process."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

from parallel import batches, cut, largest_difference, losses, pair, whole
from ranks import Ranks

K = 3  # micro-batches
MAX_NORM = 0.05


def syncs(model: nn.Module, no_sync: bool, is_last: bool) -> contextlib.AbstractContextManager:
    return model.no_sync() if no_sync and not is_last else contextlib.nullcontext()


def accumulate(
    wrapper: str, no_sync: bool, divisor: int, overlap: bool, scaled: bool, clipped: bool
) -> list[float]:
    """Differences of parameters and log_s from one process that takes the whole batch at once."""
    (single, single_opt), (model, opt) = pair(wrapper, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    gaps = []
    for step, batch in enumerate(batches(12)):
        single_opt.weigh(losses(single, batch)).backward()
        if clipped:
            norm = nn.utils.clip_grad_norm_(single.parameters(), MAX_NORM)
            assert norm > MAX_NORM  # clipping matters
        single_opt.step()
        single_opt.zero_grad()

        parts = cut(batch, K * dist.get_world_size(), seed=step)
        micro_batches = parts[dist.get_rank() :: dist.get_world_size()]
        for i, data in enumerate(micro_batches):
            with syncs(model, no_sync, i == K - 1), opt.accumulate(divisor, overlap):
                loss = opt.weigh(losses(model, data))
                scaler.scale(loss / divisor).backward()
        if clipped:
            scaler.unscale_(opt)
            opt.finalize_grads_()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        gaps += [largest_difference(model, single), (opt.log_s - single_opt.log_s).abs().item()]
    return gaps


@pytest.mark.parametrize(
    ("wrapper", "no_sync", "divisor", "overlap", "scaled", "clipped"),
    [
        ("ddp", True, 1, False, False, False),
        ("ddp", True, K, True, False, True),
        ("ddp", False, 1, False, True, True),
        ("ddp", True, K, False, True, True),
        ("ddp", True, 1, True, True, False),
        ("fsdp2", False, 1, False, False, True),
        ("fsdp2", False, K, True, True, True),
        ("fsdp2", False, 1, False, True, False),
    ],
)
def test_micro_batches_are_the_whole_batch(
    ranks: Ranks,
    wrapper: str,
    no_sync: bool,
    divisor: int,
    overlap: bool,
    scaled: bool,
    clipped: bool,
) -> None:
    arguments = (wrapper, no_sync, divisor, overlap, scaled, clipped)
    for gaps in ranks.run(accumulate, *arguments):
        assert all(gap < 1e-10 for gap in gaps)


def overlap_one_batch() -> list[float]:
    """overlap=True for a single batch a step, and the statistics of it."""
    (single, single_opt), (model, opt) = pair("ddp", 0.5)
    gaps = []
    for step, batch in enumerate(batches(12)):
        single_opt.weigh(losses(single, batch)).backward()
        single_opt.step()
        single_opt.zero_grad()
        mine = cut(batch, dist.get_world_size(), seed=step)[dist.get_rank()]
        with opt.accumulate(overlap=True):
            opt.weigh(losses(model, mine)).backward()
        opt.step()
        opt.zero_grad()
        gaps += [largest_difference(model, single), (opt.log_s - single_opt.log_s).abs().item()]
        for ours, theirs in zip(opt.stats().last, single_opt.stats().last, strict=True):
            gaps.append(abs(ours - theirs) / (abs(theirs) or 1))
    return gaps


def test_an_overlapped_collective_changes_nothing(ranks: Ranks) -> None:
    for gaps in ranks.run(overlap_one_batch):
        assert all(gap < 1e-10 for gap in gaps)


def jump(wrapper: str) -> tuple[list[float], list[float]]:
    """log_c after each micro-batch, and relative differences of gradients, with losses of rank 0
    that jump by hundreds of λ in the second micro-batch of a step."""
    (single, single_opt), (model, opt) = pair(wrapper, 0.1, lr=1e-3)
    rank, size = dist.get_rank(), dist.get_world_size()
    log_c, gaps = [], []
    for step, (x, y) in enumerate(batches(6)):
        parts = torch.arange(len(y)).tensor_split(K * size)
        factors = torch.ones(len(y), dtype=x.dtype)
        factors[parts[size]] = 1.0 if step < 2 else 50.0
        single_opt.weigh(factors * losses(single, (x, y))).backward()
        for i in parts[rank::size]:
            with opt.accumulate():
                opt.weigh(factors[i] * losses(model, (x[i], y[i]))).backward()
            log_c.append(opt.weigher.accumulation.memory[10].item())
        opt.finalize_grads_()
        for p, q in zip(single.parameters(), model.parameters(), strict=True):
            gaps.append(((whole(q.grad) - p.grad).abs().max() / p.grad.abs().max()).item())
        gaps.append((opt.log_s - single_opt.log_s).abs().item())
        for o in (single_opt, opt):
            o.step()
            o.zero_grad()
    return log_c, gaps


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_a_jump_of_the_losses_raises_log_c_on_every_rank(two: Ranks, wrapper: str) -> None:
    (log_c, gaps), (other_log_c, other_gaps) = two.run(jump, wrapper)
    assert log_c == other_log_c
    first, second = log_c[K * 2 : K * 2 + 2]
    assert second > first + 100
    assert all(gap < 1e-9 for gap in gaps + other_gaps)


def nan_in_one_micro_batch() -> tuple[float, float, bool]:
    _, (model, opt) = pair("ddp", 1.0)
    (x, y), other, *_ = batches(2)
    with opt.accumulate():
        opt.weigh(losses(model, (x, y))).backward()
    opt.step()
    opt.zero_grad()
    before = opt.log_s.item()
    for i, (x, y) in enumerate((other, other, other)):
        bad = x.clone()
        if i == 1 and dist.get_rank() == 1:
            bad[0] = math.nan
        with opt.accumulate():
            opt.weigh(losses(model, (bad, y))).backward()
    opt.finalize_grads_()
    finite = all(p.grad.isfinite().all() for p in model.parameters())
    return before, opt.log_s.item(), finite


def test_a_nan_in_a_micro_batch_leaves_log_s_on_every_rank(two: Ranks) -> None:
    results = two.run(nan_in_one_micro_batch)
    assert results[0] == results[1]
    before, after, finite = results[0]
    assert before == after
    assert not finite


def keep_gradients_unsharded() -> str:
    _, (model, opt) = pair("fsdp2", 1.0)
    first, second = batches(2)
    model.set_requires_gradient_sync(False)
    with opt.accumulate():
        opt.weigh(losses(model, first)).backward()
        with pytest.raises(RuntimeError, match="set_requires_gradient_sync") as error:
            opt.weigh(losses(model, second))
    return str(error.value)


def test_gradients_out_of_reach_are_an_error(two: Ranks) -> None:
    two.run(keep_gradients_unsharded)


def penalise(after: bool) -> float:
    """A penalty beside weigh's losses, its backward pass after finalize_grads_ or before."""
    (single, single_opt), (model, opt) = pair("ddp", 0.5)
    penalty = lambda m: sum(p.square().sum() for p in m.parameters())  # noqa: E731
    for step, batch in enumerate(batches(6)):
        (single_opt.weigh(losses(single, batch)) + penalty(single)).backward()
        mine = cut(batch, dist.get_world_size(), seed=step)[dist.get_rank()]
        with opt.accumulate():
            loss = opt.weigh(losses(model, mine))
            (loss if after else loss + penalty(model)).backward()
        opt.finalize_grads_()
        if after:
            penalty(model.module).backward()
        for o in (single_opt, opt):
            o.step()
            o.zero_grad()
    return largest_difference(model, single)


def test_a_penalty_belongs_after_finalize_grads(two: Ranks) -> None:
    assert all(difference < 1e-10 for difference in two.run(penalise, True))
    assert all(difference > 1e-6 for difference in two.run(penalise, False))


def zero_within_a_window(wrapper: str, no_sync: bool) -> float:
    """Micro-batches that ``model.zero_grad(set_to_none=False)`` drops, and then a whole step."""
    (single, single_opt), (model, opt) = pair(wrapper, 0.5)
    for step, batch in enumerate(batches(8)):
        single_opt.weigh(losses(single, batch)).backward()
        parts = cut(batch, K * dist.get_world_size(), seed=step)[
            dist.get_rank() :: dist.get_world_size()
        ]
        dropped = [(3 * x, y) for x, y in parts[: 1 + step % 2]]
        for i, data in enumerate(dropped + parts):
            if i == len(dropped):
                model.zero_grad(set_to_none=False)
            with syncs(model, no_sync, i == len(dropped) + K - 1), opt.accumulate():
                opt.weigh(losses(model, data)).backward()
        for o in (single_opt, opt):
            o.step()
            o.zero_grad()
    return max(largest_difference(model, single), (opt.log_s - single_opt.log_s).abs().item())


@pytest.mark.parametrize(("wrapper", "no_sync"), [("ddp", True), ("ddp", False), ("fsdp2", False)])
def test_the_model_zeroes_its_gradients_in_the_middle(
    ranks: Ranks, wrapper: str, no_sync: bool
) -> None:
    assert max(ranks.run(zero_within_a_window, wrapper, no_sync)) < 1e-10
