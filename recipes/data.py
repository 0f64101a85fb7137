"""Image data in memory, made long-tailed or noisy, in an order that can be resumed.

The order of an epoch is a pure function of (seed, epoch), the crop and flip of an image one of
(seed, epoch, index): a run resumed in mid-epoch sees the bits that the uninterrupted run saw, with
any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

import distributed
import torch_absgd as ta


@dataclass(frozen=True)
class Images:
    """images: uint8 [N, 3, H, W]; targets: int64 [N]; classes: their names."""

    images: Tensor
    targets: Tensor
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices: Tensor) -> Images:
        return Images(self.images[indices], self.targets[indices], self.classes)

    def class_counts(self) -> list[int]:
        return torch.bincount(self.targets, minlength=len(self.classes)).tolist()


def load_images(root: str | Path, dataset: str, train: bool, download: bool = False) -> Images:
    """CIFAR as torchvision stores it, or a folder ``{train,test}/<class>/*``; decoded once.

    Args:
        root: the folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``; or ``train``
            and ``test``; or these two within a folder called as ``dataset``.
        dataset: "cifar10" or "cifar100".

    Raises:
        FileNotFoundError: ``root`` holds neither form; says what was looked for.
    """
    root, part = Path(root), "train" if train else "test"
    for folder in (root / part, root / dataset / part):
        if folder.is_dir():
            data = torchvision.datasets.ImageFolder(folder)
            pixels = [np.asarray(data.loader(path)) for path, _ in data.samples]
            return _to_images(np.stack(pixels), data.targets, data.classes)
    read, base = {
        "cifar10": (torchvision.datasets.CIFAR10, "cifar-10-batches-py"),
        "cifar100": (torchvision.datasets.CIFAR100, "cifar-100-python"),
    }[dataset]
    if not download and not (root / base).is_dir():
        raise FileNotFoundError(
            f"{root} holds neither {part}/<class>/, {dataset}/{part}/<class>/ nor {base}/ "
            "(--download fetches it)"
        )
    data = read(root, train=train, download=download)
    return _to_images(data.data, data.targets, data.classes)


def _to_images(pixels: np.ndarray, targets: Sequence[int], classes: Sequence[str]) -> Images:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.tensor(targets), list(classes))


def imbalanced(data: Images, kind: str, ratio: float, seed: int) -> Images:
    """``data`` made long-tailed ("lt") or step-imbalanced ("step"); "none" leaves it."""
    if kind == "none":
        return data
    return data.subset(torch.tensor(ta.ImbalancedSubset(data, kind, ratio, seed).indices))


def choose(targets: Tensor, counts: Sequence[int], seed: int) -> Tensor:
    """Indices of the first ``counts[c]`` of each class c in an order drawn from ``seed``.

    So a smaller subset is contained in a larger one of the same seed.
    """
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    chosen = [order[targets[order] == c][:n] for c, n in enumerate(counts)]
    return torch.cat(chosen).sort().values


def hold_out(data: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """Splits a training set into one to train on and one to validate on, class by class.

    Each class gives ``fraction`` of its images, at least one, and keeps at least one.
    """
    counts = [max(1, n - max(1, round(fraction * n))) for n in data.class_counts()]
    kept = choose(data.targets, counts, seed)
    held = torch.ones(len(data), dtype=torch.bool)
    held[kept] = False
    return data.subset(kept), data.subset(held.nonzero().flatten())


# Patrini et al. 2017, Section 5: truck → automobile, bird → airplane, deer → horse, cat ↔ dog.
CIFAR10_CONFUSIONS = [0, 1, 0, 5, 7, 3, 6, 7, 8, 1]

# CIFAR-100's twenty superclasses of five, as Krizhevsky 2009 lists them.
CIFAR100_SUPERCLASSES = [
    [4, 30, 55, 72, 95], [1, 32, 67, 73, 91], [54, 62, 70, 82, 92], [9, 10, 16, 28, 61],
    [0, 51, 53, 57, 83], [22, 39, 40, 86, 87], [5, 20, 25, 84, 94], [6, 7, 14, 18, 24],
    [3, 42, 43, 88, 97], [12, 17, 37, 68, 76], [23, 33, 49, 60, 71], [15, 19, 21, 31, 38],
    [34, 63, 64, 66, 75], [26, 45, 77, 79, 99], [2, 11, 35, 46, 98], [27, 29, 44, 78, 93],
    [36, 50, 65, 74, 80], [47, 52, 56, 59, 96], [8, 13, 48, 58, 90], [41, 69, 81, 85, 89],
]  # fmt: skip


def confusions(num_classes: int) -> list[int]:
    """The class that asymmetric noise turns each into: in CIFAR-100, the next of its five."""
    if num_classes == 10:
        return CIFAR10_CONFUSIONS
    if num_classes != 100:
        raise ValueError(f"Invalid asymmetric noise: defined for CIFAR, not {num_classes} classes")
    following = list(range(100))
    for group in CIFAR100_SUPERCLASSES:
        for c, next_c in zip(group, group[1:] + group[:1], strict=True):
            following[c] = next_c
    return following


def parse_noise(noise: str) -> tuple[str, float]:
    """Kind and rate; raises ValueError if ``noise`` is not "sym:RATE" and the like."""
    kind, _, rate = noise.partition(":")
    try:
        probability = float(rate)
    except ValueError:
        probability = -1.0
    if kind not in ("sym", "uniform", "asym") or not 0 <= probability <= 1:
        raise ValueError(
            f"Invalid label noise: {noise!r} (sym:RATE, uniform:RATE or asym:RATE, RATE in [0, 1])"
        )
    return kind, probability


def with_label_noise(targets: Tensor, num_classes: int, noise: str, seed: int) -> Tensor:
    """``targets`` with noise "kind:rate", drawn from ``seed``.

    Each label, with probability ``rate``, becomes: "sym" one of the other classes; "uniform" any
    class, its own too; "asym" the class that it is confused with (see :func:`confusions`).

    Raises:
        ValueError: ``noise`` is not of this form.
    """
    kind, probability = parse_noise(noise)
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand(len(targets), generator=generator) < probability
    if kind == "sym":
        shift = torch.randint(1, num_classes, targets.shape, generator=generator)
        noisy = (targets + shift) % num_classes
    elif kind == "uniform":
        noisy = torch.randint(0, num_classes, targets.shape, generator=generator)
    else:
        noisy = torch.tensor(confusions(num_classes))[targets]
    return torch.where(hit, noisy, targets)


def seed_of(*parts: int) -> int:
    """One 64-bit seed from several integers, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Yields batches of (epoch, index) in an order drawn from (seed, epoch).

    ``start(epoch, batch)`` says which epoch comes next, and after how many of its batches.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start(0)

    def start(self, epoch: int, batch: int = 0) -> None:
        self.epoch, self.batch = epoch, batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch, 0))
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        for i in range(self.batch * self.batch_size, self.num_samples, self.batch_size):
            yield [(self.epoch, index) for index in order[i : i + self.batch_size]]

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)


class CropAndFlip(Dataset):
    """CIFAR's usual augmentation: a crop of the image padded by 4, flipped half of the time.

    Takes the (epoch, index) keys of :class:`EpochBatches`, a batch at a time.
    """

    def __init__(self, data: Images, seed: int, padding: int = 4) -> None:
        self.data, self.seed, self.padding = data, seed, padding
        self.epoch = -1

    def __len__(self) -> int:
        return len(self.data)

    def _draw(self, epoch: int) -> None:
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, 1))
        n, p = len(self.data), self.padding
        self.corner = torch.randint(0, 2 * p + 1, (n, 2), generator=generator)
        self.flip = torch.rand(n, generator=generator) < 0.5
        self.epoch = epoch

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        if keys[0][0] != self.epoch:
            self._draw(keys[0][0])
        index = torch.tensor([i for _, i in keys])
        images = torch.nn.functional.pad(self.data.images[index], [self.padding] * 4)
        height, width = self.data.images.shape[2:]
        rows = self.corner[index, 0, None] + torch.arange(height)
        columns = torch.arange(width).expand(len(index), width)
        columns = torch.where(self.flip[index, None], columns.flip(1), columns)
        columns = self.corner[index, 1, None] + columns
        batch = torch.arange(len(index))[:, None, None]
        images = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
        return images.permute(0, 3, 1, 2).contiguous(), self.data.targets[index]


def as_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The collate function of datasets that give whole batches."""
    return batch


def training_loader(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    workers: int = 0,
    pin_memory: bool = False,
    batches: EpochBatches | None = None,
) -> tuple[DataLoader, EpochBatches]:
    """A loader of ``dataset``, or of this process's share of each batch, and the sampler that says
    which epoch it yields next: ``batches``, or all of the dataset in random order."""
    if batches is None:
        batches = EpochBatches(len(dataset), batch_size, seed)
    loader = DataLoader(
        dataset,
        batch_sampler=distributed.shared(batches),
        collate_fn=as_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),  # spares the global one: resume is exact
    )
    return loader, batches


def normalised(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images to numbers of about zero mean and unit deviation, with CIFAR-10's statistics."""
    mean = torch.tensor([0.4914, 0.4822, 0.4465], device=images.device).view(3, 1, 1)
    std = torch.tensor([0.2023, 0.1994, 0.2010], device=images.device).view(3, 1, 1)
    return ((images / 255 - mean) / std).to(dtype)
