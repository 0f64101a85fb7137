"""PLAN.md's part A: every task's methods, tuned alike, then ten seeds on the test set.

    cd recipes; ABSGD_DATA=… python -m studies.run_trials [--tasks …]

A task that has its file in results/trials/ is not run again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studies import families, records, trials
from studies.tasks import NOT_IN_SUITE, TASKS, UNTOUCHED, Task
from studies.trials import Way

SEEDS = list(range(10))
TAUS, POWERS = [0.25 * i for i in range(1, 9)], [0.25 * i for i in range(1, 9)]
POST = {"SGD": "SGD", "ABSGD": "ABSGD"}  # families whose classifier is adjusted afterwards

Families = Callable[[Task], list[list[Way]]]
STUDIES: dict[str, tuple[str, str, Families]] = {
    name: (name, "sgd", families.families) for name in (*TASKS, *UNTOUCHED, *NOT_IN_SUITE)
}
STUDIES |= {
    f"{name}-adamw": (name, "adamw", families.families)
    for name in ("digits_lt", "digits_hidden", "digits_noise")
}
STUDIES |= {
    "digits_lt-normalisers": ("digits_lt", "sgd", lambda _: families.normalisers(False)),
    "digits_noise-normalisers": ("digits_noise", "sgd", lambda _: families.normalisers(True)),
}
del STUDIES["digits_balanced"]


def selection_seeds(task: Task) -> list[int]:
    """Six, or two where a set is not small."""
    return list(range(100, 106 if sum(task.counts) < 3000 else 102))


def after_of(task: Task) -> tuple[list[float], list[float]]:
    """τ and powers that the last layer is adjusted with: none where classes are not what counts."""
    by_class = not task.noise and len(task.counts) == task.num_classes
    return (TAUS, POWERS) if by_class else ([], [])


def accuracies(task: Task, ways: Sequence[Way], seeds: Sequence[int], optimizer: str) -> Tensor:
    """[after, seeds, ways, groups]; of "after" the first is the model as it is."""
    taus, powers = after_of(task)
    made = torch.empty(1 + len(taus) + len(powers), len(seeds), len(ways), len(task.counts))
    for index, rows in trials.train(task, ways, seeds, optimizer):
        made[:, :, index] = trials.evaluate(rows, task, [0.0, *taus], powers)
    return made


def choose(task: Task, planned: list[list[Way]], optimizer: str) -> list[dict[str, Any]]:
    """The best of each method's settings on the held-out part; adjusted kinds of POST beside."""
    flat = [way for family in planned for way in family]
    score = (
        accuracies(task, flat, selection_seeds(task), optimizer).nanmean(3).nan_to_num(0).mean(1)
    )
    taus, _ = after_of(task)
    chosen, at = [], 0
    for family in planned:
        mine = score[:, at : at + len(family)]
        at += len(family)
        kinds = {"": mine[:1]}
        if family[0].family in POST and len(score) > 1:
            kinds[", logit adjustment"] = mine[1 : 1 + len(taus)]
            kinds[", τ-normalised"] = mine[1 + len(taus) :]
        for suffix, part in kinds.items():
            best = int(part.argmax())
            after, i = divmod(best, len(family))
            offset = {"": 0, ", logit adjustment": 1, ", τ-normalised": 1 + len(taus)}[suffix]
            chosen.append({
                "method": family[0].family + suffix, "way": family[i], "after": after + offset,
                "validation": round(100 * float(part.max()), 2),
                "trials": len(family),
            })  # fmt: skip
    return chosen


def run(name: str) -> dict[str, Any]:
    task_name, optimizer, of_task = STUDIES[name]
    make = (TASKS | UNTOUCHED | NOT_IN_SUITE)[task_name]
    task = make("validation")
    planned = [families.trials(family, optimizer, task.noise > 0) for family in of_task(task)]
    chosen = choose(task, planned, optimizer)
    test = make("test")
    accuracy = accuracies(test, [c["way"] for c in chosen], SEEDS, optimizer)
    methods = [
        {
            "method": c["method"], "validation": c["validation"], "trials": c["trials"],
            "settings": settings(c["way"], c["after"], after_of(test)[0]),
            "accuracy": rounded(accuracy[c["after"], :, i]),
        }
        for i, c in enumerate(chosen)
    ]  # fmt: skip
    return {
        "task": test.name, "optimizer": optimizer, "counts": test.counts, "seeds": SEEDS,
        "selection_seeds": selection_seeds(task), "methods": methods,
    }  # fmt: skip


def settings(way: Way, after: int, taus: Sequence[float]) -> dict[str, Any]:
    """What is not a default, and the τ or the power that was chosen."""
    default = asdict(Way(""))
    made = {k: v for k, v in asdict(way).items() if v != default[k] or k in ("lr", "weight_decay")}
    del made["family"]
    if "weighting" in made:
        plain = default["weighting"]
        made["weighting"] = {k: v for k, v in made["weighting"].items() if v != plain[k]}
        if math.isinf(made["weighting"].get("lam", 0)):
            del made["weighting"]["lam"]
    if after:
        made |= {"adjusted": taus[after - 1]} if after <= len(taus) else {
            "normalised": POWERS[after - 1 - len(taus)]
        }  # fmt: skip
    return made


def rounded(accuracy: Tensor) -> list[list[float | None]]:
    """[seeds][groups], per cent."""
    return [
        [None if math.isnan(a) else round(100 * a, 2) for a in row] for row in accuracy.tolist()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(STUDIES), choices=STUDIES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trials")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    commit = records.commit()
    for name in args.tasks:
        file = args.out / f"{name}.json"
        if file.exists():
            continue
        began = time.time()
        made = run(name)
        made |= {"command": f"python -m studies.run_trials --tasks {name}", "commit": commit,
                 "machine": records.machine()}  # fmt: skip
        records.write(made, "methods", file)
        print(f"{time.strftime('%H:%M:%S')} {name}: {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
