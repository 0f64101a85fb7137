"""Class-balanced weights, deferred weights and imbalanced subsets."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import torch_absgd as ta


class Labelled(Dataset):
    """A data set as torchvision's: a list of targets, and images that must not be loaded."""

    def __init__(self, per_class: int, classes: int, attribute: str = "targets") -> None:
        self.size = per_class * classes
        setattr(self, attribute, [i % classes for i in range(self.size)])
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        self.loaded.append(index)
        return index


def test_weights_are_cui_et_al() -> None:
    counts, beta = [5000, 500, 50], 0.999
    effective = [(1 - beta**n) / (1 - beta) for n in counts]
    total = sum(1 / e for e in effective)
    expected = [3 / (e * total) for e in effective]
    weights = ta.class_balanced_weights(counts, beta)
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)
    assert weights.sum().item() == pytest.approx(3)
    assert weights.dtype is torch.float32


def test_weights_at_the_ends_of_beta() -> None:
    counts = [100, 10]
    assert ta.class_balanced_weights(counts, beta=0).tolist() == [1, 1]
    nearly_one = ta.class_balanced_weights(counts, beta=1 - 1e-15)
    assert nearly_one.tolist() == pytest.approx([2 / 11, 20 / 11], rel=1e-6)


@pytest.mark.parametrize("convert", [list, tuple, np.array, torch.tensor])
def test_counts_may_be_any_sequence(convert: Any) -> None:
    counts = [7, 5, 3]
    expected = ta.class_balanced_weights(counts)
    assert torch.equal(ta.class_balanced_weights(convert(counts)), expected)
    assert torch.equal(ta.PerSampleLDAM(convert(counts)).margin, ta.PerSampleLDAM(counts).margin)


def test_long_tailed_counts_are_cao_et_al() -> None:
    assert sum(ta.long_tailed_counts(5000, 10, 100)) == 12406
    assert sum(ta.long_tailed_counts(5000, 10, 10)) == 20431
    assert sum(ta.long_tailed_counts(500, 100, 100)) == 10847
    counts = ta.long_tailed_counts(5000, 10, 100)
    assert (counts[0], counts[-1]) == (5000, 50)
    assert counts == sorted(counts, reverse=True)
    assert ta.long_tailed_counts(np.int64(30), np.int64(1), 5) == [30]
    assert ta.long_tailed_counts(49, 2, 49) == [49, 1]  # 49·(1/49) is below 1 in float64


def test_step_counts() -> None:
    assert ta.step_counts(5000, 10, 100) == [5000] * 5 + [50] * 5
    assert ta.step_counts(10, 3, 10) == [10, 1, 1]


@pytest.mark.parametrize("kind", ["lt", "step"])
def test_subset_is_a_pure_function_of_its_arguments(kind: str) -> None:
    dataset = Labelled(100, 5)
    subset = ta.ImbalancedSubset(dataset, kind, 20, seed=3)
    again = ta.ImbalancedSubset(Labelled(100, 5), kind, 20, seed=3)
    other = ta.ImbalancedSubset(dataset, kind, 20, seed=4)
    assert subset.indices == again.indices
    assert subset.indices != other.indices
    profile = ta.long_tailed_counts if kind == "lt" else ta.step_counts
    assert subset.class_counts == profile(100, 5, 20)
    assert Counter(subset.targets) == dict(enumerate(subset.class_counts))
    assert subset.targets == [dataset.targets[i] for i in subset.indices]
    assert subset.indices == sorted(set(subset.indices))
    assert dataset.loaded == []
    torch.manual_seed(1)  # torch's own generator plays no part, and is not touched
    before = torch.get_rng_state()
    assert ta.ImbalancedSubset(dataset, kind, 20, seed=3).indices == subset.indices
    assert torch.equal(torch.get_rng_state(), before)


def test_more_imbalanced_subsets_are_nested() -> None:
    dataset = Labelled(100, 5)
    subsets = [set(ta.ImbalancedSubset(dataset, "lt", ratio).indices) for ratio in (1, 10, 100)]
    assert subsets[0] == set(range(500))
    assert subsets[0] > subsets[1] > subsets[2]


def test_subset_of_data_sets_with_labels_or_given_targets() -> None:
    expected = ta.ImbalancedSubset(Labelled(20, 3), "lt", 10).indices
    assert ta.ImbalancedSubset(Labelled(20, 3, "labels"), "lt", 10).indices == expected
    labels = torch.arange(60) % 3
    data = TensorDataset(torch.arange(60), labels)
    for targets in (labels, labels.tolist(), labels.numpy()):
        subset = ta.ImbalancedSubset(data, "lt", 10, targets=targets)
        assert subset.indices == expected
    x, y = next(iter(DataLoader(subset, batch_size=len(subset))))
    assert x.tolist() == expected
    assert y.tolist() == subset.targets


def test_largest_class_is_as_large_as_the_smallest_of_the_data_set() -> None:
    targets = [0] * 30 + [1] * 10
    data = TensorDataset(torch.arange(40))
    assert ta.ImbalancedSubset(data, "lt", 5, targets=targets).class_counts == [10, 2]


@pytest.mark.parametrize("own", [None, torch.tensor([1.0, 2.0])])
@pytest.mark.parametrize("criterion_type", [ta.PerSampleCrossEntropy, nn.CrossEntropyLoss])
def test_deferred_weights(criterion_type: Any, own: torch.Tensor | None) -> None:
    weight = torch.tensor([0.5, 1.5])
    criterion = criterion_type(weight=own)
    deferred = ta.DeferredWeights(criterion, weight, start_epoch=2)
    before = [1.0, 1.0] if own is None else own.tolist()
    in_use, seen = criterion.weight, []
    for _ in range(4):
        seen.append(criterion.weight.tolist())
        deferred.step()
    assert seen == [before, before, [0.5, 1.5], [0.5, 1.5]]
    assert criterion.weight is in_use  # changed in place
    assert own is None or own.tolist() == before
    assert weight.tolist() == [0.5, 1.5]


def test_deferred_weights_resume() -> None:
    weight = torch.tensor([0.5, 1.5])
    deferred = ta.DeferredWeights(ta.PerSampleFocal(), weight, start_epoch=1)
    deferred.step()
    criterion = ta.PerSampleFocal()
    resumed = ta.DeferredWeights(criterion, weight, start_epoch=1)
    assert criterion.weight.tolist() == [1, 1]
    resumed.load_state_dict(deferred.state_dict())
    assert criterion.weight.tolist() == [0.5, 1.5]
    criterion.load_state_dict(deferred.criterion.state_dict())
    at_once = ta.PerSampleFocal()
    ta.DeferredWeights(at_once, weight, start_epoch=0)
    assert at_once.weight.tolist() == [0.5, 1.5]


CRITERION, WEIGHT = ta.PerSampleFocal(), torch.ones(2)
DATA = Labelled(10, 2)
PLAIN = TensorDataset(torch.zeros(4))
BAD_ARGUMENTS = [
    (lambda: ta.class_balanced_weights([1, 2], 1.0), ValueError, r"Invalid beta value: 1.0 \(must"),
    (lambda: ta.class_balanced_weights([1, 2], "x"), TypeError, "beta must be a number in "),
    (
        lambda: ta.class_balanced_weights([3, 0]),
        ValueError,
        r"class_counts must be finite and > 0, got \[0.0\] for class\(es\) \[1\]",
    ),
    (
        lambda: ta.class_balanced_weights([3, math.nan]),
        ValueError,
        r"class_counts must be finite and > 0, got \[nan\] for class\(es\) \[1\]",
    ),
    (
        lambda: ta.class_balanced_weights(Counter("aab")),
        TypeError,
        "class_counts must be numbers, one a class",
    ),
    (
        lambda: ta.class_balanced_weights([]),
        ValueError,
        r"class_counts must have shape \(C\) with C ≥ 1, got shape \(0,\)",
    ),
    (
        lambda: ta.long_tailed_counts(0, 10, 1),
        ValueError,
        r"Invalid n_max value: 0 \(must be ≥ 1\)",
    ),
    (lambda: ta.long_tailed_counts(5.0, 10, 1), TypeError, "n_max must be an integer, got 5.0"),
    (
        lambda: ta.long_tailed_counts(5, 0, 1),
        ValueError,
        r"Invalid num_classes value: 0 \(must be ≥ 1\)",
    ),
    (
        lambda: ta.long_tailed_counts(5, 2, 6),
        ValueError,
        r"Invalid imbalance_ratio value: 6 \(must be in \[1, n_max = 5\]\)",
    ),
    (
        lambda: ta.step_counts(5, 2, 0.5),
        ValueError,
        r"Invalid imbalance_ratio value: 0.5 \(must be in \[1, n_max = 5\]\)",
    ),
    (
        lambda: ta.ImbalancedSubset(DATA, "exp", 10),
        ValueError,
        r"Invalid kind value: 'exp' \(must be one of \('lt', 'step'\)\)",
    ),
    (
        lambda: ta.ImbalancedSubset(DATA, "lt", 10, seed=-1),
        ValueError,
        r"Invalid seed value: -1 \(must be ≥ 0\)",
    ),
    (
        lambda: ta.ImbalancedSubset(DATA, "lt", 11),
        ValueError,
        r"Invalid imbalance_ratio value: 11 \(must be in \[1, n_max = 10\]\)",
    ),
    (
        lambda: ta.ImbalancedSubset(PLAIN, "lt", 2),
        TypeError,
        "dataset must have targets or labels, or targets= be given",
    ),
    (
        lambda: ta.ImbalancedSubset(PLAIN, "lt", 2, targets=[0.0, 1.0, 0.0, 1.0]),
        TypeError,
        "targets must be integers, got torch.float32",
    ),
    (
        lambda: ta.ImbalancedSubset(PLAIN, "lt", 2, targets=[0, 1]),
        ValueError,
        r"targets must be one a sample of dataset, 4 ≥ 1, got shape \(2,\)",
    ),
    (
        lambda: ta.ImbalancedSubset(PLAIN, "lt", 2, targets=[0, 1, -1, 0]),
        ValueError,
        "targets must be ≥ 0, got -1",
    ),
    (
        lambda: ta.ImbalancedSubset(PLAIN, "lt", 2, targets=[0, 0, 2, 2]),
        ValueError,
        r"targets must hold every class in \[0, 3\), got none of \[1\]",
    ),
    (
        lambda: ta.DeferredWeights(nn.L1Loss(), WEIGHT, 1),
        TypeError,
        "criterion must have a buffer named weight",
    ),
    (
        lambda: ta.DeferredWeights(CRITERION, [1.0], 1),
        TypeError,
        "weight must be a tensor of class weights",
    ),
    (
        lambda: ta.DeferredWeights(CRITERION, WEIGHT, 1.5),
        TypeError,
        "start_epoch must be an integer, got 1.5",
    ),
    (
        lambda: ta.DeferredWeights(CRITERION, WEIGHT, -1),
        ValueError,
        r"Invalid start_epoch value: -1 \(must be ≥ 0\)",
    ),
    (
        lambda: ta.DeferredWeights(ta.PerSampleFocal(weight=torch.ones(3)), WEIGHT, 1),
        ValueError,
        r"weight must have the shape of the criterion's, \(3,\), got \(2,\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert raised.type is error
    assert CRITERION.weight is None  # a refused call has changed nothing
