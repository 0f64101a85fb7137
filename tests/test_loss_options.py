"""Per-sample reduction, soft targets of focal and LDAM, empty classes, temperature, post hoc."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_absgd as ta
from loss_reference import criteria, indices, probabilities, reference
from torch_absgd._loss_ops import softmax_loss

COUNTS = [50, 9, 3, 1]

# ---- per="sample" ----


def per_sample_criteria(**options: Any) -> list[nn.Module]:
    return [
        ta.PerSampleCrossEntropy(label_smoothing=0.1, **options),
        ta.PerSampleFocal(**options),
        ta.PerSampleLDAM(COUNTS, **options),
        ta.PerSampleLogitAdjusted(COUNTS, **options),
    ]


@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 4, 3, 6), (0, 4, 3), (1, 4, 1)])
def test_per_sample_is_the_mean_of_what_counts(i: int, shape: tuple[int, ...]) -> None:
    element = per_sample_criteria()[i]
    sample = per_sample_criteria(per="sample")[i]
    target = indices(shape)
    if len(target) > 1:
        target[-1] = -100  # a sample in which nothing counts
    logits = torch.randn(shape, requires_grad=True)
    each, counted = element(logits, target), target != -100
    losses = sample(logits, target)
    assert losses.shape == shape[:1]
    means = [e[c].mean() if c.any() else 0 * e.sum() for e, c in zip(each, counted, strict=True)]
    expected = torch.stack(means) if means else losses
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-7)
    assert sample.counted(target).tolist() == [bool(c.any()) for c in counted]
    upstream = torch.rand(shape[0])
    (grad,) = torch.autograd.grad(losses, logits, upstream, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(expected, logits, upstream)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-7)


def test_per_sample_of_single_elements_and_of_probabilities() -> None:
    logits, target = torch.randn(5, 4), torch.tensor([0, 1, -100, 3, 2])
    for element, sample in zip(
        per_sample_criteria(), per_sample_criteria(per="sample"), strict=True
    ):
        assert torch.equal(sample(logits, target), element(logits, target))
        assert torch.equal(sample.counted(target), target != -100)
        images, q = torch.randn(2, 4, 3, 3), probabilities((2, 4, 3, 3), torch.float32)
        torch.testing.assert_close(sample(images, q), element(images, q).mean((1, 2)))
        assert sample.counted(q) is None


def test_attention_is_on_samples() -> None:
    """One weight an image, the same in training by one operator and in two steps."""
    logits, target = torch.randn(3, 4, 2, 2), torch.randint(4, (3, 2, 2))
    target[1] = -100
    target[2, 0] = -100
    for criterion in per_sample_criteria(per="sample"):
        wrapped = ta.AttentionalLoss(criterion, lam=0.5, gamma=1.0)
        x = logits.clone().requires_grad_()
        total = wrapped(x, target)
        losses = criterion(logits, target)[[0, 2]]
        p = (losses / 0.5).softmax(0) * 2
        assert wrapped.weights.shape == (3,)
        torch.testing.assert_close(wrapped.weights[[0, 2]], p)
        torch.testing.assert_close(total, (p * losses).mean())


# ---- soft targets of focal and LDAM ----

SOFT_OPTIONS: dict[str, dict[str, Any]] = {
    "focal": {"focal_gamma": 2.0},
    "focal ½, weight, offset": {"focal_gamma": 0.5, "weight": True, "offset": True},
    "LDAM": {"margin": True, "scale": 30.0},
    "LDAM, smoothing, weight": {
        "margin": True,
        "scale": 4.0,
        "label_smoothing": 0.2,
        "weight": True,
    },
    "both": {"margin": True, "focal_gamma": 1.5, "scale": 2.0},
}


def drawn(options: dict[str, Any], classes: int) -> dict[str, Any]:
    return {
        k: torch.rand(classes, dtype=torch.float64) / 2 if v is True else v
        for k, v in options.items()
    }


@pytest.mark.parametrize("name", SOFT_OPTIONS)
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 6, 3), (0, 6)])
def test_soft_targets_give_the_mean_under_them(name: str, shape: tuple[int, ...]) -> None:
    """Σ_y q_y·(loss of class y), each by the kernel; losses and gradients."""
    options = drawn(SOFT_OPTIONS[name], 6)
    dim = min(len(shape) - 1, 1)
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    q = probabilities(shape)
    losses = softmax_loss(logits, q, **options)
    labels = torch.zeros(q.select(dim, 0).shape, dtype=torch.int64)
    expected = sum(q.select(dim, y) * softmax_loss(logits, labels + y, **options) for y in range(6))
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-13)
    upstream = torch.rand_like(losses)
    (grad,) = torch.autograd.grad(losses, logits, upstream, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(expected, logits, upstream)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SOFT_OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_soft_targets_in_other_dtypes(name: str, dtype: torch.dtype) -> None:
    options = drawn(SOFT_OPTIONS[name], 6)
    logits = torch.randn(8, 6).to(dtype).requires_grad_()
    q = probabilities((8, 6))
    losses = softmax_loss(logits, q, **options)
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    exact = logits.detach().double().requires_grad_()
    expected = softmax_loss(exact, q, **options)
    (expected_grad,) = torch.autograd.grad(expected.sum(), exact)
    assert losses.dtype is torch.float32
    assert grad.dtype is dtype
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    tolerance = {torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 4e-3}[dtype]
    assert (grad - expected_grad).abs().max() <= tolerance * expected_grad.abs().max()


@pytest.mark.parametrize("name", SOFT_OPTIONS)
def test_extreme_logits_with_soft_targets(name: str) -> None:
    options = drawn(SOFT_OPTIONS[name], 3)
    options["scale"] = 1.0
    options.pop("offset", None)  # rounded away beside 1e4, whatever is done then
    rows = [[1e4, 0.0, 0.0], [-1e4, 0.0, 1e4], [1e4, 1e4, 1e4], [-1e4, -1e4, 50.0]]
    logits = torch.tensor(rows).requires_grad_()
    for q in ([1.0, 0.0, 0.0], [0.2, 0.3, 0.5]):
        target = torch.tensor(q).expand(4, 3)
        losses = softmax_loss(logits, target, **options)
        (grad,) = torch.autograd.grad(losses.sum(), logits)
        exact = softmax_loss(logits.detach().double(), target, **options)
        torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)
        assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ([30.0, 0.0, -1.0], {"focal_gamma": 2.0}),
        ([30.0, 0.0, -1.0], {"focal_gamma": 1.5, "margin": torch.tensor([0.5, 0.1, 0.2])}),
        ([30.0, 0.0, -1.0], {"margin": torch.tensor([0.5, 0.1, 0.2])}),
        # far above the others, and by its own margin of 150 far below: exp(−120) is 0 in float32
        ([0.4, 0.0, -0.1], {"margin": torch.tensor([0.5, 0.1, 0.2]), "scale": 300.0}),
    ],
)
def test_a_sure_class_keeps_its_digits(row: list[float], options: dict[str, Any]) -> None:
    """A soft target of one class is that class, also where 1 − P is 1e-13 or less."""
    for shape in ((1, 3), (1, 3, 2)):
        logits = torch.tensor(row).view(1, 3, *[1] * (len(shape) - 2)).expand(shape)
        logits = logits.clone().requires_grad_()
        exact = logits.detach().double().requires_grad_()
        labels = torch.zeros((1, *shape[2:]), dtype=torch.int64)
        losses = softmax_loss(logits, F.one_hot(labels, 3).movedim(-1, 1).float(), **options)
        expected = softmax_loss(exact, labels, **options)
        losses.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(losses.double(), expected, rtol=3e-5, atol=0)
        torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=3e-5, atol=0)


def test_gradient_of_differentiated_soft_targets() -> None:
    for options in SOFT_OPTIONS.values():
        chosen = drawn(options, 4)
        logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        q = probabilities((3, 4)).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, t, o=chosen: softmax_loss(x, t, **o), (logits, q))


def test_mixup_mixes_the_losses() -> None:
    """Through the modules, and with attention."""
    logits, a, b = torch.randn(6, 4), torch.randint(4, (6,)), torch.randint(4, (6,))
    mixed = 0.3 * F.one_hot(a, 4) + 0.7 * F.one_hot(b, 4)
    for criterion in (ta.PerSampleFocal(), ta.PerSampleLDAM(COUNTS, label_smoothing=0.1)):
        expected = 0.3 * criterion(logits, a) + 0.7 * criterion(logits, b)
        torch.testing.assert_close(criterion(logits, mixed), expected, rtol=1e-5, atol=1e-5)
        wrapped = ta.AttentionalLoss(criterion, lam=2.0, gamma=1.0)
        x = logits.clone().requires_grad_()
        p = (expected / 2).softmax(0) * 6
        torch.testing.assert_close(wrapped(x, mixed), (p * expected).mean(), rtol=1e-4, atol=1e-5)


# ---- class counts of 0, temperature, post hoc ----


@pytest.mark.parametrize("loss", [ta.PerSampleLDAM, ta.PerSampleLogitAdjusted])
def test_an_empty_class_counts_as_it_is_told_to(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"got \[0.0\] for class\(es\) \[1\]"):
        loss([5, 0, 3])
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    assert torch.equal(
        loss([5, 0, 3], empty_count=0.5)(logits, target), loss([5, 0.5, 3])(logits, target)
    )
    for bad, error in ((0, ValueError), (-1, ValueError), ("a", TypeError)):
        with pytest.raises(error, match="empty_count"):
            loss([5, 0, 3], empty_count=bad)
    with pytest.raises(ValueError, match="finite and ≥ 0"):
        loss([5, -1, 3], empty_count=1)


def test_temperature_divides_the_logits_alone() -> None:
    logits, target = torch.randn(6, 4), torch.randint(4, (6,))
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    expected = F.cross_entropy(logits / 0.25 + 0.7 * prior.log(), target, reduction="none")
    criterion = ta.PerSampleLogitAdjusted(COUNTS, tau=0.7, temperature=0.25)
    torch.testing.assert_close(criterion(logits, target), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="Invalid temperature value: 0"):
        ta.PerSampleLogitAdjusted(COUNTS, temperature=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 4, 3, 2)])
def test_logit_adjust(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = torch.randn(shape).to(dtype)
    log_prior = (torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)).log()
    adjusted = ta.logit_adjust(logits, COUNTS, tau=1.5)
    expected = logits.double() - 1.5 * log_prior.view([-1, *[1] * (len(shape) - 2)])
    assert adjusted.dtype is dtype
    torch.testing.assert_close(adjusted, expected.to(dtype))
    assert torch.equal(ta.logit_adjust(logits, COUNTS, tau=0), logits)


def test_logit_adjust_undoes_what_the_loss_adds() -> None:
    """Logits of a model of the training prior, adjusted, are those of a balanced one."""
    balanced = torch.randn(7, 4)
    prior = torch.tensor(COUNTS, dtype=torch.float32)
    posterior = (balanced.softmax(1) * prior).log()
    torch.testing.assert_close(
        ta.logit_adjust(posterior, COUNTS).softmax(1), balanced.softmax(1), rtol=1e-5, atol=1e-6
    )


BAD_LOGITS: list[tuple[Any, type[Exception], str]] = [
    ([1.0], TypeError, "logits must be a floating-point tensor, got"),
    (torch.ones(2, 4, dtype=torch.int64), TypeError, "floating-point tensor, got torch.int64"),
    (torch.ones(2, 3), ValueError, r"with C = 4, the number of class_counts, got \(2, 3\)"),
    (torch.tensor(1.0), ValueError, r"got \(\)"),
]


@pytest.mark.parametrize(("logits", "error", "message"), BAD_LOGITS)
def test_logit_adjust_refuses(logits: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ta.logit_adjust(logits, COUNTS)
    with pytest.raises(ValueError, match="Invalid tau value: nan"):
        ta.logit_adjust(torch.ones(1, 4), COUNTS, tau=math.nan)
    with pytest.raises(ValueError, match="Invalid per value: 'image'"):
        ta.PerSampleCrossEntropy(per="image")


def test_the_reference_takes_what_the_criteria_take() -> None:
    """Guards `reference` and `criteria`, which other tests lean on, against drifting apart."""
    logits = torch.randn(5, 4, dtype=torch.float64)
    target: Tensor = torch.tensor([0, 1, 3, 3, 0])
    smoothed, focal, *_ = criteria()
    torch.testing.assert_close(
        smoothed(logits, target), reference(logits, target, label_smoothing=0.1)
    )
    torch.testing.assert_close(focal(logits, target), reference(logits, target, focal_gamma=2.0))
