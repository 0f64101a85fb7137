"""ABSGD and SGD on long-tailed or noisy CIFAR-10 and CIFAR-100: Tables 1 and 2 of the paper.

    python recipes/cifar_lt.py --preset cifar10-lt-100-absgd-cb-ce --output-dir runs/cb-ce
    python recipes/presets.py                  # every preset, as a command

Choose hyper-parameters with --validate 0.2, for every method alike; the test set is then not read.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import data
import engine
import models
import options
import presets

load_images = functools.lru_cache(maxsize=2)(data.load_images)  # a sweep reads them once


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("--preset", choices=sorted(presets.PRESETS), metavar="NAME",
                        help="the paper's settings by name; options given beside it win")
    cifar = parser.add_argument_group("data")
    cifar.add_argument("--dataset", choices=("cifar10", "cifar100"), default="cifar10")
    cifar.add_argument("--data-dir", type=Path, default=Path("data"),
                       help="torchvision's CIFAR folder, or {train,test}/<class>/*; in it or in "
                       "a folder called as the data set in it")
    cifar.add_argument("--download", action="store_true", help="fetch CIFAR if it is not there")
    cifar.add_argument("--imbalance", choices=("lt", "step", "none"), default="lt",
                       help="long-tailed, step, or none")
    cifar.add_argument("--imbalance-ratio", type=float, default=100.0,
                       help="largest class over smallest")
    cifar.add_argument("--label-noise", metavar="KIND:RATE",
                       help="sym:0.4 (to any other class), asym:0.4 (to the class it is confused "
                       "with), uniform:0.4 (to any class)")
    cifar.add_argument("--arch", choices=models.ARCHS, default="resnet32")
    cifar.add_argument("--limit", type=int, metavar="N",
                       help="only the first N images of each class and split, for a quick trial")
    # fmt: on
    options.add_training_options(parser)
    parser.set_defaults(recipe="cifar_lt")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    preset = parser.parse_known_args(argv)[0].preset
    if preset:
        parser.set_defaults(**presets.PRESETS[preset])
    args = parser.parse_args(argv)
    options.check(parser, args)
    if args.imbalance_ratio < 1:
        parser.error(f"--imbalance-ratio must be >= 1, got {args.imbalance_ratio}")
    if args.label_noise:
        try:
            data.parse_noise(args.label_noise)
        except ValueError as error:
            parser.error(str(error))
    return args


def load(args: argparse.Namespace, train: bool) -> data.Images:
    images = load_images(args.data_dir, args.dataset, train, args.download)
    if args.limit:
        counts = [min(args.limit, n) for n in images.class_counts()]
        images = images.subset(data.choose(images.targets, counts, seed=0))
    return images


def training_splits(args: argparse.Namespace) -> tuple[data.Images, data.Images | None]:
    """(training, validation or None): imbalance and noise are the training set's, so both's."""
    train = data.imbalanced(load(args, train=True), args.imbalance, args.imbalance_ratio, args.seed)
    if args.label_noise:
        noisy = data.with_label_noise(
            train.targets, len(train.classes), args.label_noise, args.seed
        )
        train = replace(train, targets=noisy)
    return data.hold_out(train, args.validate, args.seed) if args.validate else (train, None)


def build(args: argparse.Namespace) -> tuple[models.CifarResNet, engine.Task]:
    """The network, and the images as the engine wants them."""
    train, validation = training_splits(args)

    def split(name: str) -> DataLoader:
        images = validation if name == "validation" else load(args, train=False)
        return DataLoader(TensorDataset(images.images, images.targets), batch_size=500)

    loader, batches = data.training_loader(
        data.CropAndFlip(train, args.seed), args.batch_size, args.seed, args.workers,
        pin_memory=torch.device(args.device).type == "cuda",
    )  # fmt: skip
    model = models.build(args.arch, len(train.classes), normed=args.loss == "ldam")
    counts = train.class_counts()
    return model, engine.Task(loader, batches, counts, split, data.normalised, train.classes)


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    args = parse(argv)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = True
    model, task = build(args)
    counts = task.class_counts
    print(
        f"{args.dataset}: {sum(counts)} training images, per class {max(counts)} to {min(counts)}"
    )
    return engine.fit(args, model, task)


if __name__ == "__main__":
    try:
        main()
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
