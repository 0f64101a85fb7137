"""Labels made noisy: a pure function of (labels, kind, rate, seed)."""

from __future__ import annotations

import torch
from torch import Tensor

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
