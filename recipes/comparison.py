"""One run of one method on one data set, on the shared engine: what compare.py repeats."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import checkpoint
import cifar_lt
import data
import digits_lt
import engine
import meta
import models
import options
import presets
import report
from data import EpochBatches, Images
from methods import Method, Setting, Stage, Step
from samplers import ClassBatches


class AsTheyAre(Dataset):
    """Images without augmentation, by the (epoch, index) keys of the samplers."""

    def __init__(self, images: Images, seed: int) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        index = torch.tensor([i for _, i in keys])
        return self.images.images[index], self.images.targets[index]


class DigitsNet(nn.Module):
    """digits_lt.py's network, with the names that the engine asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.fc = nn.Linear(64, 64), nn.Linear(64, digits_lt.CLASSES)

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


@dataclass(frozen=True)
class Problem:
    """A training set, and what a trained model is judged on.

    key: what tells it from every other problem. split: "validation" or "test", the name of
    ``judge``, which gives the images. build: the model; its argument asks for a normed last layer.
    options: of the engine. groups: many, medium and few from the class counts. held_out_per_class:
    images of each class that META sets aside.
    """

    key: dict[str, Any]
    train: Images
    split: str
    judge: Callable[[], Images]
    build: Callable[[bool], nn.Module]
    augment: Callable[[Images, int], Dataset]
    prepare: Callable[[Tensor], Tensor]
    options: dict[str, Any]
    groups: Callable[[Sequence[int]], report.Groups]
    held_out_per_class: int


def digits(args: argparse.Namespace, seed: int, validate: bool) -> Problem:
    """digits_lt.py's digits and splits, long-tailed with compare.py's imbalance ratio, or noisy."""
    pool, test = digits_lt.load_splits()
    if validate:
        pool, judge = digits_lt.hold_out(pool, seed)
    else:
        judge = test

    def images(split: digits_lt.Split) -> Images:
        return Images(split.images, split.targets, range(digits_lt.CLASSES))

    if args.noisy:
        train = images(digits_lt.make_noisy(pool, seed))
    else:
        train = data.imbalanced(images(pool), "lt", args.imbalance_ratio, seed)

    def build(normed: bool) -> nn.Module:
        model = DigitsNet()
        if normed:
            model.fc = models.ta.NormedLinear(64, digits_lt.CLASSES)
        return model

    key = ("dataset", "noisy", "imbalance_ratio", "epochs", "stage_two", "batch_size")
    return Problem(
        {**{name: getattr(args, name) for name in key}, "seed": seed, "validate": validate},
        train, "validation" if validate else "test", lambda: images(judge), build,
        AsTheyAre, lambda x: x,
        stages(args, warmup_epochs=0), report.groups_by_terciles, held_out_size(train),
    )  # fmt: skip


def cifar(args: argparse.Namespace, seed: int, validate: bool) -> Problem:
    """Long-tailed CIFAR as ``args`` of compare.py describe it. To validate on: a tenth of the whole
    training set, balanced, taken before it is made long-tailed; digits do alike."""
    given = argparse.Namespace(**vars(args), download=False)
    given.limit = None
    images, held = cifar_lt.load(given, train=True), None
    if validate:
        images, held = data.hold_out(images, 0.1, seed)
    if args.limit:
        counts = [min(args.limit, n) for n in images.class_counts()]
        images = images.subset(data.choose(images.targets, counts, seed=0))
    train = data.imbalanced(images, "lt", args.imbalance_ratio, seed)

    def prepare(images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(data.normalised(images), args.shrink)

    key = ("dataset", "imbalance_ratio", "limit", "shrink", "arch", "epochs", "stage_two",
           "batch_size")  # fmt: skip
    return Problem(
        {**{name: getattr(args, name) for name in key}, "seed": seed, "validate": validate},
        train, "validation" if validate else "test",
        lambda: held if validate else cifar_lt.load(given, train=False),
        lambda normed: models.build(args.arch, len(train.classes), normed),
        data.CropAndFlip, prepare, stages(args, warmup_epochs=min(5, args.stage_two)),
        report.groups_by_shots, held_out_size(train),
    )  # fmt: skip


def stages(args: argparse.Namespace, warmup_epochs: int) -> dict[str, Any]:
    """The engine's options: two stages, lr moving at the second."""
    names = ("epochs", "stage_two", "batch_size", "device")
    return {
        **{name: getattr(args, name) for name in names},
        "lr_milestones": [args.stage_two],
        "warmup_epochs": warmup_epochs,
    }


def held_out_size(train: Images) -> int:
    """Images of each class that META sets aside: 10, as Ren et al., or half of the rarest class."""
    return max(1, min(10, min(train.class_counts()) // 2))


class Training:
    """A method's run on a problem. The test set is read by :meth:`metrics` alone."""

    def __init__(self, problem: Problem, method: Method, setting: Setting, seed: int) -> None:
        self.problem, self.method, self.setting, self.seed = problem, method, setting, seed
        self.train, self.held_out = problem.train, None
        if method.held_out:
            per_class = problem.held_out_per_class
            self.train, self.held_out = meta.take_balanced(problem.train, per_class, seed)
        self.counts = self.train.class_counts()
        self.args = self._arguments()
        torch.manual_seed(seed)
        model = problem.build(self.args.loss == "ldam")
        self.run = engine.Run(self.args, model, self._task(first_stage=True))
        self._step: Step | None = None

    def _arguments(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        options.add_training_options(parser)
        known = vars(parser.parse_args(["--output-dir", "-"]))
        settings = {k: v for k, v in self.setting.items() if k in known}
        flags = presets.flags({**self.problem.options, **self.method.options, **settings})
        return parser.parse_args(["--output-dir", "-", "--seed", str(self.seed), *flags])

    def _task(self, first_stage: bool) -> engine.Task:
        sampling = self.method.sampling
        if first_stage and not self.method.from_start:
            sampling = "instance"
        size, last = self.args.batch_size, self.args.epochs - 1
        if sampling == "instance":
            batches = EpochBatches(len(self.train), size, self.seed)
        else:
            batches = ClassBatches(self.train.targets, size, self.seed, sampling, 0, last)
        dataset = self.problem.augment(self.train, self.seed)
        loader, _ = data.training_loader(dataset, size, self.seed, batches=batches)
        return engine.Task(loader, batches, self.counts, self._split, self.problem.prepare)

    def _split(self, name: str) -> DataLoader:
        images = self.train if name == "train" else self.problem.judge()
        return DataLoader(TensorDataset(images.images, images.targets), batch_size=500)

    def _criterion(self, epoch: int) -> nn.Module:
        own = self.method.criterion
        if own is not None and (self.method.from_start or epoch >= self.args.stage_two):
            return own(self.counts, self.setting).to(self.args.device)
        return options.build_losses(self.args, self.counts, self.args.device)(epoch)

    # ---- the two stages

    def stage_one(self, folder: Path) -> None:
        """Trains it, or takes it from ``folder``, where methods that share it leave it."""
        path = folder / f"{_name(self._stage_one_key())}.pt"
        if not self._taken_from(path):
            criterion = self._criterion(0)
            self._train(
                self.args.stage_two, lambda x, y: engine.train_step(self.run, criterion, x, y)
            )
            self._leave(path)

    def _stage_one_key(self) -> dict[str, Any]:
        """All that the numbers of stage one depend on."""
        common = ("lr", "weight_decay", "momentum", "seed", "batch_size", "stage_two")
        key = {
            "problem": self.problem.key,
            "options": {k: getattr(self.args, k) for k in common},
            "counts": self.counts,
            "own": None,
        }
        if self.method.from_start:
            own = self.method.criterion
            in_loss = {k: v for k, v in self.setting.items() if k in ("tau", "focal_gamma")}
            key["own"] = [self.args.loss, self.method.sampling, own and own.__name__, in_loss]
        return key

    def _taken_from(self, path: Path) -> bool:
        if not path.exists():
            return False
        every = set(options.config_of(self.args))
        self.run.load_state_dict(checkpoint.load(path, self.args.device), every)
        for group in self.run.optimizer.param_groups:
            group["gamma"] = self.args.gamma  # the other method's was loaded
        return True

    def _leave(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.run.state_dict(), path)

    def enter_stage_two(self) -> None:
        method, model = self.method, self.run.model
        if method.change is not None:
            method.change(model, len(self.counts))
            schedule = self.run.lr_schedule.state_dict()
            self.run = engine.Run(self.args, model, self.run.task)  # momentum is another model's
            self.run.lr_schedule.load_state_dict(schedule)
        self.run.epoch = self.args.stage_two
        self.run.task = self._task(first_stage=False)
        criterion = self._criterion(self.args.stage_two)
        self._step = method.step(
            Stage(self.run, criterion, self.setting, self.counts, self.held_out, self.seed)
        )
        self.run.begin_epoch()

    def stage_two(self, folder: Path) -> None:
        """Trains it and finishes; what is finished otherwise after the same training shares it."""
        self.enter_stage_two()
        setting = dict(self.setting)
        if self.method.finish is not None:
            setting.pop("tau", None)  # of what comes after
        key = [self._stage_one_key(), self.method.options, setting]
        path = folder / f"{_name(key)}.pt"
        if not self.method.is_plain or not self._taken_from(path):
            self._train(self.args.epochs, self._step)
            if self.method.is_plain:
                self._leave(path)
        if self.method.finish is not None:
            trained_on = engine.predict(self.run, "train", features=True)
            device = self.args.device
            trained_on = (trained_on[0].to(device), trained_on[1].to(device))
            self.method.finish(self.run.model, self.setting, self.counts, trained_on)

    def _train(self, until: int, step: Step) -> None:
        run = self.run
        run.model.train()
        while run.epoch < until:
            run.begin_epoch()
            run.task.batches.start(run.epoch)
            for images, targets in run.task.loader:
                step(images, targets)
            run.epoch += 1

    def step(self, images: Tensor, targets: Tensor) -> None:
        """One training step of stage two."""
        self._step(images, targets)

    @property
    def diverged(self) -> bool:
        return not all(bool(p.isfinite().all()) for p in self.run.model.parameters())

    def metrics(self) -> dict[str, Any]:
        logits, targets = engine.predict(self.run, self.problem.split)
        groups = self.problem.groups(self.problem.train.class_counts())
        return report.metrics(targets, logits.argmax(1), groups)


def train(problem: Problem, method: Method, setting: Setting, seed: int, folder: Path) -> Training:
    """A whole run; ``folder`` keeps what methods share."""
    training = Training(problem, method, setting, seed)
    training.stage_one(folder)
    training.stage_two(folder)
    return training


def _name(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
