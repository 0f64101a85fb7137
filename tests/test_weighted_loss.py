"""A loss of ours inside AttentionalLoss is one node: the same numbers as weigh(loss(…))."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_absgd as ta
from torch_absgd import weighted_loss
from torch_absgd.weighted_loss import AT_ONCE, can_weigh_at_once

COUNTS = [50, 20, 10, 5, 2]
LOSSES = {
    "cross-entropy": lambda: ta.PerSampleCrossEntropy(),
    "weighted, smoothed": lambda: ta.PerSampleCrossEntropy(
        weight=ta.class_balanced_weights(COUNTS), label_smoothing=0.1
    ),
    "focal": lambda: ta.PerSampleFocal(gamma=2.0),
    "ldam": lambda: ta.PerSampleLDAM(COUNTS),
    "logit-adjusted": lambda: ta.PerSampleLogitAdjusted(COUNTS),
}


def batch(dtype: torch.dtype, seed: int, ignored: bool) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, 5, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    target = torch.randint(5, (12,), generator=g)
    if ignored:
        target[::4] = -100
    return logits, target


@pytest.mark.parametrize("ignored", [False, True], ids=["all count", "some ignored"])
@pytest.mark.parametrize("lam", [0.7, math.inf, -2.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_loss_then_weigh(name: str, dtype: torch.dtype, lam: float, ignored: bool) -> None:
    criterion = ta.AttentionalLoss(LOSSES[name](), lam=lam)
    apart = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=lam)
    for seed in range(3):
        logits, target = batch(dtype, seed, ignored)
        at_once = can_weigh_at_once(criterion.criterion, logits, target, criterion.weigher)
        assert at_once == (dtype is not torch.float16)
        total = criterion(logits, target)
        (2 * total).backward()
        again = logits.detach().clone().requires_grad_()
        losses = criterion.criterion(again, target)
        expected = apart.weigh(losses, criterion.criterion.counted(target))
        (2 * expected).backward()
        exact = dtype is torch.float64
        tolerance = {"rtol": 1e-13 if exact else 1e-6, "atol": 1e-14 if exact else 1e-7}
        torch.testing.assert_close(total, expected, **tolerance)
        torch.testing.assert_close(logits.grad, again.grad, **tolerance)
        # A mask that takes nothing out sums in another order: the last bits may differ.
        torch.testing.assert_close(criterion.weights, apart.weights, **tolerance)
        torch.testing.assert_close(criterion.log_s, apart.log_s, rtol=1e-14, atol=0, equal_nan=True)


UNKNOWN = -1
SIGMOID = {
    "BCE": lambda **known: ta.PerSampleBCE(**known),
    "weighted, smoothed": lambda **known: ta.PerSampleBCE(
        weight=torch.arange(1.0, 6), pos_weight=torch.tensor([3.0]), label_smoothing=0.1, **known
    ),
    "focal": lambda **known: ta.PerSampleSigmoidFocal(**known),
}


def labels(dtype: torch.dtype, seed: int, unknown: bool) -> tuple[Tensor, Tensor]:
    logits, classes = batch(dtype, seed, False)
    target = nn.functional.one_hot(classes, 5)
    if unknown:
        target[0] = target[3, :2] = UNKNOWN
    return logits, target


@pytest.mark.parametrize("unknown", [False, True], ids=["all known", "some unknown"])
@pytest.mark.parametrize("lam", [0.7, math.inf, -2.0])
@pytest.mark.parametrize("per", ["sample", "element"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SIGMOID)
def test_a_sigmoid_loss_has_the_bits_of_loss_then_weigh(
    name: str, dtype: torch.dtype, per: str, lam: float, unknown: bool
) -> None:
    """All but the scalar's, which is summed in double."""
    loss = SIGMOID[name](per=per, ignore_index=UNKNOWN if unknown else None)
    criterion = ta.AttentionalLoss(loss, lam=lam, max_weight=1.5)
    apart = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=lam, max_weight=1.5)
    for seed in range(3):
        logits, target = labels(dtype, seed, unknown)
        at_once = can_weigh_at_once(loss, logits, target, criterion.weigher)
        assert at_once == (dtype is not torch.float16)
        shape = target.shape if per == "element" else target.shape[:1]
        mask, weight = torch.arange(12) != 5, torch.arange(12).double()
        mask, weight = (t.view(-1, *[1] * (len(shape) - 1)).expand(shape) for t in (mask, weight))
        total = criterion(logits, target, mask, weight)
        (2 * total).backward()
        again = logits.detach().clone().requires_grad_()
        counted = loss.counted(target)
        mask = mask if counted is None else mask & counted
        expected = apart.weigh(loss(again, target), mask, weight)
        (2 * expected).backward()
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(logits.grad, again.grad)
        assert torch.equal(criterion.weights, apart.weights)
        assert torch.equal(criterion.log_s.nan_to_num(), apart.log_s.nan_to_num())


def test_a_sigmoid_loss_with_class_weights_takes_the_general_way() -> None:
    """They are gathered for its losses in torch."""
    loss, (logits, target) = ta.PerSampleBCE(), labels(torch.float64, 0, False)
    criterion = ta.AttentionalLoss(loss, lam=1.0, class_weight=torch.arange(1.0, 6))
    assert not can_weigh_at_once(loss, logits, target, criterion.weigher, criterion.class_weight)
    expected = ta.AttentionalLoss(loss, lam=1.0)(logits, target, weight=1.0 + target.argmax(1))
    torch.testing.assert_close(criterion(logits, target.double()), expected)


def test_soft_targets_and_dense_prediction() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 3, 2, generator=g, dtype=torch.float64, requires_grad=True)
    soft = torch.randn(4, 5, 3, 2, generator=g, dtype=torch.float64).softmax(1)
    loss = ta.PerSampleCrossEntropy()
    criterion, apart = (
        ta.AttentionalLoss(loss, lam=1.0),
        ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=1.0),
    )
    torch.testing.assert_close(criterion(logits, soft), apart.weigh(loss(logits, soft)))
    assert criterion.weights.shape == (4, 3, 2)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient in the backward pass, as on a card."""
    monkeypatch.setattr(weighted_loss, "gives_gradient_at_once", lambda logits: False)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [*LOSSES.values(), *SIGMOID.values()])
def test_a_later_gradient_is_that_of_loss_then_weigh(
    loss: Callable[..., nn.Module], dtype: torch.dtype
) -> None:
    is_sigmoid = loss in SIGMOID.values()
    loss = loss(ignore_index=UNKNOWN) if is_sigmoid else loss()
    criterion = ta.AttentionalLoss(loss, lam=0.7)
    apart = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=0.7)
    logits, target = (labels if is_sigmoid else batch)(dtype, 0, True)
    assert can_weigh_at_once(loss, logits, target, criterion.weigher)
    total = criterion(logits, target)
    again = logits.detach().clone().requires_grad_()
    expected = apart.weigh(loss(again, target), loss.counted(target))
    for scale in (1, 1024):
        for scalar, x in ((total, logits), (expected, again)):
            x.grad = None
            (scale * scalar).backward(retain_graph=True)
        torch.testing.assert_close(logits.grad, again.grad)


@pytest.mark.usefixtures("later")
def test_a_later_gradient_is_differentiable_once_and_knows_changed_logits() -> None:
    x, target = batch(torch.float64, 0, False)
    logits = 2 * x
    criterion = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=1.0)
    total = criterion(logits, target)
    (grad,) = torch.autograd.grad(total, x, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError), match="differentiated once"):
        grad.sum().backward()
    total = criterion(logits, target)
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("loss", [ta.PerSampleLDAM(COUNTS), ta.PerSampleBCE(ignore_index=UNKNOWN)])
def test_a_later_gradient_compiles(loss: nn.Module) -> None:
    criterion = ta.AttentionalLoss(loss, lam=1.0)
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=True)
    logits, target = (labels if isinstance(loss, ta.PerSampleBCE) else batch)(
        torch.float32, 0, True
    )
    (3 * compiled(logits, target)).backward()
    again = logits.detach().clone().requires_grad_()
    (3 * eager(again, target)).backward()
    torch.testing.assert_close(logits.grad, again.grad)


@pytest.mark.parametrize("at_once", [True, False])
def test_channels_last_logits_have_a_channels_last_gradient(
    at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighted_loss, "gives_gradient_at_once", lambda logits: at_once)
    logits = torch.randn(2, 5, 4, 3).to(memory_format=torch.channels_last).requires_grad_()
    target = torch.randint(5, (2, 4, 3))
    criteria = [ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=1.0) for _ in range(3)]
    criteria[1] = torch.compile(criteria[1], fullgraph=True, backend="aot_eager")
    expected = logits.detach().contiguous().requires_grad_()
    criteria[2](expected, target).backward()
    for criterion in criteria[:2]:
        logits.grad = None
        criterion(logits, target).backward()
        assert logits.grad.stride() == logits.stride()
        torch.testing.assert_close(logits.grad, expected.grad)


def test_shares_the_optimizers_state_and_remembers_the_batch() -> None:
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=0.5)
    criterion = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), optimizer=opt)
    logits, target = batch(torch.float64, 0, False)
    log_s = opt.weigher.state.log_s
    version = log_s._version
    criterion(logits, target)
    assert torch.isfinite(opt.log_s)
    assert log_s._version > version
    assert opt.weights.shape == target.shape
    assert opt.stats().last.count == len(target)


def test_the_general_way_is_taken_where_it_has_to_be() -> None:
    logits, target = batch(torch.float64, 0, False)
    loss = ta.PerSampleCrossEntropy()
    follows = ta.AttentionalLoss(loss, lam=ta.EffectiveSampleSize(0.6))
    assert can_weigh_at_once(loss, logits, target, follows.weigher)
    assert not can_weigh_at_once(
        nn.CrossEntropyLoss(reduction="none"), logits, target, follows.weigher
    )
    stepping = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=1.0)
    handle = ta.step_in_backward(stepping)
    assert not can_weigh_at_once(loss, logits, target, stepping.weigher)
    handle.remove()
    assert can_weigh_at_once(loss, logits, target, stepping.weigher)
    assert not can_weigh_at_once(loss, logits.detach(), target, stepping.weigher)
    large = torch.zeros(1, AT_ONCE + 1, requires_grad=True)
    assert not can_weigh_at_once(loss, large, target[:1], stepping.weigher)
    accumulating = ta.AttentionalLoss(loss, lam=1.0)
    with accumulating.accumulate([logits]):
        assert not can_weigh_at_once(loss, logits, target, accumulating.weigher)
        accumulating(logits, target).backward()
    accumulating.finalize_grads_()
    whole = logits.detach().clone().requires_grad_()
    ta.AttentionalLoss(loss, lam=1.0)(whole, target).backward()
    torch.testing.assert_close(logits.grad, whole.grad)


@pytest.mark.parametrize("is_leaf", [True, False])
def test_backward_twice(is_leaf: bool) -> None:
    """The gradient is there before the backward pass: no pass may take it for its own to write."""
    x, target = batch(torch.float64, 0, False)
    logits = x if is_leaf else 3 * x
    total = ta.AttentionalLoss(ta.PerSampleFocal(), lam=1.0)(logits, target)
    total.backward(retain_graph=True)
    once = x.grad.clone()
    x.grad.mul_(7)
    (0.5 * total).backward(retain_graph=True)
    torch.testing.assert_close(x.grad, 7.5 * once)
    x.grad = None
    total.backward()
    torch.testing.assert_close(x.grad, once)


def test_the_scalar_may_be_scaled_in_place() -> None:
    logits, target = batch(torch.float64, 0, False)
    criterion = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=1.0)
    total = criterion(logits, target)
    total /= 4
    total.backward()
    again = logits.detach().clone().requires_grad_()
    (ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=1.0)(again, target) / 4).backward()
    assert torch.equal(logits.grad, again.grad)


@pytest.mark.parametrize("loss", [ta.PerSampleCrossEntropy(), ta.PerSampleBCE()])
def test_torch_func_takes_the_general_way(loss: nn.Module) -> None:
    of = labels if isinstance(loss, ta.PerSampleBCE) else batch
    logits, target = of(torch.float64, 0, False)
    apart, criterion = (ta.AttentionalLoss(loss, lam=1.0) for _ in range(2))
    criterion(logits, target).backward()
    grad = torch.func.grad(lambda x: apart(x, target))(logits.detach())
    torch.testing.assert_close(grad, logits.grad)
    torch.testing.assert_close(apart.log_s, criterion.log_s)


def test_differentiable_once() -> None:
    logits, target = batch(torch.float64, 0, False)
    total = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=1.0)(logits, target)
    (grad,) = torch.autograd.grad(total, logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="can be differentiated once"):
        grad.sum().backward()


def test_bad_targets_change_nothing() -> None:
    criterion = ta.AttentionalLoss(ta.PerSampleBCE(), lam=1.0)
    logits, target = labels(torch.float64, 0, False)
    before = copy.deepcopy(criterion.state_dict())
    with pytest.raises(RuntimeError, match=r"target must be in \[0, 1\]"):
        criterion(logits, 3 * target)
    with pytest.raises(ValueError, match="mask must have the losses' shape"):
        criterion(logits, target, mask=torch.ones(12, 5).bool())
    torch.testing.assert_close(criterion.state_dict(), before, equal_nan=True)
    criterion = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=1.0)
    logits, target = batch(torch.float64, 0, False)
    with pytest.raises(RuntimeError, match=r"target must be in \[0, 5\) or ignore_index = -100"):
        criterion(logits, target + 3)
    with pytest.raises(TypeError, match="target must hold int64 class indices"):
        criterion(logits, target.int())
    torch.testing.assert_close(criterion.state_dict(), before, equal_nan=True)


@pytest.mark.parametrize("loss", [ta.PerSampleCrossEntropy(), ta.PerSampleBCE()])
def test_a_non_finite_logit_leaves_log_s(loss: nn.Module) -> None:
    criterion = ta.AttentionalLoss(loss, lam=1.0)
    of = labels if isinstance(loss, ta.PerSampleBCE) else batch
    logits, target = of(torch.float64, 0, False)
    criterion(logits, target)
    log_s = criterion.log_s.clone()
    bad = logits.detach().clone()
    bad[0, 0] = math.nan
    assert not torch.isfinite(criterion(bad.requires_grad_(), target))
    assert torch.equal(criterion.log_s, log_s)


@pytest.mark.parametrize("loss", [ta.PerSampleLDAM(COUNTS), ta.PerSampleBCE(ignore_index=UNKNOWN)])
def test_compiles(loss: nn.Module) -> None:
    criterion = ta.AttentionalLoss(loss, lam=1.0)
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=True)
    for seed in range(2):
        of = labels if isinstance(loss, ta.PerSampleBCE) else batch
        logits, target = of(torch.float32, seed, True)
        compiled(logits, target).backward()
        again = logits.detach().clone().requires_grad_()
        eager(again, target).backward()
        torch.testing.assert_close(logits.grad, again.grad)
        torch.testing.assert_close(criterion.log_s, eager.log_s)


def test_opcheck() -> None:
    logits, target = batch(torch.float32, 0, True)
    weigher = ta.AttentionalLoss(
        ta.PerSampleCrossEntropy(), lam=ta.EffectiveSampleSize(0.7), max_weight=2.0, keep_loss=True
    ).weigher
    tensors = [t.nan_to_num(1.0, posinf=1.0) for t in weigher.state.normaliser()]
    options = (None, None, None, 1.0, 0.0, 0.0, -100)
    base = (target % 2 == 0, torch.rand(12), torch.rand(5), weigher.state.lam_rule)
    torch.library.opcheck(
        torch.ops.absgd.weighted_softmax_loss.default,
        (logits.detach(), target, *options, *base, *tensors, *weigher.state.constants()),
    )


@pytest.mark.parametrize("per_sample", [False, True])
def test_opcheck_of_a_sigmoid_loss(per_sample: bool) -> None:
    logits, target = labels(torch.float32, 0, True)
    weigher = ta.AttentionalLoss(
        ta.PerSampleBCE(), lam=ta.EffectiveSampleSize(0.7), max_weight=2.0, keep_loss=True
    ).weigher
    tensors = [t.nan_to_num(1.0, posinf=1.0) for t in weigher.state.normaliser()]
    options = (torch.rand(5), torch.rand(5), 0.1, 0.25, 2.0, -1.0, per_sample)
    shape = target.shape[:1] if per_sample else target.shape
    base = (torch.ones(shape).bool(), torch.rand(shape), weigher.state.lam_rule)
    torch.library.opcheck(
        torch.ops.absgd.weighted_sigmoid_loss.default,
        (logits.detach(), target.float(), *options, *base, *tensors, *weigher.state.constants()),
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.ones(12, 5).bool()}, "mask must have the losses' shape"),
        ({"base_weight": torch.ones(12).double()}, "weight must be"),
        ({"lam_rule": torch.ones(5).double()}, "lam_rule must be"),
        ({"reports": torch.ones(5).double()}, "reports must be"),
        ({"pos_weight": torch.ones(4)}, "pos_weight must have shape"),
        ({"focal_alpha": 2.0}, "a hyper-parameter is outside its range"),
    ],
)
def test_the_sigmoid_operator_checks_for_itself(
    change: dict[str, Any], message: str, device: str
) -> None:
    """And leaves log_s as it was."""
    logits, target = labels(torch.float32, 0, False)
    weigher = ta.AttentionalLoss(ta.PerSampleBCE(), lam=1.0).weigher
    lam, log_s, log_s_lam, reports = weigher.state.normaliser()
    options = ("weight", "pos_weight", "mask", "base_weight", "lam_rule")
    arguments = {name: None for name in options}
    arguments |= {"logits": logits.detach(), "target": target.float()}
    arguments |= {"lam": lam, "log_s": log_s, "log_s_lam": log_s_lam, "reports": reports} | change
    numbers = {"label_smoothing": 0.0, "focal_alpha": -1.0, "focal_gamma": 0.0}
    numbers |= {"ignore_index": None, "per_sample": True}
    constants = ("gamma", "alpha", "s_init", "max_weight", "keep_loss", "bounded")
    rule = dict(zip(constants, weigher.state.constants(), strict=True))
    arguments = {**numbers, **rule, **arguments}
    on = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.absgd.weighted_sigmoid_loss(**on)
    assert log_s.isnan()
