"""Runs the suite: every task and training with SGD, the README's snippet and the paper's grid.

    cd recipes; python -m studies.run_suite [--tasks …]

What is run, and what counts, is in PLAN.md. A task and training that has its file in --work is not
run again; when all are there, they are joined into results/suite.json, and suite_report.py makes
the table and the picture of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from studies import records
from studies.reference import Weighting
from studies.suite import Method, Training, train
from studies.tasks import TASKS, UNTOUCHED, Task

SEEDS = list(range(6))
TRAININGS = [
    Training(optimizer, lr, schedule)
    for schedule in ("constant", "cosine", "step")
    for optimizer, lr in (("sgd", 0.1), ("sgd", 0.01), ("adam", 0.01), ("adam", 0.001))
]
LAMS = (0.1, 0.25, 0.5, 1.0, 5.0)
SNIPPET = "EffectiveSampleSize(0.8), keep_loss"


def methods(task: Task, training: Training) -> dict[tuple[str, bool, float], Method]:
    """(name, class weights, start) → what is run; the paper's grid in one training alone."""
    sign = -1.0 if task.noise else 1.0
    weightings = {SNIPPET: (Weighting(sign * math.inf, 0.8, keep_loss=True), 0.0)}
    if training == Training("sgd", 0.1, "cosine"):
        for lam in LAMS:
            weightings[f"λ = {sign * lam:g}"] = (Weighting(sign * lam), 0.0)
        for lam in LAMS:
            guarded = Weighting(sign * lam, keep_loss=True, max_weight=3.0)
            weightings[f"λ = {sign * lam:g}, guarded"] = (guarded, 0.25)
    made = {}
    for balanced in (False, True) if task.has_class_weights else (False,):
        made["SGD", balanced, 0.0] = Method(Weighting(), class_weights=balanced)
        for (name, (w, over)), start in itertools.product(weightings.items(), (0.0, 0.5)):
            made[name, balanced, start] = Method(w, start, over, balanced)
    return made


def run(task: Task, training: Training, seeds: Sequence[int]) -> list[dict[str, Any]]:
    planned = methods(task, training)
    made = train(task, list(planned.values()), seeds, training)
    runs = []
    for (name, balanced, start), accuracy, watched in zip(
        planned, made["accuracy"], made["watch"], strict=True
    ):
        average, worst = summary(accuracy)
        runs.append({
            "task": task.name, "training": str(training),
            "method": name, "class_weights": balanced, "start": start,
            "average": rounded(average), "worst": rounded(worst),
            **first_steps(watched),
        })  # fmt: skip
    return runs


def first_steps(watched: Tensor) -> dict[str, list[float | None]]:
    """[seeds, steps, 3] of `suite.look` to means over the steps, and to the mean loss of the later
    half over that of the first."""
    size, length, level = watched.unbind(2)
    half = level.shape[1] // 2
    return {
        "size": rounded(size.nanmean(1)),
        "length": rounded(length.nanmean(1)),
        "level": rounded(level.nanmean(1)),
        "fall": rounded(level[:, half:].nanmean(1) / level[:, :half].nanmean(1)),
    }


def summary(accuracy: Tensor) -> tuple[Tensor, Tensor]:
    """[seeds, groups] to the mean over groups, and over the three worst (of few: the worst)."""
    present = accuracy[:, ~accuracy.isnan().all(0)]
    few = 3 if present.shape[1] > 5 else 1
    return present.mean(1), present.sort(1).values[:, :few].mean(1)


def rounded(values: Tensor) -> list[float | None]:
    return [None if math.isnan(v) else round(v, 4) for v in values.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=[*TASKS, *UNTOUCHED])
    parser.add_argument("--work", type=Path, default=Path("runs/suite"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for folder in (args.work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    plan = [(name, training) for name in args.tasks for training in TRAININGS]
    parts = [args.work / f"{n}-{t}.json".replace(" ", "-") for n, t in plan]
    for (name, training), part in tqdm(list(zip(plan, parts, strict=True))):
        if not part.exists():
            task = (TASKS | UNTOUCHED)[name]("test")
            of_part = {"commit": records.commit(), "runs": run(task, training, SEEDS)}
            records.write(of_part, "runs", part)
    made = [json.loads(part.read_text()) for part in parts]
    results = {
        "snippet": SNIPPET,
        "seeds": SEEDS,
        "trainings": [str(t) for t in TRAININGS],
        "command": " ".join(["python -m studies.run_suite --tasks", *args.tasks]),
        "machine": records.machine(),
        "commit": ", ".join(dict.fromkeys(part["commit"] for part in made)),
        "runs": [record for part in made for record in part["runs"]],
    }
    records.write(results, "runs", args.out / "suite.json")


if __name__ == "__main__":
    main()
