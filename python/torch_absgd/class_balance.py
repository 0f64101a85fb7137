"""Class imbalance: class counts, class-balanced weights, when they begin, and imbalanced subsets.

Class weights in the criterion (``weight=``) multiply the loss itself and so stand inside the
exponential, as in the paper's CB rows: take them there to reproduce the paper. Elsewhere take
``class_weight=`` of `AttentionalLoss` or ``weight=`` of `weigh`, the base measure outside it: λ
then measures losses alone, where inside they collapse training several times sooner and, with
λ < 0, turn the balance upside down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from . import _checks
from .targets import targets_of


def class_counts(dataset: Dataset[Any], num_classes: int | None = None) -> list[int]:
    """The samples of each class, from the labels that ``dataset`` keeps: no image is read.

    Args:
        dataset: one of torchvision's, an ``ImageFolder``, a ``TensorDataset`` whose last tensor is
            the labels, a Hugging Face data set with a column "label" or "labels", or any other with
            ``targets`` or ``labels``; and ``Subset`` (of ``random_split`` too) and
            ``ConcatDataset`` of these. A ``target_transform`` is applied.
        num_classes: C; one more than the largest label if None.

    Returns:
        list of C counts, 0 where a class has no sample.

    Raises:
        TypeError: the labels cannot be found, or are not integers.
        ValueError: they are not one a sample, or not in [0, C); without a sample, num_classes is
            None.
    """
    if num_classes is not None:
        num_classes = _checks.check_integer("num_classes", num_classes, 1, _checks.MOST_CLASSES)
    labels = targets_of(dataset)
    if num_classes is None and labels.numel() == 0:
        raise ValueError("dataset has no samples: num_classes must say how many classes there are")
    largest = int(labels.max()) if labels.numel() > 0 else -1
    if num_classes is not None and largest >= num_classes:
        raise ValueError(f"targets must be in [0, num_classes = {num_classes}), got {largest}")
    return cast("list[int]", labels.bincount(minlength=num_classes or 0).tolist())


def class_balanced_weights(class_counts: _checks.Counts, beta: float = 0.9999) -> Tensor:
    """Weights by the effective number of samples, (1 − β)/(1 − β^n_c), normalised to sum to C.

    Cui et al.: Class-Balanced Loss Based on Effective Number of Samples. CVPR 2019, Proposition 1.
    β = 0 gives 1 to every class; β → 1 tends to weights ∝ 1/n_c.

    They leave few samples of a batch effective already. Selective weights, a small λ > 0, on top
    favour the rare classes twice: choose λ on a split of the training set.

    Args:
        class_counts: n_c > 0; any sequence, array or tensor; by class where it has keys or an
            index, as a dict or the ``value_counts()`` of pandas.
        beta: in [0, 1).

    Returns:
        float32 [C].

    Raises:
        TypeError, ValueError: an argument is not what is said above; a class is empty.
    """
    counts = _checks.positive_counts(class_counts)
    _checks.check_number("beta", beta, "in [0, 1)", _checks.is_real(beta) and 0 <= beta < 1)
    if beta == 0:
        return torch.ones(len(counts), dtype=torch.float32, device="cpu")
    # expm1: 1 − β^n loses its digits where β is close to 1.
    weights = 1 / -torch.expm1(counts * math.log(beta))
    return (weights * (len(counts) / weights.sum())).float()


class DeferredWeights:
    """Deferred re-weighting (DRW): class weights become ``weight`` at an epoch.

    Cao et al. 2019, Algorithm 1. Until then they are what ``criterion`` had: its own weights, or 1.
    Which weights to defer is the caller's choice; Cao et al. use `class_balanced_weights`::

        criterion = PerSampleLDAM(class_counts)
        deferred = DeferredWeights(criterion, class_balanced_weights(class_counts), start_epoch=160)
        for epoch in range(200):
            train_one_epoch(criterion)
            deferred.step()

    Of a criterion they are inside the exponential, of an `AttentionalLoss` outside it: see above
    when to use which. They change in place, so a compiled model is not compiled anew.

    Args:
        criterion: a loss of this package or another with a ``weight`` buffer, or an
            `AttentionalLoss`, for its ``class_weight``.
        weight: (C), finite and ≥ 0, from ``start_epoch`` on; epochs are counted from 0.
        start_epoch: ≥ 0.
        name: of the buffer; "weight" if None and there is one, else "class_weight".

    Raises:
        TypeError: ``criterion`` has no such buffer, or an argument has the wrong type.
        ValueError: ``start_epoch`` or a weight is out of its range, or ``weight`` has not the shape
            of the criterion's.
    """

    def __init__(
        self,
        criterion: nn.Module,
        weight: Tensor,
        start_epoch: int,
        name: Literal["weight", "class_weight"] | None = None,
    ) -> None:
        self.name = _checks.check_class_weight_buffer(criterion, name)
        before = criterion._buffers[self.name]
        shape = None if before is None else tuple(before.shape)
        _checks.check_class_weight("weight", weight, shape)
        self.start_epoch = _checks.check_integer("start_epoch", start_epoch, least=0)
        self.criterion, self.epoch = criterion, 0
        self._before = torch.ones_like(weight) if before is None else before.clone()
        self._after = weight.detach().clone()
        setattr(criterion, self.name, self._before.clone())
        self._set()

    def step(self) -> None:
        """To be called at the end of each epoch."""
        self.epoch += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on at the saved epoch, with that epoch's weights."""
        self.epoch = _checks.check_integer("epoch", state_dict["epoch"], least=0)
        self._set()

    def _set(self) -> None:
        in_use = cast(Tensor, self.criterion._buffers[self.name])
        in_use.copy_(self._after if self.epoch >= self.start_epoch else self._before)


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
    _checks.check_profile(n_max, num_classes, imbalance_ratio)
    last = max(num_classes - 1, 1)
    return [max(1, int(n_max * (1 / imbalance_ratio) ** (c / last))) for c in range(num_classes)]


def step_counts(n_max: int, num_classes: int, imbalance_ratio: float) -> list[int]:
    """``n_max`` samples for the first C//2 classes, ``n_max/imbalance_ratio`` for the others.

    Buda et al.: A Systematic Study of the Class Imbalance Problem in Convolutional Neural Networks.
    Neural Networks 2018. Arguments, truncation and errors as in `long_tailed_counts`.
    """
    _checks.check_profile(n_max, num_classes, imbalance_ratio)
    few = max(1, int(n_max * (1 / imbalance_ratio)))
    return [n_max if c < num_classes // 2 else few for c in range(num_classes)]


class ImbalancedSubset(Subset[Any]):
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
        targets: the class in [0, C) of each sample; found as by `class_counts` if None.

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
        dataset: Dataset[Any],
        kind: str,
        imbalance_ratio: float,
        seed: int = 0,
        targets: Sequence[int] | Tensor | None = None,
    ) -> None:
        profiles = {"lt": long_tailed_counts, "step": step_counts}
        _checks.check_choice("kind", kind, tuple(profiles))
        seed = _checks.check_integer("seed", seed, least=0)
        labels = targets_of(dataset, targets)
        present = labels.bincount()
        _checks.check_no_class_missing(present)
        self.class_counts = profiles[kind](int(present.min()), len(present), imbalance_ratio)
        generator = torch.Generator("cpu").manual_seed(seed)
        order = torch.randperm(len(labels), generator=generator, device="cpu")
        in_order = labels[order]
        chosen = [order[in_order == c][:n] for c, n in enumerate(self.class_counts)]
        indices = torch.cat(chosen).sort().values
        self.targets = labels[indices].tolist()
        super().__init__(dataset, indices.tolist())
