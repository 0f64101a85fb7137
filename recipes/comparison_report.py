"""The tables and pictures of compare.py."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import report
from methods import METHODS

Results = dict[str, Any]
GROUPS = ("many", "medium", "few")
COLOURS = {"many": "#9ecae1", "medium": "#4292c6", "few": "#08306b"}


# ---- one comparison: accuracy, cost, needs


def side_by_side(results: Results) -> str:
    """A row a method: test accuracy (%), mean ± deviation over seeds, and what it costs."""
    some = next(iter(results["runs"].values()))
    header = ["method", "all", *GROUPS, "step ÷ SGD", "extra memory", "needs"]
    rows = []
    for name, runs in results["runs"].items():
        cost = results["cost"][name]
        accuracies = [
            report.mean_std([run["metrics"][group] for run in runs])
            for group in ("overall", *GROUPS)
        ]
        time = f"{cost['ratio']:.2f} ({cost['low']:.2f}–{cost['high']:.2f})"
        memory = f"{cost['memory'] / 2**20:+.1f} MiB"
        rows.append([METHODS[name].title, *accuracies, time, memory, needs(name, runs[0])])
    config = some[0]["config"]
    own = {"lr", "weight_decay", "lr_factor", "seed", "validate"}
    described = ", ".join(f"{k} {v}" for k, v in config.items() if k not in own)
    seeds = ", ".join(str(run["config"]["seed"]) for run in some)
    groups = "; ".join(f"{name}: classes {some[0]['groups'][name]}" for name in GROUPS)
    return (
        f"{described}: {some[0]['split']} accuracy (%), mean ± deviation over seeds {seeds}; "
        f"step: median and quartiles of interleaved ratios\n{groups}\n\n"
        + report.markdown(header, rows)
    )


def needs(name: str, run: Results) -> str:
    """What a method has to be given beside the training batches."""
    wanted = ["class counts"] if METHODS[name].reads_counts else []
    if run["held_out"]:
        wanted.append(f"{run['held_out']} held-out balanced images")
    return ", ".join(wanted) or "–"


def plot_cost(results: Results, path: Path) -> None:
    """Test accuracy against the cost of a step of stage two, a point a method, named beside it."""
    runs = results["runs"]
    cost = {name: results["cost"][name]["ratio"] for name in runs}
    values = {n: 100 * np.array([r["metrics"]["balanced"] for r in runs[n]]) for n in runs}
    height = max(4.5, 0.3 * len(runs) + 1)
    figure, axes = plt.subplots(figsize=(9.5, height), layout="constrained")
    right = max(cost.values())
    names = sorted(runs, key=lambda n: -values[n].mean())
    low = min(v.mean() for v in values.values())
    high = max(v.mean() + _deviation(v) for v in values.values())
    low, margin = max(low, high - 45), 0.03 * (high - max(low, high - 45)) + 0.5
    places = np.linspace(high, low, len(names)) if len(names) > 1 else [high]
    for name, place in zip(names, places, strict=True):
        ours = "absgd" in name
        colour = "#d1495b" if ours else "#3b6fb6"
        mean = max(values[name].mean(), low)
        axes.errorbar(cost[name], mean, yerr=_deviation(values[name]), fmt="o", color=colour,
                      markersize=6, elinewidth=0.8, capsize=2, zorder=3)  # fmt: skip
        axes.annotate(
            f"{METHODS[name].title}  {values[name].mean():.1f}", (cost[name], mean),
            (right * 1.25, place), va="center", fontsize=8.5, color=colour,
            fontweight="bold" if ours else None,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.3, "linewidth": 0.7},
        )  # fmt: skip
    axes.axhline(values["sgd"].mean(), color="grey", linewidth=0.8, linestyle=":", zorder=0)
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xscale("log")
    axes.set(xlim=(min(cost.values()) / 1.15, right * 5), ylim=(low - margin, high + margin))
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8) if min(cost.values()) / 1.15 <= t <= right * 1.2]
    axes.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    axes.xaxis.set_minor_locator(plt.NullLocator())
    some = next(iter(runs.values()))
    axes.set(
        xlabel="time of a training step of stage two, SGD's = 1×",
        ylabel=f"balanced {some[0]['split']} accuracy (%), {len(some)} seeds",
        title=f"{_column(some[0])}: accuracy against cost",
    )
    axes.spines[["top", "right"]].set_visible(False)
    report.save(figure, path)


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


# ---- many finished runs


def find_runs(paths: Sequence[Path]) -> list[Results]:
    """The results.json of single runs that ``paths`` are or hold.

    Raises:
        FileNotFoundError: one holds none.
    """
    found = []
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("results.json"))
        results = [json.loads(file.read_text()) for file in files]
        results = [r for r in results if isinstance(r, dict) and {"metrics", "config"} <= r.keys()]
        if not results:
            raise FileNotFoundError(f"{path} holds no results.json of a finished run")
        found += results
    return found


def _column(run: Results) -> str:
    config = run["config"]
    if config.get("noisy"):
        return f"{config['dataset']}, 40 % random labels"
    kind = config.get("imbalance", "lt")
    noise = config.get("label_noise")
    words = [str(config.get("dataset", "?")), kind if kind != "none" else ""]
    if kind != "none":
        words.append(f"ρ = {config['imbalance_ratio']:g}" if "imbalance_ratio" in config else "")
    return " ".join(filter(None, [*words, noise])) + (" (validation)" * (run["split"] != "test"))


def _row(run: Results) -> str:
    if "method" in run:
        return run["method"]
    config = run["config"]
    loss = str(config.get("loss", "ce")).upper()
    balance = str(config.get("class_balance", "none"))
    loss += "" if balance == "none" else f"-{balance.upper()}"
    return f"{loss}, {str(config.get('optimizer', '?')).upper()}"


def by_cell(runs: Sequence[Results]) -> dict[str, dict[str, list[Results]]]:
    """{row: {column: runs that differ in the seed alone}}. Where runs of one row and column differ
    in other options too, these are part of the row's name."""
    cells = defaultdict(lambda: defaultdict(list))
    for run in runs:
        options = {k: v for k, v in run["config"].items() if k != "seed"}
        cells[_row(run), _column(run)][json.dumps(options, sort_keys=True)].append(run)
    out: dict[str, dict[str, list[Results]]] = defaultdict(dict)
    for (row, column), variants in cells.items():
        options = [json.loads(text) for text in variants]
        keys = sorted({k for o in options for k in o})
        differing = [k for k in keys if len({str(o.get(k)) for o in options}) > 1]
        for option, of_variant in zip(options, variants.values(), strict=True):
            extra = ", ".join(f"{k} {option.get(k)}" for k in differing)
            out[f"{row} ({extra})" if extra else row][column] = of_variant
    return dict(out)


def table(runs: Sequence[Results]) -> str:
    """As the paper's: a row a method, a column a data set, accuracy (%), mean ± deviation."""
    cells = by_cell(runs)
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    seeds = sorted({run["config"].get("seed", 0) for run in runs})
    overall = [
        [row, *(_accuracy(of_row.get(c), "overall") for c in columns)]
        for row, of_row in cells.items()
    ]
    parts = [
        f"accuracy (%), mean ± deviation over seeds {', '.join(map(str, seeds))}",
        report.markdown(["method", *columns], overall),
    ]
    for column in columns:
        rows = [
            [row, *(_accuracy(of_row[column], g) for g in ("overall", *GROUPS)),
             str(len(of_row[column]))]
            for row, of_row in cells.items() if column in of_row
        ]  # fmt: skip
        header = ["method", "all", *GROUPS, "seeds"]
        parts += [f"{column}:", report.markdown(header, rows)]
    return "\n\n".join(parts)


def _accuracy(runs: list[Results] | None, name: str) -> str:
    return "" if not runs else report.mean_std([run["metrics"][name] for run in runs])


def plot_table(runs: Sequence[Results], path: Path) -> None:
    """A panel a data set; in it, of each method, the accuracy overall and of the groups."""
    cells = by_cell(runs)
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    rows = list(cells)
    figure, panels = plt.subplots(
        1, len(columns), sharey=True, squeeze=False, layout="constrained",
        figsize=(3.2 + 4.2 * len(columns), 1.6 + 0.34 * len(rows)),
    )  # fmt: skip
    for axes, column in zip(panels[0], columns, strict=True):
        for place, row in enumerate(rows):
            of_cell = cells[row].get(column, [])
            if of_cell:
                _draw_row(axes, place, of_cell, row)
        axes.set_yticks(range(len(rows)), rows, fontsize=9)
        axes.set(title=column, xlabel="accuracy (%), mean and deviation over seeds")
        axes.grid(axis="x", linewidth=0.4, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].invert_yaxis()
    handles, labels = panels[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    report.save(figure, path)


def _draw_row(axes: plt.Axes, place: int, runs: list[Results], row: str) -> None:
    for group in GROUPS:
        values = [run["metrics"][group] for run in runs]
        if None not in values:
            axes.plot(100 * np.mean(values), place, "|", color=COLOURS[group], markersize=11,
                      markeredgewidth=2.5, label=f"{group}-shot")  # fmt: skip
    values = 100 * np.array([run["metrics"]["overall"] for run in runs])
    colour = "#d1495b" if "ABSGD" in row else "#333333"
    axes.errorbar(values.mean(), place, xerr=_deviation(values), fmt="o", color=colour,
                  markersize=6, capsize=2, elinewidth=1, label="overall", zorder=3)  # fmt: skip
