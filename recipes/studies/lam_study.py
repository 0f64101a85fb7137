"""λ found from a target, against λ as a number: is there one target that needs no tuning?

    python recipes/studies/lam_study.py                             # digits, long-tailed and noisy
    python recipes/studies/lam_study.py --tasks cifar10-lt --data-dir data

Stage one is SGD. Stage two is begun from it with every λ of LAMS, with EffectiveSampleSize at every
one of TARGETS (λ < 0 and noisy=True for noisy labels), and with SGD; on long-tailed data all of it
again with class-balanced weights. λ is the only difference: lr and weight decay are SGD's.

The λ "chosen by grid" is the one of the paper's GRID with the best balanced accuracy, as a mean
over the seeds, on a split of the training set. The default target is chosen by nothing. The test
set is read once for each trained model, at its end. Runs that are finished are not repeated: after
a kill, give the same command. Options that this file does not know are train.py's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes, where this is a script
from engine import report
from studies import lam_plots, runs

GRID = (0.1, 1.0, 5.0, 10.0)  # the paper's {0.1, 1, 10} and {1, 5, 10}
LAMS = (10.0, 5.0, 2.0, 1.0, 0.5, 0.25, 0.1)
TARGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
DEFAULT_TARGET = 0.6
RATES, RATE_TARGETS = (0.3, 1.0), (0.8, 0.6)  # beside the default rate

# lr and weight decay of the digits: those that digits_lt.py --select chose for SGD.
DIGITS = [
    "--data",
    "digits",
    "--epochs",
    "40",
    "--stage-two",
    "20",
    "--lr-milestones",
    "20",
    "--batch-size",
    "64",
    "--warmup-epochs",
    "0",
    "--lr",
    "0.2",
    "--device",
    "cpu",
]
TAIL = ["--imbalance", "lt", "--imbalance-ratio", "50", "--weight-decay", "1e-4"]
TASKS: dict[str, list[str]] = {
    "long-tailed": [*DIGITS, *TAIL, "--lr-factor", "0.1"],
    "long-tailed, lr kept": [*DIGITS, *TAIL, "--lr-factor", "1"],
    "noisy": [*DIGITS, "--label-noise", "uniform:0.4", "--weight-decay", "1e-2", "--lr-factor",
              "0.1"],
    "cifar10-lt": ["--data", "cifar10", "--imbalance", "lt", "--imbalance-ratio", "50", "--limit",
                   "1000", "--shrink", "2", "--arch", "resnet8", "--epochs", "26", "--stage-two",
                   "20", "--lr-milestones", "20", "--lr-factor", "0.1", "--batch-size", "64",
                   "--weight-decay", "5e-4"],
}  # fmt: skip

Run = dict[str, Any]


def number(lam: float, noisy: bool) -> str:
    """--lam for |λ|."""
    return f"{-lam if noisy else lam:g}"


def rule(target: float, noisy: bool, rate: float | None = None) -> str:
    """--lam for a target."""
    at_rate = "" if rate is None else f":rate={rate:g}"
    return f"ess:{target:g}" + (":noisy" if noisy else "") + at_rate


def every_lam(args: argparse.Namespace, noisy: bool) -> list[str]:
    """SGD, the numbers and the targets; some targets at other rates too."""
    targets = [rule(target, noisy) for target in args.targets]
    rates = [rule(t, noisy, rate) for t in args.targets if t in RATE_TARGETS for rate in args.rates]
    return ["inf", *(number(lam, noisy) for lam in args.lams), *targets, *rates]


def train_all(args: argparse.Namespace, task: str) -> list[Run]:
    """All runs of a task, seed by seed: on the validation split, the grid alone."""
    noisy, found = task == "noisy", []
    folder = args.output_dir / task.replace(", ", "-").replace(" ", "_")
    for seed in args.seeds:
        for validate in (True, False):
            lams = [number(lam, noisy) for lam in GRID] if validate else every_lam(args, noisy)
            for balance in ("none",) if validate or noisy else ("none", "drw"):
                for lam in lams:
                    words = [*TASKS[task], "--lam", lam, "--class-balance", balance, "--seed",
                             str(seed), *args.words]  # fmt: skip
                    if validate:
                        words += ["--validate", "0.25", "--validate-clean"]
                    name = f"{'validate' if validate else 'test'}-{lam}-{balance}-seed{seed}"
                    found.append(one(words, folder / name.replace(":", "_"), folder / "stage_one"))
    return found


def one(words: list[str], directory: Path, shared: Path) -> Run:
    """Its results, and of each epoch of stage two the λ at its end and the mean effective share."""
    results = runs.run(words, directory, shared)
    config = results["config"]
    lines = map(json.loads, (directory / "log.jsonl").read_text().splitlines())
    epochs = [
        {
            "epoch": r["epoch"],
            "lam": float(r["lam"]),
            "effective": float(np.nan_to_num(float(r["ess"]))),
        }
        for r in lines
        if r["split"] == "train" and r["epoch"] >= config["stage_two"]
    ]
    lam = config["lam"]
    return {
        "setting": {"lam": lam if str(lam).startswith("ess") else f"{float(lam):g}",
                    **{k: config[k] for k in ("class_balance", "lr", "lr_factor", "weight_decay")}},
        "seed": config["seed"], "epochs": epochs,
        **{k: results[k] for k in ("split", "metrics", "class_counts")},
    }  # fmt: skip


# ---- what the runs say


def of(found: Sequence[Run], lam: str, balance: str = "none", split: str = "test") -> list[Run]:
    def is_it(run: Run) -> bool:
        setting = run["setting"]
        return (setting["lam"], setting["class_balance"], run["split"]) == (lam, balance, split)

    return [run for run in found if is_it(run)]


def balanced(found: Sequence[Run]) -> float:
    return float(np.mean([run["metrics"]["balanced"] for run in found]))


def summarise(found: list[Run], task: str, args: argparse.Namespace) -> dict[str, Any]:
    noisy = task == "noisy"
    grid = [number(lam, noisy) for lam in GRID]
    chosen = max(grid, key=lambda lam: balanced(of(found, lam, split="validation")))
    worst = min(grid, key=lambda lam: balanced(of(found, lam)))
    systems = {"SGD": "inf", f"target {DEFAULT_TARGET:g}, untuned": rule(DEFAULT_TARGET, noisy)}
    for target in (t for t in args.targets if t in RATE_TARGETS and 1 in args.rates):
        systems[f"target {target:g}, each batch's own λ"] = rule(target, noisy, rate=1)
    systems[f"λ = {chosen}, chosen by grid"] = chosen
    systems[f"λ = {worst}, the grid's worst"] = worst
    return {"seeds": list(args.seeds), "lams": every_lam(args, noisy), "noisy": noisy,
            "systems": systems, "runs": found}  # fmt: skip


def table(task: str, result: dict[str, Any]) -> str:
    """The systems by name; then every λ and target, with class-balanced weights too. Differences
    to SGD are taken seed by seed; shares are effective ones, means over stage two."""
    found, noisy = result["runs"], result["noisy"]
    names = ["overall"] if noisy else ["overall", "many", "medium", "few"]
    systems = [
        [title, *(report.mean_std([r["metrics"][n] for r in of(found, lam)]) for n in names)]
        for title, lam in result["systems"].items()
    ]
    every = []
    for lam in result["lams"]:
        cells = [lam]
        for balance in ("none",) if noisy else ("none", "drw"):
            some = of(found, lam, balance)
            accuracies = [run["metrics"]["overall"] for run in some]
            sgd = [run["metrics"]["overall"] for run in of(found, "inf", balance)]
            gains = [a - b for a, b in zip(accuracies, sgd, strict=True)]
            share = np.mean([e["effective"] for run in some for e in run["epochs"]])
            cells += [report.mean_std(accuracies), report.mean_std(gains), f"{share:.2f}"]
        every.append(cells)
    header = ["λ", "accuracy", "less SGD's", "share of p"]
    if not noisy:
        header += ["with CB weights", "less SGD's with them", "share of p"]
    seeds = ", ".join(map(str, result["seeds"]))
    title = f"{task}: test accuracy (%), mean ± deviation over seeds {seeds}"
    return "\n\n".join([title, report.markdown(["", *names], systems),
                        report.markdown(header, every)])  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    # fmt: off
    parser.add_argument("--tasks", nargs="+", choices=TASKS, metavar="NAME",
                        default=list(TASKS)[:3],
                        help=f"of {', '.join(TASKS)}; default: the digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--output-dir", type=Path, default=Path("runs/lam_study"))
    parser.add_argument("--lams", type=float, nargs="+", default=LAMS,
                        help="|λ|, the grid among them")
    parser.add_argument("--targets", type=float, nargs="+", default=TARGETS,
                        help=f"effective shares, {DEFAULT_TARGET:g} among them")
    parser.add_argument("--rates", type=float, nargs="*", default=RATES,
                        help="rates to try beside the default, at targets 0.8 and 0.6")
    # fmt: on
    args, args.words = parser.parse_known_args(argv)
    if not set(GRID) <= set(args.lams):
        parser.error(f"--lams must hold the grid {GRID}, got {args.lams}")
    if DEFAULT_TARGET not in args.targets:
        parser.error(f"--targets must hold {DEFAULT_TARGET:g}, got {args.targets}")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    torch.set_num_threads(1)  # the networks are too small to share
    results = {task: summarise(train_all(args, task), task, args) for task in args.tasks}
    text = "\n\n".join(table(task, result) for task, result in results.items())
    print("\n" + text)
    (args.output_dir / "lam_study.md").write_text(text + "\n")
    report.write_json(args.output_dir / "lam_study.json", results)
    lam_plots.plot(results, args.output_dir / "lam_study.png", DEFAULT_TARGET)
    return results


if __name__ == "__main__":
    main()
