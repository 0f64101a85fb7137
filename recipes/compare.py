"""ABSGD beside the systems that it is compared with, on your data, in one command.

    python recipes/compare.py run --select                             # long-tailed digits, minutes
    python recipes/compare.py run --dataset cifar10 --data-dir data --select --methods absgd meta
    python recipes/compare.py cost --dataset cifar10 --data-dir data   # of a step alone
    python recipes/compare.py table runs/sweep runs/compare            # finished runs as one table

A run prints accuracy over seeds, the cost of a step relative to SGD's, extra memory and extra data
needed, and draws accuracy against cost. With --select, settings are chosen first, with as many
trials for every method, on a split of the training set; the test set is read once, at the end.
Finished runs are kept: after a kill, give the same command.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import comparison
import comparison_report
import models
import report
import step_cost
from methods import METHODS, Setting

# What --select may choose for every method, beside the method's own (methods.py).
COMMON = {
    "digits": {"lr": (0.03, 0.1, 0.3), "lr_factor": (1.0, 0.1), "weight_decay": (1e-4, 1e-3)},
    "cifar": {"lr": (0.1,), "lr_factor": (1.0, 0.3, 0.1, 0.03), "weight_decay": (5e-4,)},
}
DEFAULTS = {
    "digits": {"epochs": 40, "stage_two": 20, "batch_size": 64, "imbalance_ratio": 20.0},
    "cifar": {"epochs": 200, "stage_two": 160, "batch_size": 128, "imbalance_ratio": 100.0},
}
NOT_FOR_NOISE = {"meta", "meta-da"}  # their held-out labels would be noisy too
ONLY_FOR_NOISE = {"exponentiated"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="finished runs, of any recipe, as one table and plot")
    table.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                       help="results.json, or a folder that holds some")  # fmt: skip
    table.add_argument("--output-dir", type=Path, default=Path("runs/table"))
    run = argparse.ArgumentParser(add_help=False)
    # fmt: off
    run.add_argument("--dataset", choices=("digits", "cifar10", "cifar100"), default="digits")
    run.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME",
                     help="default: all that the data suit; " + ", ".join(METHODS))
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--select", action="store_true",
                     help="choose settings first; without it --settings, or the grids' middles")
    run.add_argument("--trials", type=int, default=12, help="of each method in --select")
    run.add_argument("--select-seeds", type=int, nargs="+", default=[100, 101, 102],
                     help="seeds of the trials")
    run.add_argument("--settings", type=Path, help="settings.json of another run")
    run.add_argument("--rounds", type=int, default=30, help="of measuring the cost of a step")
    run.add_argument("--imbalance-ratio", type=float)
    run.add_argument("--noisy", action="store_true",
                     help="digits: balanced, 40 %% of the labels random; ABSGD with lambda < 0")
    run.add_argument("--data-dir", type=Path, default=Path("data"))
    run.add_argument("--arch", choices=models.ARCHS, default="resnet32")
    run.add_argument("--limit", type=int, help="CIFAR: images of the largest class")
    run.add_argument("--shrink", type=int, default=1, help="CIFAR: average so many pixels a side")
    run.add_argument("--epochs", type=int)
    run.add_argument("--stage-two", type=int, metavar="EPOCH", help="its first epoch")
    run.add_argument("--batch-size", type=int)
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run.add_argument("--output-dir", type=Path, default=Path("runs/compare"))
    # fmt: on
    commands.add_parser("run", parents=[run], help="train methods side by side")
    commands.add_parser("cost", parents=[run], help="only measure what a step of each costs")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command == "table":
        return args
    args.kind = "digits" if args.dataset == "digits" else "cifar"
    for name, value in DEFAULTS[args.kind].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not 0 < args.stage_two < args.epochs:
        parser.error(f"--stage-two must be in (0, {args.epochs}), got {args.stage_two}")
    if args.noisy and args.kind != "digits":
        parser.error("--noisy is for --dataset digits")
    unsuited = NOT_FOR_NOISE if args.noisy else ONLY_FOR_NOISE
    if args.methods is None:
        args.methods = [name for name in METHODS if name not in unsuited]
    if unsuited & set(args.methods):
        parser.error(f"{', '.join(sorted(unsuited & set(args.methods)))}: not for this task")
    args.methods = list(dict.fromkeys(["sgd", *args.methods]))  # what cost is relative to
    return args


def problem(args: argparse.Namespace, seed: int, validate: bool) -> comparison.Problem:
    make = comparison.digits if args.kind == "digits" else comparison.cifar
    return make(args, seed, validate)


# ---- settings


def grid(args: argparse.Namespace, name: str) -> list[Setting]:
    """All that --select may choose for a method; λ < 0 for noisy labels."""
    choices = {**COMMON[args.kind], **METHODS[name].own}
    if args.noisy and "lam" in choices and name != "recover":
        choices["lam"] = tuple(-lam for lam in choices["lam"])
    return [dict(zip(choices, v, strict=True)) for v in itertools.product(*choices.values())]


def candidates(args: argparse.Namespace, name: str) -> list[Setting]:
    """--trials settings drawn from the grid; all of it, if it has no more."""
    settings = grid(args, name)
    return random.Random(0).sample(settings, min(args.trials, len(settings)))


def select(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every method's trials, best first, by balanced accuracy on a split of the training set."""
    trials: dict[str, list[dict[str, Any]]] = {}
    problems = {seed: problem(args, seed, validate=True) for seed in args.select_seeds}
    with tqdm(total=sum(len(candidates(args, n)) for n in args.methods), disable=None) as bar:
        for name in args.methods:
            path = args.output_dir / "trials" / f"{name}.json"
            keys = [of.key for of in problems.values()]
            tried = read_trials(path, candidates(args, name), keys)
            for setting in candidates(args, name)[len(tried) :]:
                bar.set_description(f"selecting, {name}")
                runs = [run_one(args, problems[s], name, setting, s) for s in args.select_seeds]
                accuracies = [0 if r["diverged"] else r["metrics"]["balanced"] for r in runs]
                tried.append({"setting": setting, "validation": accuracies, "of": keys})
                path.parent.mkdir(parents=True, exist_ok=True)
                report.write_json(path, tried)
                bar.update()
            trials[name] = sorted(tried, key=lambda trial: -np.mean(trial["validation"]))
    return trials


def read_trials(
    path: Path, settings: list[Setting], keys: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Those that an earlier start of the same command made.

    Raises:
        ValueError: they are of another command.
    """
    if not path.exists():
        return []
    tried = json.loads(path.read_text())[: len(settings)]
    for trial, setting in zip(tried, settings, strict=False):
        if trial["setting"] != setting or trial["of"] != keys:
            raise ValueError(f"{path} is of other options: name another --output-dir")
    return tried


def chosen_settings(args: argparse.Namespace) -> dict[str, Setting]:
    if args.select:
        settings = {name: trials[0]["setting"] for name, trials in select(args).items()}
    elif args.settings:
        settings = json.loads(args.settings.read_text())
        missing = [name for name in args.methods if name not in settings]
        if missing:
            raise ValueError(f"{args.settings} has no settings of {', '.join(missing)}")
    else:
        settings = {n: grid(args, n)[len(grid(args, n)) // 2] for n in args.methods}
    report.write_json(args.output_dir / "settings.json", settings)
    return {name: settings[name] for name in args.methods}


# ---- runs


def run_one(
    args: argparse.Namespace, of: comparison.Problem, name: str, setting: Setting, seed: int
) -> dict[str, Any]:
    """Trains and evaluates; the results in the form of the engine's results.json."""
    shared = args.output_dir / "shared"
    training = comparison.train(of, METHODS[name], setting, seed, shared)
    return {
        "method": METHODS[name].title,
        "split": of.split,
        "metrics": training.metrics(),
        "class_counts": of.train.class_counts(),
        "groups": of.groups(of.train.class_counts()),
        "diverged": training.diverged,
        "held_out": 0 if training.held_out is None else len(training.held_out),
        "config": {**of.key, **setting, "seed": seed},
        "torch": torch.__version__,
    }


def run_or_read(args: argparse.Namespace, name: str, setting: Setting, seed: int) -> dict[str, Any]:
    path = args.output_dir / name / f"seed{seed}" / "results.json"
    of = problem(args, seed, validate=False)
    config = {**of.key, **setting, "seed": seed}
    if path.exists():
        results = json.loads(path.read_text())
        if results["config"] != config:
            raise ValueError(f"{path} is of other options: name another --output-dir")
        return results
    results = run_one(args, of, name, setting, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    report.write_json(path, results)
    return results


def run(args: argparse.Namespace) -> dict[str, Any]:
    args.output_dir.mkdir(parents=True, exist_ok=True)
    settings = chosen_settings(args)
    cost = step_cost.measure(problem(args, args.seeds[0], validate=False), settings, args.rounds)
    runs: dict[str, list[dict[str, Any]]] = {}
    with tqdm(total=len(settings) * len(args.seeds), disable=None) as bar:
        for seed, name in itertools.product(args.seeds, settings):
            bar.set_description(f"{name}, seed {seed}")
            runs.setdefault(name, []).append(run_or_read(args, name, settings[name], seed))
            bar.update()
    results = {"settings": settings, "cost": cost, "runs": runs}
    report.write_json(args.output_dir / "comparison.json", results)
    text = comparison_report.side_by_side(results)
    (args.output_dir / "comparison.md").write_text(text + "\n")
    comparison_report.plot_cost(results, args.output_dir / "accuracy_and_cost.png")
    print(f"\n{text}\n\nwritten to {args.output_dir}: comparison.md, accuracy_and_cost.png, …")
    return results


def cost(args: argparse.Namespace) -> str:
    settings = {name: grid(args, name)[len(grid(args, name)) // 2] for name in args.methods}
    of = problem(args, args.seeds[0], validate=False)
    text = comparison_report.costs(step_cost.measure(of, settings, args.rounds))
    print(text)
    return text


def table(args: argparse.Namespace) -> str:
    found = comparison_report.find_runs(args.runs)
    text = comparison_report.table(found)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "table.md").write_text(text + "\n")
    comparison_report.plot_table(found, args.output_dir / "table.png")
    print(f"{text}\n\nwritten to {args.output_dir}: table.md, table.png")
    return text


def main(argv: Sequence[str] | None = None) -> Any:
    args = parse(argv)
    return {"run": run, "cost": cost, "table": table}[args.command](args)


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
