"""Metrics against scikit-learn and against their definitions in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import torch_absgd as ta

N, C = 300, 6


def data(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(C - 1, (N,), generator=g)  # the last class has no sample
    logits = torch.randn(N, C, generator=g) + 1.5 * torch.nn.functional.one_hot(target, C)
    return logits.to(dtype), target


COUNTS = [500, 101, 100, 20, 19, 0]


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_are_scikit_learns(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    logits, target = data(seed)
    predicted = logits.argmax(1)
    recalls = sklearn.recall_score(
        target, predicted, labels=range(C), average=None, zero_division=math.nan
    )
    report = ta.metrics.report(logits, target, COUNTS)
    assert report.per_class.tolist()[:-1] == pytest.approx(recalls[:-1])
    assert math.isnan(report.per_class[-1])
    assert report.overall == pytest.approx(sklearn.accuracy_score(target, predicted))
    assert report.balanced == pytest.approx(recalls[:-1].mean())
    assert report.worst_class == pytest.approx(recalls[:-1].min())
    assert report.many == pytest.approx(recalls[:2].mean())
    assert report.medium == pytest.approx(recalls[2:4].mean())
    assert report.few == pytest.approx(recalls[4])  # class 5 is few, too, but has no sample
    assert report.evaluated.tolist() == target.bincount(minlength=C).tolist()


def test_groups_are_those_given() -> None:
    logits, target = data()
    groups = (target * 7 + torch.arange(N)) % 5 + 2  # groups 0 and 1 have no sample
    report = ta.metrics.report(logits, target, groups=groups)
    correct = logits.argmax(1) == target
    expected = [float(correct[groups == k].double().mean()) for k in range(2, 7)]
    assert report.per_group is not None
    assert report.per_group.tolist()[2:] == pytest.approx(expected)
    assert report.worst_group == pytest.approx(min(expected))
    assert report.worst_three_groups == pytest.approx(sum(sorted(expected)[:3]) / 3)
    assert report.many is None and report.class_counts is None


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_calibration_error_is_guo_et_als(bins: int, dtype: torch.dtype) -> None:
    logits, target = data(dtype=dtype)
    confidence, predicted = logits.double().softmax(1).max(1)
    expected = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            accuracy = (predicted == target)[inside].double().mean()
            expected += float(inside.double().mean() * (accuracy - confidence[inside].mean()).abs())
    found = ta.metrics.expected_calibration_error(logits, target, bins)
    assert found == pytest.approx(expected, rel=1e-12)
    if bins == 15:
        assert ta.metrics.report(logits, target).ece == found


def test_certain_predictions() -> None:
    logits = 1e4 * torch.eye(3)
    assert ta.metrics.expected_calibration_error(logits, torch.arange(3)) == 0
    assert ta.metrics.expected_calibration_error(logits, torch.tensor([1, 2, 0])) == 1


def test_predicted_classes_in_the_place_of_logits_have_no_calibration() -> None:
    logits, target = data()
    from_logits = ta.metrics.report(logits, target, COUNTS)
    from_classes = ta.metrics.report(logits.argmax(1), target.int(), COUNTS)
    assert from_classes.ece is None
    assert {**dict(from_logits), "ece": None} == {**dict(from_classes), "ece": None}


def test_inner_dimensions_and_ignored_targets() -> None:
    logits, target = data()
    image, labels = logits.reshape(10, 30, C).movedim(2, 1), target.reshape(10, 30).clone()
    flat = ta.metrics.report(logits[:290], target[:290], groups=target[:290])
    labels.flatten()[290:] = 255
    dense = ta.metrics.report(
        image, labels, groups=labels.clamp(max=4), ignore_index=255
    )  # fmt: skip
    assert dict(dense) == dict(flat)


def test_is_a_mapping_of_numbers_and_prints_a_table() -> None:
    logits, target = data()
    numbers = dict(ta.metrics.report(logits, target, COUNTS, groups=target % 2))
    assert list(numbers) == [
        "overall", "balanced", "worst_class", "many", "medium", "few", "worst_group",
        "worst_three_groups", "ece",
    ]  # fmt: skip
    assert all(isinstance(value, float) for value in numbers.values())
    report = ta.metrics.report(logits, target, COUNTS)
    with pytest.raises(KeyError):
        report["worst_group"]
    lines = str(report).splitlines()
    assert lines[0].split() == ["class", "training", "evaluated", "accuracy"]
    first = f"0 500 {report.evaluated[0]} {100 * report.per_class[0]:.2f} %"
    assert lines[1].split() == first.split()
    assert f"{100 * report.balanced:.2f} %" in next(x for x in lines if x.startswith("balanced"))
    assert f"{report.ece:.4f}" in lines[-1]
    many = ta.metrics.report(torch.arange(50), (torch.arange(50) // 2) * 2)
    rows = str(many).split("\n\n")[0].splitlines()
    assert "worst 20 of 25" in rows[0] and len(rows) == 21


TARGET = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f([0, 1], TARGET), TypeError, "prediction must be logits or integer classes"),
        (lambda f: f(TARGET == 1, TARGET), TypeError, "prediction .* got torch.bool"),
        (lambda f: f(torch.zeros(2), TARGET), ValueError, r"logits \(N, C, …\).* got \(2,\)"),
        (lambda f: f(torch.zeros(3, 2), TARGET), ValueError, r"got \(3, 2\)"),
        (lambda f: f(TARGET[:1], TARGET), ValueError, r"target's shape \(2,\), got \(1,\)"),
        (lambda f: f(TARGET, TARGET.float()), TypeError, "target must be a tensor of integers"),
        (lambda f: f(TARGET, TARGET - 1), ValueError, "target must be ≥ 0, got -1"),
        (lambda f: f(TARGET[:0], TARGET[:0]), ValueError, "at least one element that counts"),
        (lambda f: f(TARGET, TARGET, groups=[0, 1]), TypeError, "groups must be a tensor of int"),
        (lambda f: f(TARGET, TARGET, groups=TARGET[:1]), ValueError, "groups must hold one a"),
        (lambda f: f(TARGET, TARGET, [5]), ValueError, "class_counts must have 2 classes, got 1"),
        (lambda f: f(TARGET, TARGET, [5, -1]), ValueError, "finite and ≥ 0"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(ta.metrics.report)
