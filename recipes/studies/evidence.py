"""RESULTS.md and its picture, from the JSON files in results/ and the words in RESULTS.md.in there.

    cd recipes; python -m studies.evidence [--harvest …]

--harvest takes over what run_trials.py, whole_networks.py, tradeoff.py, find_noise.py,
cifar_cell.py, imdb_table.py and paper.py have written elsewhere since; everything is rendered in
any case. Differences are in points of accuracy, seed by seed, with Student's 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from studies import cifar_cell, evidence_plot, imdb_table, paper_figures
from studies.suite_report import interval, signed

RESULTS = Path(__file__).parent / "results"
OUT = Path(__file__).parents[1] / "RESULTS.md"
Record = dict[str, Any]

LONG_TAIL = ["digits_lt", "synthetic", "breast_cancer", "wine", "imdb", "clothes_lt",
             "cifar_features", "cifar_features_1"]  # fmt: skip
HIDDEN = ["digits_hidden", "clothes_hidden", "cifar_hidden", "cifar_hidden_1"]
NOISE = ["digits_noise", "imdb_noise", "cifar_noise", "cifar_noise_40", "cifar_asym",
         "cifar_asym_40"]  # fmt: skip
ADAMW = ["digits_lt-adamw", "digits_hidden-adamw", "digits_noise-adamw"]
WHOLE = ["whole_lt", "whole_hidden", "whole_noise", "whole_asym", "whole_asym_more"]
KINDS = {"long tail": LONG_TAIL, "hidden groups": HIDDEN, "noise": NOISE, "AdamW": ADAMW,
         "whole networks": WHOLE}  # fmt: skip


@cache
def record(name: str) -> Record | None:
    file = RESULTS / "trials" / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def present(names: Sequence[str]) -> list[Record]:
    return [r for r in map(record, names) if r is not None]


def title(r: Record) -> str:
    return r["task"] + ", AdamW" * (r["optimizer"] == "adamw")


# ---- measures: [seeds]


def accuracy(r: Record, method: str) -> np.ndarray | None:
    """[seeds, groups that are there]."""
    for m in r["methods"]:
        if m["method"] == method:
            made = np.array(m["accuracy"], dtype=float)
            return made[:, ~np.isnan(made).all(0)]
    return None


def average(r: Record, a: np.ndarray) -> np.ndarray:
    return a.mean(1)


def worst(r: Record, a: np.ndarray) -> np.ndarray:
    return a.min(1)


def hard(r: Record, a: np.ndarray) -> np.ndarray:
    """The mean of three groups (of five or fewer: one): long tails, the rarest; else the worst."""
    few = 3 if a.shape[1] > 5 else 1
    is_tail = len(set(r["counts"])) == a.shape[1] > 1 and r["task"] in map(
        title, present([*LONG_TAIL, "whole_lt"])
    )
    if is_tail:
        return a[:, np.argsort(r["counts"])[:few]].mean(1)
    return np.sort(a, axis=1)[:, :few].mean(1)


Measure = Callable[[Record, np.ndarray], np.ndarray]


def gain(r: Record, method: str, measure: Measure, base: str = "SGD") -> np.ndarray | None:
    ours, theirs = accuracy(r, method), accuracy(r, base)
    return None if ours is None else measure(r, ours) - measure(r, theirs)  # type: ignore[arg-type]


def with_interval(d: np.ndarray | None) -> str:
    """ "+1.2 ± 0.4", bold where the interval leaves out 0."""
    if d is None:
        return ""
    mean, low, high = interval(d)
    text = f"{signed(mean)} ± {high - mean:.1f}"
    return f"**{text}**" if low > 0 or high < 0 else text


def verdict(d: np.ndarray) -> str:
    _, low, high = interval(d)
    return "win" if low > 0 else "loss" if high < 0 else "tie"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---- tables


def compared(kind: str, task: str, plain: np.ndarray, ours: np.ndarray) -> list[str]:
    d = ours - plain
    return [kind, task, f"{plain.mean():.1f}", f"{ours.mean():.1f}", with_interval(d), verdict(d),
            str(len(d)), "–"]  # fmt: skip


def opening() -> str:
    rows = []
    for kind, names in KINDS.items():
        for r in present(names):
            plain, ours = (average(r, accuracy(r, m)) for m in ("SGD", "ABSGD"))  # type: ignore[arg-type]
            rows.append(compared(kind, title(r), plain, ours))
    for method, factor, published in (("λ = 1", 0.01, "70.36 (SGD)"), ("size 0.8, kept", 0.1, "")):
        pair = [cell_of("SGD", factor), cell_of(method, factor)]
        if all(len(p) > 1 for p in pair):
            d = [b["test"] - a["test"] for a, b in zip(*pair, strict=True)]
            rows.append(["the paper's cell", f"CIFAR-10-LT, ρ = 100, CE, lr ×{factor:g}, {method}",
                         *(f"{np.mean([p['test'] for p in ps]):.1f}" for ps in pair),
                         " and ".join(map(signed, d)), "–", str(len(d)), published])  # fmt: skip
    for loss in imdb_table.LOSSES:
        if (loss, imdb_table.SNIPPET) in imdb():
            plain, ours = (imdb()[loss, m].mean(1) for m in ("SGD", imdb_table.SNIPPET))
            task = f"IMDB, LSTM, {imdb_table.LOSSES[loss]}"
            rows.append(compared("the paper's Table 5, small", task, plain, ours))
    return table(["", "task", "SGD", "ABSGD", "ABSGD − SGD", "", "seeds", "published"], rows)


Column = tuple[str, Record, Measure]


def by_method(names: Sequence[str], measure: Measure) -> str:
    """A row a method, a column a task."""
    return differences([(title(r), r, measure) for r in present(names)])


def differences(columns: Sequence[Column]) -> str:
    """A row a method: SGD's accuracy, then the differences to it."""
    if not columns:
        return "Not run yet."
    methods = list(dict.fromkeys(m["method"] for _, r, _ in columns for m in r["methods"]))
    rows = [["SGD", *(f"{of(r, accuracy(r, 'SGD')).mean():.1f}" for _, r, of in columns)]]  # type: ignore[arg-type]
    for method in methods[1:]:
        rows.append([method, *(with_interval(gain(r, method, of)) for _, r, of in columns)])
    return table(["method", *(head for head, _, _ in columns)], rows)


def whole_networks() -> str:
    """Averages, and of the tasks that have them, rare or worst classes."""
    columns: list[Column] = []
    for r in present(WHOLE):
        task = title(r).removeprefix("CIFAR-10, ResNet-8, ")
        columns.append((task, r, average))
        if "noise" not in task:
            three = "its three worst" if "hidden" in task else "its three rarest"
            columns.append((three, r, hard))
    return differences(columns)


def adjusted_pairs() -> str:
    """ABSGD with an adjusted classifier against SGD with one, and on top of counts."""
    pairs = [("ABSGD, logit adjustment", "SGD, logit adjustment"),
             ("ABSGD, τ-normalised", "SGD, τ-normalised"),
             ("class weights, ABSGD", "class weights"),
             ("logit-adjusted loss, ABSGD", "logit-adjusted loss")]  # fmt: skip
    records = present(LONG_TAIL)
    rows = [
        [f"{ours} − {base}", *(with_interval(gain(r, ours, average, base)) for r in records)]
        for ours, base in pairs
    ]
    return table(["", *map(title, records)], rows)


def settings() -> str:
    rows = []
    for r in present([name for names in KINDS.values() for name in names]):
        chosen = {m["method"]: m["settings"] for m in r["methods"]}
        made = [f"{chosen[m]['lr']:g}, {chosen[m]['weight_decay']:g}" for m in ("SGD", "ABSGD")]
        rows.append([title(r), *made])
    return table(["task", "SGD: lr, weight decay", "ABSGD: lr, weight decay"], rows)


# ---- the paper's cell


@cache
def cell() -> list[Record]:
    file = RESULTS / "cifar_cell.json"
    return json.loads(file.read_text()) if file.exists() else []


def of_groups(per_class: Sequence[float], counts: Sequence[int], few: bool) -> float:
    return float(np.mean([a for a, n in zip(per_class, counts, strict=True) if (n <= 100) == few]))


def judged(run: Record) -> Record:
    """A run's test accuracy as it is, and adjusted with the τ that is best on what was left out."""
    left = [float(np.mean(row[1:])) for row in run["left_out"]["adjusted"]]
    best = int(np.argmax(left))
    test = run["test"]["adjusted"]
    return {
        "seed": run["seed"], "left": left[0], "test": float(np.mean(test[0])),
        "many": of_groups(test[0], run["class_counts"], False),
        "medium": of_groups(test[0], run["class_counts"], True),
        "left_adjusted": left[best], "tau": cifar_cell.TAUS[best],
        "adjusted": float(np.mean(test[best])), "at_one": float(np.mean(test[4])),
    }  # fmt: skip


def cell_of(method: str, factor: float, draw: int = 0) -> list[Record]:
    found = [r for r in cell() if (r["method"], r["factor"], r["draw"]) == (method, factor, draw)]
    return [judged(r) for r in found]


def cell_table() -> str:
    if not cell():
        return "Not run yet."
    rows = []
    for method, factor, draw in dict.fromkeys(
        (r["method"], r["factor"], r["draw"]) for r in cell()
    ):
        runs = {r["seed"]: r for r in cell_of(method, factor, draw)}
        name = f"{method}, ×{factor:g}" + ", another order" * bool(draw)
        line = [name]
        for seed in (0, 1):
            r = runs.get(seed)
            line += ["", "", ""] if r is None else [
                f"{r['test']:.2f} ({r['many']:.1f} / {r['medium']:.1f})", f"{r['left']:.1f}",
                f"{r['adjusted']:.2f} ({r['tau']:g})",
            ]  # fmt: skip
        rows.append(line)
    head = ["stage two, lr factor"]
    for seed in (0, 1):
        head += [f"seed {seed}: test (many / medium)", "left out", "adjusted (τ)"]
    return table(head, rows)


def cell_count() -> str:
    return f"{len(cell())} of {len(cifar_cell.RUNS)}"


# ---- IMDB


@cache
def imdb() -> dict[tuple[str, str], np.ndarray]:
    """(loss, method) → accuracy [seeds, classes]."""
    file = RESULTS / "imdb_table.json"
    made: dict[tuple[str, str], list[list[float]]] = {}
    for r in json.loads(file.read_text()) if file.exists() else []:
        made.setdefault((r["loss"], r["method"]), []).append(r["per_class"])
    return {key: np.array(rows) for key, rows in made.items()}


def imdb_rows() -> str:
    """A row a loss and a method: accuracies, and the paired difference to SGD of that loss."""
    rows = []
    for (loss, method), ours in imdb().items():
        plain = imdb()[loss, "SGD"]
        cells = [f"{a.mean():.2f} ± {a.std(ddof=1):.2f}" for a in (ours.mean(1), *ours.T)]
        paired = "" if method == "SGD" else with_interval(ours.mean(1) - plain.mean(1))
        rows.append([imdb_table.LOSSES[loss], method, *cells, paired, str(len(ours))])
    head = ["loss", "method", "overall", "negative (1,250)", "positive (12,499)",
            "difference to SGD", "seeds"]  # fmt: skip
    return table(head, rows) if rows else "Not run yet."


# ---- the rest


@cache
def figures() -> list[Record]:
    file = RESULTS / "paper_figures.json"
    return json.loads(file.read_text()) if file.exists() else []


def noise_found() -> str:
    rows = []
    for file in sorted(RESULTS.glob("find_noise_*.json")):
        made = json.loads(file.read_text())
        base = np.array([r["P = R at k"] for r in made["runs"]["SGD, by loss"]])
        for method, runs in made["runs"].items():
            found = np.array([r["P = R at k"] for r in runs])
            precision = np.mean([r["AP"] for r in runs])
            d = "" if method == "SGD, by loss" else with_interval(found - base)
            rows.append([f"{made['data']}, {made['samples']}", method, f"{found.mean():.1f}",
                         f"{precision:.1f}", d, str(len(runs))])  # fmt: skip
    head = ["data, samples", "ranking", "precision = recall", "average precision", "difference",
            "seeds"]  # fmt: skip
    return table(head, rows) if rows else "Not run yet."


@cache
def tradeoff() -> Record | None:
    file = RESULTS / "tradeoff.json"
    return json.loads(file.read_text()) if file.exists() else None


def tradeoff_table() -> str:
    """Of each curve, the point of the best average: its parameter, many, few, all."""
    made = tradeoff()
    if made is None:
        return "Not run yet."
    rows = []
    for name in made["networks"][0]["curves"]:
        line = [name]
        for network in made["networks"]:
            curve = network["curves"][name]
            best = max(range(len(curve)), key=lambda i: curve[i][2])
            values = made["parameters"].get(name)
            at = f" at {values[best]:g}" if values else ""
            many, few, mean = curve[best]
            line.append(f"{mean:.1f} ({many:.1f} / {few:.1f}){at}")
        rows.append(line)
    head = [f"network {i}: all (many / few)" for i in range(len(made["networks"]))]
    return table(["", *head], rows)


def sources() -> str:
    names = [name for kind, names in KINDS.items() if kind != "whole networks" for name in names]
    records = present([*names, "digits_lt-normalisers", "digits_noise-normalisers"])
    commits = sorted({r["commit"] for r in records})
    return f"{records[0]['machine']}; commits {', '.join(commits)}" if records else ""


PARTS: dict[str, Callable[[], str]] = {
    "opening": opening,
    "long tail": lambda: by_method(LONG_TAIL, average),
    "long tail, rarest": lambda: by_method(LONG_TAIL, hard),
    "adjusted": adjusted_pairs,
    "hidden": lambda: by_method(HIDDEN, average),
    "hidden, worst three": lambda: by_method(HIDDEN, hard),
    "hidden, worst": lambda: by_method(HIDDEN, worst),
    "noise": lambda: by_method(NOISE, average),
    "adamw": lambda: by_method(ADAMW, average),
    "whole networks": whole_networks,
    "normalisers, long tail": lambda: by_method(["digits_lt-normalisers"], average),
    "normalisers, noise": lambda: by_method(["digits_noise-normalisers"], average),
    "settings": settings,
    "cell": cell_table,
    "cell count": cell_count,
    "imdb": imdb_rows,
    "figures": lambda: paper_figures.rows(figures()),
    "tradeoff": tradeoff_table,
    "find noise": noise_found,
    "sources": sources,
}


def render() -> str:
    words = (RESULTS / "RESULTS.md.in").read_text()
    return re.sub(r"\{\{(.+?)\}\}", lambda m: PARTS[m[1]](), words)


def harvest(folder: Path) -> None:
    """Takes over the records that are in ``folder``, laid out as results/; of cifar_cell/,
    imdb_table/ and paper_figures/, where they work, the runs that are finished."""
    for file in [*folder.glob("*.json"), *folder.glob("trials/*.json")]:
        shutil.copyfile(file, RESULTS / file.relative_to(folder))
    for name, gather in (("cifar_cell", cifar_cell.gather), ("imdb_table", imdb_table.gather),
                         ("paper_figures", paper_figures.gather)):  # fmt: skip
        runs = gather(folder / name)
        if runs:
            lines = ",\n".join(json.dumps(r, ensure_ascii=False) for r in runs)
            (RESULTS / f"{name}.json").write_text(f"[\n{lines}\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--harvest", type=Path, help="a folder laid out as results/")
    args = parser.parse_args()
    if args.harvest:
        harvest(args.harvest)
    OUT.write_text(render())
    bars = [(kind, title(r), gain(r, "ABSGD", average))
            for kind, names in KINDS.items() for r in present(names)]  # fmt: skip
    evidence_plot.plot(bars, tradeoff(), RESULTS / "evidence.png")
    paper_figures.plot(figures(), RESULTS / "paper_figures.png")


if __name__ == "__main__":
    main()
