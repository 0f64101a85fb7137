"""The paper's Table 5, offline, at a size that a CPU trains: IMDB, a tenth of the negative reviews.

    cd recipes; python -m studies.imdb_table --data … [--losses ce focal] [--work …]

A bidirectional LSTM, 12 epochs with stage two from epoch 8 (presets imdb-small-*), at the learning
rate and the λ that were chosen on a fifth of the training reviews before (results/earlier.md). The
methods of a loss and a seed share stage one. After a kill, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from studies import runs

LOSSES = {"ce": "CE", "focal": "focal"}
SEEDS = range(5)
SNIPPET = "ABSGD, size 0.8, kept"
METHODS = {
    "SGD": ("sgd", []),
    "ABSGD, λ = 5": ("absgd", ["--lam", "5"]),
    SNIPPET: ("absgd", ["--lam", "ess:0.8:rate=1", "--keep-loss"]),
}


def words_of(method: str, loss: str, seed: int) -> list[str]:
    optimizer, own = METHODS[method]
    return ["--preset", f"imdb-small-{optimizer}-{loss}", "--lr", "0.2", *own,
            "--seed", str(seed), "--device", "cpu"]  # fmt: skip


def directory(work: Path, method: str, loss: str, seed: int) -> Path:
    return work / f"{method}-{loss}-seed{seed}".replace(" ", "").replace(",", "-")


def gather(work: Path) -> list[dict[str, Any]]:
    """The finished runs: accuracy of each class on the test set, in per cent."""
    made = []
    for loss in LOSSES:
        for method in METHODS:
            for seed in SEEDS:
                file = directory(work, method, loss, seed) / "results.json"
                if not file.exists():
                    continue
                results = json.loads(file.read_text())
                made.append({
                    "loss": loss, "method": method, "seed": seed,
                    "command": "train.py " + " ".join(words_of(method, loss, seed)),
                    "class_counts": results["class_counts"],
                    "per_class": [round(100 * a, 2) for a in results["metrics"]["per_class"]],
                    "torch": results["torch"],
                })  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/imdb_table"))
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=[*LOSSES])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for loss in args.losses:
        for seed in SEEDS:
            for method in METHODS:
                words = [*words_of(method, loss, seed), "--data-dir", str(args.data)]
                runs.run(words, directory(args.work, method, loss, seed), args.work / "stage_one")


if __name__ == "__main__":
    main()
