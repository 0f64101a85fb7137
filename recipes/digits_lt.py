"""ABSGD against SGD on scikit-learn's digits, in under a minute on a CPU. Nothing is downloaded.

1. long-tailed: the training set keeps N images of digit 0 and N/50 of digit 9, in between
   geometrically. SGD, against SGD followed by ABSGD with λ > 0 (two stages).
2. noisy: the whole training set, 40 % of its labels drawn at random. SGD, against SGD followed by
   ABSGD with λ < 0.

Both methods train for the same two stages, and may lower lr at the second. Their lr, weight decay
and λ were found by --select: as many trials for SGD as for ABSGD, judged on a part of the training
set. The test set is read once, at the end.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR
from tqdm import tqdm

import torch_absgd as ta
from data.noise import with_label_noise
from engine import report

CLASSES, BATCH_SIZE, GAMMA = 10, 64, 0.9


@dataclass(frozen=True)
class Setting:
    """Hyper-parameters of one training run; lam = inf is SGD, lr_factor is stage two's."""

    lr: float
    lr_factor: float
    weight_decay: float
    lam: float
    stage_two: int
    epochs: int


@dataclass(frozen=True)
class Split:
    images: Tensor
    targets: Tensor


# lr, lr_factor, weight decay and λ: the best of each method's trials in --select.
SETTINGS = {
    "long-tailed": {
        "SGD": Setting(0.2, 1, 1e-4, math.inf, stage_two=20, epochs=40),
        "ABSGD": Setting(0.2, 0.03, 1e-2, 0.05, stage_two=20, epochs=40),
    },
    "noisy": {
        "SGD": Setting(0.2, 0.1, 1e-2, math.inf, stage_two=20, epochs=40),
        "ABSGD": Setting(0.1, 0.1, 1e-4, -1.0, stage_two=20, epochs=40),
    },
}


def load_splits() -> tuple[Split, Split]:
    """The 1,797 digits (8×8, scaled to [0, 1]) as a training pool of 60 % and a test set."""
    images, targets = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, targets, test_size=0.4, stratify=targets, random_state=0)
    x_train, x_test, y_train, y_test = parts
    return make_split(x_train, y_train), make_split(x_test, y_test)


def make_split(images: np.ndarray, targets: np.ndarray) -> Split:
    return Split(torch.tensor(images, dtype=torch.float32), torch.tensor(targets))


def hold_out(pool: Split, seed: int) -> tuple[Split, Split]:
    """A quarter of the training pool to validate on: its labels are clean and balanced."""
    parts = train_test_split(
        pool.images.numpy(), pool.targets.numpy(), test_size=0.25, stratify=pool.targets.numpy(),
        random_state=seed,
    )  # fmt: skip
    return make_split(parts[0], parts[2]), make_split(parts[1], parts[3])


def make_long_tailed(pool: Split, seed: int) -> Split:
    chosen = ta.ImbalancedSubset(pool.targets, "lt", 50, seed, targets=pool.targets).indices
    return Split(pool.images[chosen], pool.targets[chosen])


def make_noisy(pool: Split, seed: int) -> Split:
    return Split(pool.images, with_label_noise(pool.targets, CLASSES, "uniform:0.4", seed))


TASKS = {"long-tailed": make_long_tailed, "noisy": make_noisy}


def train(data: Split, setting: Setting, seed: int) -> tuple[nn.Module, Tensor]:
    """Returns the model, and the mean weight of each class in each epoch, [epochs, classes]."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    criterion = ta.PerSampleCrossEntropy()
    opt = ta.ABSGD(
        model.parameters(), lr=setting.lr, momentum=0.9, weight_decay=setting.weight_decay,
        lam=math.inf, gamma=GAMMA,
    )  # fmt: skip
    lam_schedule = ta.LamScheduler(opt, milestones={setting.stage_two: setting.lam})
    lr_schedule = MultiStepLR(opt, [setting.stage_two], gamma=setting.lr_factor)
    class_weight = torch.zeros(setting.epochs, CLASSES)
    for epoch in range(setting.epochs):
        for batch in torch.randperm(len(data.targets)).split(BATCH_SIZE):
            targets = data.targets[batch]
            loss = opt.weigh(criterion(model(data.images[batch]), targets))
            loss.backward()
            opt.step()
            opt.zero_grad()
            class_weight[epoch].index_add_(0, targets, opt.weights)
        lam_schedule.step()
        lr_schedule.step()
    return model, class_weight / torch.bincount(data.targets, minlength=CLASSES)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).argmax(1)


def compare(task: str, pool: Split, test: Split, seeds: Sequence[int], bar: tqdm) -> dict[str, Any]:
    """Trains both methods with every seed, then reads the test set with all the models."""
    trained = {}
    for (method, setting), seed in itertools.product(SETTINGS[task].items(), seeds):
        trained.setdefault(method, []).append(train(TASKS[task](pool, seed), setting, seed))
        bar.update()
    counts = torch.bincount(TASKS[task](pool, seeds[0]).targets, minlength=CLASSES).tolist()
    groups = report.groups_by_terciles(counts)
    return {
        "split": "test",
        "class_counts": counts,
        "groups": groups,
        "settings": {method: asdict(setting) for method, setting in SETTINGS[task].items()},
        "seeds": list(seeds),
        "metrics": {
            method: [report.metrics(test.targets, predict(m, test.images), groups) for m, _ in runs]
            for method, runs in trained.items()
        },
        "class_weight": torch.stack([w for _, w in trained["ABSGD"]]).mean(0).tolist(),
    }


def table(task: str, result: dict[str, Any]) -> str:
    """Overall, by group (long-tailed) and by class, mean ± deviation over the seeds."""
    names = ["overall"] + (["many", "medium", "few"] if task == "long-tailed" else [])
    rows = []
    for method, runs in result["metrics"].items():
        cells = [report.mean_std([run[name] for run in runs]) for name in names]
        by_class = np.array([run["per_class"] for run in runs])
        rows.append([method, *cells, *(report.mean_std(by_class[:, c]) for c in range(CLASSES))])
    header = ["", *names, *(f"{c} ({n})" for c, n in enumerate(result["class_counts"]))]
    return report.markdown(["", *(row[0] for row in rows)],
                           [[name, *(row[i] for row in rows)]
                            for i, name in enumerate(header) if i])  # fmt: skip


def plot(results: dict[str, Any], path: Path) -> None:
    """Accuracy by class of both methods in both tasks; the weight of each class by epoch."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
    for ax, (task, result) in zip(axes, results.items(), strict=False):
        methods = {m: [run["per_class"] for run in runs] for m, runs in result["metrics"].items()}
        report.plot_per_class(ax, methods, result)
        ax.set_title(f"{task}: {len(result['seeds'])} seeds", pad=28)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    tail = results["long-tailed"]
    records = [{"epoch": e, "class_weight": w} for e, w in enumerate(tail["class_weight"])]
    report.plot_class_weight(axes[2], records, tail["class_counts"])
    axes[2].set_title("long-tailed: ABSGD's weights move to the rare classes", pad=28)
    report.save(figure, path)


# What --select tries: all of it for SGD, and as many trials, drawn at random, for ABSGD, which has
# λ to choose too (−λ for noisy labels). The lengths of the stages are given.
GRID = {
    "lr": (0.05, 0.1, 0.2, 0.4, 0.8),
    "lr_factor": (1, 0.1, 0.03),
    "weight_decay": (1e-4, 1e-3, 1e-2),
}
LAMS = (0.05, 0.1, 0.25, 0.5, 1)


def candidates(task: str, method: str) -> list[Setting]:
    given = SETTINGS[task][method]
    grid = list(itertools.product(*GRID.values()))
    sign = -1 if task == "noisy" else 1
    if method == "SGD":
        points = [(*point, math.inf) for point in grid]
    else:
        points = [(*point, sign * lam) for point in grid for lam in LAMS]
        points = random.Random(0).sample(points, len(grid))
    return [Setting(*point, given.stage_two, given.epochs) for point in points]


# Seeds of --select: all candidates are tried with the first, the best nine with the others too.
FIRST_SEEDS, FURTHER_SEEDS, FINALISTS = range(3), range(3, 15), 9


def validate(task: str, pool: Split, setting: Setting, seeds: Sequence[int]) -> list[float]:
    """Accuracy, for each seed, on a held-out, balanced and clean quarter of the training pool."""
    accuracies = []
    for seed in seeds:
        rest, held = hold_out(pool, seed)
        model, _ = train(TASKS[task](rest, seed), setting, seed)
        accuracies.append((predict(model, held.images) == held.targets).double().mean().item())
    return accuracies


def select_one(task: str, method: str, pool: Split, bar: tqdm) -> list[dict[str, Any]]:
    """The candidates with their accuracies, best first: finalists, then those left behind."""
    scores = {}
    for setting in candidates(task, method):
        scores[setting] = validate(task, pool, setting, FIRST_SEEDS)
        bar.update(len(FIRST_SEEDS))
    order = sorted(scores, key=lambda setting: -np.mean(scores[setting]))
    for setting in order[:FINALISTS]:
        scores[setting] += validate(task, pool, setting, FURTHER_SEEDS)
        bar.update(len(FURTHER_SEEDS))
    order.sort(key=lambda setting: (-len(scores[setting]), -np.mean(scores[setting])))
    return [{**asdict(setting), "validation": scores[setting]} for setting in order]


def select(pool: Split, directory: Path) -> dict[str, Any]:
    """Prints and writes what every trial gave; leaves the test set alone."""
    trials: dict[str, Any] = {task: {} for task in TASKS}
    grid = math.prod(map(len, GRID.values()))
    runs = grid * len(FIRST_SEEDS) + min(grid, FINALISTS) * len(FURTHER_SEEDS)
    with tqdm(total=4 * runs, desc="selecting") as bar:
        for task, method in itertools.product(TASKS, SETTINGS["noisy"]):
            trials[task][method] = select_one(task, method, pool, bar)
    for task, method in itertools.product(TASKS, SETTINGS["noisy"]):
        print(f"\n{task}, {method}: the best of {grid} trials by validation accuracy (%)")
        for trial in trials[task][method][:5]:
            print("  lr {lr:g} × {lr_factor:g}, weight decay {weight_decay:g}, λ = {lam:g}: "
                  .format(**trial) + report.mean_std(trial["validation"]))  # fmt: skip
    report.write_json(directory / "select.json", trials)
    return trials


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--output-dir", type=Path, default=Path("runs/digits_lt"))
    parser.add_argument(
        "--select",
        action="store_true",
        help="run the trials that chose the defaults, print the best of each "
        "method and leave the test set unread",
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the network is too small to share
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pool, test = load_splits()
    if args.select:
        return select(pool, args.output_dir)

    results = {}
    with tqdm(total=2 * len(TASKS) * len(args.seeds), desc="training") as bar:
        for task in TASKS:
            results[task] = compare(task, pool, test, args.seeds, bar)
    for task, result in results.items():
        print(f"\n{task}: test accuracy (%), mean ± deviation over seeds {args.seeds}; "
              "class (training images)")  # fmt: skip
        if task == "long-tailed":
            print(", ".join(f"{name}: classes {group}" for name, group in result["groups"].items()))
        print(table(task, result))
    report.write_json(args.output_dir / "results.json", results)
    plot(results, args.output_dir / "digits_lt.png")
    print(f"\nwritten to {args.output_dir}: results.json, digits_lt.png")
    return results


if __name__ == "__main__":
    main()
