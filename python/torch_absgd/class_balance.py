"""Class imbalance: class-balanced weights, when they begin, and imbalanced subsets of data sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from . import _checks
from ._class_values import check_integer, positive_counts


def class_balanced_weights(class_counts: Sequence[int] | Tensor, beta: float = 0.9999) -> Tensor:
    """Weights by the effective number of samples, (1 − β)/(1 − β^n_c), normalised to sum to C.

    Cui et al.: Class-Balanced Loss Based on Effective Number of Samples. CVPR 2019, Proposition 1.
    β = 0 gives 1 to every class; β → 1 tends to weights ∝ 1/n_c.

    They leave few samples of a batch effective already. Selective weights, a small λ > 0, on top
    favour the rare classes twice: choose λ on a split of the training set.

    Args:
        class_counts: n_c > 0; any sequence, array or tensor.
        beta: in [0, 1).

    Returns:
        float32 [C].

    Raises:
        TypeError, ValueError: an argument is not what is said above; a class is empty.
    """
    counts = positive_counts(class_counts)
    _checks.check_number("beta", beta, "in [0, 1)", _checks.is_real(beta) and 0 <= beta < 1)
    if beta == 0:
        return torch.ones(len(counts))
    # expm1: 1 − β^n loses its digits where β is close to 1.
    weights = 1 / -torch.expm1(counts * math.log(beta))
    return (weights * (len(counts) / weights.sum())).float()


class DeferredWeights:
    """Deferred re-weighting (DRW): a criterion's class weights become ``weight`` at an epoch.

    Cao et al. 2019, Algorithm 1. Until then they are what the criterion had: its own weights, or 1.
    Which weights to defer is the caller's choice; Cao et al. use `class_balanced_weights`::

        criterion = PerSampleLDAM(class_counts)
        deferred = DeferredWeights(criterion, class_balanced_weights(class_counts), start_epoch=160)
        for epoch in range(200):
            train_one_epoch(criterion)
            deferred.step()

    The weights change in place, so a compiled model is not compiled anew.

    Args:
        criterion: a loss of this package, or another with a ``weight`` buffer.
        weight: (C), from ``start_epoch`` on; epochs are counted from 0.
        start_epoch: ≥ 0.

    Raises:
        TypeError: ``criterion`` has no ``weight`` buffer, or an argument has the wrong type.
        ValueError: ``start_epoch`` is negative, or ``weight`` has not the shape of the criterion's.
    """

    def __init__(self, criterion: nn.Module, weight: Tensor, start_epoch: int) -> None:
        if "weight" not in getattr(criterion, "_buffers", {}):
            raise TypeError(f"criterion must have a buffer named weight, got {criterion!r}")
        if not isinstance(weight, Tensor):
            raise TypeError(f"weight must be a tensor of class weights, got {type(weight)}")
        _check_natural("start_epoch", start_epoch, least=0)
        before = criterion.weight
        if before is not None and before.shape != weight.shape:
            raise ValueError(
                f"weight must have the shape of the criterion's, {tuple(before.shape)}, got "
                f"{tuple(weight.shape)}"
            )
        self.criterion, self.start_epoch, self.epoch = criterion, start_epoch, 0
        self._before = torch.ones_like(weight) if before is None else before.clone()
        self._after = weight.detach().clone()
        criterion.weight = self._before.clone()
        self._set()

    def step(self) -> None:
        """To be called at the end of each epoch."""
        self.epoch += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on at the saved epoch, with that epoch's weights."""
        self.epoch = state_dict["epoch"]
        self._set()

    def _set(self) -> None:
        self.criterion.weight.copy_(self._after if self.epoch >= self.start_epoch else self._before)


def long_tailed_counts(n_max: int, num_classes: int, imbalance_ratio: float) -> list[int]:
    """Samples of each class, falling exponentially from ``n_max`` to ``n_max/imbalance_ratio``.

    Cui et al. 2019, Section 5.1, with the truncation of Cao et al.'s public code; no class is left
    empty.

    Args:
        n_max: samples of the largest class, ≥ 1.
        num_classes: C ≥ 1.
        imbalance_ratio: ρ in [1, n_max].

    Returns:
        list of C counts, the largest first.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """
    _check_profile(n_max, num_classes, imbalance_ratio)
    last = max(num_classes - 1, 1)
    return [max(1, int(n_max * (1 / imbalance_ratio) ** (c / last))) for c in range(num_classes)]


def step_counts(n_max: int, num_classes: int, imbalance_ratio: float) -> list[int]:
    """``n_max`` samples for the first C//2 classes, ``n_max/imbalance_ratio`` for the others.

    Buda et al.: A Systematic Study of the Class Imbalance Problem in Convolutional Neural Networks.
    Neural Networks 2018. Arguments, truncation and errors as in `long_tailed_counts`.
    """
    _check_profile(n_max, num_classes, imbalance_ratio)
    few = max(1, int(n_max * (1 / imbalance_ratio)))
    return [n_max if c < num_classes // 2 else few for c in range(num_classes)]


class ImbalancedSubset(Subset):
    """A balanced data set made long-tailed or step-imbalanced.

    A pure function of (data set, kind, ρ, seed): the samples of class c are the first of that class
    in an order drawn from ``seed``, so a more imbalanced subset is part of a less imbalanced one.
    Only targets are read, no image is loaded.

    Args:
        dataset: a map-style data set.
        kind: "lt", `long_tailed_counts`, or "step", `step_counts`. The largest class has as many
            samples as the smallest of ``dataset``.
        imbalance_ratio: ρ.
        seed: ≥ 0.
        targets: the class in [0, C) of each sample; ``dataset.targets`` or ``dataset.labels``,
            where torchvision keeps them, if None.

    Attributes:
        indices: list of int, ascending: which samples of ``dataset`` these are.
        targets: list of int, the class of each.
        class_counts: list of int, the samples of each class.

    Raises:
        TypeError: ``dataset`` has no targets and none are given, or an argument has the wrong type.
        ValueError: ``kind`` is neither, ``imbalance_ratio`` is below 1 or empties a class, or
            ``targets`` do not match ``dataset``.
    """

    def __init__(
        self,
        dataset: Dataset,
        kind: str,
        imbalance_ratio: float,
        seed: int = 0,
        targets: Sequence[int] | Tensor | None = None,
    ) -> None:
        profiles = {"lt": long_tailed_counts, "step": step_counts}
        _checks.check_choice("kind", kind, tuple(profiles))
        _check_natural("seed", seed, least=0)
        labels = _targets_of(dataset, targets)
        present = labels.bincount()
        self.class_counts = profiles[kind](int(present.min()), len(present), imbalance_ratio)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        in_order = labels[order]
        chosen = [order[in_order == c][:n] for c, n in enumerate(self.class_counts)]
        indices = torch.cat(chosen).sort().values
        self.targets = labels[indices].tolist()
        super().__init__(dataset, indices.tolist())


def _targets_of(dataset: Dataset, targets: Sequence[int] | Tensor | None) -> Tensor:
    if targets is None:
        targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if targets is None:
        raise TypeError(
            f"dataset must have targets or labels, or targets= be given, got {type(dataset)}"
        )
    labels = torch.as_tensor(targets)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise TypeError(f"targets must be integers, got {labels.dtype}")
    if labels.dim() != 1 or len(labels) != len(dataset) or len(labels) == 0:
        raise ValueError(
            f"targets must be one a sample of dataset, {len(dataset)} ≥ 1, got shape "
            f"{tuple(labels.shape)}"
        )
    if labels.min() < 0:
        raise ValueError(f"targets must be ≥ 0, got {labels.min()}")
    labels = labels.to("cpu", torch.int64)
    missing = (labels.bincount() == 0).nonzero().flatten().tolist()
    if missing:
        classes = int(labels.max()) + 1
        raise ValueError(f"targets must hold every class in [0, {classes}), got none of {missing}")
    return labels


def _check_profile(n_max: object, num_classes: object, imbalance_ratio: object) -> None:
    _check_natural("n_max", n_max, least=1)
    _check_natural("num_classes", num_classes, least=1)
    _checks.check_number(
        "imbalance_ratio",
        imbalance_ratio,
        f"in [1, n_max = {n_max}]",
        _checks.is_real(imbalance_ratio) and 1 <= imbalance_ratio <= n_max,
    )


def _check_natural(name: str, value: object, least: int) -> None:
    check_integer(name, value)
    if value < least:
        raise ValueError(f"Invalid {name} value: {value} (must be ≥ {least})")
