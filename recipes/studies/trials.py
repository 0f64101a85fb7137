"""Many settings of many methods at once: one batched model, every row with its own of everything.

As suite.py, where rows share the optimizer; here each has its own learning rate and weight decay,
so that all methods can be tuned alike. The first layer of all rows of a seed is one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from studies.reference import Rule, Weighting
from studies.suite import schedule
from studies.tasks import Task

PLAIN = Weighting()


@dataclass(frozen=True)
class Way:
    """A method with its settings: a row.

    family: the method's name. start: of ``weighting``, as a share of the epochs. focal, gce,
    smooth, tau: γ, q, ε, and τ of the logit-adjusted loss; 0: none. kind, value: "jtt" and the
    weight of what a first training has wrong; "dro" and η; "small" and the share that is kept;
    "scent" and a; "per class".
    """

    family: str
    lr: float = 0.1
    weight_decay: float = 5e-4
    weighting: Weighting = PLAIN
    start: float = 0.0
    over: float = 0.0
    class_weights: bool = False
    focal: float = 0.0
    gce: float = 0.0
    smooth: float = 0.0
    tau: float = 0.0
    kind: str = ""
    value: float = 0.0

    @property
    def is_ruled(self) -> bool:
        w = self.weighting
        return not self.kind and (w.target is not None or math.isfinite(w.lam))


class Rows:
    """Parameters of [seeds, ways] models, torch's default start; the same for all of a seed."""

    def __init__(self, task: Task, seeds: Sequence[int], ways: int) -> None:
        d, h, C = task.train.x.shape[1], task.hidden, task.num_classes
        S = len(seeds)
        first, last = [], []
        for seed in seeds:
            torch.manual_seed(seed)
            first.append(nn.Linear(d, h or C))
            last.append(nn.Linear(h or 1, C))
        W = torch.stack([layer.weight.detach().T for layer in first])[:, :, None]
        b = torch.stack([layer.bias.detach() for layer in first])[:, None]
        made = [W.repeat(1, 1, ways, 1), b.repeat(1, ways, 1)]  # [S, d, M, h], [S, M, h]
        if h:
            W = torch.stack([layer.weight.detach().T for layer in last])[:, None]
            b = torch.stack([layer.bias.detach() for layer in last])[:, None, None]
            made += [W.repeat(1, ways, 1, 1), b.repeat(1, ways, 1, 1)]  # [S, M, h, C], [S, M, 1, C]
        self.shape, self.parameters = (S, ways), [p.requires_grad_() for p in made]

    def __call__(self, x: Tensor) -> Tensor:
        """[S, B, d], or [B, d] for all seeds, to [S, M, B, C]."""
        W, b = self.parameters[:2]
        z = torch.matmul(x, W.flatten(2)).unflatten(2, W.shape[2:]) + b[:, None]
        z = z.transpose(1, 2)
        if len(self.parameters) == 4:
            z = torch.matmul(z.relu(), self.parameters[2]) + self.parameters[3]
        return z

    def last_layer(self) -> tuple[Tensor, Tensor]:
        """(lengths of the rows of the last layer's matrix, its bias): [S, M, 1, C]."""
        if len(self.parameters) == 4:
            return self.parameters[2].norm(dim=2, keepdim=True), self.parameters[3]
        return self.parameters[0].norm(dim=1)[:, :, None], self.parameters[1][:, :, None]


class Steps:
    """Momentum SGD or AdamW, each row with its own lr and weight decay."""

    def __init__(self, optimizer: str, parameters: list[Tensor], ways: Sequence[Way]) -> None:
        self.is_adam, self.parameters, self.t = optimizer == "adamw", parameters, 0
        lr = torch.tensor([w.lr for w in ways])
        decay = torch.tensor([w.weight_decay for w in ways])
        M = len(ways)
        shapes = [[1, 1, M, 1], [1, M, 1], [1, M, 1, 1], [1, M, 1, 1]][: len(parameters)]
        self.lr, self.decay = ([v.view(s) for s in shapes] for v in (lr, decay))
        self.v = [torch.zeros_like(p) for p in parameters]
        self.u = [torch.zeros_like(p) for p in parameters] if self.is_adam else []

    @torch.no_grad()
    def __call__(self, factor: float) -> None:
        self.t += 1
        for i, p in enumerate(self.parameters):
            g, lr = p.grad, factor * self.lr[i]
            if self.is_adam:
                p.mul_(1 - lr * self.decay[i])
                self.v[i].lerp_(g, 0.1)
                self.u[i].lerp_(g * g, 0.001)
                size = (self.u[i] / (1 - 0.999**self.t)).sqrt_() + 1e-8
                p.sub_(lr / (1 - 0.9**self.t) * self.v[i] / size)
            else:
                self.v[i].mul_(0.9).add_(g + self.decay[i] * p)
                p.sub_(lr * self.v[i])
            p.grad = None


class Losses:
    """[S, M, B, C] logits to [S, M, B] losses, each way's own."""

    def __init__(self, ways: Sequence[Way], prior: Tensor) -> None:
        def column(name: str) -> Tensor:
            return torch.tensor([getattr(w, name) for w in ways]).view(1, -1, 1)

        self.focal, self.gce, self.smooth = map(column, ("focal", "gce", "smooth"))
        self.offset = column("tau").unsqueeze(-1) * prior.clamp(min=1e-12).log()

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        if self.offset.any():
            logits = logits + self.offset
        log_p = logits.log_softmax(3)
        index = y[:, None, :, None].expand(*logits.shape[:3], 1)
        losses = ce = -log_p.gather(3, index).squeeze(3)
        if self.smooth.any():
            losses = torch.lerp(ce, -log_p.mean(3), self.smooth.expand_as(ce))
        if self.focal.any():
            losses = losses * (1 - torch.exp(-ce)).clamp(min=1e-6) ** self.focal
        if self.gce.any():
            of_power = (1 - torch.exp(-self.gce * ce)) / self.gce.clamp(min=1e-6)
            losses = torch.where(self.gce > 0, of_power, losses)
        return losses


class Coefficients:
    """[S, M, B] losses to the detached coefficients of ΣcL/B."""

    def __init__(self, ways: Sequence[Way], S: int, task: Task, sample_weight: Tensor | None):
        self.ways, self.S, self.sample_weight = ways, S, sample_weight
        balance = torch.ones(len(ways), task.num_classes)
        balance[[i for i, w in enumerate(ways) if w.class_weights]] = task.class_weights()
        self.balance = balance
        self.ruled = [i for i, w in enumerate(ways) if w.is_ruled]
        self.rule = Rule([ways[i].weighting for _ in range(S) for i in self.ruled])
        self.others = [(i, w) for i, w in enumerate(ways) if w.kind in OTHERS]
        groups = len(task.counts)
        self.state = {i: torch.full((S, groups), 1 / groups).double() for i, _ in self.others}

    def begin(self, epoch: int, epochs: int) -> None:
        self.progress = epoch / epochs
        if self.ruled:
            plan = [schedule(self.ways[i], epoch, epochs) for i in self.ruled] * self.S  # type: ignore[arg-type]
            self.rule.set_lam(*torch.tensor(plan).double().T)

    def __call__(self, losses: Tensor, y: Tensor, group: Tensor, place: Tensor) -> Tensor:
        L = losses.detach()
        c = self.balance.T[y].transpose(1, 2).clone()
        if self.sample_weight is not None:
            index = place[:, None].expand(L.shape)
            c = c * self.sample_weight.gather(2, index)
        if self.ruled:
            made, _ = self.rule(L[:, self.ruled].flatten(0, 1), c[:, self.ruled].flatten(0, 1))
            c[:, self.ruled] = made.float().view(self.S, len(self.ruled), -1)
        for i, way in self.others:
            of = {"dro": group, "per class": y}.get(way.kind, y)
            c[:, i] = OTHERS[way.kind](self, i, way, L[:, i].double(), of).float()
        return c

    def dro(self, i: int, way: Way, L: Tensor, group: Tensor) -> Tensor:
        """Group DRO (Sagawa et al. 2020): q_g ← q_g·exp(η L_g); Σ q_g L_g."""
        number = torch.zeros_like(self.state[i]).scatter_add_(1, group, torch.ones_like(L))
        mean = torch.zeros_like(number).scatter_add_(1, group, L) / number.clamp(min=1)
        q = self.state[i] * torch.exp(way.value * mean)
        self.state[i] = q = q / q.sum(1, keepdim=True)
        return L.shape[1] * (q / number.clamp(min=1)).gather(1, group)

    def small(self, i: int, way: Way, L: Tensor, _: Tensor) -> Tensor:
        """The smallest losses of the batch (co-teaching's rule); the share falls over a quarter."""
        kept = 1 - (1 - way.value) * min(1, 4 * self.progress)
        number = max(1, round(kept * L.shape[1]))
        last = L.kthvalue(number, dim=1, keepdim=True).values
        return (last >= L) * (L.shape[1] / number)

    def scent(self, i: int, way: Way, L: Tensor, _: Tensor) -> Tensor:
        """s ← (1 − θ)s + θ·m with θ = a·s/(1 + a·s), m the batch's mean of exp(L/λ)."""
        if self.progress < way.start:
            return torch.ones_like(L)
        e = torch.exp((L / way.weighting.lam).clamp(max=80))
        m = e.mean(1, keepdim=True)
        s = self.state[i] if self.state[i].shape[1] == 1 else m
        theta = way.value * s / (1 + way.value * s)
        self.state[i] = s = (1 - theta) * s + theta * m
        return e / s

    def per_class(self, i: int, way: Way, L: Tensor, y: Tensor) -> Tensor:
        """p_i = exp(L_i/λ) over its mean in the sample's class, of this batch."""
        if self.progress < way.start:
            return torch.ones_like(L)
        e = torch.exp((L / way.weighting.lam).clamp(max=80))
        number = torch.zeros_like(self.state[i]).scatter_add_(1, y, torch.ones_like(L))
        mean = torch.zeros_like(number).scatter_add_(1, y, e) / number.clamp(min=1)
        return e / mean.gather(1, y)


OTHERS = {"dro": Coefficients.dro, "small": Coefficients.small, "scent": Coefficients.scent,
          "per class": Coefficients.per_class}  # fmt: skip


def train(
    task: Task, ways: Sequence[Way], seeds: Sequence[int], optimizer: str = "sgd"
) -> list[tuple[list[int], Rows]]:
    """The trained rows, and the indices of the ways that they are of: two-pass ones apart."""
    plain = [i for i, w in enumerate(ways) if w.kind != "jtt"]
    made = [(plain, train_rows(task, [ways[i] for i in plain], seeds, optimizer))] if plain else []
    twice = [i for i, w in enumerate(ways) if w.kind == "jtt"]
    if twice:
        them = [ways[i] for i in twice]
        first = train_rows(task, them, seeds, optimizer, until=0.25)
        up = torch.tensor([w.value for w in them]).view(1, -1, 1)
        weight = 1 + (up - 1) * wrong(first, task, seeds)
        weight = weight / weight.mean(2, keepdim=True)
        made.append((twice, train_rows(task, them, seeds, optimizer, sample_weight=weight)))
    return made


def train_rows(
    task: Task,
    ways: Sequence[Way],
    seeds: Sequence[int],
    optimizer: str,
    until: float = 1.0,
    sample_weight: Tensor | None = None,
) -> Rows:
    """One training: a cosine to 0 over the task's epochs, or the first part of it."""
    rows = Rows(task, seeds, len(ways))
    step = Steps(optimizer, rows.parameters, ways)
    index, y = (torch.stack(p) for p in zip(*map(task.subset, seeds), strict=True))  # [S, n]
    group = task.train.group[index]
    prior = torch.bincount(y.flatten(), minlength=task.num_classes) / y.numel()
    losses_of = Losses(ways, prior)
    coefficients = Coefficients(ways, len(seeds), task, sample_weight)
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    n, E = y.shape[1], task.epochs
    for epoch in range(math.ceil(until * E)):
        coefficients.begin(epoch, E)
        order = torch.stack([torch.randperm(n, generator=g) for g in generators])
        for b in range(0, n, task.batch_size):
            place = order[:, b : b + task.batch_size]
            targets = y.gather(1, place)
            losses = losses_of(rows(task.train.x[index.gather(1, place)]), targets)
            c = coefficients(losses, targets, group.gather(1, place), place)
            (c * losses).sum().div(place.shape[1]).backward()
            step((1 + math.cos(math.pi * (epoch + b / n) / E)) / 2)
    return rows


@torch.no_grad()
def wrong(rows: Rows, task: Task, seeds: Sequence[int]) -> Tensor:
    """[S, M, n]: which training samples are misclassified."""
    index, y = (torch.stack(p) for p in zip(*map(task.subset, seeds), strict=True))
    return (rows(task.train.x[index]).argmax(3) != y[:, None]).float()


@torch.no_grad()
def evaluate(
    rows: Rows, task: Task, taus: Sequence[float] = (0.0,), powers: Sequence[float] = ()
) -> Tensor:
    """[after, S, M, groups]: accuracy with logits − τ·log π for each τ, then with the last layer's
    vectors divided by their length to each power (no bias); NaN for a group that is not there."""
    counts = torch.zeros(task.num_classes)
    of_group = [int(task.train.y[task.train.group == g][0]) for g in range(len(task.counts))]
    counts.index_add_(0, torch.tensor(of_group), torch.tensor(task.counts).float())
    log_prior = (counts / counts.sum()).log()
    length, bias = rows.last_layer()
    G = len(task.counts)
    right = torch.zeros(len(taus) + len(powers), *rows.shape, G)
    for part in torch.arange(len(task.held.y)).split(500):
        logits, y, group = rows(task.held.x[part]), task.held.y[part], task.held.group[part]
        after = [logits - tau * log_prior for tau in taus]
        after += [(logits - bias) / length**power for power in powers]
        for i, adjusted in enumerate(after):
            right[i].index_add_(2, group, (adjusted.argmax(3) == y).float())
    return right / torch.bincount(task.held.group, minlength=G)
