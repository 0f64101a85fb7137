"""The order and augmentation that resuming relies on; imbalance, noise, hold-out."""

import numpy as np
import pytest
import torch
import torchvision

from data import memory, named, noise, order
from data.subsets import class_counts, hold_out, imbalanced
from engine.distributed import training_loader


def images_of(counts, size=8):
    targets = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (len(targets), 3, size, size), generator=generator)
    return memory.Images(pixels.to(torch.uint8), targets, [str(c) for c in range(len(counts))])


def batches_of(images, workers=0, epoch=0, start=0):
    batches = order.EpochBatches(len(images), 7, seed=5)
    loader = training_loader(memory.CropAndFlip(images, 5), batches, workers)
    batches.start(epoch, start)
    return list(loader)


def equal(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def test_an_epoch_can_be_entered_anywhere_with_any_number_of_workers():
    images = images_of([10, 10])
    whole = batches_of(images, epoch=3)
    assert [len(y) for _, y in whole] == [7, 7, 6]
    assert equal(batches_of(images, epoch=3, start=1), whole[1:])
    assert equal(batches_of(images, epoch=3, start=1, workers=2), whole[1:])
    assert not equal(batches_of(images, epoch=4), whole)


def test_reading_batches_draws_nothing_from_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches_of(images_of([10, 10]))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_holds_every_image_once():
    images = images_of([9, 11])
    batches = order.EpochBatches(len(images), 7, seed=0)
    keys = [key for batch in batches for key in batch]
    assert sorted(keys) == [(0, i) for i in range(20)]


def test_crops_are_windows_of_the_padded_image_or_its_mirror():
    images = images_of([6])
    augmented, _ = memory.CropAndFlip(images, 1).__getitems__([(2, i) for i in range(6)])
    padded = torch.nn.functional.pad(images.images, [4] * 4)
    seen = set()
    for i in range(6):
        windows = {
            (row, column, flip): window.flip(2) if flip else window
            for row in range(9)
            for column in range(9)
            for window in [padded[i, :, row : row + 8, column : column + 8]]
            for flip in (False, True)
        }
        found = [key for key, window in windows.items() if torch.equal(window, augmented[i])]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 1 and {flip for *_, flip in seen} == {False, True}


def test_imbalance_follows_the_counts_and_the_seed():
    images = images_of([40] * 5)
    tail = imbalanced(images, "lt", 10, seed=0)
    assert class_counts(tail)[0] == 40 and class_counts(tail)[-1] == 4
    assert class_counts(tail) == sorted(class_counts(tail), reverse=True)
    step = imbalanced(images, "step", 10, seed=0)
    assert set(class_counts(step)) == {40, 4}
    assert torch.equal(tail.images, imbalanced(images, "lt", 10, seed=0).images)
    assert not torch.equal(tail.images, imbalanced(images, "lt", 10, seed=1).images)
    assert imbalanced(images, "none", 10, seed=0) is images


def test_hold_out_divides_each_class_and_keeps_one():
    images = images_of([20, 10, 2])
    train, validation = hold_out(images, 0.2, seed=0)
    assert class_counts(train) == [16, 8, 1]
    assert class_counts(validation) == [4, 2, 1]
    together = torch.cat([train.images, validation.images]).flatten(1).unique(dim=0)
    assert len(together) == 32


@pytest.mark.parametrize(("kind", "wrong"), [("sym", 0.4), ("uniform", 0.36), ("asym", 0.2)])
def test_noise_has_its_rate_and_its_kind(kind, wrong):
    targets = torch.arange(10).repeat(2000)
    noisy = noise.with_label_noise(targets, 10, f"{kind}:0.4", seed=3)
    moved = noisy != targets
    # binomial deviation is 0.0035; of ten classes, five are confused with another
    assert moved.double().mean().item() == pytest.approx(wrong, abs=0.015)
    assert torch.equal(noisy, noise.with_label_noise(targets, 10, f"{kind}:0.4", seed=3))
    if kind == "asym":
        pairs = set(zip(targets[moved].tolist(), noisy[moved].tolist(), strict=True))
        assert pairs == {(9, 1), (2, 0), (4, 7), (3, 5), (5, 3)}
    else:
        assert len(set(zip(targets[moved].tolist(), noisy[moved].tolist(), strict=True))) == 90


def test_cifar100_confusions_are_cycles_of_five_within_a_superclass():
    assert sorted(c for group in noise.CIFAR100_SUPERCLASSES for c in group) == list(range(100))
    following = noise.confusions(100)
    for group in noise.CIFAR100_SUPERCLASSES:
        assert {following[c] for c in group} == set(group)
        assert all(following[c] != c for c in group)


@pytest.mark.parametrize("text", ["sym", "sym:", "sym:1.5", "pair:0.4", "sym:x"])
def test_bad_noise_says_what_is_allowed(text):
    with pytest.raises(ValueError, match=r"sym:RATE"):
        noise.with_label_noise(torch.zeros(3, dtype=torch.long), 10, text, 0)


def test_torchvisions_own_folder_reads_as_the_image_folder_does(tmp_path, monkeypatch):
    """Both forms of the same images give the same tensors; a folder of neither says so."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)

    class Cifar:
        def __init__(self, root, train, download):
            assert not download
            self.data, self.targets, self.classes = pixels, [0, 1, 1, 0], ["a", "b"]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar)
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py"):
        named.load_cifar(tmp_path, "cifar10", train=True)
    (tmp_path / "cifar-10-batches-py").mkdir()
    images = named.load_cifar(tmp_path, "cifar10", train=True)
    assert torch.equal(images.images.permute(0, 2, 3, 1), torch.from_numpy(pixels))
    assert class_counts(images) == [2, 2]

    for i, c in enumerate([0, 1, 1, 0]):
        folder = tmp_path / "folder" / "train" / "ab"[c]
        folder.mkdir(parents=True, exist_ok=True)
        image = torchvision.transforms.functional.to_pil_image(pixels[i])
        image.save(folder / f"{i}.png")
    read = named.load_cifar(tmp_path / "folder", "cifar10", train=True)
    order = torch.tensor([0, 3, 1, 2])
    assert torch.equal(read.images, images.images[order])
    assert torch.equal(read.targets, images.targets[order])
