"""Draws the weights of rightly and of wrongly labelled samples under λ < 0.

    python docs/tutorials/noisy_labels.py [picture.png]

Digits, 40 % of the labels drawn at random. Plain SGD for 10 epochs, then λ = −1 for 30. Seconds on
a CPU.
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import torch_absgd as ta

EPOCHS, STAGE_TWO = 40, 10


def train() -> tuple[Tensor, Tensor]:
    """The mean weight of samples with the right label, and with a wrong one, in each epoch."""
    torch.manual_seed(0)
    images, targets = load_digits(return_X_y=True)
    x, right = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(targets)
    y = torch.where(torch.rand(len(right)) < 0.4, torch.randint(10, right.shape), right)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    opt = ta.ABSGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    schedule = ta.LamScheduler(opt, milestones={STAGE_TWO: -1.0})
    rows = []
    for _ in range(EPOCHS):
        weights = torch.empty(len(y))
        for batch in torch.randperm(len(y)).split(64):
            losses = F.cross_entropy(model(x[batch]), y[batch], reduction="none")
            opt.weigh(losses).backward()
            opt.step()
            opt.zero_grad()
            weights[batch] = opt.weights.float()
        rows.append(torch.stack([weights[y == right].mean(), weights[y != right].mean()]))
        schedule.step()
    with torch.no_grad():
        print(
            f"accuracy against the right labels: {(model(x).argmax(1) == right).float().mean():.3f}"
        )
    return tuple(torch.stack(rows).T)


def draw(right: Tensor, wrong: Tensor, path: str) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(right, label="right label")
    axes.plot(wrong, label="wrong label")
    axes.axvline(STAGE_TWO, color="grey", linestyle=":")
    axes.set(xlabel="epoch", ylabel="mean weight p", title="λ = ∞, then λ = −1")
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    right, wrong = train()
    draw(right, wrong, sys.argv[1] if len(sys.argv) > 1 else "noisy_labels.png")
    print(f"mean weight at the end: right {right[-1]:.2f}, wrong {wrong[-1]:.2f}")
