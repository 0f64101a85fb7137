"""Draws what ABSGD's weights do in the course of a training, by class.

    python docs/tutorials/weights_over_time.py [picture.png]

Digits, long-tailed: of class 0 all images, of class 9 a fiftieth. Plain SGD for 20 epochs (λ = ∞),
then λ = 1 for 20. Seconds on a CPU.
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import torch_absgd as ta

EPOCHS, STAGE_TWO, CLASSES = 40, 20, 10


def long_tailed_digits() -> tuple[Tensor, Tensor]:
    images, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(targets)
    counts = ta.long_tailed_counts(int(y.bincount().min()), CLASSES, 50)
    kept = torch.cat([(y == c).nonzero()[:n, 0] for c, n in enumerate(counts)])
    return x[kept], y[kept]


def train() -> Tensor:
    """The mean weight of each class in each epoch, [EPOCHS, CLASSES]."""
    torch.manual_seed(0)
    x, y = long_tailed_digits()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    opt = ta.ABSGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    schedule = ta.LamScheduler(opt, milestones={STAGE_TWO: 1.0})
    means = []
    for _ in range(EPOCHS):
        weights = torch.empty(len(y))
        for batch in torch.randperm(len(y)).split(64):
            losses = F.cross_entropy(model(x[batch]), y[batch], reduction="none")
            opt.weigh(losses).backward()
            opt.step()
            opt.zero_grad()
            weights[batch] = opt.weights.float()
        means.append(torch.stack([weights[y == c].mean() for c in range(CLASSES)]))
        schedule.step()
    return torch.stack(means)


def draw(means: Tensor, path: str) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for c in range(CLASSES):
        axes.plot(means[:, c], color=plt.get_cmap("viridis")(c / CLASSES), label=f"digit {c}")
    axes.axvline(STAGE_TWO, color="grey", linestyle=":")
    axes.set(xlabel="epoch", ylabel="mean weight p", title="λ = ∞, then λ = 1")
    axes.legend(title="frequent to rare", fontsize="small", ncols=2)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    means = train()
    draw(means, sys.argv[1] if len(sys.argv) > 1 else "weights_over_time.png")
    for c in (0, 9):
        print(f"digit {c}: mean weight {means[STAGE_TWO, c]:.2f} where λ = 1 begins, "
              f"{means[-1, c]:.2f} at the end")  # fmt: skip
