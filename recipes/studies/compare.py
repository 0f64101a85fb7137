"""ABSGD beside the systems that it is compared with, on your data, in one command.

    python recipes/studies/compare.py run --select                     # long-tailed digits, minutes
    python recipes/studies/compare.py run --methods absgd meta --select --data cifar10 \
        --imbalance lt --data-dir data
    python recipes/studies/compare.py cost --data cifar10 --data-dir data   # of a step alone
    python recipes/studies/compare.py table runs/compare runs/mine     # finished runs as one table

Options that this file does not know are train.py's, the same for every run. A run prints accuracy
over seeds, the cost of a step relative to SGD's, extra memory and extra data needed, and draws
accuracy against cost. With --select, settings are chosen first, with as many trials for every
method, on a split of the training set; the test set is read once, at the end. Finished runs are
kept: after a kill, give the same command.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes, where this is a script
import presets
import train
from baselines.methods import METHODS
from engine import options, report
from studies import comparison_report, runs, step_cost

Setting = dict[str, Any]

# What --select may choose for every method, beside the method's own (baselines/methods.py).
COMMON = {
    "digits": {"lr": (0.03, 0.1, 0.3), "lr_factor": (1.0, 0.1), "weight_decay": (1e-4, 1e-3)},
    "other": {"lr": (0.1,), "lr_factor": (1.0, 0.3, 0.1, 0.03), "weight_decay": (5e-4,)},
}
DIGITS = ["--data", "digits", "--imbalance", "lt", "--imbalance-ratio", "20", "--epochs", "40",
          "--stage-two", "20", "--lr-milestones", "20", "--batch-size", "64", "--warmup-epochs",
          "0"]  # fmt: skip
NOT_FOR_NOISE = {"meta", "meta-da"}  # their held-out labels would be noisy too
ONLY_FOR_NOISE = {"exponentiated"}


def build_parser() -> argparse.ArgumentParser:
    parser = options.Parser(__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="finished runs of train.py as one table and plot")
    table.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                       help="results.json, or a folder that holds some")  # fmt: skip
    table.add_argument(
        "--output-dir", type=Path, default=Path("runs/table"), help="of the table and the plot"
    )
    run = argparse.ArgumentParser(add_help=False)
    # fmt: off
    run.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME",
                     help="default: all that the data suit; " + ", ".join(METHODS))
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs")
    run.add_argument("--select", action="store_true",
                     help="choose settings first; without it --settings, or the grids' middles")
    run.add_argument("--trials", type=int, default=12, help="of each method in --select")
    run.add_argument("--select-seeds", type=int, nargs="+", default=[100, 101, 102],
                     help="seeds of the trials")
    run.add_argument("--held-out-part", type=float, default=0.25, metavar="FRACTION",
                     help="of the clean training set, to judge trials by")
    run.add_argument("--settings", type=Path, help="settings.json of another run")
    run.add_argument("--rounds", type=int, default=30, help="of measuring the cost of a step")
    run.add_argument("--output-dir", type=Path, default=Path("runs/compare"),
                     help="of runs, tables and pictures")
    # fmt: on
    commands.add_parser("run", parents=[run], help="train methods side by side")
    commands.add_parser("cost", parents=[run], help="only measure what a step of each costs")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args, words = parser.parse_known_args(argv)
    if args.command == "table":
        return parser.parse_args(argv)
    given = train.build_parser().parse_known_args([*words, "--output-dir", "-"])[0]
    args.words = words if given.data or given.preset else [*DIGITS, *words]
    args.common = train.parse([*args.words, "--output-dir", "-"])
    args.kind = "digits" if args.common.data == "digits" else "other"
    if not 0 < args.common.stage_two < args.common.epochs:
        parser.error(f"--stage-two must be in (0, {args.common.epochs})")
    noisy = bool(args.common.label_noise)
    unsuited = NOT_FOR_NOISE if noisy else ONLY_FOR_NOISE
    if args.methods is None:
        args.methods = [name for name in METHODS if name not in unsuited]
    if unsuited & set(args.methods):
        parser.error(f"{', '.join(sorted(unsuited & set(args.methods)))}: not for this task")
    args.methods = list(dict.fromkeys(["sgd", *args.methods]))  # what cost is relative to
    return args


# ---- settings


def grid(args: argparse.Namespace, name: str) -> list[Setting]:
    """All that --select may choose for a method; λ < 0 for noisy labels."""
    choices = {**COMMON[args.kind], **METHODS[name].own}
    if args.common.label_noise and "lam" in choices and name != "recover":
        choices["lam"] = tuple(-lam for lam in choices["lam"])
    return [dict(zip(choices, v, strict=True)) for v in itertools.product(*choices.values())]


def candidates(args: argparse.Namespace, name: str) -> list[Setting]:
    """--trials settings drawn from the grid; all of it, if it has no more."""
    settings = grid(args, name)
    return random.Random(0).sample(settings, min(args.trials, len(settings)))


def words_of(args: argparse.Namespace, name: str, setting: Setting, seed: int) -> list[str]:
    """The run of a method at a setting, as train.py's options."""
    return [*args.words, "--method", name, *presets.flags(setting), "--seed", str(seed)]


def run_one(
    args: argparse.Namespace, name: str, setting: Setting, seed: int, folder: Path, *more: str
) -> runs.Results:
    """Its results; a run that diverged has none but that it did."""
    words = [*words_of(args, name, setting, seed), *more]
    said = {"method": METHODS[name].title, "diverged": False}
    try:
        results = runs.run(words, folder, args.output_dir / "shared")
    except FloatingPointError:
        metrics = dict.fromkeys(("overall", "balanced", "many", "medium", "few"), 0.0)
        results = {"metrics": metrics, "config": {"seed": seed}, "split": "test"}
        said["diverged"] = True
    return {**results, **said}


def select(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every method's trials, best first, by balanced accuracy on a split of the training set."""
    trials: dict[str, list[dict[str, Any]]] = {}
    held_out = ("--validate", str(args.held_out_part), "--validate-clean")
    for name in args.methods:
        tried = []
        for i, setting in enumerate(candidates(args, name)):
            accuracies = []
            for seed in args.select_seeds:
                folder = args.output_dir / "trials" / name / f"{i}-seed{seed}"
                result = run_one(args, name, setting, seed, folder, *held_out)
                accuracies.append(result["metrics"]["balanced"])
            tried.append({"setting": setting, "validation": accuracies})
        trials[name] = sorted(tried, key=lambda trial: -np.mean(trial["validation"]))
        report.write_json(args.output_dir / "trials" / f"{name}.json", trials[name])
    return trials


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


# ---- commands


def measured(args: argparse.Namespace, settings: dict[str, Setting]) -> dict[str, Any]:
    seed = args.seeds[0]
    words = {name: words_of(args, name, setting, seed) for name, setting in settings.items()}
    return step_cost.measure(words, args.rounds)


def run(args: argparse.Namespace) -> dict[str, Any]:
    args.output_dir.mkdir(parents=True, exist_ok=True)
    settings = chosen_settings(args)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in settings}
    for seed, name in itertools.product(args.seeds, settings):
        folder = args.output_dir / name / f"seed{seed}"
        found[name].append(run_one(args, name, settings[name], seed, folder))
    results = {"settings": settings, "cost": measured(args, settings), "runs": found}
    report.write_json(args.output_dir / "comparison.json", results)
    text = comparison_report.side_by_side(results)
    (args.output_dir / "comparison.md").write_text(text + "\n")
    comparison_report.plot_cost(results, args.output_dir / "accuracy_and_cost.png")
    print(f"\n{text}\n\nwritten to {args.output_dir}: comparison.md, accuracy_and_cost.png, …")
    return results


def cost(args: argparse.Namespace) -> str:
    settings = {name: grid(args, name)[len(grid(args, name)) // 2] for name in args.methods}
    text = comparison_report.costs(measured(args, settings))
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
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
