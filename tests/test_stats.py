"""stats(): its numbers against their definitions, and its one warning."""

import math
import warnings

import pytest
import torch
from torch import Tensor

from reference import Algorithm1
from torch_absgd import ABSGD

RATE = 0.01  # of the running mean


def make(lam: float) -> ABSGD:
    return ABSGD([torch.zeros(1, requires_grad=True)], lam=lam)


def expected_report(reference: Algorithm1, losses: list[float]) -> list[float]:
    """count, mean loss, weighted loss, objective, max weight, effective samples, batches."""
    weighted = reference.weigh(losses)
    mean = math.fsum(losses) / len(losses)
    p = reference.p
    objective = mean if math.isinf(reference.lam) else reference.lam * reference.log_s
    effective = math.fsum(p) ** 2 / math.fsum(v * v for v in p)
    return [len(losses), mean, weighted, objective, max(p), effective, 1.0]


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
        mean[-1] = step + 1
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


def collapsing(opt: ABSGD, losses: Tensor, batches: int) -> None:
    for _ in range(batches):
        opt.weigh(losses)


def test_warns_once_when_few_samples_are_effective() -> None:
    losses = torch.linspace(0, 4, 32)
    opt = make(0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collapsing(opt, losses, 99)
        assert opt.stats().mean.effective_samples < 3
    collapsing(opt, losses, 1)
    with pytest.warns(UserWarning, match="too small") as caught:
        opt.stats().mean  # noqa: B018
    assert caught[0].filename == __file__
    advised = float(str(caught[0].message).split("λ = ")[1].split()[0])
    q = torch.exp(losses.double() / advised)
    assert float(q.sum() ** 2 / q.square().sum()) == pytest.approx(16, rel=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.stats().mean  # noqa: B018


@pytest.mark.parametrize("lam", [0.05, -0.05])
def test_warns_and_advises_a_lam_of_the_same_sign(lam: float) -> None:
    losses = torch.linspace(0, 4, 32)
    opt = make(lam)
    collapsing(opt, losses, 100)
    with pytest.warns(UserWarning, match="too small") as caught:
        opt.stats().mean  # noqa: B018
    advised = float(str(caught[0].message).split("λ = ")[1].split()[0])
    assert advised * lam > 0
    q = torch.exp(losses.double() / advised)
    assert float(q.sum() ** 2 / q.square().sum()) == pytest.approx(16, rel=0.05)


@pytest.mark.parametrize("lam", [50.0, math.inf])
def test_does_not_warn_otherwise(lam: float) -> None:
    opt = make(lam)
    collapsing(opt, torch.linspace(0, 4, 32), 101)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opt.stats().mean.effective_samples > 31
