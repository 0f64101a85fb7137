"""stats(): its numbers against their definitions."""

import math

import pytest
import torch

from reference import Algorithm1
from torch_absgd import ABSGD

RATE = 0.01  # of the running mean


def make(lam: float) -> ABSGD:
    return ABSGD([torch.zeros(1, requires_grad=True)], lam=lam)


def expected_report(reference: Algorithm1, losses: list[float]) -> list[float]:
    """The fields of a report without guards."""
    weighted = reference.weigh(losses)
    mean = math.fsum(losses) / len(losses)
    p = reference.p
    objective = mean if math.isinf(reference.lam) else reference.lam * reference.log_s
    effective = math.fsum(p) ** 2 / math.fsum(v * v for v in p)
    return [len(losses), mean, weighted, objective, max(p), effective, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("lam", [0.1, 1.0, -1.0, math.inf])
def test_numbers(lam: float) -> None:
    opt, reference = make(lam), Algorithm1(torch.zeros(1), lr=0.1, lam=lam)
    assert all(map(math.isnan, (*opt.stats().last, *opt.stats().mean)))
    mean: list[float] = []
    for step in range(5):
        losses = 3 * torch.rand(4 + step, dtype=torch.float64)
        opt.weigh(losses)
        last = expected_report(reference, losses.tolist())
        mean = [m + RATE * (v - m) for m, v in zip(mean, last, strict=True)] if mean else last
        mean[6] = step + 1
        assert list(opt.stats().last) == pytest.approx(last, rel=1e-12)
        assert list(opt.stats().mean) == pytest.approx(mean, rel=1e-12)
    opt.restart(1.0)
    assert all(map(math.isnan, (*opt.stats().last, *opt.stats().mean)))


def test_a_snapshot() -> None:
    opt = make(1.0)
    opt.weigh(torch.ones(3))
    stats = opt.stats()
    opt.weigh(torch.full((4,), 2.0))
    assert stats.last.count == 3 and stats.last.mean_loss == 1.0
    assert opt.stats().last.count == 4
