"""A run: what there is to learn, what a method changes, what changes from batch to batch."""

from __future__ import annotations

import argparse
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from data.order import EpochBatches
from engine import checkpoint, distributed, options
from engine.log import Meter
from engine.stopwatch import Stopwatch

MORE_EPOCHS = (
    "; the schedules follow --epochs: more of them are a new run, in another --output-dir; with "
    "the same --stage-two it may begin from a checkpoint of this one's stage one (--stage-one)"
)
AMP_DTYPES = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Task:
    """What there is to learn.

    train, batches: the training set, by (epoch, index) keys, and their order. targets: its labels.
    class_counts: its samples of each class. split: "validation", "test" or "train" to a loader of
    (inputs, targets) in a fixed order. judged_by: the split that the run reports on, read once, at
    the end, and for each point of a curve with --eval-split test. prepare: from a batch, on the
    device, to the model's input. classes: their names. fingerprint: of the data; a checkpoint of
    other data does not resume.
    """

    train: Dataset
    batches: EpochBatches
    targets: Tensor
    class_counts: list[int]
    split: Callable[[str], DataLoader]
    judged_by: str
    prepare: Callable[[Tensor], Tensor]
    classes: Sequence[str]
    fingerprint: str = ""


class Changes:
    """What a method changes in a run. This one changes nothing; see :mod:`baselines.methods`."""

    held_out_samples = 0  # of the training set, to learn weights from

    def criterion(self, run: Run, epoch: int) -> Any | None:
        """The per-sample loss of an epoch, where the options do not name it."""
        return None

    def batches(self, run: Run, in_stage_two: bool) -> EpochBatches:
        return run.task.batches

    def enter_stage_two(self, run: Run) -> None:
        """Called once, before the first step of stage two; of a resumed run, before its state is
        loaded."""

    def step(self, run: Run, criterion: Any, inputs: Tensor, targets: Tensor) -> None:
        run.train_step(criterion, inputs, targets)

    def finish(self, run: Run) -> None:
        """Called with the trained model, before it is evaluated."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Run:
    """A model in training: all that changes from batch to batch."""

    def __init__(
        self, args: argparse.Namespace, model: nn.Module, task: Task, changes: Changes | None = None
    ) -> None:
        self.args, self.task, self.changes = args, task, changes or Changes()
        self.layout = torch.channels_last if args.channels_last else torch.contiguous_format
        self.model = model.to(args.device, memory_format=self.layout)
        device_type = torch.device(args.device).type
        self.on_cuda = device_type == "cuda"
        self.scaler = torch.amp.GradScaler(device_type, enabled=args.amp == "fp16")
        self.autocast = torch.autocast(
            device_type, AMP_DTYPES[args.amp], enabled=args.amp is not None
        )
        self.path = args.output_dir / "checkpoint.pt"
        self.epoch, self.batch, self.log_position = 0, 0, 0
        self.watch = Stopwatch(args.device, args.profile)
        self.meter = Meter(len(task.class_counts), args.device)
        self.losses_at = options.build_losses(args, task.class_counts, args.device)
        self.in_stage_two = False
        self.batches: EpochBatches | None = None
        self.build_training()

    def build_training(self) -> None:
        """What depends on the model's parameters and on the stage."""
        self.forward = torch.compile(self.model) if self.args.compile else self.model
        self.training_forward = self.forward
        if distributed.world_size() > 1:
            self.training_forward = distributed.Replicated(self.forward)
        self.optimizer = options.build_optimizer(self.args, self.model)
        self.lr_schedule, self.lam_schedule = options.build_schedules(self.args, self.optimizer)
        self.build_loader()

    def build_loader(self) -> None:
        batches = self.changes.batches(self, self.in_stage_two)
        if batches is self.batches:
            return
        self.batches = batches
        self.loader = distributed.training_loader(
            self.task.train, self.batches, self.args.workers, pin_memory=self.on_cuda
        )

    def inputs(self, batch: Tensor) -> Tensor:
        batch = self.task.prepare(batch.to(self.args.device, non_blocking=True))
        return batch.contiguous(memory_format=self.layout) if batch.dim() == 4 else batch

    def criterion(self) -> Any:
        return self.changes.criterion(self, self.epoch) or self.losses_at(self.epoch)

    def train_step(self, criterion: Any, inputs: Tensor, targets: Tensor) -> None:
        targets = targets.to(self.args.device, non_blocking=True)
        with self.autocast:
            logits = self.training_forward(self.inputs(inputs))
        losses = criterion(logits, targets)
        loss = self.optimizer.weigh(losses, **criterion.of_samples(targets))
        self.watch.lap("forward")
        self.scaler.scale(loss).backward()
        self.watch.lap("backward")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.meter.add(losses, self.optimizer.weights, targets)
        self.watch.lap("step")

    # ---- state

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "lr_schedule": self.lr_schedule,
            "lam_schedule": self.lam_schedule,
            "scaler": self.scaler,
            "meter": self.meter,
            "changes": self.changes,
        }

    def state_dict(self) -> dict[str, Any]:
        device = self.args.device
        cuda_rng = torch.cuda.get_rng_state(device) if self.on_cuda else None
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "config": options.config_of(self.args),
            "data": self.task.fingerprint,
            "epoch": self.epoch,
            "batch": self.batch,
            "log_position": self.log_position,
            "rng": distributed.gathered(torch.get_rng_state(), device),
            "cuda_rng": None if cuda_rng is None else distributed.gathered(cuda_rng, device),
        }  # Python's and NumPy's generators are not used in training

    def save(self) -> None:
        state = self.state_dict()  # which takes all processes
        if distributed.is_first():
            checkpoint.save(state, self.path)

    def check(self, state: dict[str, Any], may_differ: set[str]) -> None:
        """Raises ValueError if the options or the data are another run's."""
        differ = options.differences(options.config_of(self.args), state["config"])
        wrong = {name: values for name, values in differ.items() if name not in may_differ}
        if wrong:
            raise ValueError(
                "the checkpoint is of a run with other options: "
                + ", ".join(f"{k} = {b!r}, here {a!r}" for k, (a, b) in sorted(wrong.items()))
                + MORE_EPOCHS * ("epochs" in wrong)
            )
        if state.get("data", self.task.fingerprint) != self.task.fingerprint:
            raise ValueError(
                "the checkpoint is of a run on other data: files or labels of the training set or "
                "of what the run is judged by have changed since"
            )

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``; changes nothing if it is another run's."""
        self.check(state, set())
        self.epoch, self.batch = state["epoch"], state["batch"]
        if (self.epoch, self.batch) > (self.args.stage_two, 0):
            self.enter_stage_two()
        for name, part in self._parts().items():
            part.load_state_dict(state.get(name, {}))
        self._resume_place(state)

    def take_over(self, state: dict[str, Any]) -> None:
        """Goes on from the end of another run's stage one, with this run's options: where stage one
        was at λ = ∞, of its optimizer the momentum alone is taken."""
        self.check(state, options.may_differ_after_stage_one(self.args, state["config"]))
        if (state["epoch"], state["batch"]) > (self.args.stage_two, 0):
            raise ValueError(
                f"--stage-one: that run is at epoch {state['epoch']}, in its own stage two; this "
                f"one's begins at {self.args.stage_two}"
            )
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.model.load_state_dict(state["model"])
        if state["scaler"]:  # empty without fp16
            self.scaler.load_state_dict(state["scaler"])
        if self.args.lam_start == math.inf:
            own = self.optimizer.state_dict()["param_groups"]
            momentum = state["optimizer"]["state"]
            self.optimizer.load_state_dict({"state": momentum, "param_groups": own})
        else:
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                group["weight_decay"] = self.args.weight_decay
            self.lam_schedule.load_state_dict(state["lam_schedule"])
        if self.batch:
            self.meter.load_state_dict(state["meter"])
        self._resume_place(state)

    def _resume_place(self, state: dict[str, Any]) -> None:
        self.log_position = state["log_position"]
        torch.set_rng_state(self._own_row(state["rng"], torch.get_rng_state()))
        if state["cuda_rng"] is not None and self.on_cuda:
            device = self.args.device
            own = self._own_row(state["cuda_rng"], torch.cuda.get_rng_state(device))
            torch.cuda.set_rng_state(own, device)

    @staticmethod
    def _own_row(rows: Tensor, like: Tensor) -> Tensor:
        """Of what processes drew from; older checkpoints hold the first one's alone."""
        rows = rows.cpu().reshape(-1, len(like))
        return rows[distributed.rank() % len(rows)].clone()  # torch takes no view

    # ---- stages

    def enter_stage_two(self) -> None:
        self.in_stage_two = True
        self.changes.enter_stage_two(self)
        self.build_loader()

    def begin_epoch(self) -> None:
        """Schedules move at the start of an epoch, so that a checkpoint between two epochs can
        begin either of two second stages."""
        if self.epoch >= self.args.stage_two and not self.in_stage_two:
            self.enter_stage_two()
        with warnings.catch_warnings():
            # A run that was resumed has had its steps in the process before this one.
            warnings.filterwarnings("ignore", re.escape("Detected call of `lr_scheduler.step()`"))
            # Both are brought to the run's epoch here.
            warnings.filterwarnings("ignore", "the target goes on from a loaded state")
            while self.lr_schedule.last_epoch < self.epoch:
                self.lr_schedule.step()
                self.lam_schedule.step()
        options.freeze(self.args, self.model, self.epoch)
        if self.batch == 0:
            self.meter = Meter(len(self.task.class_counts), self.args.device)
        self.watch.start()
