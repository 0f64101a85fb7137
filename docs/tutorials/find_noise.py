"""Finds wrong labels by the weights that samples had under λ < 0.

    python docs/tutorials/find_noise.py

Digits, 20 % of the labels flipped to another class. Plain SGD for 10 epochs, then λ = −1 for 10;
the samples of the smallest mean weight in the last epoch are the suspects. Seconds on a CPU.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import torch_absgd as ta

EPOCHS, STAGE_TWO, NOISE = 20, 10, 0.2


def main() -> None:
    torch.manual_seed(0)
    images, targets = load_digits(return_X_y=True)
    x, right = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(targets)
    is_wrong = torch.rand(len(right)) < NOISE
    y = torch.where(is_wrong, (right + torch.randint(1, 10, right.shape)) % 10, right)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    opt = ta.ABSGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    schedule = ta.LamScheduler(opt, milestones={STAGE_TWO: -1.0})
    record = ta.SampleRecord(len(y))
    for _ in range(EPOCHS):
        record.clear()
        for batch in torch.randperm(len(y)).split(64):
            losses = F.cross_entropy(model(x[batch]), y[batch], reduction="none")
            opt.weigh(losses).backward()
            record.update(batch, losses, opt.weights)
            opt.step()
            opt.zero_grad()
        schedule.step()
    count = int(is_wrong.sum())
    suspects = torch.as_tensor(record.top(count, largest=False))
    found = float(is_wrong[suspects].float().mean())
    print(f"of {count} suspects, as many as there are wrong labels, {found:.1%} are wrong")


if __name__ == "__main__":
    main()
