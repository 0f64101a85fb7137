"""scikit-learn's digits, long-tailed: data that every integration trains on in seconds."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES, RATIO = 10, 20


def datasets(seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """(training, test) of (images [N, 1, 8, 8] float32 in [0, 1], targets [N] int64).

    Of the training part, class 0 keeps all its images and class 9 a twentieth; the test part is
    balanced.
    """
    images, targets = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, targets, test_size=0.4, stratify=targets, random_state=0)
    x, x_test, y, y_test = (torch.as_tensor(part) for part in parts)
    random = torch.Generator().manual_seed(seed)
    largest = int(y.bincount().min())
    kept = []
    for c in range(CLASSES):
        members = (y == c).nonzero()[:, 0]
        n = round(largest * RATIO ** (-c / (CLASSES - 1)))
        kept.append(members[torch.randperm(len(members), generator=random)[:n]])
    x, y = x[torch.cat(kept)], y[torch.cat(kept)]
    return _images(x, y), _images(x_test, y_test)


def _images(x: Tensor, y: Tensor) -> TensorDataset:
    return TensorDataset(x.float().view(-1, 1, 8, 8), y)


def small_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def report(predicted: Tensor, targets: Tensor) -> dict[str, float]:
    """Prints and returns accuracy on the test split: of all classes, and of the three rarest."""
    correct = (predicted.cpu() == targets.cpu()).double()
    rare = targets.cpu() >= CLASSES - 3
    result = {"overall": correct.mean().item(), "rare": correct[rare].mean().item()}
    print("test accuracy: overall {overall:.3f}, three rarest classes {rare:.3f}".format(**result))
    return result
