"""log.jsonl and TensorBoard's events, and the sums over an epoch that go into them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from engine import distributed, report


class Log:
    """log.jsonl and TensorBoard's events; ``position`` is the log's length in bytes."""

    def __init__(self, directory: Path, position: int, epoch: int) -> None:
        self.path = directory / "log.jsonl"
        self.file = open(self.path, "ab")  # noqa: SIM115 (close closes it)
        self.file.truncate(position)  # drops what a killed run wrote after its last checkpoint
        self.events = SummaryWriter(str(directory), purge_step=epoch)

    @property
    def position(self) -> int:
        self.file.flush()
        os.fsync(self.file.fileno())  # a checkpoint will refer to it
        return self.path.stat().st_size

    def write(self, split: str, epoch: int, values: dict[str, Any]) -> None:
        record = report.jsonable({"split": split, "epoch": epoch, **values})
        self.file.write((json.dumps(record, allow_nan=False) + "\n").encode())
        for name, value in values.items():
            if isinstance(value, float) and math.isfinite(value):
                self.events.add_scalar(f"{split}/{name}", value, epoch)

    def records(self) -> list[dict[str, Any]]:
        self.file.flush()
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def close(self) -> None:
        self.file.close()
        self.events.close()


class Meter:
    """Sums over the batches of an epoch, kept on the device: reading them is for its end. Each
    process has its own part; what is read and saved is of all."""

    def __init__(self, num_classes: int, device: str) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)
        self.by_class = torch.zeros(2, num_classes, dtype=torch.float64, device=device)
        self.classes = torch.arange(num_classes, device=device)

    def add(self, losses: Tensor, weights: Tensor, targets: Tensor) -> None:
        losses, p, count = losses.detach().double(), weights.double(), len(targets)
        ess = p.sum().square() / p.square().sum() / count
        one, total = torch.ones_like(ess), torch.full_like(ess, count)
        self.sums += torch.stack([losses.sum(), (p * losses).sum(), ess, one, total])
        member = (targets[:, None] == self.classes).double()
        self.by_class += torch.stack([p, torch.ones_like(p)]) @ member

    def read(self) -> dict[str, Any]:
        """loss: mean of L; weighted_loss: mean of p·L; ess: mean over batches of
        (Σp)²/(B·Σp²), of each process's part; class_weight: mean p of each class, None for one
        that was not seen."""
        loss, weighted, ess, batches, samples = distributed.total(self.sums).tolist()
        p, seen = distributed.total(self.by_class).tolist()
        return {
            "loss": loss / samples,
            "weighted_loss": weighted / samples,
            "ess": ess / batches,
            "class_weight": [s / n if n else None for s, n in zip(p, seen, strict=True)],
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The processes' own sums: that of all, resumed, would be added up in another order."""
        device = str(self.sums.device)
        return {
            "sums": distributed.gathered(self.sums, device),
            "by_class": distributed.gathered(self.by_class, device),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, own in (("sums", self.sums), ("by_class", self.by_class)):
            rows = state[name].reshape(-1, *own.shape)  # older checkpoints hold the sum of all
            if len(rows) == distributed.world_size():
                own.copy_(rows[distributed.rank()])
            elif distributed.is_first():  # the others begin at 0
                own.copy_(rows.sum(0))
