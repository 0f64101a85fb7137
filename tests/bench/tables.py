"""The rows as markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

HEADINGS = {
    "step": "`opt.step()`, the whole call",
    "loss": "Per-sample loss and weights, forward and backward",
    "mean": "Weighed cross-entropy against torch's plain mean, forward and backward",
    "sigmoid": "Multi-label losses and weights, forward and backward",
    "linear": "Last layer, cross-entropy and weights, forward and backward",
    "weigh": "`opt.weigh(losses)`, forward",
    "search": "The same with λ found for each batch; the peer does not search",
    "threads": "Two threads against one",
    "growth": "Growth with the batch and the classes",
    "training": "A whole training step",
    "compiled": "A whole training step, compiled",
    "memory": "Peak memory of training",
}


def header(machine: dict[str, Any], settings: dict[str, Any]) -> str:
    caches = ", ".join(f"{name} {size >> 10} KiB" for name, size in machine["caches"].items())
    return "\n".join(
        [
            f"- {machine['processor']}, {machine['cores']} cores; {caches}",
            f"- flags: {' '.join(machine['flags'])}; kernels' level: "
            f"{machine['cpu_level']}, torch's: {machine['torch_cpu_capability']}",
            f"- {machine['system']}; Python {machine['python']}, torch {machine['torch']}",
            f"- {machine['threads']} thread(s); {settings['seconds']:g} s a row; load at the start "
            f"{machine['load']:.1f}",
            "",
            "Median [quartiles] a call. Ratio: the best peer's median over ours, with its 95 % "
            "bootstrap interval. Limit: the limit's time over ours.",
        ]
    )


def _cell(row: dict[str, Any], name: str) -> str:
    """Median [quartiles], all in the unit that suits the median."""
    if name not in row["contenders"]:
        return ""
    contender = row["contenders"][name]
    median, unit, scale = contender["median"], row["unit"], 1.0
    if unit == "µs" and median >= 9999.5:
        unit, scale = "ms", 1e-3
    low, high = (_digits(q * scale) for q in contender["quartiles"])
    text = f"{_digits(median * scale)} {unit}"
    return text if low == high else f"{text} [{low} – {high}]"


def _digits(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def _target(row: dict[str, Any]) -> str:
    if row["target"] is None:
        return ""
    text = f"≥ {row['target']:g}×"
    if row["limit_target"] is not None:
        text += f", ≥ {row['limit_target']:.0%} of limit"
    return f"{text} {'✓' if row['is_met'] else '✗'}"


def _line(row: dict[str, Any], columns: list[str]) -> list[str]:
    name = row["name"].split("/", 1)[1]
    if "error" in row:
        return [name, f"failed: {row['error']}", *[""] * (len(columns) + 2)]
    low, high = row["ratio_interval"]
    interval = "" if row["rounds"] == 1 else f" [{low:.2f}, {high:.2f}]"
    fraction = row["fraction_of_limit"]
    return [
        name,
        *(_cell(row, c) for c in columns),
        f"**{row['ratio']:.2f}×**{interval} {row['best_peer']}",
        "" if fraction is None else f"{fraction:.0%}",
        _target(row),
    ]


def tables(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A table for each group of rows, its columns the group's contenders."""
    for group, members in groupby(rows, key=lambda row: row["name"].split("/")[0]):
        members = list(members)
        columns = list(dict.fromkeys(n for row in members for n in row.get("contenders", ())))
        lines = [["", *columns, "ratio", "limit", "target"]]
        lines += [["---"] * len(lines[0])]
        lines += [_line(row, columns) for row in members]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        yield f"## {HEADINGS.get(group, group)}\n\n{body}\n"
