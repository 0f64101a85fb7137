"""The per-sample losses as modules and operators: state, bad input, opcheck, torch.compile."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import torch_absgd as ta
from loss_reference import IGNORED, criteria, indices, per_class, probabilities

# ---- modules ----


def test_buffers_keep_their_dtype() -> None:
    criterion = ta.PerSampleLDAM([1000, 7, 3], weight=torch.tensor([0.1, 0.2, 0.3])).half()
    assert criterion.margin.dtype is criterion.weight.dtype is torch.float32
    criterion.double()
    assert criterion.margin.dtype is torch.float32
    exact = ta.PerSampleCrossEntropy(weight=torch.rand(3, dtype=torch.float64)).to(torch.bfloat16)
    assert exact.weight.dtype is torch.float64
    assert ta.PerSampleCrossEntropy(weight=torch.rand(3).half()).weight.dtype is torch.float32
    assert criterion.to("meta").margin.is_meta


def test_state_dict_round_trip() -> None:
    source = ta.PerSampleLDAM([100, 10, 1], weight=torch.rand(3))
    restored = ta.PerSampleLDAM([1, 1, 1], weight=torch.ones(3))
    restored.load_state_dict(source.state_dict())
    logits, target = torch.rand(4, 3), torch.tensor([0, 1, 2, 2])
    assert torch.equal(restored(logits, target), source(logits, target))


def test_autocast_and_half_logits_give_float32_losses() -> None:
    layer, criterion = nn.Linear(8, 4), ta.PerSampleCrossEntropy(weight=torch.rand(4))
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(torch.randn(3, 8))
        losses = criterion(logits, torch.tensor([0, 1, 2]))
    assert logits.dtype is torch.bfloat16
    assert losses.dtype is torch.float32
    losses.sum().backward()
    assert layer.weight.grad.dtype is torch.float32


def test_second_derivatives_are_refused() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    losses = ta.PerSampleCrossEntropy()(logits, torch.tensor([0, 1, 2]))
    (grad,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        grad.sum().backward()


LDAM_COUNTS = [5, 4, 3]
IN, OUT = torch.zeros(2, 3), torch.tensor([0, 1])
BAD_ARGUMENTS = [
    (lambda: ta.PerSampleCrossEntropy(weight=[1.0]), TypeError, "weight must be a tensor"),
    (
        lambda: ta.PerSampleCrossEntropy(weight=torch.tensor([1])),
        TypeError,
        "weight must be floating point, got torch.int64",
    ),
    (
        lambda: ta.PerSampleCrossEntropy(weight=torch.ones(2, 2)),
        ValueError,
        r"weight must have shape \(C\) with C ≥ 1, got \(2, 2\)",
    ),
    (
        lambda: ta.PerSampleCrossEntropy(weight=torch.tensor([1.0, -1.0])),
        ValueError,
        r"weight must be finite and ≥ 0, got \[1.0, -1.0\]",
    ),
    (
        lambda: ta.PerSampleCrossEntropy(ignore_index=0.5),
        TypeError,
        "ignore_index must be an integer, got 0.5",
    ),
    (
        lambda: ta.PerSampleCrossEntropy(label_smoothing=1.5),
        ValueError,
        r"Invalid label_smoothing value: 1.5 \(must be in \[0, 1\]\)",
    ),
    (
        lambda: ta.PerSampleCrossEntropy(label_smoothing="a"),
        TypeError,
        r"label_smoothing must be a number in \[0, 1\], got 'a'",
    ),
    (
        lambda: ta.PerSampleFocal(gamma=-1),
        ValueError,
        r"Invalid gamma value: -1 \(must be finite and ≥ 0\)",
    ),
    (
        lambda: ta.PerSampleFocal(gamma=math.nan),
        ValueError,
        r"Invalid gamma value: nan \(must be finite and ≥ 0\)",
    ),
    (
        lambda: ta.PerSampleLDAM(LDAM_COUNTS, max_margin=-0.5),
        ValueError,
        r"Invalid max_margin value: -0.5 \(must be finite and ≥ 0\)",
    ),
    (
        lambda: ta.PerSampleLDAM(LDAM_COUNTS, scale=0),
        ValueError,
        r"Invalid scale value: 0 \(must be finite and > 0\)",
    ),
    (
        lambda: ta.PerSampleLDAM([5, 0, 3, 0]),
        ValueError,
        r"class_counts must be finite and > 0, got \[0.0, 0.0\] for class\(es\) \[1, 3\]",
    ),
    (lambda: ta.PerSampleLDAM("abc"), TypeError, "class_counts must be numbers"),
    (
        lambda: ta.PerSampleLDAM([[1, 2]]),
        ValueError,
        r"class_counts must have shape \(C\) with C ≥ 1, got shape \(1, 2\)",
    ),
    (
        lambda: ta.PerSampleLogitAdjusted([5, 0]),
        ValueError,
        r"class_counts must be finite and > 0, got \[0.0\] for class\(es\) \[1\]",
    ),
    (
        lambda: ta.PerSampleLogitAdjusted([5, 1], tau=math.inf),
        ValueError,
        r"Invalid tau value: inf \(must be finite\)",
    ),
    (lambda: ta.PerSampleFocal()([1.0], OUT), TypeError, "input must be a tensor, got"),
    (lambda: ta.PerSampleFocal()(IN, [0, 1]), TypeError, "target must be a tensor, got"),
    (
        lambda: ta.PerSampleFocal()(IN.long(), OUT),
        TypeError,
        "input must be floating point, got torch.int64",
    ),
    (
        lambda: ta.PerSampleFocal()(IN, OUT.to("meta")),
        ValueError,
        "input and target must be on one device, got cpu and meta",
    ),
    (
        lambda: ta.PerSampleFocal()(torch.tensor(1.0), torch.tensor(0)),
        ValueError,
        r"input must have shape \(C\), \(N, C\) or \(N, C, d1, …\), got \(\)",
    ),
    (
        lambda: ta.PerSampleFocal()(torch.zeros(2, 0), OUT),
        ValueError,
        r"input must have at least one class, got shape \(2, 0\)",
    ),
    (
        lambda: ta.PerSampleLDAM([1, 2])(IN, OUT),
        ValueError,
        "input must have as many classes as margin, 2, got 3",
    ),
    (
        lambda: ta.PerSampleCrossEntropy(torch.ones(2))(IN, OUT),
        ValueError,
        "input must have as many classes as weight, 2, got 3",
    ),
    (
        lambda: ta.PerSampleCrossEntropy()(IN, OUT.int()),
        TypeError,
        "target must hold int64 class indices or probabilities, got torch.int32",
    ),
    (
        lambda: ta.PerSampleCrossEntropy()(IN, torch.tensor([0])),
        ValueError,
        r"target must have shape \(2,\) \(indices\) for input of shape \(2, 3\), got \(1,\)",
    ),
    (
        lambda: ta.PerSampleCrossEntropy()(IN, torch.rand(3, 3)),
        ValueError,
        r"target must have shape \(2, 3\) \(class probabilities\) for input of shape \(2, 3\)",
    ),
    (
        lambda: ta.PerSampleCrossEntropy()(IN, torch.tensor([0, 3])),
        RuntimeError,
        r"target must be in \[0, 3\) or ignore_index = -100, got 3 at element 1",
    ),
    (
        lambda: ta.PerSampleCrossEntropy()(IN, torch.tensor([-1, 0])),
        RuntimeError,
        r"target must be in \[0, 3\) or ignore_index = -100, got -1 at element 0",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert raised.type is error


BAD_OPERATOR_CALLS = [
    ({"logits": IN.long()}, "logits must be float32, float64, float16 or bfloat16"),
    ({"target": OUT.int()}, "target must be int64 class indices, or "),
    (
        {"target": torch.zeros(3, dtype=torch.int64)},
        "target of class indices must have the logits'",
    ),
    ({"target": torch.rand(2, 2)}, "target of class probabilities must have the logits' shape"),
    ({"weight": torch.ones(2)}, r"weight must have shape \(C\) with C = 3"),
    ({"margin": torch.ones(3).double()}, "margin must be "),
    ({"scale": 0.0}, "a hyper-parameter is outside its range"),
    ({"focal_gamma": 1.0, "label_smoothing": 0.1}, "a hyper-parameter is outside its range"),
    ({"target": torch.tensor([0, 7])}, r"target must be in \[0, 3\) or ignore_index = -100, got 7"),
]


@pytest.mark.parametrize(("change", "message"), BAD_OPERATOR_CALLS)
def test_the_operators_check_for_themselves(change: dict[str, Any], message: str) -> None:
    options = {
        "weight": None,
        "margin": None,
        "offset": None,
        "scale": 1.0,
        "focal_gamma": 0.0,
        "label_smoothing": 0.0,
        "ignore_index": -100,
    }
    arguments = {"logits": IN, "target": OUT, **options, **change}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.absgd.softmax_loss(**arguments)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.absgd.softmax_loss_backward(
            grad_loss=torch.ones(2), saved=torch.zeros(4, 2), **arguments
        )
    if change == {"scale": 0.0}:
        arguments = {"logits": IN, "target": OUT, **options}
        with pytest.raises(RuntimeError, match=r"grad_loss must be 2 value\(s\) of "):
            torch.ops.absgd.softmax_loss_backward(
                grad_loss=torch.ones(3), saved=torch.zeros(4, 2), **arguments
            )
        with pytest.raises(RuntimeError, match="saved must be what"):
            torch.ops.absgd.softmax_loss_backward(
                grad_loss=torch.ones(2), saved=torch.zeros(2, 2), **arguments
            )


# ---- torch's machinery ----


@pytest.mark.parametrize(
    ("shape", "soft", "margins", "dtype"),
    [
        ((4, 3), False, True, torch.float32),
        ((4, 3), True, False, torch.float64),
        ((4, 3), True, True, torch.float32),
        ((2, 3, 5), False, True, torch.bfloat16),
        ((3,), False, True, torch.float32),
        ((2, 3, 4, 5), False, True, torch.float32),  # channels_last
        ((2, 3, 4, 5), True, True, torch.bfloat16),
    ],
)
def test_opcheck(shape: tuple[int, ...], soft: bool, margins: bool, dtype: torch.dtype) -> None:
    format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    arithmetic = torch.float64 if dtype is torch.float64 else torch.float32
    classes = per_class(shape)
    target = probabilities(shape, arithmetic) if soft else indices(shape)
    weight, offset = torch.rand(2, classes, dtype=arithmetic)
    margin = torch.rand(classes, dtype=arithmetic) if margins else None
    options = (weight, margin, offset, 2.0, 0.0, 0.1, IGNORED)
    logits = torch.randn(shape, dtype=dtype).to(memory_format=format).requires_grad_()
    torch.library.opcheck(torch.ops.absgd.softmax_loss, (logits, target, *options))
    logits = logits.detach()
    loss, saved = torch.ops.absgd.softmax_loss(logits, target, *options)
    arguments = (torch.ones_like(loss), logits, target, saved, *options)
    torch.library.opcheck(torch.ops.absgd.softmax_loss_backward, arguments)
    arguments = (*arguments, torch.tensor(3.0, dtype=arithmetic))
    torch.library.opcheck(torch.ops.absgd.softmax_loss_backward, arguments)


@pytest.mark.parametrize("criterion", criteria(), ids=lambda c: type(c).__name__)
def test_compiles_without_a_break(criterion: nn.Module) -> None:
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    logits, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 2, 0])
    eager_logits, compiled_logits = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected, actual = criterion(eager_logits, target), compiled(compiled_logits, target)
    assert torch.equal(actual, expected)
    expected.sum().backward()
    actual.sum().backward()
    assert torch.equal(compiled_logits.grad, eager_logits.grad)
