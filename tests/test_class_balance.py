"""Class-balanced weights, deferred weights and imbalanced subsets."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    random_split,
)

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


def by_frequency(counts: list[int]) -> Any:
    pandas = pytest.importorskip("pandas")
    labels = pandas.Series([c for c, n in enumerate(counts) for _ in range(n)])
    return labels.value_counts()


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        iter,
        np.array,
        torch.tensor,
        by_frequency,
        lambda counts: [torch.tensor(n) for n in counts],
        lambda counts: np.array(counts[::-1])[::-1],
        lambda counts: np.array(counts, dtype=">i4"),
        lambda counts: np.array(counts, dtype=">f8"),
        lambda counts: np.array(counts, dtype=object),
        lambda counts: np.array(counts, dtype=np.float16),
        lambda counts: dict(reversed(list(enumerate(counts)))),
        lambda counts: dict(enumerate(counts)).values(),
        lambda counts: Counter({np.int64(c): n for c, n in enumerate(counts)}),
    ],
)
def test_counts_are_taken_by_class_or_in_order(convert: Any) -> None:
    counts = [3, 7, 5]
    expected = ta.class_balanced_weights(counts)
    assert torch.equal(ta.class_balanced_weights(convert(counts)), expected)
    assert torch.equal(ta.PerSampleLDAM(convert(counts)).margin, ta.PerSampleLDAM(counts).margin)


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ({"cat": 3, "dog": 2}, ValueError, r"classes 0 … 1, got \['cat', 'dog'\]"),
        ({0: 3, 2: 2}, ValueError, r"got \[2\] and none of \[1\]"),
        ({3, 2}, TypeError, "one a class"),
        (np.array(["3", "2"]), TypeError, "one a class"),
        (np.array([3, None]), TypeError, "one a class"),
        ([True, 2], TypeError, "one a class"),
        (torch.tensor([1j, 2]), TypeError, "one a class"),
        (torch.ones(2, device="meta"), TypeError, "one a class"),
        (np.ones((2, 3)), ValueError, r"got shape \(2, 3\)"),
        ([[1, 2]], ValueError, r"got shape \(1, 2\)"),
        (5, TypeError, "one a class"),
    ],
)
def test_counts_that_are_refused(counts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ta.class_balanced_weights(counts)


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


@pytest.mark.parametrize("buffers", [("class_weight",), ("weight", "class_weight")])
def test_deferred_weights_of_the_base_measure(buffers: tuple[str, ...]) -> None:
    """As `AttentionalLoss` has it: a module with a buffer class_weight, None at first."""
    module = nn.Module()
    for name in buffers:
        module.register_buffer(name, None)
    deferred = ta.DeferredWeights(module, torch.tensor([0.5, 1.5]), 1, name="class_weight")
    assert module.class_weight.tolist() == [1, 1]
    deferred.step()
    assert module.class_weight.tolist() == [0.5, 1.5]
    assert getattr(module, "weight", None) is None
    by_itself = ta.DeferredWeights(module, torch.tensor([0.5, 1.5]), 1)
    assert by_itself.name == buffers[0]


class Torchvision(Labelled):
    def __init__(self, attribute: str, values: Any, **more: Any) -> None:
        super().__init__(1, len(values))
        del self.targets
        setattr(self, attribute, values)
        self.__dict__.update(more)


class Hub(Dataset):
    """A Hugging Face data set, whose transform reads the images of what it is asked for."""

    def __init__(self, name: str, labels: list[int]) -> None:
        self.column_names, self.columns, self.format = ["image", name], {name: labels}, "transform"

    def with_format(self, format: None) -> Hub:
        plain = Hub(self.column_names[1], self.columns[self.column_names[1]])
        plain.format = format
        return plain

    def __len__(self) -> int:
        return len(self.columns[self.column_names[1]])

    def __getitem__(self, key: str) -> list[int]:
        assert self.format is None, "an image would be read"
        return self.columns[key]


LABELS = [0, 2, 2, 1, 2, 0]
KEEPERS = {
    "targets": lambda: Torchvision("targets", LABELS),
    "labels": lambda: Torchvision("labels", np.array(LABELS)[::-1][::-1]),
    "_labels": lambda: Torchvision("_labels", torch.tensor(LABELS)),
    "y": lambda: Torchvision("y", np.array(LABELS, dtype=">i2")),
    "samples": lambda: Torchvision("samples", [(f"{i}.jpg", y) for i, y in enumerate(LABELS)]),
    "transform": lambda: Torchvision(
        "targets", [3 - y for y in LABELS], target_transform=lambda y: 3 - y
    ),
    "tensors": lambda: TensorDataset(torch.zeros(6, 3), torch.tensor(LABELS, dtype=torch.uint8)),
    "hub": lambda: Hub("label", LABELS),
    "hub, labels": lambda: Hub("labels", LABELS),
}


@pytest.mark.parametrize("kind", KEEPERS)
@pytest.mark.parametrize("device", [None, "meta"])
def test_class_counts_read_no_image(kind: str, device: str | None) -> None:
    dataset = KEEPERS[kind]()
    nested = ConcatDataset([Subset(dataset, [1, 2, 5]), Subset(Subset(dataset, range(1, 6)), [2])])
    torch.set_default_device(device)
    try:
        assert ta.class_counts(dataset) == [2, 1, 3]
        assert ta.class_counts(dataset, num_classes=5) == [2, 1, 3, 0, 0]
        assert ta.class_counts(Subset(dataset, np.array([1, 2]))) == [0, 0, 2]
        assert ta.class_counts(Subset(dataset, torch.tensor([0, 3], device="cpu"))) == [1, 1]
        assert ta.class_counts(nested) == [1, 1, 2]
    finally:
        torch.set_default_device(None)
    assert getattr(dataset, "loaded", []) == []
    assert ta.class_counts(Subset(dataset, []), num_classes=3) == [0, 0, 0]
    with pytest.raises(ValueError, match="dataset has no samples: num_classes must say"):
        ta.class_counts(Subset(dataset, []))
    halves = random_split(dataset, [3, 3])
    counts = [ta.class_counts(half, 3) for half in halves]
    assert [a + b for a, b in zip(*counts, strict=True)] == [2, 1, 3]


def test_class_counts_of_torchvision(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    for file in ("a/1.png", "b/2.png", "b/3.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"not an image")
    assert ta.class_counts(datasets.ImageFolder(tmp_path)) == [1, 2]
    fake = datasets.FakeData(size=4)
    with pytest.raises(TypeError, match="must have targets or labels"):
        ta.class_counts(fake)


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (Torchvision("labels", [0, -1]), ValueError, "≥ 0, got -1"),
        (Torchvision("targets", [0, 9]), ValueError, r"\[0, num_classes = 5\), got 9"),
        (Torchvision("targets", ["cat", "dog"]), TypeError, "must be integers"),
        (Torchvision("targets", [[0, 1], [1, 1]]), ValueError, r"got shape \(2, 2\)"),
        (TensorDataset(torch.zeros(2), torch.zeros(2)), TypeError, "integers, got torch.float32"),
        (iter([]), TypeError, "must have a length"),
    ],
)
def test_class_counts_that_cannot_be(dataset: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ta.class_counts(dataset, num_classes=5)


def test_all_splits_at_once_are_refused() -> None:
    splits = {"train": Hub("label", LABELS)}
    splits = type("DatasetDict", (dict,), {"column_names": {"train": ["label"]}})(splits)
    with pytest.raises(TypeError, match=r"one split, got all of \['train'\]"):
        ta.class_counts(splits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_default_dtype_and_device_change_nothing(dtype: torch.dtype) -> None:
    counts, data = [9, 3], Labelled(20, 3)
    expected = (ta.class_balanced_weights(counts), ta.class_balanced_weights(counts, beta=0))
    indices = ta.ImbalancedSubset(data, "lt", 10).indices
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.set_default_device("meta")
    try:
        found = (ta.class_balanced_weights(counts), ta.class_balanced_weights(counts, beta=0))
        subset = ta.ImbalancedSubset(data, "lt", 10)
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype is torch.float32 and a.device.type == "cpu" and torch.equal(a, b)
    assert subset.indices == indices


def test_an_imbalanced_subset_of_a_subset() -> None:
    data = Subset(Labelled(20, 3), range(30))
    assert ta.ImbalancedSubset(data, "lt", 5).class_counts == ta.long_tailed_counts(10, 3, 5)


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
        ValueError,
        r"class_counts by class must have the classes 0 … 1, got \['a', 'b'\]",
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
        lambda: ta.DeferredWeights(CRITERION, WEIGHT, 1, name="class_weight"),
        TypeError,
        "criterion must have a buffer named class_weight",
    ),
    (
        lambda: ta.DeferredWeights(CRITERION, WEIGHT, 1, name="w"),
        ValueError,
        "Invalid name value: 'w'",
    ),
    (lambda: ta.DeferredWeights(CRITERION, -WEIGHT, 1), ValueError, "weight must be finite and ≥"),
    (lambda: ta.DeferredWeights(CRITERION, WEIGHT.long(), 1), TypeError, "floating point"),
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
