"""The picture of RESULTS.md: differences task by task, and what few-shot accuracy costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from studies.suite_report import interval

COLOURS = {"long tail": "#d1495b", "hidden groups": "#30638e", "noise": "#2e8b57",
           "AdamW": "#8d6a9f", "whole networks": "#b8860b"}  # fmt: skip
LINES = {
    "logit adjustment of SGD": ("-s", "#44546a"),
    "τ-normalised SGD": ("-^", "#a0a0a0"),
    "ABSGD, size": ("-o", "#d1495b"),
    "ABSGD, λ": ("-o", "#edae49"),
    "class weights, SGD": ("D", "#30638e"),
    "SGD": ("*", "black"),
}


def plot(
    bars: Sequence[tuple[str, str, np.ndarray | None]], tradeoff: dict[str, Any] | None, path: Path
) -> None:
    """``bars``: (kind, task, differences over seeds)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    for i, (kind, _, d) in enumerate(bars):
        mean, low, high = interval(np.asarray(d))
        left.errorbar(mean, i, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3,
                      color=COLOURS[kind])  # fmt: skip
    left.set_yticks(range(len(bars)), [name for _, name, _ in bars], fontsize=8)
    left.axvline(0, color="grey", linewidth=0.8)
    left.invert_yaxis()
    left.set_xlabel("accuracy, mean of classes or groups: ABSGD − SGD, points, 95 %")
    left.set_title("Both with their own learning rate and weight decay", fontsize=10)
    if tradeoff:
        draw(right, tradeoff["networks"][0]["curves"])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw(axes: plt.Axes, curves: dict[str, list[list[float]]]) -> None:
    for name, (form, colour) in LINES.items():
        many, few = np.array(curves[name])[:, :2].T
        axes.plot(many, few, form, color=colour, markersize=5 if len(many) > 1 else 11,
                  linewidth=1, label=name)  # fmt: skip
    axes.set_xlabel("three most frequent classes, %")
    axes.set_ylabel("three rarest classes, %")
    axes.set_title("A last layer on CIFAR-10-LT features:\nwhat the rare classes cost", fontsize=10)
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.legend(fontsize=8)
