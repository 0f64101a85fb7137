"""Images named in a list file, decoded and augmented as they are needed.

The augmentation of an image is a pure function of (seed, epoch, index), as in :mod:`data`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from data import seed_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for pretrained weights


@dataclass(frozen=True)
class Listed:
    """paths: files of images; targets: int64 [N]."""

    paths: Sequence[Path]
    targets: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices: Tensor) -> Listed:
        paths = [self.paths[i] for i in indices.tolist()]
        return Listed(paths, self.targets[indices], self.num_classes)

    def class_counts(self) -> list[int]:
        return torch.bincount(self.targets, minlength=self.num_classes).tolist()


def parse_list(file: Path, num_classes: int) -> tuple[list[str], list[int]]:
    """The names and labels of a published list: ``path label`` a line.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: a line is not of this form, or its label is not in 0 … num_classes − 1.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such list: {file}")
    names, labels = [], []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.removeprefix("-").isdecimal():
            raise ValueError(f"{file}, line {number}: not `path label`: {line!r}")
        if not 0 <= int(label) < num_classes:
            raise ValueError(
                f"{file}, line {number}: label {label} is not in 0 to {num_classes - 1}"
            )
        names.append(name)
        labels.append(int(label))
    return names, labels


def read_list(file: Path, root: Path, num_classes: int, prefix: str = "") -> Listed:
    """The images of a published list, whose paths, less ``prefix``, are relative to ``root``.

    Raises: as :func:`parse_list` and :func:`checked`.
    """
    names, labels = parse_list(file, num_classes)
    paths = [root / name.removeprefix(prefix) for name in names]
    return checked(paths, labels, num_classes, file)


def checked(
    paths: Sequence[Path], targets: Sequence[int], num_classes: int, source: Path
) -> Listed:
    """The images that ``source`` names, if they are there.

    Looks into every folder once: hundreds of thousands of files on a network drive are too many to
    ask for one by one.

    Raises:
        FileNotFoundError: an image is not there; names it.
        ValueError: there are no images.
    """
    if not paths:
        raise ValueError(f"{source} names no images")
    present: dict[Path, set[str]] = {}
    for path in paths:
        folder = path.parent
        if folder not in present:
            present[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        if path.name not in present[folder]:
            raise FileNotFoundError(f"{source} names {path}, which is not there")
    return Listed(paths, torch.tensor(targets), num_classes)


def decode_with_torchvision(path: Path) -> Tensor:
    content = torchvision.io.read_file(str(path))
    return torchvision.io.decode_image(content, torchvision.io.ImageReadMode.RGB)


def decode_with_pil(path: Path) -> Tensor:
    image = torchvision.datasets.folder.pil_loader(str(path))
    return v2.functional.pil_to_tensor(image)


# torchvision's decoder is libjpeg-turbo without the way through PIL. Not every build has it, and
# since 0.29 it is on its way out in favour of torchcodec.
HAS_FAST_DECODER = hasattr(torchvision.io, "decode_image") and torchvision.extension._has_ops()
DECODERS = {"torchvision": decode_with_torchvision, "pil": decode_with_pil}


def read_image(path: Path, decode: str) -> Tensor:
    """uint8 [3, H, W].

    Raises:
        ValueError: the file is not an image, or only a part of one; names it.
    """
    try:
        return DECODERS[decode](path)
    except (OSError, RuntimeError, SyntaxError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be decoded: {reason}") from error


def training_transform(size: int) -> Callable[[Tensor], Tensor]:
    """What the long-tailed benchmarks share: a random resized crop, a flip, a change of colours."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
        ]
    )


def evaluation_transform(size: int) -> Callable[[Tensor], Tensor]:
    """The central crop of an image resized to 8/7 of it: 224 out of 256."""
    resize = v2.Resize(round(size * 8 / 7), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(size)])


class Training(Dataset):
    """Batches of uint8 images [B, 3, size, size]; takes the (epoch, index) keys of
    :class:`data.EpochBatches`."""

    def __init__(self, images: Listed, size: int, decode: str, seed: int) -> None:
        self.images, self.decode, self.seed = images, decode, seed
        self.transform = training_transform(size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        state = torch.get_rng_state()  # transforms draw from the global generator
        try:
            batch = torch.stack([self.augmented(epoch, index) for epoch, index in keys])
        finally:
            torch.set_rng_state(state)
        return batch, self.images.targets[[index for _, index in keys]]

    def augmented(self, epoch: int, index: int) -> Tensor:
        image = read_image(self.images.paths[index], self.decode)
        torch.default_generator.manual_seed(seed_of(self.seed, epoch, 1, index))
        return self.transform(image)


class Evaluation(Dataset):
    """(uint8 image [3, size, size], target), for a plain loader."""

    def __init__(self, images: Listed, size: int, decode: str) -> None:
        self.images, self.decode = images, decode
        self.transform = evaluation_transform(size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = read_image(self.images.paths[index], self.decode)
        return self.transform(image), self.images.targets[index]


def normalised(images: Tensor) -> Tensor:
    """uint8 images to float32 with ImageNet's statistics, on their device."""
    return v2.functional.normalize(images.float().div_(255), MEAN, STD)
