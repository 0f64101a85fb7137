"""PLAN.md's part F: whole networks at a CPU's size, every method tuned alike.

    cd recipes; python -m studies.whole_networks --data … --work … [--tasks …]

A ResNet-8 on CIFAR-10's images at 16×16, about 5,000 of them, once 20,000; the learning rate a
cosine to 0. For each task and method four trials, judged on images that the seed's training set
does not hold, then SEEDS on the test set with the best of them. A run that has its file is not made
again; a task's record holds the methods that are finished.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
import torch_absgd as ta
from baselines import meta
from baselines.classifiers import adjust_logits
from data.memory import CropAndFlip, Images, normalised
from data.named import load_cifar
from data.noise import with_label_noise
from data.subsets import choose, take_balanced
from engine import report
from studies import records
from studies.cifar_cell import TAUS
from studies.tasks import ANIMAL

EPOCHS, BATCH_SIZE = 20, 64
DEFERRED = 0.8  # of the epochs, from when on class weights and META's count
HELD_OUT_EACH = 300
TRIAL_SEED, SEEDS = 100, range(5)
SETTINGS = [*itertools.product((0.05, 0.2), (5e-4, 5e-3))]  # lr, weight decay
POST = ("SGD", "ABSGD")  # with logit adjustment after training, too


@dataclass(frozen=True)
class Method:
    """loss: "ce", "la" (logit-adjusted, τ = 1), "ldam" or "gce" (q = 0.5). size: of ABSGD, as in
    the README; start: from which share of the epochs on. base: what else multiplies a loss."""

    loss: str = "ce"
    size: float | None = None
    start: float = 0.0
    base: str = ""


LONG_TAIL = {
    "SGD": Method(),
    "ABSGD": Method(size=0.8),
    "logit-adjusted loss": Method("la"),
    "LDAM-DRW": Method("ldam", base="deferred"),
    "logit-adjusted loss, ABSGD": Method("la", 0.8),
    "LDAM-DRW, ABSGD": Method("ldam", 0.8, base="deferred"),
    "class weights, deferred": Method(base="deferred"),
    "META (learning to reweight)": Method(base="meta"),
}
HIDDEN = {
    "SGD": Method(),
    "ABSGD": Method(size=0.8),
    "group DRO, true groups": Method(base="dro"),
    "two passes (JTT)": Method(base="jtt"),
}
NOISE = {
    "SGD": Method(),
    "ABSGD": Method(size=0.8, start=0.25),
    "generalised cross-entropy": Method("gce"),
    "ABSGD, from half on": Method(size=0.8, start=0.5),
}


@dataclass(frozen=True)
class Task:
    """counts: training images of each class; label: from classes and a seed to labels."""

    title: str
    counts: tuple[int, ...]
    methods: dict[str, Method]
    label: Callable[[Tensor, int], Tensor] = lambda y, seed: y
    is_hidden: bool = False
    is_noisy: bool = False

    @property
    def is_adjusted(self) -> bool:
        """Whether logit adjustment is asked for after training."""
        return not (self.is_hidden or self.is_noisy)


def noise(kind: str) -> Callable[[Tensor, int], Tensor]:
    return lambda y, seed: with_label_noise(y, 10, kind, seed)


TAIL = tuple(ta.long_tailed_counts(2000, 10, 100))
EVEN = (500,) * 10
TASKS = {
    "whole_asym": Task("40 % asymmetric noise", EVEN, NOISE, noise("asym:0.4"), is_noisy=True),
    "whole_asym_more": Task(
        "40 % asymmetric noise, 20,000 images",
        (2000,) * 10,
        NOISE,
        noise("asym:0.4"),
        is_noisy=True,
    ),
    "whole_noise": Task("40 % noise", EVEN, NOISE, noise("uniform:0.4"), is_noisy=True),
    "whole_lt": Task("long tail, ρ = 100", TAIL, LONG_TAIL),
    "whole_hidden": Task("hidden groups, ρ = 100", TAIL, HIDDEN, lambda y, seed: ANIMAL[y], True),
}


# ---- data


@cache
def images(data: Path, train: bool) -> Images:
    """CIFAR-10 at 16×16."""
    made = load_cifar(data, "cifar10", train)
    small = [F.avg_pool2d(normalised(part), 2) for part in made.images.split(5000)]
    return Images(torch.cat(small), made.targets, made.classes)


def drawn(task: Task, data: Path, seed: int) -> tuple[Images, Images]:
    """The seed's training images, and others, as many of each class; by their classes."""
    pool = images(data, True)
    more = choose(pool.targets, [n + HELD_OUT_EACH for n in task.counts], seed)
    index = choose(pool.targets, task.counts, seed)
    held = more[~torch.isin(more, index)]
    return pool.subset(index), pool.subset(held)


# ---- what multiplies a loss


class Base:
    """w_i of a batch, beside ABSGD's weights; None: 1."""

    def __init__(self, method: Method, train: Images, held: Images | None, up: Tensor | None):
        self.kind, self.train, self.held, self.up = method.base, train, held, up
        counts = torch.bincount(train.targets, minlength=len(train.classes))
        self.of_class = ta.class_balanced_weights(counts)
        self.q = torch.full((len(train.classes),), 1 / len(train.classes))

    def __call__(
        self, run: Training, losses: Tensor, x: Tensor, y: Tensor, place: Tensor
    ) -> Tensor | None:
        group = self.train.targets[place]
        if self.kind == "jtt":
            return None if self.up is None else self.up[place]
        if self.kind == "dro":
            return self._of_groups(losses, group)
        if not self.kind or run.progress < DEFERRED:
            return None
        if self.kind == "deferred":
            return self.of_class[group]
        assert self.held is not None
        some = torch.randperm(len(self.held), generator=run.generator)[: len(y)]
        balanced = run.layout(self.held.images[some]), self.held.targets[some]
        lr = run.optimizer.param_groups[0]["lr"]
        return meta.learned_weights(meta.look_ahead(run.network, (x, y), balanced, lr))

    def _of_groups(self, losses: Tensor, group: Tensor, eta: float = 0.1) -> Tensor:
        """Group DRO (Sagawa et al. 2020): q_g ← q_g·exp(η L_g); Σ q_g L_g."""
        number = torch.bincount(group, minlength=len(self.q)).clamp(min=1)
        mean = torch.zeros_like(self.q).index_add_(0, group, losses) / number
        self.q = torch.softmax(self.q.log() + eta * mean, 0)
        return len(group) * (self.q / number)[group]


# ---- training


def generalised(logits: Tensor, y: Tensor, q: float = 0.5) -> Tensor:
    """(1 − P_y^q)/q: Zhang, Sabuncu, NeurIPS 2018."""
    return (1 - torch.exp(-q * F.cross_entropy(logits, y, reduction="none"))) / q


class Training:
    """One training, of which ``base`` sees how far it is."""

    def __init__(
        self, task: Task, method: Method, setting: tuple[float, float], train: Images, seed: int
    ) -> None:
        torch.manual_seed(seed)
        num_classes = 2 if task.is_hidden else 10
        network = models.build("resnet8", num_classes, normed=method.loss == "ldam")
        self.network = network.to(memory_format=torch.channels_last)
        self.forward = torch.compile(self.network, dynamic=False)
        self.optimizer = ta.ABSGD(
            network.parameters(), setting[0], momentum=0.9, weight_decay=setting[1], keep_loss=True
        )
        counts = torch.bincount(train.targets, minlength=10)
        self.loss: Callable[[Tensor, Tensor], Tensor] = {
            "ce": lambda: ta.PerSampleCrossEntropy(),
            "la": lambda: ta.PerSampleLogitAdjusted(counts),
            "ldam": lambda: ta.PerSampleLDAM(counts),
            "gce": lambda: generalised,
        }[method.loss]()
        self.task, self.method, self.lr, self.seed = task, method, setting[0], seed
        self.train, self.labels = train, task.label(train.targets, seed)
        self.generator = torch.Generator().manual_seed(1000 + seed)
        self.progress = 0.0

    def layout(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    def fit(self, base: Base, until: float = 1.0) -> nn.Module:
        augmented = CropAndFlip(
            Images(self.train.images, self.labels, self.train.classes), self.seed, padding=2
        )
        n = len(self.train) // BATCH_SIZE * BATCH_SIZE  # of an epoch, whole batches
        for epoch in range(math.ceil(until * EPOCHS)):
            if self.method.size and epoch == round(self.method.start * EPOCHS):
                noisy = self.task.is_noisy
                self.optimizer.restart(ta.EffectiveSampleSize(self.method.size, noisy=noisy))
            order = torch.randperm(len(self.train), generator=self.generator)
            for place in order[:n].split(BATCH_SIZE):
                self.step(base, place, *augmented.__getitems__([(epoch, int(i)) for i in place]))
                self.progress += BATCH_SIZE / n / EPOCHS
        return self.network

    def step(self, base: Base, place: Tensor, x: Tensor, y: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * (1 + math.cos(math.pi * self.progress)) / 2
        x = self.layout(x)
        losses = self.loss(self.forward(x), y)
        weight = base(self, losses.detach(), x, y, place)
        self.optimizer.weigh(losses, weight=weight).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@torch.no_grad()
def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    network.eval()
    return torch.cat([network(part) for part in x.split(500)])


def train(
    task: Task, method: Method, setting: tuple[float, float], data: Path, seed: int
) -> tuple[nn.Module, Images]:
    """The trained network, and the images that were held out of its training set."""
    ours, rest = drawn(task, data, seed)
    balanced, up = None, None
    if method.base == "meta":
        ours, balanced = take_balanced(ours, 10, seed)
    if method.base == "jtt":
        first = Training(task, method, setting, ours, seed)
        logits = logits_of(first.fit(Base(method, ours, None, None), until=0.25), ours.images)
        up = 1 + 15 * (logits.argmax(1) != first.labels).float()
        up /= up.mean()
    run = Training(task, method, setting, ours, seed)
    return run.fit(Base(method, ours, balanced, up)), rest


def accuracies(network: nn.Module, on: Images, task: Task) -> list[list[float]]:
    """[τ][class], per cent, with logit adjustment; τ = 0 alone where classes are hidden or even."""
    logits, counts = logits_of(network, on.images), torch.tensor(task.counts)
    if not task.is_adjusted:
        y = ANIMAL[on.targets] if task.is_hidden else on.targets
        return [of_classes(on.targets, logits.argmax(1) == y)]
    guesses = [adjust_logits(logits, counts, tau).argmax(1) for tau in TAUS]
    return [of_classes(on.targets, guess == on.targets) for guess in guesses]


def of_classes(classes: Tensor, right: Tensor) -> list[float]:
    share = torch.bincount(classes[right], minlength=10) / torch.bincount(classes, minlength=10)
    return [round(100 * a, 2) for a in share.tolist()]


# ---- runs


def made_or_read(
    name: str, method: str, setting: tuple[float, float], seed: int, args: argparse.Namespace
) -> list[list[float]]:
    """What a run gives: on the images held out for the trials' seed, else on the test set."""
    task = TASKS[name]
    file = args.work / name / method / f"lr{setting[0]:g}-decay{setting[1]:g}-seed{seed}.json"
    if not file.exists():
        began = time.process_time()
        network, rest = train(task, task.methods[method], setting, args.data, seed)
        on = rest if seed == TRIAL_SEED else images(args.data, False)
        made = accuracies(network, on, task)
        seconds = round(time.process_time() - began)
        file.parent.mkdir(parents=True, exist_ok=True)
        report.write_json(file, {"accuracy": made, "seconds": seconds})
        print(f"{file.relative_to(args.work)}: {sum(made[0]) / 10:.2f}, {seconds} s", flush=True)
    return json.loads(file.read_text())["accuracy"]


def best(trials: Sequence[list[list[float]]], tau: bool) -> tuple[int, int]:
    """The trial and the τ of the best mean over classes; without ``tau``, at τ = 0."""
    mean = torch.tensor(trials).mean(2)[:, : None if tau else 1]
    return divmod(int(mean.argmax()), mean.shape[1])


def of_method(name: str, method: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The method's row, and one with logit adjustment where it is of POST."""
    trials = [made_or_read(name, method, s, TRIAL_SEED, args) for s in SETTINGS]
    suffixes = ["", ", logit adjustment"] if TASKS[name].is_adjusted and method in POST else [""]
    rows = []
    for suffix in suffixes:
        at, tau = best(trials, bool(suffix))
        seeds = [made_or_read(name, method, SETTINGS[at], seed, args)[tau] for seed in SEEDS]
        settings = {"lr": SETTINGS[at][0], "weight_decay": SETTINGS[at][1]}
        if suffix:
            settings["adjusted"] = TAUS[tau]
        validation = round(sum(trials[at][tau]) / 10, 2)
        rows.append({"method": method + suffix, "validation": validation, "trials": len(SETTINGS),
                     "settings": settings, "accuracy": seeds})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/whole_networks"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trials")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    commit = records.commit()
    for name in args.tasks:
        task, rows = TASKS[name], []
        for method in task.methods:
            rows += of_method(name, method, args)
            made = {
                "task": f"CIFAR-10, ResNet-8, {task.title}", "optimizer": "sgd",
                "counts": task.counts, "seeds": list(SEEDS), "selection_seeds": [TRIAL_SEED],
                "methods": rows, "command": f"python -m studies.whole_networks --tasks {name}",
                "commit": commit, "machine": records.machine(),
            }  # fmt: skip
            records.write(made, "methods", args.out / f"{name}.json")


if __name__ == "__main__":
    main()
