"""Images, or vectors, in memory; CIFAR's augmentation: a function of (seed, epoch, index)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from data.order import seed_of


@dataclass(frozen=True)
class Images:
    """images: uint8 [N, 3, H, W] or float32 [N, D]; targets: int64 [N]; classes: their names."""

    images: Tensor
    targets: Tensor
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices: Tensor) -> Images:
        return Images(self.images[indices], self.targets[indices], self.classes)

    def fingerprint(self) -> str:
        content = hashlib.blake2b(digest_size=16)
        for part in (self.images, self.targets):
            content.update(part.contiguous().numpy().tobytes())
        return content.hexdigest()


def in_order(data: Images, batch_size: int) -> DataLoader:
    """To evaluate on, in batches of its own size."""
    return DataLoader(TensorDataset(data.images, data.targets), batch_size=500)


class AsTheyAre(Dataset):
    """Without augmentation, by the (epoch, index) keys of the samplers."""

    def __init__(self, data: Images) -> None:
        self.data = data

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        index = torch.tensor([i for _, i in keys])
        return self.data.images[index], self.data.targets[index]


class CropAndFlip(Dataset):
    """CIFAR's usual augmentation: a crop of the image padded by 4, flipped half of the time.

    Takes the (epoch, index) keys of :class:`EpochBatches`, a batch at a time.
    """

    def __init__(self, data: Images, seed: int, padding: int = 4) -> None:
        self.data, self.seed, self.padding = data, seed, padding
        self.epoch = -1

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


def normalised(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images to numbers of about zero mean and unit deviation, with CIFAR-10's statistics."""
    mean = torch.tensor([0.4914, 0.4822, 0.4465], device=images.device).view(3, 1, 1)
    std = torch.tensor([0.2023, 0.1994, 0.2010], device=images.device).view(3, 1, 1)
    return ((images / 255 - mean) / std).to(dtype)
