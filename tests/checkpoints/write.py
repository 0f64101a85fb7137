"""Writes the checkpoints of the release that is installed into a file of its name beside this one.

    python tests/checkpoints/write.py

Each holds a run's state after some steps, and its parameters and log_s some steps later, which a
later release must reach. Those of a release are written once, by that release; until it is out, by
every change of what a state holds.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torch_absgd as ta

BEFORE, AFTER = 6, 5  # steps
RUNS: dict[str, dict[str, Any]] = {
    "torch": {"lam": 0.7, "momentum": 0.9, "weight_decay": 1e-2},
    "polyak": {"lam": 0.7, "momentum": 0.9, "momentum_form": "polyak"},
    "negative": {"lam": -0.5, "gamma": 0.3, "s_init": 0.5, "alpha": 1.5},
    "sgd": {"momentum": 0.9, "nesterov": True},
    "rule": {"lam": ta.EffectiveSampleSize(0.6, rate=0.5), "gamma": 0.9},
    "module": {"lam": 2.0, "gamma": 0.4},
    "guards": {"lam": ta.KLRadius(0.2), "keep_loss": True, "max_weight": 3.0, "momentum": 0.9},
}


def batch(step: int) -> tuple[Tensor, Tensor]:
    x = torch.arange(24, dtype=torch.float64).view(6, 4)
    return torch.sin((step + 1) * x), torch.arange(6) % 3


class Run:
    def __init__(self, name: str) -> None:
        self.model = nn.Linear(4, 3).double()
        with torch.no_grad():
            for i, p in enumerate(self.model.parameters()):
                p.copy_(torch.cos(torch.arange(p.numel()) + i).view_as(p))
        self.criterion = None
        if name == "module":
            base = nn.CrossEntropyLoss(reduction="none")
            self.criterion = ta.AttentionalLoss(base, **RUNS[name])
            self.opt = torch.optim.SGD(self.model.parameters(), lr=0.1)
        else:
            self.opt = ta.ABSGD(self.model.parameters(), lr=0.1, **RUNS[name])

    @property
    def log_s(self) -> Tensor:
        return (self.criterion or self.opt).log_s

    def train(self, begin: int, end: int) -> None:
        for step in range(begin, end):
            x, y = batch(step)
            self.opt.zero_grad()
            if self.criterion is not None:
                self.criterion(self.model(x), y).backward()
            else:
                losses = nn.functional.cross_entropy(self.model(x), y, reduction="none")
                self.opt.weigh(losses).backward()
            self.opt.step()

    def state(self) -> dict[str, Any]:
        parts = {"model": self.model, "opt": self.opt}
        if self.criterion is not None:
            parts["criterion"] = self.criterion
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.opt.load_state_dict(state["opt"])
        if self.criterion is not None:
            self.criterion.load_state_dict(state["criterion"])

    def result(self) -> dict[str, Tensor]:
        return {"weight": self.model.weight.detach(), "log_s": self.log_s.clone()}


def states() -> dict[str, Any]:
    saved = {}
    for name in RUNS:
        run = Run(name)
        run.train(0, BEFORE)
        state = copy.deepcopy(run.state())
        run.train(BEFORE, BEFORE + AFTER)
        saved[name] = {"state": state, "later": run.result()}
    return saved


if __name__ == "__main__":
    torch.save(states(), Path(__file__).with_name(f"{ta.__version__}.pt"))
