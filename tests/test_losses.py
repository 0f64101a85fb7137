"""The per-sample losses against compositions of torch's own operators, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import torch_absgd as ta
from loss_reference import TOLERANCE, criteria, indices, per_class, probabilities, reference
from torch_absgd._loss_ops import softmax_loss

SHAPES = [(10,), (1, 1), (7, 10), (70, 33), (3, 700), (3, 4, 5), (2, 40, 130), (2, 3, 8, 9)]
# name → options; a True stands for a random tensor [C]
OPTIONS: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "weight, smoothing": {"weight": True, "label_smoothing": 0.2},
    "offset": {"offset": True},
    "LDAM": {"margin": True, "scale": 30.0},
    "everything": {
        "weight": True,
        "margin": True,
        "offset": True,
        "scale": 5.0,
        "label_smoothing": 0.1,
    },
    "focal": {"focal_gamma": 2.0},
    "focal ½, weight": {"focal_gamma": 0.5, "weight": True},
    "focal LDAM": {"focal_gamma": 1.5, "margin": True, "scale": 4.0},
}
CASES = list(itertools.product(OPTIONS, (False, True)))


def drawn(options: dict[str, Any], classes: int) -> dict[str, Any]:
    return {
        k: torch.rand(classes, dtype=torch.float64) * 0.5 if v is True else v
        for k, v in options.items()
    }


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("name", "soft"), CASES)
def test_loss_and_gradient(name: str, soft: bool, dtype: torch.dtype) -> None:
    loss_tolerance, grad_tolerance = TOLERANCE[dtype]
    for shape in SHAPES:
        if "½" in name and per_class(shape) == 1:
            continue  # the reference's (1 − P)^γ has no gradient at P = 1
        options = drawn(OPTIONS[name], per_class(shape))
        logits = (torch.randn(shape) * 3).to(dtype).requires_grad_()
        target = probabilities(shape) if soft else indices(shape)
        losses = softmax_loss(logits, target, **options)
        upstream = torch.rand_like(losses)
        (grad,) = torch.autograd.grad(losses, logits, upstream)

        exact = logits.detach().double().requires_grad_()
        expected = reference(exact, target, **options)
        (expected_grad,) = torch.autograd.grad(expected, exact, upstream.double())
        assert losses.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        assert losses.shape == expected.shape
        assert grad.dtype is dtype
        assert ((losses - expected).abs() <= loss_tolerance * (1 + expected.abs())).all()
        largest = expected_grad.abs().amax()
        error = (grad - expected_grad).abs().amax()
        assert error <= grad_tolerance * largest + 1e-14  # the reference's own, in P_y − 1


@pytest.mark.parametrize(("name", "soft"), CASES)
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4)])
def test_gradcheck(name: str, soft: bool, shape: tuple[int, ...]) -> None:
    options = drawn(OPTIONS[name], per_class(shape))
    target = probabilities(shape) if soft else indices(shape)
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: softmax_loss(x, target, **options), logits)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_of_soft_targets(name: str) -> None:
    options = drawn(OPTIONS[name], 5)
    logits = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    target = probabilities((3, 5, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, q: softmax_loss(x, q, **options), (logits, target))
    fused = softmax_loss(logits, target.detach(), **options)
    torch.testing.assert_close(softmax_loss(logits, target, **options), fused)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many_classes(dtype: torch.dtype) -> None:
    """512 × 8142, the shape of iNaturalist 2018: LDAM and cross-entropy."""
    logits = (torch.randn(512, 8142, dtype=torch.float64) * 2).to(dtype).requires_grad_()
    target = torch.randint(8142, (512,))
    for options in ({}, {"margin": torch.rand(8142) / 2, "scale": 30.0}):
        losses = softmax_loss(logits, target, **options)
        (grad,) = torch.autograd.grad(losses.sum(), logits)
        exact = logits.detach().double().requires_grad_()
        expected = reference(exact, target, **options)
        (expected_grad,) = torch.autograd.grad(expected.sum(), exact)
        rtol = 1e-12 if dtype is torch.float64 else 2e-6
        torch.testing.assert_close(losses.double(), expected, rtol=rtol, atol=rtol)
        scale = options.get("scale", 1.0)
        torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-4, atol=rtol * scale)


# ---- torch's own cross-entropy, option by option ----


@pytest.mark.parametrize("shape", [(5,), (4, 5), (4, 5, 2, 3)])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_equals_cross_entropy(
    shape: tuple[int, ...], smoothing: float, weighted: bool, soft: bool
) -> None:
    logits = torch.randn(shape)
    target = probabilities(shape, torch.float32) if soft else indices(shape)
    weight = torch.rand(5) if weighted else None
    criterion = ta.PerSampleCrossEntropy(weight=weight, label_smoothing=smoothing)
    expected = F.cross_entropy(
        logits, target, weight=weight, label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(criterion(logits, target), expected, rtol=2e-6, atol=2e-6)


EXTREME = [
    [1e4, 0.0, 0.0],
    [-1e4, 0.0, 0.0],
    [1e4, -1e4, 0.0],
    [1e4, 1e4, 1e4],
    [-1e4, -1e4, -1e4],
    [0.0, -math.inf, 1.0],
    [-math.inf, 2.0, 1.0],
    [0.5, -math.inf, -math.inf],
    [-math.inf, -math.inf, -math.inf],
    [math.nan, 0.0, 0.0],
    [0.0, math.nan, 0.0],
    [math.inf, 0.0, 0.0],
    [0.0, math.inf, 0.0],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["rows", "positions"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_logits(dtype: torch.dtype, layout: str, smoothing: float) -> None:
    """±1e4, masked classes (−∞), NaN and ∞: what torch makes of them, NaN for NaN."""
    logits = torch.tensor(EXTREME, dtype=dtype)
    logits = torch.cat([logits, logits.flip(1)])
    target = torch.zeros(len(logits), dtype=torch.int64)
    if layout == "positions":
        logits, target = logits.T.unsqueeze(0), target.unsqueeze(0)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = softmax_loss(ours, target, label_smoothing=smoothing)
    expected = F.cross_entropy(theirs, target, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(loss, expected, rtol=2e-7, atol=0, equal_nan=True)
    finite = expected.isfinite()
    loss[finite].sum().backward()
    expected[finite].sum().backward()
    ours, theirs = (
        x.grad.movedim(1, -1)[finite] if layout == "positions" else x.grad[finite]
        for x in (ours, theirs)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_masked_target_has_a_finite_gradient() -> None:
    """A target whose logit is −∞: the loss is ∞, the gradient P − 1 and P_c, as torch's."""
    for criterion in (ta.PerSampleCrossEntropy(), ta.PerSampleFocal(2.0)):
        logits = torch.tensor([[-math.inf, 0.0, 0.0]], requires_grad=True)
        loss = criterion(logits, torch.tensor([0]))
        loss.sum().backward()
        assert loss.item() == math.inf
        assert logits.grad.tolist() == [[-1.0, 0.5, 0.5]]


@pytest.mark.parametrize("options", [{}, {"focal_gamma": 2.0}, {"margin": torch.full((3,), 0.5)}])
def test_confident_samples_keep_their_digits(options: dict[str, Any]) -> None:
    """1 − P_y = 1e-13: float32 of 1 − P_y by subtraction would be 0, and so the gradient."""
    logits = torch.tensor([[30.0, 0.0, -1.0]], requires_grad=True)
    exact = logits.detach().double().requires_grad_()
    loss = softmax_loss(logits, torch.tensor([0]), **options)
    expected = -torch.log1p(-_one_minus_p(exact, options))
    if "focal_gamma" in options:
        expected = expected * _one_minus_p(exact, options) ** 2
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-6, atol=0)


def _one_minus_p(z: Tensor, options: dict[str, Any]) -> Tensor:
    margin = 0.5 if "margin" in options else 0.0
    others = (z[:, 1:] - z[:, :1] + margin).exp().sum(1)
    return others / (1 + others)


# ---- each loss against its paper ----


def test_ldam_is_cao_et_al() -> None:
    counts = [1000, 100, 10, 3]
    criterion = ta.PerSampleLDAM(counts)
    logits = torch.rand(6, 4) * 2 - 1
    target = torch.tensor([0, 1, 2, 3, 3, 0])
    margins = [n**-0.25 for n in counts]
    margins = [0.5 * m / max(margins) for m in margins]
    for i, y in enumerate(target.tolist()):
        x = logits[i].tolist()
        own = math.exp(30 * (x[y] - margins[y]))
        others = sum(math.exp(30 * x[c]) for c in range(4) if c != y)
        expected = -math.log(own / (own + others))
        assert criterion(logits, target)[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert criterion.margin.max() == 0.5


def test_ldam_smooths_the_shifted_scaled_logits() -> None:
    criterion = ta.PerSampleLDAM([100, 10, 1], label_smoothing=0.1)
    logits, target = torch.rand(5, 3), torch.tensor([0, 1, 2, 2, 1])
    shifted = 30 * (logits - criterion.margin[target].unsqueeze(1) * F.one_hot(target, 3))
    expected = F.cross_entropy(shifted, target, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(criterion(logits, target), expected, rtol=1e-5, atol=1e-5)


def test_focal_is_lin_et_al() -> None:
    logits, target = torch.randn(8, 5), torch.randint(5, (8,))
    weight = torch.rand(5)
    p = logits.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    expected = -weight[target] * (1 - p) ** 1.5 * p.log()
    actual = ta.PerSampleFocal(gamma=1.5, weight=weight)(logits, target)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        ta.PerSampleFocal(gamma=0.0)(logits, target), ta.PerSampleCrossEntropy()(logits, target)
    )


def test_logit_adjusted_is_menon_et_al() -> None:
    counts = [70, 20, 10]
    logits, target = torch.randn(6, 3), torch.randint(3, (6,))
    adjusted = logits + 1.5 * torch.tensor([0.7, 0.2, 0.1]).log()
    expected = F.cross_entropy(adjusted, target, reduction="none")
    actual = ta.PerSampleLogitAdjusted(counts, tau=1.5)(logits, target)
    torch.testing.assert_close(actual, expected)
    soft = probabilities((6, 3), torch.float32)
    torch.testing.assert_close(
        ta.PerSampleLogitAdjusted(counts, tau=1.5)(logits, soft),
        F.cross_entropy(adjusted, soft, reduction="none"),
    )


def test_normed_linear_gives_cosines() -> None:
    layer = ta.NormedLinear(7, 4)
    features = torch.randn(5, 7) * 100
    expected = F.cosine_similarity(features.unsqueeze(1), layer.weight.unsqueeze(0), dim=2)
    torch.testing.assert_close(layer(features), expected)
    assert layer.bias is None


# ---- what counts ----


@pytest.mark.parametrize("criterion", criteria(), ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("shape", [(6, 4), (2, 4, 3)])
def test_ignored_elements(criterion: nn.Module, shape: tuple[int, ...]) -> None:
    """Loss and gradient 0, also where the logits are NaN; the others are as without them."""
    target = torch.tensor([0, 2, 1, 3, 2, 0]).view(shape[0], *shape[2:])
    logits = torch.randn(shape)
    logits.movedim(1, -1)[target == 2] = math.nan
    logits.requires_grad_()
    losses = criterion(logits, target)
    losses.sum().backward()
    counted = criterion.counted(target)
    assert counted.tolist() == (target != 2).tolist()
    assert (losses[~counted] == 0).all()
    assert (logits.grad.movedim(1, -1)[~counted] == 0).all()
    kept = logits.detach().movedim(1, -1)[counted].requires_grad_()
    alone = criterion(kept, target[counted])
    alone.sum().backward()
    torch.testing.assert_close(losses[counted], alone, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(logits.grad.movedim(1, -1)[counted], kept.grad, rtol=1e-5, atol=1e-7)


def test_a_class_weight_of_zero_is_not_a_mask() -> None:
    criterion = ta.PerSampleCrossEntropy(weight=torch.tensor([0.0, 1.0]))
    target = torch.tensor([0, 1])
    assert criterion.counted(target).tolist() == [True, True]
    losses = criterion(torch.randn(2, 2), target)
    assert losses[0] == 0
    assert losses[1] > 0
    wrapped = ta.AttentionalLoss(criterion)
    assert wrapped(torch.zeros(2, 2), target).item() == pytest.approx(math.log(2) / 2)


def test_attentional_loss_masks_ignored_elements() -> None:
    logits, target = torch.randn(4, 3), torch.tensor([0, -100, 2, -100])
    wrapped = ta.AttentionalLoss(ta.PerSampleCrossEntropy())
    expected = F.cross_entropy(logits, target)  # torch's mean runs over what counts, too
    torch.testing.assert_close(wrapped(logits, target), expected)


def test_soft_targets_all_count() -> None:
    assert ta.PerSampleCrossEntropy().counted(torch.rand(3, 4)) is None


# ---- shapes and memory layouts ----


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (2, 5, 0)])
def test_empty_batch(shape: tuple[int, ...]) -> None:
    logits = torch.empty(shape, requires_grad=True)
    target = torch.empty((shape[0], *shape[2:]), dtype=torch.int64)
    losses = ta.PerSampleCrossEntropy()(logits, target)
    assert losses.shape == target.shape
    losses.sum().backward()
    assert logits.grad.shape == shape


@pytest.mark.parametrize("soft", [False, True])
def test_memory_layouts(soft: bool) -> None:
    """channels_last, transposed and strided logits and targets give the contiguous result."""
    base = torch.randn(3, 5, 4, 6)
    target = probabilities((3, 5, 4, 6), torch.float32) if soft else indices((3, 5, 4, 6))
    expected = F.cross_entropy(base, target, reduction="none")
    padded = torch.zeros(3, 10, 4, 6)
    padded[:, ::2] = base
    for logits in (
        base.to(memory_format=torch.channels_last),
        base.transpose(0, 3).contiguous().transpose(0, 3),
        padded[:, ::2],
    ):
        logits = logits.detach().requires_grad_()
        mixed = target.transpose(0, 1).contiguous().transpose(0, 1)
        losses = ta.PerSampleCrossEntropy()(logits, mixed)
        losses.sum().backward()
        torch.testing.assert_close(losses, expected, rtol=2e-6, atol=2e-6)
        plain = base.clone().requires_grad_()
        F.cross_entropy(plain, target, reduction="sum").backward()
        torch.testing.assert_close(logits.grad, plain.grad, rtol=1e-5, atol=1e-6)


def allocated(log: profile) -> int:
    return sum(max(event.self_cpu_memory_usage, 0) for event in log.events())


@pytest.mark.parametrize("soft", [False, True])
def test_channels_last_logits_are_taken_as_they_lie(soft: bool) -> None:
    """As the rows that they are: the same bits, the gradient in their layout, and no copy."""
    shape = (2, 200, 12, 9)
    logits = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
    target = probabilities(shape, torch.float32) if soft else indices(shape)
    target = target.to(memory_format=torch.channels_last) if soft else target
    criterion = ta.PerSampleCrossEntropy()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        losses = criterion(logits, target)
        losses.sum().backward()
    assert logits.nbytes <= allocated(log) < 1.1 * logits.nbytes
    assert losses.shape == (2, 12, 9) and losses.is_contiguous()
    assert logits.grad.stride() == logits.stride()
    rows = logits.detach().permute(0, 2, 3, 1).reshape(-1, 200).requires_grad_()
    row_target = target.permute(0, 2, 3, 1).reshape(-1, 200) if soft else target.flatten()
    row_losses = criterion(rows, row_target)
    row_losses.sum().backward()
    assert torch.equal(losses.flatten(), row_losses)
    assert torch.equal(logits.grad.permute(0, 2, 3, 1).reshape(-1, 200), rows.grad)


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 4, 3, 2, 5), (1, 4, 1, 6), (3, 4, 5, 1)])
def test_classes_that_lie_last(shape: tuple[int, ...]) -> None:
    """In any number of dimensions, of one element too; and a target in another layout."""
    target = probabilities(shape, torch.float32)
    base = torch.randn(shape)
    plain = base.clone().requires_grad_()
    expected = F.cross_entropy(plain, target, reduction="none")
    upstream = torch.rand_like(expected)
    expected.backward(upstream)
    logits = base.movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
    losses = ta.PerSampleCrossEntropy()(logits, target)
    (grad,) = torch.autograd.grad(losses, logits, upstream)
    torch.testing.assert_close(losses, expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(grad, plain.grad, rtol=1e-5, atol=1e-6)
    assert grad.movedim(1, -1).is_contiguous()


def test_threads_do_not_change_a_bit() -> None:
    for shape in ((300, 700), (3, 7, 61, 59)):
        results = []
        logits, target = torch.randn(shape), indices(shape)
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            x = logits.clone().requires_grad_()
            losses = ta.PerSampleFocal()(x, target)
            losses.sum().backward()
            results.append((losses.detach(), x.grad))
        for loss, grad in results[1:]:
            assert torch.equal(loss, results[0][0])
            assert torch.equal(grad, results[0][1])


def test_memory_of_one_logits_tensor() -> None:
    """Forward and backward at 512 × 8142 allocate the gradient, and else less than 1 % of it."""
    logits = torch.randn(512, 8142, requires_grad=True)
    target = torch.randint(8142, (512,))
    criterion = ta.PerSampleLDAM(torch.arange(1, 8143))
    size = logits.numel() * logits.element_size()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        criterion(logits, target).sum().backward()
    assert size <= allocated(log) < 1.01 * size


def test_options_combine() -> None:
    """Every pair of options that go together agrees with the reference; the others are refused."""
    parts = [{"weight": True}, {"margin": True}, {"offset": True}, {"scale": 3.0}]
    parts += [{"focal_gamma": 1.5}, {"label_smoothing": 0.2}]
    logits, target = torch.randn(5, 6, dtype=torch.float64), torch.randint(6, (5,))
    for one, two in itertools.combinations(parts, 2):
        options = drawn(one | two, 6)
        if {"focal_gamma", "label_smoothing"} <= options.keys():
            with pytest.raises(RuntimeError, match="hyper-parameter"):
                softmax_loss(logits, target, **options)
            continue
        expected = reference(logits, target, **options)
        torch.testing.assert_close(softmax_loss(logits, target, **options), expected)
