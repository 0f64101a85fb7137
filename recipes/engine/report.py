"""Metrics of long-tailed classification, tables and plots. Every one names its split."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE

import torch_absgd as ta
from engine import checkpoint


def groups_by_shots(class_counts: Sequence[int]) -> dict[str, list[int]]:
    """Many-shot (> 100 training images), medium (20–100) and few (< 20), as Liu et al. 2019."""
    return {
        "many": [c for c, n in enumerate(class_counts) if n > 100],
        "medium": [c for c, n in enumerate(class_counts) if 20 <= n <= 100],
        "few": [c for c, n in enumerate(class_counts) if n < 20],
    }


def metrics(targets: Any, predictions: Any, class_counts: Sequence[int]) -> dict[str, Any]:
    """`ta.metrics.report` as JSON holds it: accuracies as fractions, None where there is none.

    Args:
        predictions: logits, or classes.
        class_counts: those of the training set, by which a class is of many, medium or few shots.
    """
    found = ta.metrics.report(
        torch.as_tensor(predictions), torch.as_tensor(targets), class_counts=class_counts
    )
    names = ("overall", "balanced", "many", "medium", "few", "worst_class", "ece")
    per_class = [None if math.isnan(a) else a for a in found.per_class.tolist()]
    return {**{name: getattr(found, name) for name in names}, "per_class": per_class}


def line(metrics: dict[str, Any]) -> str:
    """One line of text: the accuracies in per cent, and the calibration error."""
    names = ("overall", "balanced", "many", "medium", "few", "worst_class")
    accuracies = ", ".join(
        f"{name.replace('_', ' ')} {100 * metrics[name]:.2f} %"
        for name in names
        if metrics[name] is not None
    )
    ece = "" if metrics["ece"] is None else f"; ECE {metrics['ece']:.4f}"
    return f"accuracy {accuracies}{ece}"


def class_table(
    metrics: dict[str, Any], class_counts: Sequence[int], classes: Sequence[str], limit: int = 40
) -> str:
    """A row a class, the class with the most training samples first; of more than ``limit``, the
    first and the last."""
    order = sorted(range(len(class_counts)), key=lambda c: -class_counts[c])
    rows = [
        [str(classes[c]), str(class_counts[c]), mean_std([metrics["per_class"][c]])] for c in order
    ]
    if len(rows) > limit:
        left_out = ["…", f"{len(rows) - limit} more", ""]
        rows = [*rows[: limit // 2], left_out, *rows[-limit // 2 :]]
    return markdown(["class", "training samples", "accuracy (%)"], rows)


def mean_std(values: Sequence[float | None]) -> str:
    """ "71.23 ± 0.45" in per cent: mean and sample deviation over seeds; "–" where undefined."""
    if any(value is None for value in values):
        return "–"
    numbers = 100 * np.asarray(values, dtype=float)
    if len(numbers) == 1:
        return f"{numbers[0]:.2f}"
    return f"{numbers.mean():.2f} ± {numbers.std(ddof=1):.2f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table with aligned columns."""
    table = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def jsonable(value: Any) -> Any:
    """``value`` as strict JSON holds it: an infinite λ is the string "inf" or "-inf"."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` whole or not at all."""
    text = json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n"
    checkpoint.write_whole(text.encode(), path)


def plot_run(records: Sequence[dict[str, Any]], results: dict[str, Any], directory: Path) -> None:
    """accuracy.png, if the run was evaluated on the way, per_class.png and class_weight.png."""
    evaluations = [r for r in records if r["split"] in ("validation", "test")]
    if evaluations:
        figure, axes = plt.subplots(layout="constrained")
        plot_accuracy(axes, evaluations)
        save(figure, directory / "accuracy.png")
    figure, axes = plt.subplots(layout="constrained")
    plot_per_class(axes, results)
    save(figure, directory / "per_class.png")
    training = [r for r in records if r["split"] == "train"]
    if training:
        figure, axes = plt.subplots(layout="constrained")
        plot_class_weight(axes, training, results["class_counts"])
        save(figure, directory / "class_weight.png")


def save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_accuracy(axes: plt.Axes, records: Sequence[dict[str, Any]]) -> None:
    """Accuracy against the epoch; the records are of one split."""
    epochs = [r["epoch"] + 1 for r in records]
    for name in ("overall", "many", "medium", "few"):
        if records[0][name] is not None:
            axes.plot(epochs, [100 * r[name] for r in records], label=name)
    axes.set(xlabel="epochs", ylabel=f"{records[0]['split']} accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def shown_together(class_counts: Sequence[int], limit: int = 100) -> list[np.ndarray]:
    """Classes that a plot shows as one, the largest first: each alone; of more than ``limit``,
    those of like size."""
    order = np.argsort(-np.asarray(class_counts), kind="stable")
    return np.array_split(order, min(len(order), limit))


def mean_of(values: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
    """[N, classes] to [N, groups]: means over a group's classes that are not NaN."""
    means = [np.ma.masked_invalid(values[:, group]).mean(axis=1) for group in groups]
    return np.ma.stack(means, axis=1).filled(np.nan)


def plot_per_class(axes: plt.Axes, results: dict[str, Any]) -> None:
    """A bar for each class's accuracy, the largest class first."""
    counts = results["class_counts"]
    groups = shown_together(counts)
    per_class = np.array([results["metrics"]["per_class"]], dtype=float)
    axes.bar(range(len(groups)), 100 * mean_of(per_class, groups)[0])
    axes.set_ylim(0, 102)
    if len(counts) <= 20:
        axes.set_xticks(range(len(counts)), [f"{c}\n{counts[c]}" for (c,) in groups])
    label = "class, and its training images"
    if len(groups) < len(counts):
        label = f"{len(groups)} groups of classes of like size, the largest classes first"
    axes.set(xlabel=label, ylabel=f"{results['split']} accuracy (%)")


def plot_class_weight(
    axes: plt.Axes, records: Sequence[dict[str, Any]], class_counts: Sequence[int]
) -> None:
    """Mean weight p of each class's samples against the epoch, rare classes in bright colours."""
    groups = shown_together(class_counts)
    weights = mean_of(np.array([r["class_weight"] for r in records], dtype=float), groups)
    epochs = [r["epoch"] + 1 for r in records]
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(groups)))
    for group, line, colour in zip(groups, weights.T, colours, strict=True):
        label = f"{group[0]} ({class_counts[group[0]]})" if len(groups) <= 20 else None
        axes.plot(epochs, line, color=colour, label=label)
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="epochs", ylabel="mean weight p of the class's samples")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if np.nanmin(weights) > 0:
        axes.set_yscale("log")
    if len(groups) <= 20:
        axes.legend(title="class (images)", fontsize="small", title_fontsize="small")


def plot_tsne(features: Any, targets: Any, path: Path, split: str, limit: int = 2000) -> None:
    """t-SNE of at most ``limit`` samples' features, drawn at random, coloured by class."""
    chosen = np.random.default_rng(0).permutation(len(targets))[:limit]
    features, targets = np.asarray(features)[chosen], np.asarray(targets)[chosen]
    perplexity = min(30, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, random_state=0).fit_transform(features)
    figure, axes = plt.subplots(layout="constrained")
    scatter = axes.scatter(*points.T, c=targets, s=4, cmap="tab10" if targets.max() < 10 else None)
    axes.set(title=f"t-SNE of the features, {split} split", xticks=[], yticks=[])
    if targets.max() < 20:
        axes.legend(*scatter.legend_elements(num=None), title="class", fontsize="small")
    save(figure, path)
