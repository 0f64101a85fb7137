"""Guards, base measure and rules over three ranks of uneven batches: as one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import torch_absgd as ta
from parallel import batches, cut, largest_difference, losses, small_model, wrapped
from ranks import Ranks

SETTINGS: dict[str, dict[str, Any]] = {
    "cap": {"lam": 0.3, "max_weight": 1.5},
    "kept": {"lam": 0.3, "keep_loss": True},
    "both": {"lam": 0.3, "keep_loss": True, "max_weight": 1.2},
    "rule": {"lam": ("ess", 0.6)},
    "rule, kept": {"lam": ("ess", 0.6), "keep_loss": True},
    "radius, noisy": {"lam": ("kl", 0.2, True)},
}
KINDS = {"ess": ta.EffectiveSampleSize, "kl": ta.KLRadius}


def pair(setting: str) -> tuple[tuple[Any, ta.ABSGD], tuple[Any, ta.ABSGD]]:
    rule = dict(SETTINGS[setting])
    if isinstance(rule["lam"], tuple):
        kind, *arguments = rule["lam"]
        rule["lam"] = KINDS[kind](*arguments)
    common = {"lr": 0.05, "momentum": 0.9, **rule}
    single, model = small_model(), wrapped(small_model(), "ddp")
    return (
        (single, ta.ABSGD(single.parameters(), process_group="local", **common)),
        (model, ta.ABSGD(model.parameters(), **common)),
    )


def base(y: torch.Tensor, step: int) -> torch.Tensor | None:
    """Class weights; on some steps none, on some a class of weight 0."""
    by_class = torch.tensor([0.3, 1.0, 4.0 if step % 3 else 0.0], dtype=torch.float64)
    return by_class[y]


def train(setting: str, weighted: bool, mixed: bool) -> list[float]:
    (single, single_opt), (model, opt) = pair(setting)
    rank, size = dist.get_rank(), dist.get_world_size()
    gaps = []
    for step, (x, y) in enumerate(batches(12)):
        parts = cut((torch.arange(len(y)), y), size, seed=step)
        index, own_y = parts[rank]
        whole = base(y, step) if weighted else None
        if mixed:  # this rank's batch has weights, the others' none: they count as 1
            whole = torch.ones(len(y), dtype=torch.float64)
            whole[parts[1][0]] = base(parts[1][1], step)
        own = None if whole is None or (mixed and rank != 1) else whole[index]
        for m, o, w, data in (
            (single, single_opt, whole, (x, y)),
            (model, opt, own, (x[index], own_y)),
        ):
            o.weigh(losses(m, data), weight=w).backward()
            o.step()
            o.zero_grad()
        gaps.append(largest_difference(model, single))
        gaps.append((opt.log_s - single_opt.log_s).nan_to_num(0.0).abs().item())
        for name in ("mean_loss", "weighted_loss", "effective_samples", "kappa"):
            ours, theirs = (getattr(o.stats().last, name) for o in (opt, single_opt))
            gaps.append(abs(ours - theirs) / abs(theirs))
    assert largest_difference(single, small_model()) > 1e-2  # it went somewhere
    return gaps


@pytest.mark.parametrize("measure", ["plain", "weighted", "mixed"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_three_uneven_ranks_are_one_process(three: Ranks, setting: str, measure: str) -> None:
    for gaps in three.run(train, setting, measure != "plain", measure == "mixed"):
        assert all(gap < 1e-9 for gap in gaps), max(gaps)


def accumulate(setting: str) -> list[float]:
    (single, single_opt), (model, opt) = pair(setting)
    rank, size = dist.get_rank(), dist.get_world_size()
    gaps = []
    for step, (x, y) in enumerate(batches(8)):
        weight = base(y, step)
        single_opt.weigh(losses(single, (x, y)), weight=weight).backward()
        single_opt.step()
        single_opt.zero_grad()
        for index, _ in cut((torch.arange(len(y)), y), 2 * size, seed=step)[rank::size]:
            with opt.accumulate():
                opt.weigh(losses(model, (x[index], y[index])), weight=weight[index]).backward()
        opt.step()
        opt.zero_grad()
        gaps += [largest_difference(model, single), (opt.log_s - single_opt.log_s).abs().item()]
    return gaps


def test_a_kept_loss_accumulates_across_ranks(three: Ranks) -> None:
    for gaps in three.run(accumulate, "kept"):
        assert all(gap < 1e-9 for gap in gaps), max(gaps)


def local_state_under_ddp() -> tuple[float, float]:
    """log_s of a rule of the rank's own, within a module that DDP wraps, and what it shall be."""
    model = small_model()
    model.criterion = ta.AttentionalLoss(
        torch.nn.CrossEntropyLoss(reduction="none"), lam=1.0, process_group="local"
    )

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            out = x
            for name, layer in self.model.named_children():
                if name != "criterion":
                    out = layer(out)
            return self.model.criterion(out * (1 + dist.get_rank()), y)

    ddp = torch.nn.parallel.DistributedDataParallel(Whole())
    alone = ta.AttentionalLoss(torch.nn.CrossEntropyLoss(reduction="none"), lam=1.0)
    alone.weigher.ranks.process_group = "local"
    for x, y in batches(4):
        with torch.no_grad():
            out = x
            for name, layer in model.named_children():
                if name != "criterion":
                    out = layer(out)
        alone(out * (1 + dist.get_rank()), y)
        ddp(x, y).backward()
    return model.criterion.log_s.item(), alone.log_s.item()


def test_ddp_leaves_a_local_rule_to_its_rank(two: Ranks) -> None:
    results = two.run(local_state_under_ddp)
    assert results[0] != results[1]
    for ours, expected in results:
        assert ours == pytest.approx(expected, rel=1e-12)
