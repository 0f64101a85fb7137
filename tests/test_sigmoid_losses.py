"""The sigmoid losses against torch's and torchvision's own, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchvision.ops import sigmoid_focal_loss

import torch_absgd as ta
from loss_reference import TOLERANCE
from torch_absgd._sigmoid_ops import sigmoid_loss

UNKNOWN = -1
SHAPES = [(7,), (1, 1), (0, 4), (3, 0), (5, 10), (33, 260), (2, 3, 4), (2, 5, 7, 40)]
# name → options; a True stands for a random tensor [C]
OPTIONS: dict[str, dict[str, Any]] = {
    "BCE": {},
    "weights": {"weight": True, "pos_weight": True},
    "smoothing": {"label_smoothing": 0.2, "pos_weight": True},
    "focal": {"alpha": 0.25, "focal_gamma": 2.0},
    "focal without alpha": {"focal_gamma": 2.0},
    "focal, gamma ½": {"alpha": 0.9, "focal_gamma": 0.5},
    "alpha alone": {"alpha": 0.25, "focal_gamma": 0.0},
    "everything": {
        "weight": True,
        "pos_weight": True,
        "label_smoothing": 0.1,
        "alpha": 0.3,
        "focal_gamma": 1.5,
    },
}


def classes_of(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) == 1 else shape[1]


def drawn(options: dict[str, Any], classes: int) -> dict[str, Any]:
    return {
        k: torch.rand(classes, dtype=torch.float64) + 0.5 if v is True else v
        for k, v in options.items()
    }


def some_targets(shape: tuple[int, ...], kind: str) -> Tensor:
    """Labels of float64; of kind "unknown", the first sample's and every third are."""
    target = torch.rand(shape, dtype=torch.float64)
    if kind != "soft":
        target = target.round()
    if kind == "unknown" and target.numel():
        target[0] = UNKNOWN
        target.view(-1)[::3] = UNKNOWN
    return target


def reference(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    alpha: float = -1.0,
    focal_gamma: float = 0.0,
    ignore_index: int | None = None,
    per_sample: bool = False,
) -> Tensor:
    """The formula at the head of absgd.h's section, in torch's logsigmoid."""
    known = torch.ones_like(target, dtype=torch.bool)
    if ignore_index is not None:
        known = target != ignore_index
    view = [1, -1, *[1] * (logits.dim() - 2)] if logits.dim() > 1 else [-1]
    w, w_pos = (torch.ones(1) if v is None else v.view(view) for v in (weight, pos_weight))
    q = target.masked_fill(~known, 0) * (1 - label_smoothing) + label_smoothing / 2
    p = logits.sigmoid()
    loss = w * (-w_pos * q * F.logsigmoid(logits) - (1 - q) * F.logsigmoid(-logits))
    if alpha >= 0:
        loss = loss * (alpha * q + (1 - alpha) * (1 - q))
    if focal_gamma:
        loss = loss * (q * (1 - p) + (1 - q) * p) ** focal_gamma
    loss = loss.where(known, 0.0)
    if not per_sample:
        return loss
    if loss.dim() == 1:
        return loss
    return loss.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["hard", "soft", "unknown"])
@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradient(name: str, kind: str, dtype: torch.dtype) -> None:
    loss_tolerance, grad_tolerance = TOLERANCE[dtype]
    ignore_index = UNKNOWN if kind == "unknown" else None
    for shape in SHAPES:
        for per_sample in (False, True):
            options = drawn(OPTIONS[name], classes_of(shape))
            options |= {"ignore_index": ignore_index, "per_sample": per_sample}
            logits = (torch.randn(shape) * 3).to(dtype).requires_grad_()
            target = some_targets(shape, kind).to(torch.promote_types(dtype, torch.float32))
            losses = sigmoid_loss(logits, target, **options)
            upstream = torch.rand_like(losses)
            (grad,) = torch.autograd.grad(losses, logits, upstream)

            exact = logits.detach().double().requires_grad_()
            expected = reference(exact, target.double(), **options)
            (expected_grad,) = torch.autograd.grad(expected, exact, upstream.double())
            assert losses.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
            assert losses.shape == expected.shape
            assert grad.dtype is dtype
            assert ((losses - expected).abs() <= loss_tolerance * (1 + expected.abs())).all()
            if grad.numel():
                error = (grad - expected_grad).abs().amax()
                assert error <= grad_tolerance * expected_grad.abs().amax() + 1e-14


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", ["hard", "soft", "unknown"])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck(name: str, kind: str, per_sample: bool) -> None:
    for shape in ((3, 5), (2, 3, 4)):
        options = drawn(OPTIONS[name], classes_of(shape))
        options |= {
            "ignore_index": UNKNOWN if kind == "unknown" else None,
            "per_sample": per_sample,
        }
        target = some_targets(shape, kind)
        logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda x, q=target, o=options: sigmoid_loss(x, q, **o), logits
        )


# ---- torch's and torchvision's own ----


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(6,), (6, 5)])
def test_bce_is_torchs(shape: tuple[int, ...], soft: bool) -> None:
    logits, target = torch.randn(shape), some_targets(shape, "soft" if soft else "hard").float()
    weight, pos_weight = torch.rand(2, classes_of(shape)) + 0.5
    expected = F.binary_cross_entropy_with_logits(
        logits, target, weight=weight, pos_weight=pos_weight, reduction="none"
    )
    criterion = ta.PerSampleBCE(weight, pos_weight, per="element")
    torch.testing.assert_close(criterion(logits, target), expected, rtol=2e-6, atol=2e-7)
    per_sample = expected.mean(1) if len(shape) > 1 else expected
    criterion = ta.PerSampleBCE(weight, pos_weight)
    torch.testing.assert_close(criterion(logits, target), per_sample, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("alpha", [0.25, -1])
@pytest.mark.parametrize("gamma", [2.0, 0.0, 0.7])
@pytest.mark.parametrize("soft", [False, True])
def test_focal_is_torchvisions(alpha: float, gamma: float, soft: bool) -> None:
    logits = (torch.randn(4, 9, 3) * 4).requires_grad_()
    target = some_targets((4, 9, 3), "soft" if soft else "hard").float()
    expected = sigmoid_focal_loss(logits, target, alpha, gamma, reduction="none")
    losses = ta.PerSampleSigmoidFocal(alpha, gamma, per="element")(logits, target)
    torch.testing.assert_close(losses, expected, rtol=2e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    (expected_grad,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(grad, expected_grad, rtol=2e-5, atol=1e-6)


def test_one_weight_stands_for_every_class() -> None:
    logits, target = torch.randn(6, 5), some_targets((6, 5), "hard")
    one = ta.PerSampleBCE(pos_weight=torch.tensor([3.0]))
    each = ta.PerSampleBCE(pos_weight=torch.full((5,), 3.0))
    assert torch.equal(one(logits, target), each(logits, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gamma", [0.0, 2.0, 0.01])
def test_extreme_logits(dtype: torch.dtype, gamma: float) -> None:
    """±1e4: finite and exact; what grows without bound or is NaN in torch does here."""
    logits = torch.tensor([1e4, -1e4, 89.0, -89.0, 105.0, 0.0], dtype=dtype)
    logits = logits.repeat(3, 1).requires_grad_()
    target = torch.tensor([[0.0], [1.0], [0.25]], dtype=dtype).expand(3, 6)
    losses = sigmoid_loss(logits, target, focal_gamma=gamma)
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    x, q = logits.detach().double(), target.double()
    log_p, log_n = F.logsigmoid(x), F.logsigmoid(-x)
    log_u = torch.logaddexp(q.log() + log_n, (1 - q).log() + log_p)
    expected = (gamma * log_u).exp() * (-q * log_p - (1 - q) * log_n)
    torch.testing.assert_close(losses.double(), expected, rtol=3e-6, atol=1e-37)
    assert grad.isfinite().all()
    bad = torch.tensor([math.nan, math.inf, math.inf, -math.inf], dtype=dtype)
    losses = sigmoid_loss(bad, torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=dtype))
    assert losses.isfinite().logical_not().all()


def test_confident_samples_keep_their_digits() -> None:
    logits = torch.tensor([30.0, -30.0, 60.0], requires_grad=True)
    target = torch.tensor([1.0, 0.0, 1.0])
    for gamma in (0.0, 2.0, 0.5):
        losses = sigmoid_loss(logits, target, focal_gamma=gamma)
        (grad,) = torch.autograd.grad(losses.sum(), logits)
        small = (-logits.detach().double().abs()).exp()
        # with u = e: u^γ·e, whose slope in |x| is −(1+γ)·u^γ·e, up to a factor of 1 + e
        torch.testing.assert_close(losses.double(), small ** (1 + gamma), rtol=1e-5, atol=1e-37)
        slope = (1 + gamma) * small ** (1 + gamma) * logits.detach().sign()
        torch.testing.assert_close(-grad.double(), slope, rtol=1e-5, atol=1e-37)


# ---- what counts ----


def criteria(**options: Any) -> list[nn.Module]:
    return [ta.PerSampleBCE(**options), ta.PerSampleSigmoidFocal(**options)]


def test_unknown_labels_do_not_count() -> None:
    """Loss and gradient 0, also where their logits are NaN; the mean runs over the others."""
    target = torch.tensor([[0, 1, -1], [-1, -1, -1], [1, -1, -1]])
    logits = torch.randn(3, 3)
    logits[target == -1] = math.nan
    for criterion in criteria(ignore_index=-1):
        x = logits.clone().requires_grad_()
        losses = criterion(x, target)
        (grad,) = torch.autograd.grad(losses.sum(), x)
        assert criterion.counted(target).tolist() == [True, False, True]
        assert losses[1] == 0
        assert (grad[target == -1] == 0).all()
        first = criterion(logits[:1, :2], target[:1, :2])
        torch.testing.assert_close(losses[:1], first)
    for criterion in criteria(ignore_index=-1, per="element"):
        assert torch.equal(criterion.counted(target), target != -1)
        assert (criterion(logits, target)[target == -1] == 0).all()
    assert ta.PerSampleBCE().counted(target) is None


@pytest.mark.parametrize("per", ["sample", "element"])
def test_attentional_loss_weighs_what_counts(per: str) -> None:
    target = torch.tensor([[0, 1, -1], [-1, -1, -1], [1, -1, 0]])
    logits = torch.randn(3, 3)
    for criterion in criteria(ignore_index=-1, per=per):
        wrapped = ta.AttentionalLoss(criterion, lam=0.5, gamma=1.0)
        x = logits.clone().requires_grad_()
        total = wrapped(x, target)
        total.backward()
        losses = criterion(logits, target)
        counted = criterion.counted(target)
        kept = losses[counted].double()
        p = (kept / 0.5).softmax(0) * len(kept)
        torch.testing.assert_close(wrapped.weights[counted].double(), p, rtol=1e-5, atol=1e-6)
        assert (wrapped.weights[~counted] == 0).all()
        torch.testing.assert_close(total.double(), (p * kept).mean(), rtol=1e-5, atol=1e-6)
        assert (x.grad[target == -1] == 0).all()


# ---- memory ----


def test_memory_layouts_and_target_dtypes() -> None:
    base, target = torch.randn(3, 5, 4, 6), some_targets((3, 5, 4, 6), "hard")
    criterion = ta.PerSampleBCE(pos_weight=torch.rand(5))
    expected = criterion(base, target)
    for logits in (
        base.to(memory_format=torch.channels_last),
        base.transpose(0, 3).contiguous().transpose(0, 3),
    ):
        logits = logits.detach().requires_grad_()
        losses = criterion(logits, target.transpose(0, 1).contiguous().transpose(0, 1))
        torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
        losses.sum().backward()
        assert logits.grad.shape == base.shape
    for dtype in (torch.bool, torch.int64, torch.float16, torch.uint8):
        assert torch.equal(criterion(base, target.to(dtype)), expected)


def test_threads_do_not_change_a_bit() -> None:
    results = []
    logits, target = torch.randn(300, 700), some_targets((300, 700), "unknown").float()
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        for per_sample in (False, True):
            x = logits.clone().requires_grad_()
            losses = sigmoid_loss(
                x, target, focal_gamma=0.5, ignore_index=UNKNOWN, per_sample=per_sample
            )
            losses.sum().backward()
            results.append((losses.detach(), x.grad))
    for i, (loss, grad) in enumerate(results):
        assert torch.equal(loss, results[i % 2][0])
        assert torch.equal(grad, results[i % 2][1])


@pytest.mark.parametrize("criterion", criteria(), ids=lambda c: type(c).__name__)
def test_memory_of_one_logits_tensor(criterion: nn.Module) -> None:
    """Forward and backward allocate the gradient, and else less than 1 % of it."""
    logits, target = torch.randn(512, 1000, requires_grad=True), torch.rand(512, 1000).round()
    size = logits.numel() * logits.element_size()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        criterion(logits, target).sum().backward()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in log.events())
    assert size <= allocated < 1.01 * size


# ---- modules and operators ----


IN, OUT = torch.zeros(2, 3), torch.tensor([[0, 1, 1], [1, 0, 0]])
BAD_ARGUMENTS = [
    (lambda: ta.PerSampleBCE(weight=[1.0]), TypeError, "weight must be a tensor"),
    (
        lambda: ta.PerSampleBCE(pos_weight=torch.tensor([-1.0])),
        ValueError,
        r"pos_weight must be finite and ≥ 0, got \[-1.0\]",
    ),
    (
        lambda: ta.PerSampleBCE(label_smoothing=-0.1),
        ValueError,
        r"Invalid label_smoothing value: -0.1 \(must be in \[0, 1\]\)",
    ),
    (lambda: ta.PerSampleBCE(ignore_index=0.5), TypeError, "ignore_index must be an integer"),
    (
        lambda: ta.PerSampleBCE(ignore_index=1),
        ValueError,
        "Invalid ignore_index value: 1 .*neither 0 nor 1",
    ),
    (
        lambda: ta.PerSampleBCE(per="batch"),
        ValueError,
        r"Invalid per value: 'batch' \(must be one of \('element', 'sample'\)\)",
    ),
    (
        lambda: ta.PerSampleSigmoidFocal(alpha=2),
        ValueError,
        r"Invalid alpha value: 2 \(must be in \[0, 1\], or −1 for none\)",
    ),
    (lambda: ta.PerSampleSigmoidFocal(gamma=-1), ValueError, "Invalid gamma value: -1"),
    (lambda: ta.PerSampleBCE()([1.0], OUT), TypeError, "input must be a tensor"),
    (lambda: ta.PerSampleBCE()(IN.long(), OUT), TypeError, "input must be floating point"),
    (
        lambda: ta.PerSampleBCE()(IN, OUT[:1]),
        ValueError,
        r"target must have input's shape \(2, 3\), got \(1, 3\)",
    ),
    (
        lambda: ta.PerSampleBCE()(IN, OUT.float().requires_grad_()),
        ValueError,
        "target must not require a gradient: detach it",
    ),
    (
        lambda: ta.PerSampleBCE(pos_weight=torch.ones(2))(IN, OUT),
        ValueError,
        "input must have as many classes as pos_weight, 2, got 3",
    ),
    (
        lambda: ta.PerSampleBCE()(IN, OUT - 1),
        RuntimeError,
        r"target must be in \[0, 1\], got -1 at element 0",
    ),
    (
        lambda: ta.PerSampleBCE(ignore_index=-1)(IN, OUT * 2),
        RuntimeError,
        r"target must be in \[0, 1\] or ignore_index = -1, got 2 at element 1",
    ),
    (
        lambda: ta.PerSampleBCE()(IN, OUT * math.nan),
        RuntimeError,
        r"target must be in \[0, 1\], got -?nan at element 0",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert raised.type is error


BAD_OPERATOR_CALLS = [
    ({"logits": IN.long()}, "logits must be float32, float64, float16 or bfloat16"),
    ({"logits": torch.tensor(1.0), "target": torch.tensor(1.0)}, "logits must have shape"),
    ({"target": OUT}, "target must be .* on the logits' device for .* logits"),
    ({"target": torch.rand(3, 2)}, "target must have the logits' shape"),
    ({"weight": torch.ones(2)}, r"weight must have shape \(C\) with C = 3"),
    (
        {"pos_weight": torch.ones(3).double()},
        r"pos_weight must be (Float for Float|torch\.float32 for torch\.float32) logits",
    ),
    ({"label_smoothing": 1.5}, "a hyper-parameter is outside its range"),
    ({"alpha": 1.5}, "a hyper-parameter is outside its range"),
    ({"focal_gamma": -1.0}, "a hyper-parameter is outside its range"),
    ({"ignore_index": 1.0}, "a hyper-parameter is outside its range"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("change", "message"), BAD_OPERATOR_CALLS)
def test_the_operators_check_for_themselves(
    change: dict[str, Any], message: str, device: str
) -> None:
    """The real ones and those on meta tensors, with the same words."""
    options = {
        "weight": None,
        "pos_weight": None,
        "label_smoothing": 0.0,
        "alpha": -1.0,
        "focal_gamma": 0.0,
        "ignore_index": None,
        "per_sample": True,
    }
    arguments = {"logits": IN, "target": OUT.float(), **options, **change}
    good = {"logits": IN, "target": OUT.float(), **options}
    arguments, good = (
        {k: v.to(device) if isinstance(v, Tensor) else v for k, v in a.items()}
        for a in (arguments, good)
    )
    values = torch.ones(2, device=device)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.absgd.sigmoid_loss(**arguments)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.absgd.sigmoid_loss_backward(grad_loss=values, known=values, **arguments)
    with pytest.raises(RuntimeError, match="grad_loss must be 2 contiguous value"):
        torch.ops.absgd.sigmoid_loss_backward(grad_loss=values[:1], known=values, **good)
    with pytest.raises(RuntimeError, match="known must be 2 contiguous value"):
        torch.ops.absgd.sigmoid_loss_backward(grad_loss=values, known=values[:1], **good)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_opcheck(dtype: torch.dtype, per_sample: bool) -> None:
    arithmetic = torch.float64 if dtype is torch.float64 else torch.float32
    target = some_targets((2, 3, 5), "unknown").to(arithmetic)
    weight, pos_weight = torch.rand(2, 3, dtype=arithmetic)
    options = (weight, pos_weight, 0.1, 0.25, 1.5, -1.0, per_sample)
    logits = torch.randn(2, 3, 5, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.absgd.sigmoid_loss, (logits, target, *options))
    loss, known = torch.ops.absgd.sigmoid_loss(logits.detach(), target, *options)
    arguments = (torch.ones_like(loss), logits.detach(), target, known, *options)
    torch.library.opcheck(torch.ops.absgd.sigmoid_loss_backward, arguments)


@pytest.mark.parametrize("criterion", criteria(ignore_index=-1), ids=lambda c: type(c).__name__)
def test_compiles_without_a_break(criterion: nn.Module) -> None:
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    logits, target = torch.randn(6, 4), some_targets((6, 4), "unknown").float()
    eager_logits, compiled_logits = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected, actual = criterion(eager_logits, target), compiled(compiled_logits, target)
    assert torch.equal(actual, expected)
    expected.sum().backward()
    actual.sum().backward()
    assert torch.equal(compiled_logits.grad, eager_logits.grad)


def test_autocast_and_half_logits_give_float32_losses() -> None:
    layer, criterion = nn.Linear(8, 4), ta.PerSampleBCE(pos_weight=torch.rand(4)).half()
    assert criterion.pos_weight.dtype is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(torch.randn(3, 8))
        losses = criterion(logits, torch.rand(3, 4).round())
    assert logits.dtype is torch.bfloat16
    assert losses.dtype is torch.float32
    losses.sum().backward()
    assert layer.weight.grad.dtype is torch.float32


def test_second_derivatives_are_refused() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    losses = ta.PerSampleBCE()(logits, torch.ones(3, 4))
    (grad,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        grad.sum().backward()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
def test_a_target_that_a_rounding_put_outside_is_as_one_inside(gamma: float) -> None:
    x = torch.tensor([17.0, 12.0, 30.0, -17.0, -12.0, -30.0], requires_grad=True)
    q = torch.tensor([1 + 1.2e-7, 1 + 9e-6, 1 + 1.2e-7, -1e-9, -9e-6, -1e-9])
    loss = ta.PerSampleSigmoidFocal(gamma=gamma, per="element")(x, q)
    loss.sum().backward()
    assert loss.detach().abs().max() < 1e-3 and x.grad.abs().max() < 1e-3
