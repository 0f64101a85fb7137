"""λ found from a target, against λ as a number: is there one target that needs no tuning?

    python recipes/lam_study.py                                   # digits, long-tailed and noisy
    python recipes/lam_study.py --data cifar10 --data-dir data    # long-tailed CIFAR-10, cut down

Stage one is SGD. Stage two is begun from it with every λ of LAMS, with EffectiveSampleSize at every
one of TARGETS (λ < 0 and noisy=True for noisy labels), and with SGD; on long-tailed data all of it
again with class-balanced weights. λ is the only difference: lr and weight decay are SGD's.

The λ "chosen by grid" is the one of the paper's GRID with the best balanced accuracy, as a mean
over the seeds, on a split of the training set. The default target is chosen by nothing. The test
set is read once for each trained model, at its end. Runs that are finished are not repeated: after
a kill, give the same command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lam_plots
import numpy as np
import report
import torch
from methods import Method
from torch import Tensor
from tqdm import tqdm

import comparison
import digits_lt
import torch_absgd as ta
from comparison import Problem, Training

GRID = (0.1, 1.0, 5.0, 10.0)  # the paper's {0.1, 1, 10} and {1, 5, 10}
LAMS = (10.0, 5.0, 2.0, 1.0, 0.5, 0.25, 0.1)
TARGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
DEFAULT_TARGET = 0.6
RATES, RATE_TARGETS = (0.3, 1.0), (0.8, 0.6)  # beside the default rate

DIGITS = {"dataset": "digits", "imbalance_ratio": 50.0, "epochs": 40, "stage_two": 20,
          "batch_size": 64, "device": "cpu"}  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {  # the arguments of comparison.digits and comparison.cifar
    "long-tailed": {**DIGITS, "noisy": False},
    "long-tailed, lr kept": {**DIGITS, "noisy": False},
    "noisy": {**DIGITS, "noisy": True},
    "cifar10-lt": {"dataset": "cifar10"},
}
SGD_OF = {"long-tailed": "long-tailed", "long-tailed, lr kept": "long-tailed", "noisy": "noisy"}

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
    given = {"lr": args.lr, "lr_factor": 0.1, "weight_decay": args.weight_decay}
    if task in SGD_OF:
        sgd = digits_lt.SETTINGS[SGD_OF[task]]["SGD"]
        factor = sgd.lr_factor if task.endswith("kept") else 0.1
        given = {"lr": sgd.lr, "lr_factor": factor, "weight_decay": sgd.weight_decay}
    lams = [number(lam, noisy) for lam in GRID] if validate else every_lam(args, noisy)
    for class_balance in ("none",) if validate or noisy else ("none", "drw"):
        for lam in lams:
            yield {**given, "lam": lam, "class_balance": class_balance}


def make_problem(args: argparse.Namespace, task: str, seed: int, validate: bool) -> Problem:
    given = argparse.Namespace(**{**vars(args), **TASKS[task]})
    make = comparison.cifar if given.dataset == "cifar10" else comparison.digits
    return make(given, seed, validate)


def train_all(args: argparse.Namespace, task: str, bar: tqdm) -> list[Run]:
    """All runs of a task, seed by seed; each is a file."""
    folder, runs = args.output_dir / task.replace(", ", "-").replace(" ", "_"), []
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


def of(
    runs: Sequence[Run], lam: str, class_balance: str = "none", split: str = "test"
) -> list[Run]:
    def is_it(run: Run) -> bool:
        setting = run["setting"]
        chosen = (setting["lam"], setting["class_balance"], run["split"])
        return chosen == (lam, class_balance, split)

    return [run for run in runs if is_it(run)]


def balanced(runs: Sequence[Run]) -> float:
    return float(np.mean([run["metrics"]["balanced"] for run in runs]))


def summarise(runs: list[Run], task: str, args: argparse.Namespace) -> dict[str, Any]:
    noisy = task == "noisy"
    grid = [number(lam, noisy) for lam in GRID]
    chosen = max(grid, key=lambda lam: balanced(of(runs, lam, split="validation")))
    worst = min(grid, key=lambda lam: balanced(of(runs, lam)))
    systems = {"SGD": "inf", f"target {DEFAULT_TARGET:g}, untuned": rule(DEFAULT_TARGET, noisy)}
    for target in (t for t in args.targets if t in RATE_TARGETS and 1 in args.rates):
        systems[f"target {target:g}, each batch's own λ"] = rule(target, noisy, rate=1)
    systems[f"λ = {chosen}, chosen by grid"] = chosen
    systems[f"λ = {worst}, the grid's worst"] = worst
    return {
        "seeds": list(args.seeds),
        "lams": every_lam(args, noisy),
        "noisy": noisy,
        "class_counts": of(runs, "inf")[0]["class_counts"],
        "setting": {k: runs[0]["setting"][k] for k in ("lr", "lr_factor", "weight_decay")},
        "systems": systems,
        "runs": runs,
    }


def table(task: str, result: dict[str, Any]) -> str:
    """The systems by name; then every λ and target, with class-balanced weights too. Differences
    to SGD are taken seed by seed; shares are effective ones, means over stage two."""
    runs, noisy = result["runs"], result["noisy"]
    names = ["overall"] if noisy else ["overall", "many", "medium", "few"]
    systems = [
        [title, *(report.mean_std([r["metrics"][n] for r in of(runs, lam)]) for n in names)]
        for title, lam in result["systems"].items()
    ]
    every = []
    for lam in result["lams"]:
        cells = [lam]
        for class_balance in ("none",) if noisy else ("none", "drw"):
            some = of(runs, lam, class_balance)
            accuracies = [run["metrics"]["overall"] for run in some]
            sgd = [run["metrics"]["overall"] for run in of(runs, "inf", class_balance)]
            gains = [a - b for a, b in zip(accuracies, sgd, strict=True)]
            shares = [e["effective_with_class_weight"] for run in some for e in run["epochs"]]
            cells += [report.mean_std(accuracies), report.mean_std(gains), f"{np.mean(shares):.2f}"]
        every.append(cells)
    header = ["λ", "accuracy", "less SGD's", "share of p"]
    if not noisy:
        header += ["with CB weights", "less SGD's with them", "share of w·p"]
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
    parser.add_argument("--lams", type=float, nargs="+", default=LAMS,
                        help="|λ|, the grid among them")
    parser.add_argument("--targets", type=float, nargs="+", default=TARGETS,
                        help=f"effective shares, {DEFAULT_TARGET:g} among them")
    parser.add_argument("--rates", type=float, nargs="*", default=RATES,
                        help="rates to try beside the default, at targets 0.8 and 0.6")
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
    parser = build_parser()
    args = parser.parse_args(argv)
    if not set(GRID) <= set(args.lams):
        parser.error(f"--lams must hold the grid {GRID}, got {args.lams}")
    if DEFAULT_TARGET not in args.targets:
        parser.error(f"--targets must hold {DEFAULT_TARGET:g}, got {args.targets}")
    torch.set_num_threads(1)  # the networks are too small to share
    tasks = list(SGD_OF) if args.data == "digits" else ["cifar10-lt"]
    total = sum(len(list(settings(args, task, v))) for task in tasks for v in (True, False))
    results = {}
    with tqdm(total=total * len(args.seeds), desc="training") as bar:
        for task in tasks:
            results[task] = summarise(train_all(args, task, bar), task, args)
    text = "\n\n".join(table(task, result) for task, result in results.items())
    print("\n" + text)
    (args.output_dir / f"{args.data}.md").write_text(text + "\n")
    report.write_json(args.output_dir / f"{args.data}.json", results)
    lam_plots.plot(results, args.output_dir / f"{args.data}.png", DEFAULT_TARGET)
    return results


if __name__ == "__main__":
    main()
