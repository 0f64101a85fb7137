"""Figure 1 of the paper: what one iteration of each weighting does to a linear classifier.

Logistic regression on two Gaussian classes of 100 and 20 points. From the same classifier, which
has yet to find much of the small class, each panel takes one step at the same learning rate: plain
SGD, class-balanced SGD, and ABSGD at several λ. A point's area is its weight; all weightings
average to 1 over the batch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from torch import Tensor, nn

import torch_absgd as ta
from engine import report

COUNTS = (100, 20)
COLOURS = ("#3b6fb6", "#d1495b")
LR = 1.5


@dataclass(frozen=True)
class Panel:
    """One weighting: the classifier before and after its step (w_1, w_2, b), and the weights."""

    title: str
    before: Tensor
    after: Tensor
    weights: Tensor
    recall: tuple[float, float]


def make_data(seed: int) -> tuple[Tensor, Tensor]:
    """Points [120, 2] and their classes, 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    large = torch.randn(COUNTS[0], 2, generator=generator)
    small = torch.randn(COUNTS[1], 2, generator=generator) * 0.6 + 1.9
    y = torch.tensor([0] * COUNTS[0] + [1] * COUNTS[1])
    return torch.cat([large, small]), y


def logistic_losses(model: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x).squeeze(1)
    return nn.functional.binary_cross_entropy_with_logits(logits, y.float(), reduction="none")


def initial_model() -> nn.Linear:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.9, 0.7]]))
        model.bias.fill_(-3.0)
    return model


def parameters(model: nn.Linear) -> Tensor:
    return torch.cat([model.weight.detach().flatten(), model.bias.detach()])


def one_step(x: Tensor, y: Tensor, lam: float, class_weight: Tensor | None, title: str) -> Panel:
    model = initial_model()
    opt = ta.ABSGD(model.parameters(), lr=LR, lam=lam)
    before = parameters(model)
    losses = logistic_losses(model, x, y)
    weights = torch.ones(len(y))
    if class_weight is not None:
        weights = class_weight[y]
        weights = weights / weights.mean()
    opt.weigh(weights * losses).backward()
    opt.step()
    with torch.no_grad():
        right = (model(x).squeeze(1) > 0) == (y == 1)
    recall = tuple(right[y == c].float().mean().item() for c in (0, 1))
    return Panel(title, before, parameters(model), weights * opt.weights, recall)


def panels(x: Tensor, y: Tensor, lams: Sequence[float]) -> list[Panel]:
    balanced = ta.class_balanced_weights(COUNTS)
    return [
        one_step(x, y, math.inf, None, "SGD"),
        one_step(x, y, math.inf, balanced, "class-balanced SGD"),
        *(one_step(x, y, lam, None, f"ABSGD, λ = {lam:g}") for lam in lams),
    ]


def draw(ax: plt.Axes, panel: Panel, x: Tensor, y: Tensor) -> None:
    left, bottom = (x.min(0).values - 0.6).tolist()
    right, top = (x.max(0).values + 0.6).tolist()
    grid_x, grid_y = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
    w1, w2, b = panel.after.tolist()
    side = w1 * grid_x + w2 * grid_y + b > 0
    ax.contourf(grid_x, grid_y, side, levels=1, cmap=ListedColormap(COLOURS), alpha=0.12)
    for (w1, w2, b), style in ((panel.before.tolist(), ":"), (panel.after.tolist(), "-")):
        values = w1 * grid_x + w2 * grid_y + b
        ax.contour(grid_x, grid_y, values, levels=[0], colors="black", linestyles=style,
                   linewidths=1.5)  # fmt: skip
    for c in (0, 1):
        points, weights = x[y == c], panel.weights[y == c]
        ax.scatter(*points.T, s=14 * weights + 1, c=COLOURS[c], alpha=0.75, linewidths=0)
    ax.set_title(f"{panel.title}\nrecall: large class {panel.recall[0]:.0%}, "
                 f"small class {panel.recall[1]:.0%}", fontsize=10)  # fmt: skip
    ax.set(xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top))


def main(argv: Sequence[str] | None = None) -> list[Panel]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lams", type=float, nargs="+", default=[10, 1, 0.5, 0.1])
    parser.add_argument("--seed", type=int, default=0, help="of the points")
    parser.add_argument("--output", type=Path, default=Path("runs/toy_2d.png"))
    args = parser.parse_args(argv)
    x, y = make_data(args.seed)
    shown = panels(x, y, args.lams)
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.8 * rows), squeeze=False, layout="constrained"
    )
    for ax, panel in zip(axes.flat, shown, strict=False):
        draw(ax, panel, x, y)
    for ax in axes.flat[len(shown) :]:
        ax.axis("off")
    figure.suptitle("One step of each weighting from the dotted line; area of a point: its weight")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    report.save(figure, args.output)
    print(f"written to {args.output}")
    return shown


if __name__ == "__main__":
    main()
