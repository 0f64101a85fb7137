"""Images decoded and augmented as they are needed.

The augmentation of an image is a pure function of (seed, epoch, index).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from data.lists import MAX_BYTES, Listed
from data.order import seed_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for pretrained weights


def decode_with_torchvision(path: Path) -> Tensor:
    content = torchvision.io.read_file(str(path))
    image = torchvision.io.decode_image(content, torchvision.io.ImageReadMode.RGB)
    return v2.functional.to_dtype(image, torch.uint8, scale=True)  # of 16 bits


def decode_with_pil(path: Path) -> Tensor:
    with Image.open(path) as image:
        if image.mode.startswith("I"):  # 16 bits, which convert() cuts off at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return v2.functional.pil_to_tensor(image.convert("RGB"))


# torchvision's decoder is libjpeg-turbo without the way through PIL. Not every build has it, and
# since 0.29 it is on its way out in favour of torchcodec.
HAS_FAST_DECODER = hasattr(torchvision.io, "decode_image") and torchvision.extension._has_ops()
DECODERS = {"torchvision": decode_with_torchvision, "pil": decode_with_pil}


def read_image(path: Path, decode: str) -> Tensor:
    """uint8 [3, H, W]; of an animation, the first frame.

    Raises:
        ValueError: the file is not an image, only a part of one, or one of more pixels than PIL
            takes (MAX_IMAGE_PIXELS, twice): a small file can hold gigabytes. Names it.
    """
    try:
        if path.stat().st_size > MAX_BYTES // 2:
            raise OSError(f"it has more than {MAX_BYTES // 2} bytes")
        with Image.open(path) as image:  # its header
            if image.format not in ("JPEG", "PNG"):  # torchvision has not all, nor one frame alone
                decode = "pil"
        return DECODERS[decode](path)
    except (OSError, RuntimeError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be decoded ({reason}): mend it, then --resume") from error


def training_transform(size: int, jitter: float) -> Callable[[Tensor], Tensor]:
    """What the long-tailed benchmarks share: a random resized crop, a flip, a change of colours."""
    colours = [v2.ColorJitter(jitter, jitter, jitter)] if jitter else []
    crop = v2.RandomResizedCrop(size, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *colours])


def evaluation_transform(size: int) -> Callable[[Tensor], Tensor]:
    """The central crop of an image resized to 8/7 of it: 224 out of 256."""
    resize = v2.Resize(round(size * 8 / 7), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(size)])


class Training(Dataset):
    """Batches of uint8 images [B, 3, size, size]; takes the (epoch, index) keys of
    :class:`data.order.EpochBatches`."""

    def __init__(self, images: Listed, size: int, decode: str, jitter: float, seed: int) -> None:
        self.images, self.decode, self.seed = images, decode, seed
        self.transform = training_transform(size, jitter)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        state = torch.get_rng_state()  # transforms draw from the global generator
        try:
            batch = torch.stack([self.augmented(epoch, index) for epoch, index in keys])
        finally:
            torch.set_rng_state(state)
        return batch, self.images.targets[[index for _, index in keys]]

    def augmented(self, epoch: int, index: int) -> Tensor:
        image = read_image(self.images.root / self.images.paths[index], self.decode)
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
        image = read_image(self.images.root / self.images.paths[index], self.decode)
        return self.transform(image), self.images.targets[index]


def normalised(images: Tensor) -> Tensor:
    """uint8 images to float32 with ImageNet's statistics, on their device."""
    return v2.functional.normalize(images.float().div_(255), MEAN, STD)
