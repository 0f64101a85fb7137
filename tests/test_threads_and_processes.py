"""Trainings side by side in threads and processes give the bits of each alone."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import torch_absgd as ta


def model_and_data(seed: int) -> tuple[nn.Module, TensorDataset]:
    random = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random))
    x = torch.randn(64, 5, generator=random)
    return model, TensorDataset(x, torch.randint(3, (64,), generator=random))


def trained(seed: int, **loading: object) -> list[Tensor]:
    """Parameters and log_s after some steps of a model of its own."""
    model, data = model_and_data(seed)
    lam = ta.EffectiveSampleSize(0.7) if seed % 2 else 0.5
    opt = ta.ABSGD(model.parameters(), lr=0.1, momentum=0.9, lam=lam)
    for x, y in DataLoader(data, 4, **loading):
        opt.weigh(F.cross_entropy(model(x), y, reduction="none")).backward()
        opt.step()
        opt.zero_grad()
    return [*(p.detach() for p in model.parameters()), opt.log_s]


def same(ours: list[Tensor], expected: list[Tensor]) -> bool:
    return all(map(torch.equal, ours, expected))


def test_threads() -> None:
    alone = [trained(seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(same, pool.map(trained, range(12)), alone))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_after_the_import(method: str) -> None:
    alone = trained(1)
    with ProcessPoolExecutor(1, get_context(method)) as pool:
        assert same(pool.submit(trained, 1).result(timeout=120), alone)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_processes(method: str) -> None:
    workers = {"num_workers": 1, "multiprocessing_context": method}
    assert same(trained(0, **workers), trained(0))


def test_two_optimizers_on_one_model_are_one() -> None:
    results = []
    for parts in (1, 2):
        model, data = model_and_data(0)
        cut = [model.parameters()] if parts == 1 else [m.parameters() for m in (model[0], model[2])]
        opts = [ta.ABSGD(part, lr=0.1, momentum=0.9, lam=0.5) for part in cut]
        for x, y in DataLoader(data, 4):
            losses = F.cross_entropy(model(x), y, reduction="none")
            scalars = [opt.weigh(losses) for opt in opts]
            scalars[0].backward()
            for opt in opts:
                opt.step()
                opt.zero_grad()
        results.append([*(p.detach() for p in model.parameters()), opts[-1].log_s])
    assert same(*results)
