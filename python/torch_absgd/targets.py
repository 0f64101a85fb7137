"""The labels of a data set, from where it keeps them: no sample is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from . import _checks

LABELS = ("targets", "labels", "_labels", "y")  # attributes of torchvision's data sets
PAIRS = ("samples", "_samples")  # lists of (file, label) of theirs
COLUMNS = ("label", "labels")  # of Hugging Face's


def targets_of(dataset: Dataset[Any], targets: Sequence[int] | Tensor | None = None) -> Tensor:
    """int64 [len(dataset)] on the CPU, the class of each sample: ``targets``, where they are given.

    Raises:
        TypeError: they cannot be found, or are not integers.
        ValueError: they are not one a sample, or one is negative.
    """
    if not hasattr(dataset, "__len__") or (isinstance(dataset, Tensor) and dataset.dim() == 0):
        raise TypeError(f"dataset must have a length, got {type(dataset)}")
    if targets is not None:
        return _checks.check_labels(targets, len(dataset))
    found = _kept_by(dataset)
    if found is not None:
        labels = _checks.check_labels(found, len(dataset))
        return _transformed(labels, getattr(dataset, "target_transform", None))
    if isinstance(dataset, Subset):
        indices = torch.as_tensor(dataset.indices, dtype=torch.int64, device="cpu")
        return targets_of(dataset.dataset)[indices]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([targets_of(part) for part in dataset.datasets])
    raise TypeError(
        f"dataset must have targets or labels, or targets= be given, got {type(dataset)}"
    )


def _kept_by(dataset: Any) -> Any:
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, dict):
        raise TypeError(f"dataset must be one split, got all of {list(columns)}: take one")
    if columns is not None:  # without its format, so that no transform asks for images
        plain = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
        return next((list(plain[name]) for name in COLUMNS if name in columns), None)
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[-1] if len(dataset.tensors) > 1 else None
    for name in LABELS:
        if getattr(dataset, name, None) is not None:
            return getattr(dataset, name)
    for name in PAIRS:
        pairs = getattr(dataset, name, None)
        if isinstance(pairs, list) and all(len(pair) == 2 for pair in pairs):
            return [label for _, label in pairs]
    return None


def _transformed(labels: Tensor, transform: Any) -> Tensor:
    if transform is None:
        return labels
    return _checks.check_labels([transform(label) for label in labels.tolist()], len(labels))
