"""The suite's table and picture, from the runs in results/suite.json alone.

    cd recipes; python -m studies.suite_report     # writes suite.md and suite.png beside the JSON

Differences are ABSGD − SGD, in points, seed by seed. An interval is Student's, 95 %. "Holm": the
same, corrected for the number of cells of the table by Holm's steps, so that all of them hold
together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import t as student

from torch_absgd.watch import FALL, LEVEL, SELECTIVE, SELECTIVE_NEGATIVE

RESULTS = Path(__file__).parent / "results"


def interval(differences: np.ndarray, level: float = 0.05) -> tuple[float, float, float]:
    """Mean and ends of the interval that misses with probability ``level``."""
    n, mean = len(differences), float(np.mean(differences))
    half = float(student.isf(level / 2, n - 1) * np.std(differences, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def holm(cells: Sequence[np.ndarray], level: float = 0.05) -> list[tuple[float, float, float]]:
    """Intervals of all cells: the k-th smallest p-value (k from 0) is given level/(m − k)."""
    p = []
    for d in cells:
        error = np.std(d, ddof=1) / np.sqrt(len(d))
        p.append(2 * student.sf(abs(np.mean(d)) / error, len(d) - 1) if error > 0 else 1.0)
    made: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)] * len(p)
    for k, i in enumerate(np.argsort(p, kind="stable")):
        made[i] = interval(np.asarray(cells[i]), level / (len(p) - k))
    return made


def differences(
    runs: Sequence[dict[str, Any]], method: str, measure: str
) -> dict[tuple, np.ndarray]:
    """(task, class weights, start) → [trainings, seeds], points."""
    plain = {
        (r["task"], r["class_weights"], r["training"]): r for r in runs if r["method"] == "SGD"
    }
    made: dict[tuple, list[np.ndarray]] = {}
    for r in runs:
        if r["method"].replace("-", "") == method:  # −λ under noise stands in λ's column
            base = plain[r["task"], r["class_weights"], r["training"]]
            gain = 100 * (np.array(r[measure]) - np.array(base[measure]))
            made.setdefault((r["task"], r["class_weights"], r["start"]), []).append(gain)
    return {key: np.stack(rows) for key, rows in made.items()}


def signed(x: float) -> str:
    return f"{x:+.1f}".replace("-", "−")


def row_name(key: tuple) -> str:
    task, class_weights, start = key
    return f"{task} | {'class' if class_weights else '–'} | {'stage two' if start else 'step 0'}"


def snippet_table(results: dict[str, Any]) -> str:
    """The README's snippet against SGD: a row for a task, its weights and its start."""
    runs, name = results["runs"], results["snippet"]
    average = differences(runs, name, "average")
    worst = differences(runs, name, "worst")
    keys = list(average)
    corrected = holm([average[key].mean(0) for key in keys])
    head = "| task | weights | from | SGD | ABSGD − SGD | Holm | worst groups | worst training |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for key, ends in zip(keys, corrected, strict=True):
        plain = np.mean([
            r["average"] for r in runs
            if r["method"] == "SGD" and (r["task"], r["class_weights"]) == key[:2]
        ])  # fmt: skip
        mean, low, high = interval(average[key].mean(0))
        lines.append(
            f"| {row_name(key)} | {100 * plain:.1f} | "
            f"{signed(mean)} ({signed(low)} … {signed(high)}) | "
            f"{signed(ends[1])} … {signed(ends[2])} | {signed(interval(worst[key].mean(0))[0])} | "
            f"{signed(average[key].mean(1).min())} |"
        )
    return "\n".join(lines)


def count_cells(results: dict[str, Any]) -> str:
    """The same without the mean over the trainings: what holds in each of them alone."""
    cells = differences(results["runs"], results["snippet"], "average")
    each = [d for rows in cells.values() for d in rows]

    def apart(ends: Sequence[tuple[float, float, float]]) -> str:
        above, below = (sum(low > 0 for _, low, _ in ends), sum(high < 0 for _, _, high in ends))
        return f"above 0 in {above}, below 0 in {below}"

    small = sum(float(np.mean(d)) < -2 for d in each)
    return (
        f"Of the {len(each)} cells of a task, its weights, start and training, "
        f"{len(each[0])} seeds each, the 95 % interval is {apart([interval(d) for d in each])}; "
        f"with Holm's correction over all of them {apart(holm(each))}. "
        f"The mean is below −2 in {small}."
    )


def plus_minus(d: np.ndarray) -> str:
    """Of [trainings, seeds]: the mean over trainings, and half of the interval over seeds."""
    mean, _, high = interval(d.mean(0))
    return f"{signed(mean)} ± {high - mean:.1f}"


def schedule_table(results: dict[str, Any]) -> str:
    """The snippet by the schedule of the learning rate, and over all, the worst groups too."""
    average, worst = (
        differences(results["runs"], results["snippet"], m) for m in ("average", "worst")
    )
    schedules = dict.fromkeys(t.split()[-1] for t in results["trainings"])
    of = [t.split()[-1] for t in results["trainings"]]
    lines = [
        "| task | weights | from | " + " | ".join(schedules) + " | all | all, worst groups |",
        "|---" * (5 + len(schedules)) + "|",
    ]
    for key, d in average.items():
        cells = [plus_minus(d[[s == name for s in of]]) for name in schedules]
        cells += [plus_minus(d), plus_minus(worst[key])]
        lines.append(f"| {row_name(key)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def is_warned(run: dict[str, Any], i: int) -> bool:
    """Whether `torch_absgd.watch` would have warned in seed ``i`` of a fixed λ."""
    size = run["size"][i]
    if size is None or "guarded" in run["method"]:  # the guards see to it
        return False
    if "-" in run["method"]:
        return bool(size < SELECTIVE_NEGATIVE)
    level, fall = run["level"][i], run["fall"][i]
    return bool(size < SELECTIVE and level > LEVEL and fall is not None and fall > FALL)


def warning_table(results: dict[str, Any]) -> str:
    """Which runs of the grid the package's warning would have met, by what became of them.

    A setting's loss is its mean difference to SGD over seeds; its warning is asked of each seed.
    """
    runs = results["runs"]
    plain = {
        (r["task"], r["class_weights"], r["training"]): r for r in runs if r["method"] == "SGD"
    }
    counts: dict[str, list[list[int]]] = {}
    for r in runs:
        if not r["method"].startswith("λ"):
            continue
        sign = "λ < 0" if "-" in r["method"] else "λ > 0"
        form = "guarded" if "guarded" in r["method"] else "to the letter"
        base = plain[r["task"], r["class_weights"], r["training"]]
        loss = 100 * (np.mean(base["average"]) - np.mean(r["average"]))
        cells = counts.setdefault(f"{sign}, {form}", [[0, 0] for _ in range(4)])
        cell = cells[int(loss > 0) + int(loss > 2) + int(loss > 5)]
        cell[0] += sum(is_warned(r, i) for i in range(len(r["size"])))
        cell[1] += len(r["size"])
    head = "| λ | lost nothing: false alarms | lost up to 2 | lost 2 to 5 | lost > 5 |"
    lines = [head, "|---" * 5 + "|"]
    for name, cells in counts.items():
        lines.append(f"| {name} | " + " | ".join(f"{k} of {n} runs" for k, n in cells) + " |")
    return "\n".join(lines)


def grid_table(results: dict[str, Any]) -> str:
    """The paper's λ, to the letter and guarded: the mean difference to SGD."""
    runs = results["runs"]
    names = dict.fromkeys(r["method"].replace("-", "") for r in runs)
    methods = [name for name in names if name.startswith("λ")]
    cells = {m: differences(runs, m, "average") for m in methods}
    keys = list(cells[methods[0]])
    lines = [
        "| task | weights | from | " + " | ".join(methods) + " |",
        "|---" * (3 + len(methods)) + "|",
    ]
    for key in keys:
        values = [signed(cells[m][key].mean(1).min()) for m in methods]
        lines.append(f"| {row_name(key)} | {' | '.join(values)} |")
    return "\n".join(lines)


def render(results: dict[str, Any]) -> str:
    setting = (
        f"Seeds {results['seeds']}; {results['machine']}; commit {results['commit']}; "
        f"`{results['command']}`."
    )
    return (
        "\n\n".join(
            [
                f"## {results['snippet']} against SGD, over {len(results['trainings'])} trainings",
                snippet_table(results),
                count_cells(results),
                "## λ of the paper's grid, SGD 0.1 with a cosine (−λ for noise)",
                grid_table(results),
                "## The snippet by schedule: mean over four trainings ± half of the 95 % interval",
                schedule_table(results),
                "## The warning, over the grid above",
                warning_table(results),
                setting,
            ]
        )
        + "\n"
    )


def plot(results: dict[str, Any], path: Path) -> None:
    """Every training's mean difference, a row a task."""
    average = differences(results["runs"], results["snippet"], "average")
    figure, ax = plt.subplots(figsize=(8, 0.32 * len(average) + 1.2), layout="constrained")
    for i, d in enumerate(average.values()):
        ax.plot(d.mean(1), [i] * len(d), "o", color="tab:blue", alpha=0.35, markersize=4)
        mean, low, high = interval(d.mean(0))
        ax.errorbar(mean, i, xerr=[[mean - low], [high - mean]], fmt="o", color="black", capsize=3)
    labels = [
        f"{task}{', class weights' if cw else ''}, {'step 0' if start == 0 else 'stage two'}"
        for task, cw, start in average
    ]
    ax.set_yticks(range(len(labels)), labels, fontsize=7)
    ax.axvline(0, color="grey", linewidth=0.8)
    ax.axvline(-2, color="tab:red", linewidth=0.8, linestyle="--")
    ax.set_xlabel("accuracy, ABSGD − SGD, points (blue: one training; black: mean, 95 %)")
    ax.invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    results = json.loads((RESULTS / "suite.json").read_text())
    (RESULTS / "suite.md").write_text(render(results))
    plot(results, RESULTS / "suite.png")


if __name__ == "__main__":
    main()
