"""The training loop that the recipes share: logging, checkpoints, resuming.

A run's folder holds
    config.json       what the numbers depend on
    log.jsonl         a line for each epoch of training, and one for each evaluation
    events.out.…      the same for TensorBoard
    checkpoint.pt     everything that the next batch depends on; see Run.state_dict
    results.json      written at the end: config, class counts, metrics with their split
    *.png             plots

A run that is killed and resumed ends with the same bits as one that was not. Under torchrun the
first process alone writes; see :mod:`distributed`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import checkpoint
import distributed
import options
import report
from data import EpochBatches
from stopwatch import Stopwatch

AMP_DTYPES = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Task:
    """What a recipe brings to the loop.

    loader, batches: of the training set, from :func:`data.training_loader`. class_counts: its
    images of each class. split: "validation" or "test" to a loader of (images, targets); "test" is
    asked for once, at the end, and for each point of a curve with --eval-split test. prepare: from
    a batch of images, on the device, to the model's input. classes: their names, if they have any.
    """

    loader: DataLoader
    batches: EpochBatches
    class_counts: list[int]
    split: Callable[[str], DataLoader]
    prepare: Callable[[Tensor], Tensor]
    classes: Sequence[str] | None = None


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


class NoLog:
    """What all processes but the first write: nothing."""

    position = 0

    def write(self, split: str, epoch: int, values: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


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
        return {
            "sums": distributed.total(self.sums),
            "by_class": distributed.total(self.by_class),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if distributed.is_first():  # the others begin at 0, and the sum is what it was
            self.sums.copy_(state["sums"])
            self.by_class.copy_(state["by_class"])


class Run:
    """A model in training: all that changes from batch to batch."""

    def __init__(self, args: argparse.Namespace, model: nn.Module, task: Task) -> None:
        self.args, self.task = args, task
        self.layout = torch.channels_last if args.channels_last else torch.contiguous_format
        self.model = model.to(args.device, memory_format=self.layout)
        self.forward = torch.compile(model) if args.compile else model
        self.training_forward = self.forward
        if distributed.world_size() > 1:
            self.training_forward = distributed.Replicated(self.forward)
        self.optimizer = options.build_optimizer(args, model)
        self.lr_schedule, self.lam_schedule = options.build_schedules(args, self.optimizer)
        device_type = torch.device(args.device).type
        self.scaler = torch.amp.GradScaler(device_type, enabled=args.amp == "fp16")
        self.autocast = torch.autocast(
            device_type, AMP_DTYPES[args.amp], enabled=args.amp is not None
        )
        self.path = args.output_dir / "checkpoint.pt"
        self.epoch, self.batch, self.log_position = 0, 0, 0
        self.watch = Stopwatch(args.device, args.profile)
        self.meter = Meter(len(task.class_counts), args.device)

    def inputs(self, images: Tensor) -> Tensor:
        images = self.task.prepare(images.to(self.args.device, non_blocking=True))
        return images.contiguous(memory_format=self.layout)

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "lr_schedule": self.lr_schedule,
            "lam_schedule": self.lam_schedule,
            "scaler": self.scaler,
            "meter": self.meter,
        }

    def state_dict(self) -> dict[str, Any]:
        on_cuda = torch.device(self.args.device).type == "cuda"
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "config": options.config_of(self.args),
            "epoch": self.epoch,
            "batch": self.batch,
            "log_position": self.log_position,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.args.device) if on_cuda else None,
        }  # Python's and NumPy's generators are not used in training

    def save(self) -> None:
        state = self.state_dict()  # which takes all processes
        if distributed.is_first():
            checkpoint.save(state, self.path)

    def load_state_dict(self, state: dict[str, Any], may_differ: Set[str] = frozenset()) -> None:
        """Raises ValueError, and changes nothing, if the options are another run's."""
        ours, theirs = options.config_of(self.args), state["config"]
        differ = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
        if differ - may_differ:
            raise ValueError(
                "the checkpoint is of a run with other options: "
                + ", ".join(
                    f"{k} = {theirs.get(k)!r}, here {ours.get(k)!r}"
                    for k in sorted(differ - may_differ)
                )
            )
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.log_position = state["log_position"]
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.args.device)

    def begin_epoch(self) -> None:
        """Schedules move at the start of an epoch, so that a checkpoint between two epochs can
        begin either of two second stages."""
        with warnings.catch_warnings():
            # A run that was resumed has had its steps in the process before this one.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step()`")
            while self.lr_schedule.last_epoch < self.epoch:
                self.lr_schedule.step()
                self.lam_schedule.step()
        options.freeze(self.args, self.model, self.epoch)
        if self.batch == 0:
            self.meter = Meter(len(self.task.class_counts), self.args.device)
        self.watch.start()


def fit(args: argparse.Namespace, model: nn.Module, task: Task) -> dict[str, Any] | None:
    """Trains ``model`` as ``args`` says (see :mod:`options`) and writes the run's folder.

    Returns:
        The contents of results.json, or None after --stop-epoch and in all processes but one.

    Raises:
        FileExistsError: the folder holds a run, and --resume was not given.
        FloatingPointError: the loss is no longer finite.
        ValueError: the checkpoint is of a run with other options.
    """
    args.output_dir.mkdir(parents=True, exist_ok=True)
    distributed.begin(args.device)
    run = Run(args, model, task)
    exists = run.path.exists()
    distributed.wait()  # before the first process writes it
    if exists:
        if not (args.resume or distributed.was_restarted()):
            raise FileExistsError(
                f"{args.output_dir} holds a run: --resume it, or name another --output-dir"
            )
        run.load_state_dict(checkpoint.load(run.path, args.device))
    elif args.stage_one:
        run.load_state_dict(
            checkpoint.load(args.stage_one, args.device), options.may_differ_after_stage_one(args)
        )
        records = (args.stage_one.parent / "log.jsonl").read_bytes()[: run.log_position]
        if distributed.is_first():
            (args.output_dir / "log.jsonl").write_bytes(records)
    if distributed.is_first():
        report.write_json(args.output_dir / "config.json", options.config_of(args))
        log = Log(args.output_dir, run.log_position, run.epoch)
    else:
        log = NoLog()
    try:
        train(run, log)
        at_end = run.epoch == args.epochs and distributed.is_first()
        return conclude(run, log) if at_end else None
    finally:
        log.close()
        distributed.end()


def train(run: Run, log: Log) -> None:
    """From wherever ``run`` stands to --epochs, or --stop-epoch."""
    args, task = run.args, run.task
    criterion_at = options.build_losses(args, task.class_counts, args.device)
    run.model.train()
    is_first = distributed.is_first()
    last = args.epochs if args.stop_epoch is None else min(args.epochs, args.stop_epoch)
    while run.epoch < last:
        run.begin_epoch()
        criterion = criterion_at(run.epoch)
        task.batches.start(run.epoch, run.batch)
        with tqdm(task.loader, f"epoch {run.epoch}", len(task.batches), initial=run.batch,
                  leave=False, disable=None if is_first else True) as bar:  # fmt: skip
            for images, targets in bar:
                run.watch.lap("data")
                train_step(run, criterion, images, targets)
                run.batch += 1
                if args.checkpoint_every and run.batch % args.checkpoint_every == 0:
                    run.save()
        end_of_epoch(run, log)
        run.epoch, run.batch, run.log_position = run.epoch + 1, 0, log.position
        run.save()


def train_step(run: Run, criterion: nn.Module, images: Tensor, targets: Tensor) -> None:
    targets = targets.to(run.args.device, non_blocking=True)
    with run.autocast:
        logits = run.training_forward(run.inputs(images))
    losses = criterion(logits, targets)
    loss = run.optimizer.weigh(losses)
    run.watch.lap("forward")
    run.scaler.scale(loss).backward()
    run.watch.lap("backward")
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    run.meter.add(losses, run.optimizer.weights, targets)
    run.watch.lap("step")


def end_of_epoch(run: Run, log: Log) -> None:
    args, values = run.args, run.meter.read()
    lr, lam = run.optimizer.param_groups[0]["lr"], float(run.optimizer.lam)
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(
            f"the loss of epoch {run.epoch} is not finite (lr {lr}, lambda {lam}): lower --lr, or "
            "raise |--lam|"
        )
    log.write("train", run.epoch, {"lr": lr, "lam": lam, **values})
    print(
        f"epoch {run.epoch:3d}  train: loss {values['loss']:.4f}, weighted "
        f"{values['weighted_loss']:.4f}, lr {lr:.2g}, lambda {lam:g}, ESS {values['ess']:.2f}"
    )
    if args.profile:
        print(f"           {run.watch.line()}")
    _ = run.optimizer.stats().mean  # warns when a few samples carry all the weight
    if args.eval_every and (run.epoch + 1) % args.eval_every == 0 and distributed.is_first():
        metrics = evaluate(run, args.eval_split)
        log.write(args.eval_split, run.epoch, metrics)
        print(f"           {args.eval_split}: {report.line(metrics)}")


@torch.no_grad()
def predict(run: Run, split: str, features: bool = False) -> tuple[Tensor, Tensor]:
    """(logits, targets) of a whole split, on the CPU; with ``features``, the last layer's inputs
    in place of its outputs."""
    forward = run.model.features if features else run.forward
    outputs, labels = [], []
    run.model.eval()
    for images, targets in run.task.split(split):
        with run.autocast:
            outputs.append(forward(run.inputs(images)).float().cpu())
        labels.append(targets)
    run.model.train()
    return torch.cat(outputs), torch.cat(labels)


def evaluate(run: Run, split: str) -> dict[str, Any]:
    logits, targets = predict(run, split)
    return report.metrics(targets, logits.argmax(1), report.groups_by_shots(run.task.class_counts))


def conclude(run: Run, log: Log) -> dict[str, Any]:
    """The one reading of the test set (or of the validation split), results.json and plots."""
    args = run.args
    split = "validation" if args.validate else "test"
    metrics = evaluate(run, split)
    print(f"end        {split}: {report.line(metrics)}")
    results = {
        "split": split,
        "metrics": metrics,
        "class_counts": run.task.class_counts,
        "groups": report.groups_by_shots(run.task.class_counts),
        "config": options.config_of(args),
        "torch": torch.__version__,
    }
    report.plot_run(log.records(), results, args.output_dir)
    if args.tsne:
        features, targets = predict(run, split, features=True)
        report.plot_tsne(features, targets, args.output_dir / "tsne.png", split)
    report.write_json(args.output_dir / "results.json", results)
    return results
