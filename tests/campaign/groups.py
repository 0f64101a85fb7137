"""What changes the parameter groups of any optimizer, the package's and torch's alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from programs import Program, Step


def groups_of(program: Program, named: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """The parameters in turn; "late" is in no group until the event "add"."""
    own, n = [p for name, p in named.items() if name != "late"], len(program.groups)
    for i, group in enumerate(program.groups):
        yield {**hyper_parameters(program, group), "params": own[i::n]}


def hyper_parameters(program: Program, group: dict[str, Any]) -> dict[str, Any]:
    lr = group["lr"]
    return (
        {**group, "lr": torch.tensor(lr, dtype=torch.float64)} if program.has_tensor_lr else group
    )


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def regroup(optimizer: Optimizer, program: Program, named: dict[str, Tensor], step: Step) -> bool:
    """Removes a group, if others are trained, or adds one of the parameters that are in none.
    Returns whether there was one."""
    groups = optimizer.param_groups
    others = groups[1:] if step.value == 0 else groups[:-1]
    if step.event == "remove" and any(p.requires_grad for g in others for p in g["params"]):
        for p in groups.pop(step.value)["params"]:
            optimizer.state.pop(p, None)
        return True
    known = {id(p) for group in groups for p in group["params"]}
    left = [p for p in named.values() if id(p) not in known]
    if step.event == "add" and left:
        optimizer.add_param_group({**hyper_parameters(program, step.value), "params": left})
        return True
    return False


class LRSchedule:
    """One of torch's, by name; none by the name of ""."""

    def __init__(self, name: str, optimizer: Optimizer) -> None:
        s, self.epoch = lr_scheduler, 0
        kinds: dict[str, Any] = {
            "step": lambda o: s.StepLR(o, 7, 0.5),
            "milestones": lambda o: s.MultiStepLR(o, [5, 12], 0.5),
            "exponential": lambda o: s.ExponentialLR(o, 0.95),
            "cosine": lambda o: s.CosineAnnealingLR(o, 10, 0.01),
            "warm restarts": lambda o: s.CosineAnnealingWarmRestarts(o, 4),
            "linear": lambda o: s.LinearLR(o, 0.3, total_iters=5),
            "polynomial": lambda o: s.PolynomialLR(o, 15, 2.0),
            "lambda": lambda o: s.LambdaLR(o, lambda t: 1 / (1 + t)),
            "multiplicative": lambda o: s.MultiplicativeLR(o, lambda t: 1 + 0.5 * math.cos(t)),
            "cyclic": lambda o: s.CyclicLR(o, 0.01, 0.2, 5),
            "one cycle": lambda o: s.OneCycleLR(o, 0.2, total_steps=100),
            "sequential": lambda o: s.SequentialLR(
                o, [s.LinearLR(o, 0.3, total_iters=5), s.ExponentialLR(o, 0.9)], [5]
            ),
            "plateau": lambda o: s.ReduceLROnPlateau(o, factor=0.5, patience=1),
        }
        self.torchs = kinds[name](optimizer) if name else None

    def step(self) -> None:
        self.epoch += 1
        if isinstance(self.torchs, lr_scheduler.ReduceLROnPlateau):
            self.torchs.step(math.cos(self.epoch))
        elif self.torchs is not None:
            self.torchs.step()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "torchs": self.torchs and self.torchs.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        if self.torchs is not None:
            self.torchs.load_state_dict(state["torchs"])
