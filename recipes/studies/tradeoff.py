"""Few-shot against many-shot accuracy as a method's one parameter moves: PLAN.md's part C.

    cd recipes; ABSGD_DATA=… python -m studies.tradeoff [--results …]

A last layer on frozen features of both CIFAR-10-LT networks, with the learning rate and the weight
decay that run_trials.py chose for SGD: ABSGD by size and by λ, and what can be done to SGD's layer
afterwards. Nothing is chosen here; every point is shown, on the test set.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studies import families, records, trials
from studies.run_trials import SEEDS
from studies.tasks import TASKS
from studies.trials import Way

RESULTS = Path(__file__).parent / "results"
SIZES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
LAMS = (10.0, 5.0, 3.0, 2.0, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1)
TAUS = [0.25 * i for i in range(1, 13)]
POWERS = [0.25 * i for i in range(1, 13)]


def points(accuracy: Tensor) -> list[list[float]]:
    """[points, seeds, classes] to mean (many, few, all) of each point, per cent: the three most and
    the three least frequent classes, which come first and last."""
    three = torch.stack([accuracy[..., :3].mean(2), accuracy[..., -3:].mean(2), accuracy.mean(2)])
    return [[round(100 * float(v), 2) for v in point] for point in three.mean(2).T]


def curves(task_name: str, trials_made: Path) -> dict[str, Any]:
    made = json.loads((trials_made / f"{task_name}.json").read_text())
    chosen = next(m["settings"] for m in made["methods"] if m["method"] == "SGD")
    lr, decay = chosen["lr"], chosen["weight_decay"]
    ways = [Way("SGD", lr, decay), Way("", lr, decay, class_weights=True)]
    ways += [Way("", lr, decay, weighting=families.size(size)) for size in SIZES]
    ways += [Way("", lr, decay, weighting=families.number(lam, keep_loss=True)) for lam in LAMS]
    task = TASKS[task_name]("test")
    ((_, rows),) = trials.train(task, ways, SEEDS)
    accuracy = trials.evaluate(rows, task, [0.0, *TAUS], POWERS)  # [after, seeds, ways, classes]
    plain, of_sgd = accuracy[0].transpose(0, 1), accuracy[:, :, 0]
    n = len(TAUS) + 1
    return {
        "task": task.name, "lr": lr, "weight_decay": decay,
        "curves": {
            "SGD": points(plain[:1]),
            "class weights, SGD": points(plain[1:2]),
            "ABSGD, size": points(plain[2 : 2 + len(SIZES)]),
            "ABSGD, λ": points(plain[2 + len(SIZES) :]),
            "logit adjustment of SGD": points(of_sgd[1:n]),
            "τ-normalised SGD": points(of_sgd[n:]),
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="holds trials/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = {
        "parameters": {"ABSGD, size": SIZES, "ABSGD, λ": LAMS, "logit adjustment of SGD": TAUS,
                       "τ-normalised SGD": POWERS},
        "seeds": SEEDS, "command": "python -m studies.tradeoff",
        "commit": records.commit(), "machine": records.machine(),
        "networks": [curves(name, args.results / "trials")
                     for name in ("cifar_features", "cifar_features_1")
                     if (args.results / "trials" / f"{name}.json").exists()],
    }  # fmt: skip
    text = json.dumps(made, ensure_ascii=False, indent=1) + "\n"
    (args.results / "tradeoff.json").write_text(text)


if __name__ == "__main__":
    main()
