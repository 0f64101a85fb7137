"""Trainings in four threads at once, for ThreadSanitizer (tests/sanitized.sh thread).

    python tests/campaign/threads.py STEPS [--planted]

Each thread has a model and an optimizer of its own; with --planted they share the parameters, which
is a race.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from torch.nn import functional as F

import torch_absgd as ta


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


def train(model: nn.Module, seed: int, steps: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(16, 5, generator=random), torch.randint(3, (16,), generator=random)
    lam = ta.EffectiveSampleSize(0.7) if seed % 2 else 0.5
    opt = ta.ABSGD(model.parameters(), lr=0.01, momentum=0.9, lam=lam)
    criterion = ta.AttentionalLoss(ta.PerSampleFocal(), lam=0.5)
    for step in range(steps):
        losses = F.cross_entropy(model(x), y, reduction="none")
        total = opt.weigh(losses) if step % 3 else criterion(model(x), y)
        total.backward()
        opt.step()
        opt.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("steps", type=int)
    parser.add_argument("--planted", action="store_true")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    models = [model_of(seed) for seed in range(4)]
    if wanted.planted:
        models = models[:1] * 4
    with ThreadPoolExecutor(4) as pool:
        [*pool.map(train, models, range(4), [wanted.steps] * 4)]
    print(f"4 × {wanted.steps} steps")


if __name__ == "__main__":
    main()
