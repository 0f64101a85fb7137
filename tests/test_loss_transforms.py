"""The per-sample losses under torch.func, torch.export, and other default dtypes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap

import torch_absgd as ta
from loss_reference import probabilities

COUNTS = [50, 9, 3, 1]
LABELS = torch.tensor([0, 3, 1, -100, 2])
BITS = torch.tensor([[0, 1, 1, 0], [1, 1, -1, 0], [-1, -1, -1, -1], [0, 0, 0, 1], [1, 0, 1, 0]])
CASES: list[tuple[nn.Module, Tensor]] = [
    (ta.PerSampleCrossEntropy(label_smoothing=0.1), LABELS),
    (ta.PerSampleCrossEntropy(weight=torch.rand(4)), probabilities((5, 4), torch.float64)),
    (ta.PerSampleFocal(), LABELS),
    (ta.PerSampleLDAM(COUNTS, scale=3.0), LABELS),
    (ta.PerSampleLDAM(COUNTS, scale=3.0), probabilities((5, 4), torch.float64)),
    (ta.PerSampleLogitAdjusted(COUNTS), LABELS),
    (ta.PerSampleBCE(pos_weight=torch.rand(4), ignore_index=-1), BITS.double()),
    (ta.PerSampleBCE(ignore_index=-1, per="element"), BITS.double()),
    (ta.PerSampleSigmoidFocal(ignore_index=-1), BITS.double()),
]
each_case = pytest.mark.parametrize(
    ("criterion", "target"),
    CASES,
    ids=[f"{type(c).__name__} {i}" for i, (c, _) in enumerate(CASES)],
)


def logits(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


# ---- torch.func ----


@each_case
def test_grad_and_vjp(criterion: nn.Module, target: Tensor) -> None:
    x = logits(5, 4).requires_grad_()
    losses = criterion(x, target)
    upstream = torch.rand_like(losses)
    (expected,) = torch.autograd.grad(losses, x, upstream)
    x = x.detach()
    got = grad(lambda z: (criterion(z, target) * upstream).sum())(x)
    torch.testing.assert_close(got, expected)
    out, pull = vjp(lambda z: criterion(z, target), x)
    torch.testing.assert_close(out, losses.detach())
    torch.testing.assert_close(pull(upstream)[0], expected)


@each_case
def test_vmap_of_batches(criterion: nn.Module, target: Tensor) -> None:
    """Over batches, and over logits alone; no warning of a missing rule."""
    x = logits(3, 5, 4)
    targets = torch.stack([target, target.roll(1, 0), target.roll(2, 0)])
    expected = torch.stack([criterion(a, b) for a, b in zip(x, targets, strict=True)])
    torch.testing.assert_close(vmap(criterion)(x, targets), expected)
    expected = torch.stack([criterion(a, target) for a in x])
    torch.testing.assert_close(vmap(criterion, (0, None))(x, target), expected)
    moved = vmap(criterion, (1, None), 1)(x.transpose(0, 1), target)
    torch.testing.assert_close(moved.movedim(1, 0), expected)


@each_case
def test_per_sample_gradients(criterion: nn.Module, target: Tensor) -> None:
    """vmap(grad), as for influence functions or DP-SGD: of a model's parameters."""
    model = nn.Linear(6, 4).double()
    parameters = {k: v.detach() for k, v in model.named_parameters()}
    features = logits(5, 6)

    def loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return criterion(functional_call(model, p, (x[None],)), y[None]).sum()

    got = vmap(grad(loss), (None, 0, 0))(parameters, features, target)
    for i in range(5):
        expected = grad(loss)(parameters, features[i], target[i])
        for name in parameters:
            torch.testing.assert_close(got[name][i], expected[name])


@each_case
def test_grad_of_vmap(criterion: nn.Module, target: Tensor) -> None:
    x = logits(3, 5, 4)
    got = grad(lambda z: vmap(criterion, (0, None))(z, target).sum())(x)
    expected = torch.stack([grad(lambda z: criterion(z, target).sum())(a) for a in x])
    torch.testing.assert_close(got, expected)


@each_case
def test_jvp(criterion: nn.Module, target: Tensor) -> None:
    x, tangent = logits(5, 4), logits(5, 4)
    losses, change = jvp(lambda z: criterion(z, target), (x,), (tangent,))
    torch.testing.assert_close(losses, criterion(x, target))
    h = 1e-6
    ahead, behind = criterion(x + h * tangent, target), criterion(x - h * tangent, target)
    torch.testing.assert_close(change, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)


def test_vmap_with_inner_dimensions_and_over_single_samples() -> None:
    criterion = ta.PerSampleCrossEntropy()
    x, target = logits(3, 2, 4, 5, 2), torch.randint(4, (3, 2, 5, 2))
    expected = torch.stack([criterion(a, b) for a, b in zip(x, target, strict=True)])
    torch.testing.assert_close(vmap(criterion)(x, target), expected)
    got = vmap(grad(lambda a, b: criterion(a, b).sum()))(x, target)
    inner = x.clone().requires_grad_()
    vmap(criterion)(inner, target).sum().backward()
    torch.testing.assert_close(inner.grad, got)
    single = vmap(criterion)(x[:, 0, :, 0, 0], target[:, 0, 0, 0])  # (C) and () each
    torch.testing.assert_close(single, criterion(x[:, 0, :, 0, 0], target[:, 0, 0, 0]))


def test_vmap_over_class_weights_is_refused() -> None:
    x, weights = logits(5, 4), torch.rand(2, 4, dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        return torch.ops.absgd.softmax_loss(x, LABELS, w, None, None, 1.0, 0.0, 0.0, -100)[0]

    with pytest.raises(NotImplementedError, match="vmap over class weights"):
        vmap(loss)(weights)


# ---- torch.export ----


class Training(nn.Module):
    """A model that returns its loss, beside another term."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4).double()
        self.criterion = criterion

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.criterion(self.layer(x), y).sum() + 0.1 * self.layer.weight.square().sum()


@each_case
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_keeps_the_gradient(
    criterion: nn.Module, target: Tensor, strict: bool
) -> None:
    model, x = Training(criterion), logits(5, 6)
    model(x, target).backward()
    expected = model.layer.weight.grad.clone()
    exported = torch.export.export(model, (x, target), strict=strict)
    for program in (exported, exported.run_decompositions()):
        module = program.module()
        module.zero_grad()
        module(x, target).backward()
        got = dict(module.named_parameters())["layer.weight"].grad
        torch.testing.assert_close(got, expected)


# ---- default dtypes and devices ----


def with_default(dtype: torch.dtype, call: Callable[[], list[Tensor]]) -> list[Tensor]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return call()
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    counts = [100_000.0, 70_001.0, 12.0, 1.0]  # beyond float16
    x = torch.randn(5, 4, dtype=torch.float32)
    q = probabilities((5, 4), torch.float32)
    bits = BITS.float()

    def call() -> list[Tensor]:
        results = []
        for criterion, target in (
            (ta.PerSampleCrossEntropy(label_smoothing=0.1), LABELS),
            (ta.PerSampleFocal(), q),
            (ta.PerSampleLDAM(counts), LABELS),
            (ta.PerSampleLDAM(counts, label_smoothing=0.1), q),
            (ta.PerSampleLogitAdjusted(counts), LABELS),
            (ta.PerSampleCrossEntropy(per="sample"), LABELS),
            (ta.PerSampleBCE(ignore_index=-1), bits),
            (ta.PerSampleSigmoidFocal(ignore_index=-1), bits),
        ):
            leaf = x.clone().requires_grad_()
            losses = criterion(leaf, target)
            losses.sum().backward()
            results += [losses.detach(), leaf.grad]
        return [*results, ta.logit_adjust(x, counts)]

    for got, expected in zip(
        with_default(dtype, call), with_default(torch.float32, call), strict=True
    ):
        assert got.dtype is expected.dtype is torch.float32
        assert torch.equal(got, expected)


def test_the_default_device_does_not_move_the_counts() -> None:
    with torch.device("meta"):
        criterion = ta.PerSampleLDAM(COUNTS)
    assert criterion.margin.device.type == "cpu"
    assert criterion.margin.max() == 0.5
