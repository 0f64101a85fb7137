"""Sets that fit in memory, by name: cifar10, cifar100, digits, fashion-mnist."""

from __future__ import annotations

import functools
import gzip
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from data import memory
from data.memory import Images
from data.source import Source
from data.subsets import limited

NAMES = ("cifar10", "cifar100", "digits", "fashion-mnist")
FASHION_BYTES = 16 + 60_000 * 28 * 28  # of the largest of its files, unpacked
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "boot")  # fmt: skip


@functools.lru_cache(maxsize=2)  # a study reads them once
def load_cifar(root: Path, name: str, train: bool, download: bool = False) -> Images:
    """CIFAR as torchvision stores it, or a folder ``{train,test}/<class>/*``; decoded once.

    Args:
        root: the folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``; or ``train``
            and ``test``; or these two within a folder called as ``name``.

    Raises:
        FileNotFoundError: ``root`` holds neither form, or other files; says what was looked for.
    """
    part = "train" if train else "test"
    for folder in (root / part, root / name / part):
        if folder.is_dir():
            data = torchvision.datasets.ImageFolder(folder)
            pixels = np.stack([np.asarray(data.loader(path)) for path, _ in data.samples])
            return _from_pixels(pixels, data.targets, data.classes)
    read, base = {
        "cifar10": (torchvision.datasets.CIFAR10, "cifar-10-batches-py"),
        "cifar100": (torchvision.datasets.CIFAR100, "cifar-100-python"),
    }[name]
    if not download and not (root / base).is_dir():
        raise FileNotFoundError(
            f"{root} holds neither {part}/<class>/, {name}/{part}/<class>/ nor {base}/ "
            "(--download fetches it)"
        )
    try:
        data = read(root, train=train, download=download)  # of known checksums: they are pickles
    except RuntimeError as error:
        raise FileNotFoundError(f"{root / base}: {error}") from error
    return _from_pixels(data.data, data.targets, data.classes)


def _from_pixels(pixels: np.ndarray, targets: Sequence[int], classes: Sequence[str]) -> Images:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.as_tensor(targets), list(classes))


@functools.lru_cache(maxsize=2)
def load_fashion(root: Path, train: bool) -> Images:
    """Fashion-MNIST's four idx files, packed or not, grey made to three channels.

    Raises:
        FileNotFoundError: they are neither in ``root`` nor where Debian has them.
    """
    part = "train" if train else "t10k"
    arrays = []
    for kind, skip in (("images-idx3", 16), ("labels-idx1", 8)):
        name = f"{part}-{kind}-ubyte"
        places = [root, root / "fashion-mnist", root / "FashionMNIST" / "raw",
                  Path("/usr/share/datasets/fashion-mnist")]  # fmt: skip
        files = [place / n for place in places for n in (name, f"{name}.gz")]
        file = next((f for f in files if f.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"no {name} or {name}.gz in {', '.join(map(str, places))}")
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as unpacked:
            content = unpacked.read(FASHION_BYTES + 1)
        if len(content) > FASHION_BYTES:
            raise ValueError(f"{file} is not Fashion-MNIST's: it is larger")
        arrays.append(np.frombuffer(content, np.uint8, offset=skip))
    pixels = arrays[0].reshape(-1, 28, 28, 1).repeat(3, axis=3)
    return _from_pixels(pixels, arrays[1].astype(np.int64), FASHION)


@functools.cache
def load_digits_split(train: bool) -> Images:
    """scikit-learn's 1,797 digits (8×8, scaled to [0, 1]): 60 % to train on, 40 % to test on, the
    same split as digits_lt.py's."""
    images, targets = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, targets, test_size=0.4, stratify=targets, random_state=0)
    x, y = (parts[0], parts[2]) if train else (parts[1], parts[3])
    return Images(torch.tensor(x, dtype=torch.float32), torch.tensor(y), list(map(str, range(10))))


def open_named(args: Namespace) -> Source:
    """The set that ``args.data`` names; CIFAR and Fashion-MNIST are in ``args.data_dir``."""

    def read(train: bool) -> Images:
        if args.data == "digits":
            images = load_digits_split(train)
        elif args.data == "fashion-mnist":
            images = load_fashion(args.data_dir, train)
        else:
            images = load_cifar(args.data_dir, args.data, train, args.download)
        return limited(images, args.limit)

    if args.data == "digits":
        return Source(read(True), lambda: read(False), ("vector", 64),
                      lambda images, seed: memory.AsTheyAre(images), memory.in_order)  # fmt: skip

    def prepare(images: torch.Tensor) -> torch.Tensor:
        images = memory.normalised(images)
        return nn.functional.avg_pool2d(images, args.shrink) if args.shrink > 1 else images

    return Source(read(True), lambda: read(False), ("image", 3), memory.CropAndFlip,
                  memory.in_order, prepare)  # fmt: skip
