"""The paper's Figures 3 and 4 for CIFAR-10-LT, at a CPU's size: runs of paper.py, gathered.

    python recipes/paper.py figure4 --only CIFAR-10 --data-dir … --output-dir … --seeds 0 WORDS
    python recipes/paper.py figure3 …

with the WORDS below; `studies.evidence --harvest` takes the finished runs over.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine import report
from studies import curves
from studies.tables import FIGURES

STAGE_TWO = 20
WORDS = shlex.split(
    f"--arch resnet8 --shrink 2 --limit 1000 --batch-size 64 --epochs 26 --stage-two {STAGE_TWO} "
    "--lr-milestones 20 24 --warmup-epochs 2 --channels-last --device cpu --keep-going"
)
SEEDS = range(3)


def gather(work: Path) -> list[dict[str, Any]]:
    """The finished runs of paper.py's --output-dir."""
    made = []
    for figure, (_, cells) in FIGURES.items():
        for cell in cells:
            for seed in SEEDS:
                folder = work / "full" / cell.directory(seed)
                if cell.column == "CIFAR-10" and (folder / "results.json").exists():
                    words = [*cell.words, *WORDS, "--seed", str(seed)]
                    made.append({
                        "figure": figure, "row": cell.row, "seed": seed,
                        "command": shlex.join(["train.py", *words]),
                        "curves": curves.read(folder),
                    })  # fmt: skip
    return made


def by_row(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[curves.Curves]]:
    """(row, figure) → the curves of its seeds."""
    found: dict[tuple[str, str], list[curves.Curves]] = {}
    for run in runs:
        key = run["row"], run["figure"].replace("figure", "Figure ")
        found.setdefault(key, []).append(run["curves"])
    return found


def rows(runs: Sequence[dict[str, Any]]) -> str:
    """A line a curve: test accuracy where stage one ends, at its best and at the end."""
    lines = []
    for (row, figure), seeds in by_row(runs).items():
        test = 100 * np.array([of["test"][1] for of in seeds])
        at = [test[:, STAGE_TWO - 1], test.max(1), test[:, -1]]
        train = [100 * of["train accuracy"][1][-1] for of in seeds if "train accuracy" in of]
        trained = f"{np.mean(train):.1f}" if train else ""
        lines.append([figure, row, *(f"{a.mean():.1f}" for a in at), trained, str(len(seeds))])
    head = ["", "", f"test, epoch {STAGE_TWO}", "at its best", "at the end",
            "training set, at the end", "seeds"]  # fmt: skip
    return report.markdown(head, lines) if lines else "Not run yet."


def plot(runs: Sequence[dict[str, Any]], path: Path) -> None:
    if runs:
        curves.plot(by_row(runs), path)
