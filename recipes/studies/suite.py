"""Many small runs at once: every row of a batched model is a run with its own weighting and seed.

Runs of one seed share data, first parameters and the order of samples, so differences are paired.
The parameters of all rows are one tensor each, so one torch optimizer steps them all; each row's
gradient is that of its own weighted loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studies.lstm_rows import LSTMRows
from studies.reference import Rule, Weighting
from studies.tasks import Task

WATCHED = 50  # first selective steps that are looked at


@dataclass(frozen=True)
class Method:
    """A row of the tables: a weighting, where it begins (share of the epochs), and how."""

    weighting: Weighting
    start: float = 0.0
    over: float = 0.0  # share of the epochs over which selectivity grows linearly
    class_weights: bool = False


@dataclass(frozen=True)
class Training:
    optimizer: str  # "sgd" or "adam"
    lr: float
    schedule: str  # "constant", "cosine" or "step"

    def __str__(self) -> str:
        return f"{self.optimizer} {self.lr:g} {self.schedule}"

    def make(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=5e-4)

    def lr_at(self, progress: float) -> float:
        """``progress`` in [0, 1); the steps are ÷10 at half and at three quarters."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * progress)) / 2
        if self.schedule == "step":
            return self.lr * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
        return self.lr


class Rows:
    """[rows, …] parameters of a linear model or of one hidden layer, torch's default start."""

    def __init__(self, task: Task, seeds: Sequence[int], methods: int) -> None:
        d, h, C = task.train.x.shape[1], task.hidden, task.num_classes
        sizes = [(d, h), (h, C)] if h else [(d, C)]
        made = []
        for seed in seeds:
            torch.manual_seed(seed)
            made.append([nn.Linear(*size) for size in sizes])
        self.parameters = []
        for i in range(len(sizes)):
            weight = torch.stack([layers[i].weight.detach().T for layers in made])
            bias = torch.stack([layers[i].bias.detach() for layers in made])[:, None]
            self.parameters += [t.repeat(methods, 1, 1).requires_grad_() for t in (weight, bias)]

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, B, d] or, the same for all rows, [B, d]."""
        for i in range(0, len(self.parameters), 2):
            weight, bias = self.parameters[i : i + 2]
            x = torch.matmul(F.relu(x) if i else x, weight) + bias
        return x


def made_rows(task: Task, seeds: Sequence[int], methods: int) -> Rows | LSTMRows:
    if task.num_words:
        return LSTMRows(task.num_words, task.hidden, task.num_classes, seeds, methods)
    return Rows(task, seeds, methods)


def schedule(method: Method, epoch: int, epochs: int) -> tuple[float, float]:
    """λ and target in force in an epoch; 1/λ and 1 − target grow linearly over ``over``."""
    start, over = round(method.start * epochs), round(method.over * epochs)
    grown = 0.0 if epoch < start else min(1.0, (epoch - start + 1) / (over + 1))
    w = method.weighting
    if grown == 0:
        return math.copysign(math.inf, w.lam), math.nan
    if w.target is None:
        return w.lam / grown, math.nan
    return w.lam, 1 - (1 - w.target) * grown


Weigh = Callable[[Tensor, Tensor], Tensor]


def train(task: Task, methods: Sequence[Method], seeds: Sequence[int], training: Training) -> dict:
    """Accuracy [methods, seeds, groups] and, of the first selective steps, what the weights do."""
    S, M, E = len(seeds), len(methods), task.epochs
    rows = made_rows(task, seeds, M)
    optimizer = training.make(rows.parameters)
    rule = Rule([m.weighting for m in methods for _ in seeds])
    subsets = [task.subset(seed) for seed in seeds]
    index, y = (torch.stack(part) for part in zip(*subsets, strict=True))  # [S, n]
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    balance = torch.ones(M * S, task.num_classes)
    balance[[m * S + s for m in range(M) if methods[m].class_weights for s in range(S)]] = (
        task.class_weights()
    )
    n, seen = index.shape[1], torch.zeros(M * S)
    watch = torch.full((M * S, WATCHED, 3), math.nan)
    for epoch in range(E):
        plan = torch.tensor([schedule(m, epoch, E) for m in methods for _ in seeds]).double()
        rule.set_lam(plan[:, 0], plan[:, 1])
        is_on = torch.isfinite(plan[:, 0]) | ~torch.isnan(plan[:, 1])
        order = torch.stack([torch.randperm(n, generator=g) for g in generators])
        for b in range(0, n, task.batch_size):
            chosen = order[:, b : b + task.batch_size]
            x = task.train.x[index.gather(1, chosen)]
            targets = y.gather(1, chosen).repeat(M, 1)
            logits = rows(x.repeat(M, 1, 1))
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            losses = losses.view(targets.shape)
            w = balance.gather(1, targets)
            coefficients, p = rule(losses, w)
            (coefficients.float() * losses).sum().div(losses.shape[1]).backward()
            for group in optimizer.param_groups:
                group["lr"] = training.lr_at((epoch + b / n) / E)
            optimizer.step()
            optimizer.zero_grad()
            look(watch, seen, is_on, losses.detach(), w, p, rule.lam)
    return {"accuracy": evaluate(rows, task).view(M, S, -1), "watch": watch.view(M, S, WATCHED, 3)}


def look(
    watch: Tensor, seen: Tensor, is_on: Tensor, losses: Tensor, w: Tensor, p: Tensor, lam: Tensor
) -> None:
    """Of rows in their first selective steps: effective size, lengthening Σwp|L|/Σw|L|, and the
    mean loss in units of |λ|."""
    now = (is_on & (seen < WATCHED)).nonzero().flatten()
    if len(now) == 0:
        return
    size = (w * p).sum(1) ** 2 / (w.sum(1) * (w * p * p).sum(1))
    length = (w * p * losses).sum(1) / (w * losses).sum(1)
    level = (w * losses).mean(1) / lam.abs()
    watch[now, seen[now].long()] = torch.stack([size, length, level], 1)[now].float()
    seen[now] += 1


@torch.no_grad()
def evaluate(rows: Rows | LSTMRows, task: Task) -> Tensor:
    """[rows, groups]: the accuracy on each group; NaN for a group that is not there."""
    G = len(task.counts)
    total = torch.bincount(task.held.group, minlength=G)
    right = torch.zeros(rows.parameters[0].shape[0], G)
    for part in torch.arange(len(task.held.y)).split(500):
        hit = (rows(task.held.x[part]).argmax(2) == task.held.y[part]).float()
        right.index_add_(1, task.held.group[part], hit)
    return right / total
