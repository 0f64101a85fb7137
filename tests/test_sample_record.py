"""What is kept of each sample over an epoch, its ranking, table and picture."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch

import torch_absgd as ta

SIZE = 12
INDEX, X = torch.arange(3), torch.ones(3)


def filled(dtype: torch.dtype = torch.float32) -> tuple[ta.SampleRecord, dict[int, list[Any]]]:
    """A record, and what went into it."""
    g = torch.Generator().manual_seed(0)
    record, given = ta.SampleRecord(SIZE), {i: [] for i in range(SIZE)}
    for _ in range(5):
        indices = torch.randint(SIZE - 1, (8,), generator=g)  # also twice in a batch; 11 never
        losses = torch.rand(8, generator=g).to(dtype)
        weights = (3 * torch.rand(8, generator=g)).to(dtype)
        record.update(indices, losses.requires_grad_(), weights, capped=weights > 2)
        for i, loss, weight in zip(indices, losses, weights, strict=True):
            given[int(i)].append((float(weight), float(loss.detach()), float(weight > 2)))
    return record, given


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_means_per_sample(dtype: torch.dtype) -> None:
    record, given = filled(dtype)
    for i, rows in given.items():
        found = [float(x[i]) for x in (record.weight, record.loss, record.capped)]
        assert record.times[i] == len(rows)
        if not rows:
            assert all(math.isnan(x) for x in found)
            continue
        expected = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("by", ["weight", "loss", "capped"])
@pytest.mark.parametrize("largest", [True, False])
def test_top_ranks_the_samples_that_were_seen(by: Any, largest: bool) -> None:
    record, given = filled()
    column = ("weight", "loss", "capped").index(by)
    means = {i: sum(row[column] for row in rows) / len(rows) for i, rows in given.items() if rows}
    order = sorted(means, key=lambda i: (-means[i] if largest else means[i], i))
    assert record.top(4, by, largest).tolist() == order[:4]
    assert sorted(record.top(99, by, largest).tolist()) == sorted(means)
    lines = record.table(4, by, largest).splitlines()
    assert [int(line.split()[0]) for line in lines[1:]] == order[:4]
    assert lines[0].split() == ["index", "weight", "loss", "capped", "seen"]


def test_a_sample_that_is_not_finite_is_left_out() -> None:
    record = ta.SampleRecord(3)
    losses, weights = torch.tensor([1.0, math.nan, 2.0]), torch.tensor([1.0, 1.0, math.inf])
    record.update(torch.arange(3), losses, weights)
    assert record.times.tolist() == [1, 0, 0]
    assert record.top(3).tolist() == [0]
    assert repr(record) == "SampleRecord(3), 1 samples seen"


def test_what_is_masked_is_left_out() -> None:
    record = ta.SampleRecord(3)
    record.update(torch.arange(3), X, X, mask=torch.tensor([True, False, True]))
    assert record.times.tolist() == [1, 0, 1]


def test_state_and_clear() -> None:
    record, _ = filled()
    file = io.BytesIO()
    torch.save(record.state_dict(), file)
    file.seek(0)
    other = ta.SampleRecord(SIZE)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.sums, record.sums)
    record.clear()
    assert not record.sums.any() and other.sums.any()
    with pytest.raises(ValueError, match=r"shape \(4, 3\), got \(4, 12\)"):
        ta.SampleRecord(3).load_state_dict(other.state_dict())


def test_goes_with_weigh() -> None:
    opt = ta.ABSGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, lam=1.0)
    losses = torch.linspace(0, 3, SIZE)
    opt.weigh(losses)
    record = ta.SampleRecord(SIZE)
    record.update(torch.arange(SIZE), losses, opt.weights)
    assert record.top(2).tolist() == [SIZE - 1, SIZE - 2]


def test_default_dtype_and_device_change_nothing() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    torch.set_default_device("meta")
    try:
        record = ta.SampleRecord(3)
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)
    record.update(torch.arange(3), torch.ones(3), torch.ones(3))
    assert record.weight.tolist() == [1, 1, 1] and record.sums.dtype is torch.float64


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda r: r.update(INDEX.float(), X, X),
            TypeError,
            "indices must be a tensor of integers",
        ),
        (lambda r: r.update(INDEX + 1, X, X), IndexError, r"indices must be in \[0, 3\), got 3"),
        (lambda r: r.update(INDEX - 1, X, X), IndexError, r"got -1"),
        (lambda r: r.update(INDEX, X[:2], X), ValueError, r"weights must have the losses' shape"),
        (lambda r: r.update(INDEX[:2], X, X), ValueError, r"indices must have the losses' shape"),
        (lambda r: r.update(INDEX, X.long(), X), TypeError, "losses must be a floating-point"),
        (lambda r: r.update(INDEX, X, None), TypeError, "weights must be a floating-point"),
        (lambda r: r.update(INDEX, X, X, X), TypeError, "capped must be a bool tensor"),
        (
            lambda r: r.update(INDEX, X, X, X[:2] > 0),
            ValueError,
            "capped must have the losses' shape",
        ),
        (lambda r: r.update(INDEX, X, X, mask=X), TypeError, "mask must be a bool tensor"),
        (lambda r: r.top(-1), ValueError, "Invalid k value: -1"),
        (lambda r: r.top(1, by="index"), ValueError, "Invalid by value: 'index'"),
        (lambda r: ta.SampleRecord(0), ValueError, "Invalid size value: 0"),
        (lambda r: ta.SampleRecord(1.5), TypeError, "size must be an integer"),
        (lambda r: ta.plot_weights(X), TypeError, "weights must be a floating-point tensor"),
        (lambda r: ta.plot_weights(X, X[:2]), ValueError, "weights must have the losses' shape"),
    ],
)
def test_bad_input_changes_nothing(call: Any, error: type[Exception], message: str) -> None:
    record = ta.SampleRecord(3)
    with pytest.raises(error, match=message):
        call(record)
    assert not record.sums.any()


def test_plot_draws_loss_against_weight() -> None:
    figures = pytest.importorskip("matplotlib.figure")
    record, given = filled()
    ax = ta.plot_weights(record, ax=figures.Figure().subplots())
    points = ax.collections[0].get_offsets()
    assert len(points) == sum(bool(rows) for rows in given.values())
    seen = record.times > 0
    expected = torch.stack([record.loss[seen], record.weight[seen]], 1)
    assert points.tolist() == expected.tolist()
    losses = torch.rand(4, 5).bfloat16()
    axes = figures.Figure().subplots()
    assert ta.plot_weights(losses, losses.exp(), ax=axes) is axes
    assert len(axes.collections[0].get_offsets()) == 20
