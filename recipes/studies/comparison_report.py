"""The tables and pictures of compare.py."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from baselines.methods import METHODS
from engine import report

Results = dict[str, Any]
GROUPS = ("many", "medium", "few")
KINDS = {"lt": "long-tailed", "step": "step imbalance"}
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
        if any(run.get("diverged") for run in runs):
            accuracies = ["diverged", "", "", ""]
        rows.append([METHODS[name].title, *accuracies, *_cost(cost), needs(name, runs[0])])
    config = some[0]["config"]
    said = ("data", "imbalance", "imbalance_ratio", "label_noise", "arch", "epochs", "stage_two",
            "batch_size")  # fmt: skip
    described = ", ".join(f"{k} {config[k]}" for k in said if config.get(k) is not None)
    seeds = ", ".join(str(run["config"]["seed"]) for run in some)
    groups = "; ".join(f"{name}: classes {some[0]['groups'][name]}" for name in GROUPS)
    return (
        f"{described}: {some[0]['split']} accuracy (%), mean ± deviation over seeds {seeds}; "
        f"step: median and quartiles of interleaved ratios\n{groups}\n\n"
        + report.markdown(header, rows)
    )


def costs(cost: dict[str, dict[str, float]]) -> str:
    """A row a method: what its step costs."""
    return report.markdown(
        ["method", "step ÷ SGD", "extra memory", "step (ms)"],
        [[METHODS[n].title, *_cost(c), f"{1000 * c['seconds']:.3g}"] for n, c in cost.items()],
    )


def _cost(cost: dict[str, float]) -> tuple[str, str]:
    kib = round(cost["memory"] / 2**10)
    memory = f"{kib:+d} KiB" if abs(kib) < 1000 else f"{kib / 2**10:+.1f} MiB"
    return f"{cost['ratio']:.2f} ({cost['low']:.2f}–{cost['high']:.2f})", memory


def needs(name: str, run: Results) -> str:
    """What a method has to be given beside the training batches."""
    wanted = ["class counts"] if METHODS[name].reads_counts else []
    if run.get("held_out"):
        wanted.append(f"{run['held_out']} held-out balanced samples")
    return ", ".join(wanted) or "–"


def plot_cost(results: Results, path: Path) -> None:
    """A row a method, the most accurate first: its accuracies, and what a step costs."""
    runs, cost = results["runs"], results["cost"]
    names = sorted(runs, key=lambda n: -np.mean([run["metrics"]["overall"] for run in runs[n]]))
    some = runs["sgd"]
    figure, (left, right) = plt.subplots(
        1, 2, sharey=True, layout="constrained", width_ratios=(3, 2),
        figsize=(11, 1.6 + 0.32 * len(names)),
    )  # fmt: skip
    for place, name in enumerate(names):
        colour = _colour(METHODS[name].title)
        _draw_row(left, place, runs[name], METHODS[name].title)
        ratio, low, high = (cost[name][key] for key in ("ratio", "low", "high"))
        right.barh(place, ratio, 0.62, color=colour, alpha=0.75,
                   xerr=[[ratio - low], [high - ratio]],
                   error_kw={"elinewidth": 0.8, "ecolor": "#333333"})  # fmt: skip
        held_out = runs[name][0].get("held_out")
        extra = f"×, and {held_out} held-out samples" if held_out else "×"
        right.text(max(ratio, high), place, f"  {ratio:.2f}{extra}", va="center", fontsize=8)
    left.set_yticks(range(len(names)), [METHODS[name].title for name in names], fontsize=9)
    for label, name in zip(left.get_yticklabels(), names, strict=True):
        label.set_color(_colour(METHODS[name].title))
    left.set_ylim(len(names) - 0.4, -0.6)
    left.axvline(100 * np.mean([run["metrics"]["overall"] for run in some]), color="grey",
                 linewidth=0.8, linestyle=":", zorder=0)  # fmt: skip
    right.axvline(1, color="grey", linewidth=0.8, linestyle=":", zorder=0)
    right.set_xlim(0, 2.4 * max(cost[name]["high"] for name in names))
    left.set(xlabel=f"{some[0]['split']} accuracy (%), mean and deviation over {len(some)} seeds",
             title=_column(some[0]))  # fmt: skip
    right.set(xlabel="time of a step of stage two, SGD's = 1×", title="what a step costs")
    left.grid(axis="x", linewidth=0.4, alpha=0.6)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, left)
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
    """The data set, how it was spoilt, and the split if it is not the test set."""
    config = run["config"]
    words = [str(config.get("data", "?"))]
    kind = config.get("imbalance", "lt")
    if kind in KINDS and "imbalance_ratio" in config:
        words.append(f"{KINDS[kind]}, ρ = {config['imbalance_ratio']:g}")
    words += [config["label_noise"]] if config.get("label_noise") else []
    words += [run["split"]] if run["split"] != "test" else []
    return ", ".join(words)


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
    panels[0][0].set_ylim(len(rows) - 0.4, -0.6)
    _legend(figure, panels[0][0])
    report.save(figure, path)


def _legend(figure: plt.Figure, axes: plt.Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(reversed(labels), reversed(handles), strict=True))  # the first of each
    unique = dict(reversed(unique.items()))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip


def _colour(row: str) -> str:
    return "#d1495b" if "ABSGD" in row else "#44546a"


def _draw_row(axes: plt.Axes, place: int, runs: list[Results], row: str) -> None:
    for group in GROUPS:
        values = [run["metrics"][group] for run in runs]
        if None not in values:
            axes.plot(100 * np.mean(values), place, "|", color=COLOURS[group], markersize=11,
                      markeredgewidth=2.5, label=f"{group}-shot")  # fmt: skip
    values = 100 * np.array([run["metrics"]["overall"] for run in runs])
    axes.errorbar(values.mean(), place, xerr=_deviation(values), fmt="o", color=_colour(row),
                  markersize=6, capsize=2, elinewidth=1, label="overall", zorder=3)  # fmt: skip
