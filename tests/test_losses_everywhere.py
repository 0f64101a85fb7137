"""Each loss beside a plain float64 one: over shapes, layouts and dtypes, at extreme logits,
compiled, under autocast and under torch.func; per element and per sample, soft targets too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap
from torchvision.ops import sigmoid_focal_loss

import torch_absgd as ta
from loss_reference import indices, probabilities

COUNTS = [50, 9, 3, 1]
IGNORED = -100
UNKNOWN = -1
MARGIN = ta.PerSampleLDAM(COUNTS).margin.double()  # float32 in the modules
LOG_PRIOR = ta.PerSampleLogitAdjusted(COUNTS).offset.double()


def per_class(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))


def cross_entropy(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x, y, reduction="none")


def focal(x: Tensor, y: Tensor) -> Tensor:
    nll = cross_entropy(x, y)
    return (1 - (-nll).exp()) ** 2 * nll


def soft_focal(x: Tensor, q: Tensor) -> Tensor:
    log_p = x.log_softmax(1)
    return -(q * (1 - log_p.exp()) ** 2 * log_p).sum(1)


def ldam(x: Tensor, y: Tensor) -> Tensor:
    one_hot = F.one_hot(y.clamp(min=0), 4).movedim(-1, 1)
    return cross_entropy(3 * (x - per_class(MARGIN, x) * one_hot), y)


def soft_ldam(x: Tensor, q: Tensor) -> Tensor:
    labels = torch.zeros_like(q[:, 0], dtype=torch.int64)
    return torch.stack([q[:, c] * ldam(x, labels + c) for c in range(4)]).sum(0)


def adjusted(x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(x / 0.5 + per_class(LOG_PRIOR, x), y)


def bce(x: Tensor, q: Tensor) -> Tensor:
    known = q != UNKNOWN
    losses = F.binary_cross_entropy_with_logits(x, q.where(known, 0), reduction="none")
    return losses.where(known, 0)


def sigmoid_focal(x: Tensor, q: Tensor) -> Tensor:
    known = q != UNKNOWN
    return sigmoid_focal_loss(x, q.where(known, 0), reduction="none").where(known, 0)


Loss = Callable[[Tensor, Tensor], Tensor]
# name → ours with `per`, the plain one per element, targets
CASES: dict[str, tuple[Callable[[str], nn.Module], Loss, str]] = {
    "CE": (lambda per: ta.PerSampleCrossEntropy(per=per), cross_entropy, "classes"),
    "CE, soft": (lambda per: ta.PerSampleCrossEntropy(per=per), cross_entropy, "soft"),
    "focal": (lambda per: ta.PerSampleFocal(per=per), focal, "classes"),
    "focal, soft": (lambda per: ta.PerSampleFocal(per=per), soft_focal, "soft"),
    "LDAM": (lambda per: ta.PerSampleLDAM(COUNTS, scale=3.0, per=per), ldam, "classes"),
    "LDAM, soft": (lambda per: ta.PerSampleLDAM(COUNTS, scale=3.0, per=per), soft_ldam, "soft"),
    "adjusted": (
        lambda per: ta.PerSampleLogitAdjusted(COUNTS, temperature=0.5, per=per),
        adjusted,
        "classes",
    ),
    "BCE": (lambda per: ta.PerSampleBCE(ignore_index=UNKNOWN, per=per), bce, "labels"),
    "sigmoid focal": (
        lambda per: ta.PerSampleSigmoidFocal(ignore_index=UNKNOWN, per=per),
        sigmoid_focal,
        "labels",
    ),
}
each_case = pytest.mark.parametrize("name", CASES)


def targets(kind: str, shape: tuple[int, ...]) -> Tensor:
    """Some do not count; of the last sample none, but for class probabilities."""
    if kind == "soft":
        return probabilities(shape)
    target = indices(shape) if kind == "classes" else torch.randint(2, shape).double()
    ignored = IGNORED if kind == "classes" else UNKNOWN
    target.view(-1)[1::3] = ignored
    if len(target) > 1:
        target[-1] = ignored
    return target


def plain(name: str, per: str, x: Tensor, target: Tensor) -> Tensor:
    """The losses of float64 logits."""
    losses = CASES[name][1](x, target)
    if per == "element" or losses.dim() == 1:
        return losses
    counted = torch.ones_like(losses)
    if CASES[name][2] != "soft":
        counted = ((target != IGNORED) & (target != UNKNOWN)).double()
    return losses.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)


def layouts(x: Tensor) -> Iterator[Tensor]:
    yield x
    yield x.to(memory_format=torch.channels_last)
    yield x.transpose(0, 3).contiguous().transpose(0, 3)
    apart = x.new_zeros(x.shape[0], 2 * x.shape[1], *x.shape[2:])
    apart[:, ::2] = x
    yield apart[:, ::2]


@pytest.mark.parametrize("per", ["element", "sample"])
@pytest.mark.parametrize("shape", [(0, 4, 2, 3), (1, 4, 1, 1), (3, 4, 2, 3)])
@each_case
def test_shapes_layouts_and_dtypes(name: str, shape: tuple[int, ...], per: str) -> None:
    make, _, kind = CASES[name]
    target = targets(kind, shape)
    for dtype, tolerance in {
        torch.float64: 1e-12,
        torch.float32: 1e-5,
        torch.float16: 6e-4,
        torch.bfloat16: 4e-3,
    }.items():
        base = torch.randn(shape).to(dtype)
        exact = base.double().requires_grad_()
        expected = plain(name, per, exact, target)
        upstream = torch.rand_like(expected)
        (expected_grad,) = torch.autograd.grad(expected, exact, upstream)
        for logits in layouts(base):
            logits = logits.detach().requires_grad_()
            losses = make(per)(logits, target)
            assert losses.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
            torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
            (found,) = torch.autograd.grad(losses, logits, upstream.to(losses.dtype))
            assert found.dtype is dtype
            if shape[0] > 0:
                error = (found - expected_grad).abs().max()
                assert error <= tolerance * expected_grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@each_case
def test_logits_of_ten_thousand(name: str, dtype: torch.dtype) -> None:
    """Beside ±1e4, float32 rounds a margin or an offset to 1e-3."""
    make, _, kind = CASES[name]
    values = torch.tensor([1e4, -1e4, 0.0])
    logits = torch.cartesian_prod(values, values, values, values).to(dtype).requires_grad_()
    exact = logits.detach().double()
    target = targets(kind, tuple(logits.shape))
    losses = make("element")(logits, target)
    expected = plain(name, "element", exact, target)
    tolerance = 1e-9 if dtype is torch.float64 else 5e-3
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=tolerance)
    (found,) = torch.autograd.grad(losses.sum(), logits)
    assert found.isfinite().all()


@each_case
def test_compiled_per_sample(name: str) -> None:
    make, _, kind = CASES[name]
    criterion, target = make("sample"), targets(kind, (3, 4, 2))
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 4, 2, requires_grad=True)
    again = x.detach().clone().requires_grad_()
    expected, got = criterion(x, target), compiled(again, target)
    expected.sum().backward()
    got.sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(again.grad, x.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("per", ["element", "sample"])
@each_case
def test_under_autocast(name: str, per: str) -> None:
    """The numbers of outside, from logits in bfloat16."""
    make, _, kind = CASES[name]
    layer, target = nn.Conv1d(5, 4, 1), targets(kind, (3, 4, 2))
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(torch.randn(3, 5, 2))
        losses = make(per)(logits, target)
    assert logits.dtype is torch.bfloat16
    assert losses.dtype is torch.float32
    assert torch.equal(losses, make(per)(logits, target))
    losses.sum().backward()
    assert layer.weight.grad.dtype is torch.float32


@pytest.mark.parametrize("per", ["element", "sample"])
@each_case
def test_torch_func(name: str, per: str) -> None:
    """grad, and vmap of grad over calls."""
    make, _, kind = CASES[name]
    criterion = make(per)
    x, target = torch.randn(3, 2, 4, 2, dtype=torch.float64), targets(kind, (2, 4, 2))

    def total(x: Tensor) -> Tensor:
        return (criterion(x, target) ** 2).sum()

    exact = x.clone().requires_grad_()
    sum((plain(name, per, one, target) ** 2).sum() for one in exact).backward()
    torch.testing.assert_close(grad(total)(x[0]), exact.grad[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(vmap(grad(total))(x), exact.grad, rtol=1e-9, atol=1e-12)
