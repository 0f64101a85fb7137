"""λ found from a target, against λ as a number: is there one target that needs no tuning?

    python recipes/lam_study.py                                   # digits, long-tailed and noisy
    python recipes/lam_study.py --data cifar10 --data-dir data    # long-tailed CIFAR-10, cut down

Stage one is SGD. Stage two is begun from it with every λ of LAMS, with EffectiveSampleSize at every
one of TARGETS (λ < 0 and noisy=True for noisy labels), and with SGD; on long-tailed data all of it
again with class-balanced weights. λ is the only difference: lr and weight decay are SGD's.

The λ "chosen by grid" is the one of the paper's GRID with the best balanced accuracy, as a mean over
the seeds, on a split of the training set. The default target is chosen by nothing. The test set is
read once for each trained model, at its end. Runs that are finished are not repeated: after a kill,
give the same command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import comparison
import digits_lt
import lam_plots
import numpy as np
import report
import torch
from comparison import Problem, Training
from methods import Method
from torch import Tensor
from tqdm import tqdm

import torch_absgd as ta

GRID = (0.1, 1.0, 5.0, 10.0)  # the paper's {0.1, 1, 10} and {1, 5, 10}
LAMS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
TARGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
DEFAULT_TARGET = 0.6

DIGITS = {"dataset": "digits", "imbalance_ratio": 50.0, "epochs": 40, "stage_two": 20,
          "batch_size": 64, "device": "cpu"}  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {  # the arguments of comparison.digits and comparison.cifar
    "long-tailed": {**DIGITS, "noisy": False},
    "noisy": {**DIGITS, "noisy": True},
    "cifar10-lt": {"dataset": "cifar10"},
}

Run = dict[str, Any]


def lam_text(value: float, kind: str, noisy: bool) -> str:
    """--lam for a target (kind "ess") or for |λ| ("lam")."""
    if kind == "ess":
        return f"ess:{value:g}" + (":noisy" if noisy else "")
    return f"{-value if noisy else value:g}"


# ---- one run


def effective_share(weights: Tensor) -> Tensor:
    """(Σp)²/(B Σp²); 0 where all weights are 0: λ so small that they underflow after a batch with
    larger losses."""
    p = weights.double()
    return (p.sum().square() / p.square().sum() / len(p)).nan_to_num()


def train(problem: Problem, setting: dict[str, Any], seed: int, folder: Path) -> Run:
    """Both stages; metrics, and for each epoch of stage two the λ at its end, the mean loss, and
    the mean effective share of the weights p and of w_y·p, what a sample's gradient carries."""
    method = Method("", {"optimizer": "absgd", "class_balance": setting["class_balance"]})
    training = Training(problem, method, setting, seed)
    training.stage_one(folder)
    training.enter_stage_two()
    run, class_weight = training.run, torch.ones(len(training.counts))
    if setting["class_balance"] != "none":
        class_weight = ta.class_balanced_weights(training.counts)
    epochs = []
    run.model.train()
    while run.epoch < run.args.epochs:
        run.begin_epoch()
        run.task.batches.start(run.epoch)
        shares = []
        for images, targets in run.task.loader:
            training.step(images, targets)
            p = run.optimizer.weights
            shares.append(torch.stack([effective_share(q) for q in (p, class_weight[targets] * p)]))
        share, share_with_class_weight = torch.stack(shares).mean(0).tolist()
        epochs.append(
            {
                "epoch": run.epoch,
                "lam": float(run.optimizer.lam),
                "loss": run.meter.read()["loss"],
                "effective": share,
                "effective_with_class_weight": share_with_class_weight,
            }
        )
        run.epoch += 1
    return {
        "setting": setting,
        "seed": seed,
        "split": problem.split,
        "metrics": training.metrics(),
        "class_counts": problem.train.class_counts(),
        "epochs": epochs,
    }


def settings(args: argparse.Namespace, task: str, validate: bool) -> Iterator[dict[str, Any]]:
    """What is trained with each seed: on the validation split, the grid alone."""
    noisy = task == "noisy"
    if task in digits_lt.SETTINGS:
        sgd = digits_lt.SETTINGS[task]["SGD"]
        given = {"lr": sgd.lr, "lr_factor": sgd.lr_factor, "weight_decay": sgd.weight_decay}
    else:
        given = {"lr": args.lr, "lr_factor": 0.1, "weight_decay": args.weight_decay}
    numbers = [lam_text(lam, "lam", noisy) for lam in (GRID if validate else LAMS)]
    found = [] if validate else [lam_text(target, "ess", noisy) for target in TARGETS]
    balances = ("none",) if validate or noisy else ("none", "drw")
    for class_balance in balances:
        for lam in [*([] if validate else ["inf"]), *numbers, *found]:
            yield {**given, "lam": lam, "class_balance": class_balance}


def make_problem(args: argparse.Namespace, task: str, seed: int, validate: bool) -> Problem:
    given = argparse.Namespace(**{**vars(args), **TASKS[task]})
    make = comparison.cifar if given.dataset == "cifar10" else comparison.digits
    return make(given, seed, validate)


def train_all(args: argparse.Namespace, task: str, bar: tqdm) -> list[Run]:
    """All runs of a task, seed by seed; each is a file."""
    folder, runs = args.output_dir / task, []
    folder.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for validate in (True, False):
            problem = None
            for setting in settings(args, task, validate):
                words = ["validate" if validate else "test", f"seed{seed}", setting["lam"]]
                name = "-".join([*words, setting["class_balance"]]).replace(":", "_")
                path = folder / f"{name}.json"
                if not path.exists():
                    problem = problem or make_problem(args, task, seed, validate)
                    run = train(problem, setting, seed, folder / "stage_one")
                    report.write_json(path, run)
                runs.append(json.loads(path.read_text()))
                bar.update()
    return runs


# ---- what the runs say


def of(runs: Sequence[Run], lam: str, class_balance: str = "none", split: str = "test") -> list[Run]:
    def is_it(run: Run) -> bool:
        setting = run["setting"]
        chosen = (setting["lam"], setting["class_balance"], run["split"])
        return chosen == (lam, class_balance, split)

    return [run for run in runs if is_it(run)]


def balanced(runs: Sequence[Run]) -> float:
    return float(np.mean([run["metrics"]["balanced"] for run in runs]))


def summarise(runs: list[Run], task: str, seeds: Sequence[int]) -> dict[str, Any]:
    noisy = task == "noisy"
    grid = [lam_text(lam, "lam", noisy) for lam in GRID]
    chosen = max(grid, key=lambda lam: balanced(of(runs, lam, split="validation")))
    worst = min(grid, key=lambda lam: balanced(of(runs, lam)))
    default = lam_text(DEFAULT_TARGET, "ess", noisy)
    return {
        "seeds": list(seeds),
        "noisy": noisy,
        "class_counts": of(runs, "inf")[0]["class_counts"],
        "setting": {k: v for k, v in runs[0]["setting"].items() if k not in ("lam", "class_balance")},
        "systems": {
            "SGD": "inf",
            f"target {DEFAULT_TARGET:g}, untuned": default,
            f"λ = {chosen}, chosen by grid": chosen,
            f"λ = {worst}, the grid's worst": worst,
        },
        "runs": runs,
    }


def table(task: str, result: dict[str, Any]) -> str:
    """The systems by name; then every λ and target, with class-balanced weights too."""
    runs, noisy = result["runs"], result["noisy"]
    names = ["overall"] if noisy else ["overall", "many", "medium", "few"]
    systems = [
        [title, *(report.mean_std([r["metrics"][n] for r in of(runs, lam)]) for n in names)]
        for title, lam in result["systems"].items()
    ]
    numbers = [lam_text(lam, "lam", noisy) for lam in reversed(LAMS)]
    targets = [lam_text(target, "ess", noisy) for target in TARGETS]
    every = []
    for lam in ["inf", *numbers, *targets]:
        cells = [lam]
        for class_balance in ("none",) if noisy else ("none", "drw"):
            some = of(runs, lam, class_balance)
            accuracies = [run["metrics"]["overall"] for run in some]
            shares = [e["effective_with_class_weight"] for run in some for e in run["epochs"]]
            cells += [report.mean_std(accuracies), f"{np.mean(shares):.2f}"]
        every.append(cells)
    header = ["λ", "accuracy", "effective share"]
    if not noisy:
        header += ["accuracy with CB weights", "effective share of w·p"]
    seeds = ", ".join(map(str, result["seeds"]))
    return "\n\n".join(
        [
            f"{task}: test accuracy (%), mean ± deviation over seeds {seeds}",
            report.markdown(["", *names], systems),
            report.markdown(header, every),
        ]
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("--data", choices=("digits", "cifar10"), default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--output-dir", type=Path, default=Path("runs/lam_study"))
    cifar = parser.add_argument_group("CIFAR-10")
    cifar.add_argument("--data-dir", type=Path, default=Path("data"), help="as cifar_lt.py's")
    cifar.add_argument("--imbalance-ratio", type=float, default=50.0)
    cifar.add_argument("--limit", type=int, default=1000, help="images of the largest class")
    cifar.add_argument("--shrink", type=int, default=2, help="2: 16×16 pixels")
    cifar.add_argument("--arch", default="resnet8")
    cifar.add_argument("--epochs", type=int, default=26)
    cifar.add_argument("--stage-two", type=int, default=20, metavar="EPOCH")
    cifar.add_argument("--batch-size", type=int, default=64)
    cifar.add_argument("--lr", type=float, default=0.1)
    cifar.add_argument("--weight-decay", type=float, default=5e-4)
    cifar.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    # fmt: on
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)  # the networks are too small to share
    tasks = ["long-tailed", "noisy"] if args.data == "digits" else ["cifar10-lt"]
    total = sum(len(list(settings(args, task, v))) for task in tasks for v in (True, False))
    results = {}
    with tqdm(total=total * len(args.seeds), desc="training") as bar:
        for task in tasks:
            results[task] = summarise(train_all(args, task, bar), task, args.seeds)
    text = "\n\n".join(table(task, result) for task, result in results.items())
    print("\n" + text)
    (args.output_dir / f"{args.data}.md").write_text(text + "\n")
    report.write_json(args.output_dir / f"{args.data}.json", results)
    lam_plots.plot(results, args.output_dir / f"{args.data}.png", DEFAULT_TARGET)
    return results


if __name__ == "__main__":
    main()
