"""Accuracy against the epoch, of several runs and seeds: Figures 3 and 4."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from engine import report

Curves = dict[str, tuple[list[int], list[float]]]  # (epochs, overall accuracy) of each split
STYLES = {"train accuracy": "--", "test": "-", "validation": "-"}


def read(directory: Path) -> Curves:
    """Of a run, of each split that it was evaluated on."""
    found: Curves = {}
    for line in (directory / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "overall" in record:
            epochs, values = found.setdefault(record["split"], ([], []))
            epochs.append(record["epoch"] + 1)
            values.append(record["overall"])
    return found


def plot(runs: dict[tuple[str, str], Sequence[Curves]], path: Path) -> None:
    """A panel a column of ``runs``, a curve a row: mean and deviation over the seeds; dashed, of
    the training set."""
    columns = list(dict.fromkeys(column for _, column in runs))
    figure, panels = plt.subplots(
        1, len(columns), figsize=(6 * len(columns), 4.2), squeeze=False, layout="constrained"
    )
    for axes, column in zip(panels[0], columns, strict=True):
        rows = [row for row, c in runs if c == column]
        for colour, row in zip(plt.get_cmap("tab10").colors, rows, strict=False):
            seeds = runs[row, column]
            for split in seeds[0]:
                epochs = seeds[0][split][0]
                values = 100 * np.array([of[split][1] for of in seeds])
                mean, std = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0
                label = row if split != "train accuracy" else None
                axes.plot(epochs, mean, STYLES[split], color=colour, label=label, linewidth=1.2)
                axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.15)
        axes.set(title=column, xlabel="epochs", ylabel="accuracy (%)")
        axes.legend()
    report.save(figure, path)
