"""The picture of lam_study.py. A row a task: accuracy against the target, against λ; λ found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from engine import report

BLUE, ORANGE, GREY = "#1f6fb4", "#d1701b", "#777777"
TITLES = ("target", "λ, with and without class-balanced weights", "λ found, at the default rate")


def accuracies(runs: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([run["metrics"]["overall"] for run in runs])


def select(
    result: dict[str, Any], kind: str, class_balance: str, rate: str = ""
) -> dict[float, list[Any]]:
    """Test runs by target (kind "ess") or by |λ| (kind "lam"; inf is SGD). ``rate``: "" for the
    default."""
    found: dict[float, list[Any]] = {}
    for run in result["runs"]:
        lam, _, own_rate = str(run["setting"]["lam"]).partition(":rate=")
        is_rule = lam.startswith("ess:")
        same = run["split"] == "test" and run["setting"]["class_balance"] == class_balance
        if same and is_rule == (kind == "ess") and own_rate == rate:
            value = float(lam.split(":")[1]) if is_rule else abs(float(lam))
            found.setdefault(value, []).append(run)
    return dict(sorted(found.items()))


def curve(ax: plt.Axes, runs: dict[float, list[Any]], colour: str, label: str) -> None:
    """Mean and deviation over the seeds."""
    x = [value for value in runs if np.isfinite(value)]
    values = [accuracies(runs[value]) for value in x]
    mean = np.array([v.mean() for v in values])
    std = np.array([v.std(ddof=1) if len(v) > 1 else 0.0 for v in values])
    ax.plot(x, mean, "o-", color=colour, label=label, markersize=4)
    ax.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)


def level(ax: plt.Axes, runs: Sequence[Any], colour: str, style: str, label: str) -> None:
    ax.axhline(accuracies(runs).mean(), color=colour, linestyle=style, linewidth=1.2, label=label)


def plot_targets(ax: plt.Axes, result: dict[str, Any]) -> None:
    by_target, by_lam = select(result, "ess", "none"), select(result, "lam", "none")
    curve(ax, by_target, BLUE, "λ found for the target")
    own = select(result, "ess", "none", rate="1")
    means = [accuracies(runs).mean() for runs in own.values()]
    ax.plot(list(own), means, "*", color="black", markersize=10, label="rate 1: each batch's own λ")
    level(ax, by_lam[float("inf")], GREY, "-", "SGD")
    styles = iter(("--", ":"))
    for title, lam in result["systems"].items():
        if title.startswith("λ"):
            level(ax, by_lam[abs(float(lam))], ORANGE, next(styles), title)
    ax.invert_xaxis()
    ax.set(xlabel="target: effective share of the batch", ylabel="test accuracy")


def plot_lams(ax: plt.Axes, result: dict[str, Any], default: float) -> None:
    for class_balance, colour, name in (("none", BLUE, ""), ("drw", ORANGE, ", class-balanced")):
        by_lam = select(result, "lam", class_balance)
        if by_lam:
            curve(ax, by_lam, colour, f"fixed λ{name}")
            for rate, style, words in (("", "--", ""), ("1", ":", " at rate 1")):
                found = select(result, "ess", class_balance, rate)
                if default in found:
                    level(ax, found[default], colour, style, f"target {default:g}{words}{name}")
    ax.set_xscale("log")
    ax.invert_xaxis()
    ax.set(xlabel="|λ|", ylabel="test accuracy")


def plot_found(ax: plt.Axes, result: dict[str, Any]) -> None:
    by_target = select(result, "ess", "none")
    colours = plt.get_cmap("viridis_r")(np.linspace(0.1, 1, len(by_target)))
    for colour, (target, runs) in zip(colours, by_target.items(), strict=True):
        epochs = [e["epoch"] + 1 for e in runs[0]["epochs"]]
        log_lam = np.log([[abs(e["lam"]) for e in run["epochs"]] for run in runs])
        ax.plot(epochs, np.exp(log_lam.mean(0)), color=colour, label=f"{target:g}")
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epochs", ylabel="|λ| found (geometric mean)")
    ax.legend(title="target", fontsize="x-small", title_fontsize="x-small", ncols=2)


def plot(results: dict[str, Any], path: Path, default: float) -> None:
    figure, axes = plt.subplots(
        len(results), 3, figsize=(15, 4.3 * len(results)), layout="constrained", squeeze=False
    )
    for row, (task, result) in zip(axes, results.items(), strict=True):
        plot_targets(row[0], result)
        plot_lams(row[1], result, default)
        plot_found(row[2], result)
        for ax in row[:2]:
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            ax.legend(fontsize="x-small", loc="lower left")
        for ax, title in zip(row, TITLES, strict=True):
            ax.set_title(title, fontsize="medium", color=GREY, loc="right")
        row[0].set_title(f"{task} ({len(result['seeds'])} seeds)", loc="left", weight="bold")
    report.save(figure, path)
