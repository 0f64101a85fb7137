"""ABSGD against SGD on scikit-learn's digits, in under a minute on a CPU. Nothing is downloaded.

1. long tail: the training set keeps N images of digit 0 and N/50 of digit 9, in between
   geometrically.
2. hidden groups: even against odd digits, a long tail within either. Labels and class counts do not
   show which digits are rare.
3. noise: 40 % of the labels drawn at random; the weights then attend to small losses.

Both methods have the same network, epochs and falling learning rate. Learning rate, weight decay
and ABSGD's effective sample size were found by --select, as many trials for SGD as for ABSGD, on a
part of the training set. The test set is read once, at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import t as student
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

import torch_absgd as ta

BATCH_SIZE, NOISE = 64, 0.4
EPOCHS = {"long tail": 40, "hidden groups": 40, "noise": 20}


@dataclass(frozen=True)
class Setting:
    """Of one run; ``size`` is the effective share of a batch, None for SGD."""

    lr: float
    weight_decay: float
    size: float | None = None


# The best of each method's trials in --select.
SETTINGS = {
    "long tail": {"SGD": Setting(0.4, 0.001), "ABSGD": Setting(0.2, 0.001, 0.65)},
    "hidden groups": {"SGD": Setting(0.4, 0.001), "ABSGD": Setting(0.4, 0.01, 0.5)},
    "noise": {"SGD": Setting(0.4, 0.01), "ABSGD": Setting(0.2, 0.001, 0.65)},
}


@dataclass(frozen=True)
class Digits:
    images: Tensor  # [n, 64], in [0, 1]
    digit: Tensor  # [n], what is seen
    label: Tensor  # [n], what is to be learned


def load_pool_and_test() -> tuple[Digits, Digits]:
    """60 % of the 1,797 digits to train on, 40 % to test."""
    images, digit = load_digits(return_X_y=True)
    whole = Digits(torch.tensor(images / 16).float(), torch.tensor(digit), torch.tensor(digit))
    return split(whole, 0.4, seed=0)


def split(data: Digits, share: float, seed: int) -> tuple[Digits, Digits]:
    """The rest and, stratified by digit, a part of ``share``."""
    index = np.arange(len(data.digit))
    parts = train_test_split(index, test_size=share, stratify=data.digit, random_state=seed)
    return take(data, parts[0]), take(data, parts[1])


def take(data: Digits, index: Any) -> Digits:
    return Digits(data.images[index], data.digit[index], data.label[index])


def labelled(task: str, data: Digits) -> Digits:
    is_hidden = task == "hidden groups"
    return Digits(data.images, data.digit, data.digit % 2 if is_hidden else data.digit)


def training_set(task: str, pool: Digits, seed: int) -> Digits:
    """The pool made long-tailed by digit, or its labels noisy; a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    data = labelled(task, pool)
    if task == "noise":
        drawn = torch.rand(len(data.label), generator=generator) < NOISE
        anything = torch.randint(10, data.label.shape, generator=generator)
        return Digits(data.images, data.digit, torch.where(drawn, anything, data.label))
    order = torch.randperm(len(data.digit), generator=generator)
    counts = group_counts(task, pool)
    kept = torch.cat([order[data.digit[order] == d][:n] for d, n in enumerate(counts)])
    return take(data, kept)


def group_counts(task: str, pool: Digits) -> list[int]:
    """Training images of each digit."""
    n_max = int(torch.bincount(pool.digit).min())
    if task == "noise":
        return torch.bincount(pool.digit).tolist()
    if task == "hidden groups":
        tail = ta.long_tailed_counts(n_max, 5, 50)
        return [int(tail[d // 2]) for d in range(10)]
    return [int(n) for n in ta.long_tailed_counts(n_max, 10, 50)]


def train(task: str, data: Digits, setting: Setting, seed: int) -> tuple[nn.Module, Tensor]:
    """The model, and the mean weight of each kind of sample in each epoch, [epochs, kinds]."""
    torch.manual_seed(seed)
    outputs = int(data.label.max()) + 1
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))
    opt = ta.ABSGD(
        model.parameters(), lr=setting.lr, momentum=0.9, weight_decay=setting.weight_decay,
        keep_loss=setting.size is not None,
    )  # fmt: skip
    if setting.size is not None:
        opt.lam = ta.EffectiveSampleSize(setting.size, noisy=task == "noise")
    schedule = CosineAnnealingLR(opt, EPOCHS[task])
    kind = kinds(task, data)
    weight = torch.zeros(EPOCHS[task], int(kind.max()) + 1)
    for epoch in range(EPOCHS[task]):
        for batch in torch.randperm(len(data.label)).split(BATCH_SIZE):
            losses = F.cross_entropy(model(data.images[batch]), data.label[batch], reduction="none")
            opt.weigh(losses).backward()
            opt.step()
            opt.zero_grad()
            weight[epoch].index_add_(0, kind[batch], opt.weights)
        schedule.step()
    return model, weight / torch.bincount(kind)


def kinds(task: str, data: Digits) -> Tensor:
    """Whose weights the picture shows: digits, or wrong (0) and right (1) labels."""
    return (data.label == data.digit).long() if task == "noise" else data.digit


@torch.no_grad()
def accuracies(model: nn.Module, data: Digits) -> list[float]:
    """Of each digit."""
    hit = (model(data.images).argmax(1) == data.label).double()
    right = torch.zeros(10, dtype=torch.float64).index_add_(0, data.digit, hit)
    return (right / torch.bincount(data.digit, minlength=10)).tolist()


def compare(
    task: str, pool: Digits, test: Digits, seeds: Sequence[int], bar: tqdm
) -> dict[str, Any]:
    """Trains both methods with every seed, then reads the test set with all the models."""
    trained: dict[str, list[tuple[nn.Module, Tensor]]] = {}
    for (method, setting), seed in itertools.product(SETTINGS[task].items(), seeds):
        trained.setdefault(method, []).append(
            train(task, training_set(task, pool, seed), setting, seed)
        )
        bar.update()
    judged = labelled(task, test)
    return {
        "split": "test",
        "counts": group_counts(task, pool),
        "settings": {method: asdict(setting) for method, setting in SETTINGS[task].items()},
        "seeds": list(seeds),
        "per_digit": {
            m: [accuracies(model, judged) for model, _ in runs] for m, runs in trained.items()
        },
        "weight": torch.stack([w for _, w in trained["ABSGD"]]).mean(0).tolist(),
    }


def measures(per_digit: Any) -> dict[str, np.ndarray]:
    """[seeds, digits] to what the table shows of every seed, in per cent."""
    sorted_ = np.sort(per_digit, axis=1)
    return {"all digits": 100 * sorted_.mean(1), "three worst": 100 * sorted_[:, :3].mean(1)}


def paired(differences: np.ndarray) -> str:
    """Mean and half the 95 % interval, Student's, over seeds; of one seed there is no interval."""
    said, n = f"{differences.mean():+.1f}", len(differences)
    if n > 1:
        said += f" ± {student.isf(0.025, n - 1) * differences.std(ddof=1) / np.sqrt(n):.1f}"
    return said.replace("-", "−")


def table(results: dict[str, Any]) -> str:
    lines = [
        f"{'':15}{'accuracy of':14}{'SGD':>7}{'ABSGD':>8}   ABSGD − SGD, 95 %",
        "-" * 65,
    ]
    for task, result in results.items():
        sgd, absgd = (measures(result["per_digit"][m]) for m in ("SGD", "ABSGD"))
        for name in sgd:
            lines.append(
                f"{task:15}{name:14}{sgd[name].mean():7.1f}{absgd[name].mean():8.1f}"
                f"   {paired(absgd[name] - sgd[name])}"
            )
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """Above, the accuracy of each digit; below, the weights of common and rare, right and wrong."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 7), layout="constrained")
    for column, (task, result) in enumerate(results.items()):
        plot_accuracy(axes[0, column], task, result)
        plot_weights(axes[1, column], task, result)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_accuracy(ax: plt.Axes, task: str, result: dict[str, Any]) -> None:
    for side, (method, per_digit) in enumerate(result["per_digit"].items()):
        ax.bar(np.arange(10) + 0.4 * side, 100 * np.mean(per_digit, axis=0), 0.4, label=method)
    ticks = [f"{d}\n{n}" for d, n in enumerate(result["counts"])]
    ax.set_xticks(np.arange(10) + 0.2, ticks, fontsize=8)
    ax.set(title=task, xlabel="digit, training images", ylabel="test accuracy (%)")
    ax.legend(loc="lower left")


def plot_weights(ax: plt.Axes, task: str, result: dict[str, Any]) -> None:
    weight = np.array(result["weight"])
    if task == "noise":
        lines = {"right labels": weight[:, 1], "wrong labels": weight[:, 0]}
    else:
        order = np.argsort(result["counts"])
        lines = {"three rarest digits": weight[:, order[:3]].mean(1),
                 "three most common": weight[:, order[-3:]].mean(1)}  # fmt: skip
    for name, line in lines.items():
        ax.plot(line, label=name)
    ax.axhline(1, color="grey", linewidth=0.8, linestyle="--")
    ax.set(xlabel="epoch", ylabel="ABSGD's mean weight", yscale="log")
    ax.legend()


# What --select tries: all of it with SGD; with ABSGD, which has the size to choose too, as many
# trials, drawn at random. First with the first seeds, then the best with the further ones.
LRS, WEIGHT_DECAYS, SIZES = (0.05, 0.1, 0.2, 0.4), (1e-3, 1e-2), (0.8, 0.65, 0.5)
FIRST_SEEDS, FURTHER_SEEDS, FINALISTS = range(100, 104), range(104, 112), 3


def candidates(method: str) -> list[Setting]:
    grid = list(itertools.product(LRS, WEIGHT_DECAYS))
    if method == "SGD":
        return [Setting(*point) for point in grid]
    points = list(itertools.product(LRS, WEIGHT_DECAYS, SIZES))
    return [Setting(*point) for point in random.Random(0).sample(points, len(grid))]


def validate(task: str, pool: Digits, setting: Setting, seed: int) -> float:
    """Mean accuracy over the digits of a held-out, clean and balanced quarter of the pool."""
    rest, held = split(pool, 0.25, seed)
    model, _ = train(task, training_set(task, rest, seed), setting, seed)
    return float(np.mean(accuracies(model, labelled(task, held))))


def select(task: str, method: str, pool: Digits) -> list[dict[str, Any]]:
    """The trials, best first: finalists, then those left behind."""
    trials = candidates(method)
    scores = {
        s: [validate(task, pool, s, seed) for seed in FIRST_SEEDS]
        for s in tqdm(trials, f"{task}, {method}")
    }
    trials.sort(key=lambda s: -np.mean(scores[s]))
    for s in tqdm(trials[:FINALISTS], "its best"):
        scores[s] += [validate(task, pool, s, seed) for seed in FURTHER_SEEDS]
    trials.sort(key=lambda s: (-len(scores[s]), -np.mean(scores[s])))
    return [{**asdict(s), "validation": scores[s]} for s in trials]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--output-dir", type=Path, default=Path("runs/digits_lt"))
    parser.add_argument(
        "--select", action="store_true",
        help="run the trials that chose the settings; the test set is left unread",
    )  # fmt: skip
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the network is too small to share
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pool, test = load_pool_and_test()
    if args.select:
        chosen = {t: {m: select(t, m, pool) for m in ("SGD", "ABSGD")} for t in EPOCHS}
        for (task, methods), method in itertools.product(chosen.items(), ("SGD", "ABSGD")):
            for trial in methods[method][:3]:
                print(task, method, {**trial, "validation": f"{np.mean(trial['validation']):.4f}"})
        (args.output_dir / "select.json").write_text(json.dumps(chosen, indent=1) + "\n")
        return chosen

    with tqdm(total=2 * len(EPOCHS) * len(args.seeds), desc="training") as bar:
        results = {task: compare(task, pool, test, args.seeds, bar) for task in EPOCHS}
    seeds = f"{len(args.seeds)} seed{'s' * (len(args.seeds) > 1)}"
    print(f"\nTest accuracy (%), mean over {seeds}; differences seed by seed\n")
    print(table(results))
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, args.output_dir / "digits_lt.png")
    print(f"\nwritten to {args.output_dir}: results.json, digits_lt.png")
    return results


if __name__ == "__main__":
    main()
