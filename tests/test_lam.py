"""What changing λ does to log_s, and what a restart does."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reference import log_mean_exp
from torch_absgd import ABSGD, AttentionalLoss, EffectiveSampleSize

LOSSES = torch.tensor([0.3, 1.2, 2.0, 0.7], dtype=torch.float64)


def make_optimizer(lam: float | Tensor = math.inf, **rule: float) -> ABSGD:
    return ABSGD([torch.zeros(3, requires_grad=True)], lam=lam, **rule)


def make_module(lam: float | Tensor = math.inf, **rule: float) -> AttentionalLoss:
    return AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=lam, **rule)


def assign(owner: ABSGD | AttentionalLoss, lam: float) -> None:
    owner.lam = lam


def assign_tensor(owner: ABSGD | AttentionalLoss, lam: float) -> None:
    owner.lam = torch.tensor(lam)


makers = pytest.mark.parametrize("make", [make_optimizer, make_module])
ways = pytest.mark.parametrize("change", [assign, assign_tensor])
Make = Callable[..., ABSGD | AttentionalLoss]
Change = Callable[[ABSGD | AttentionalLoss, float], None]


def first_log_s(lam: float, losses: Tensor = LOSSES) -> float:
    return log_mean_exp((losses / lam).tolist())


def average(log_s: float, batch: float, gamma: float = 0.9) -> float:
    return math.log((1 - gamma) * math.exp(log_s) + gamma * math.exp(batch))


@makers
def test_default_is_plain_sgd(make: Make) -> None:
    owner = make()
    assert owner.lam.item() == math.inf and owner.lam.dtype is torch.float64
    assert owner.lam.dim() == 0 and owner.log_s.dim() == 0 and owner.log_s.isnan()
    assert owner.weigh(LOSSES).item() == pytest.approx(LOSSES.mean().item(), rel=1e-15)
    assert torch.equal(owner.weights, torch.ones_like(LOSSES))
    assert owner.log_s.isnan()


@ways
@makers
@pytest.mark.parametrize("old, new", [(2.0, 1.0), (1.0, 7.0), (-1.0, -0.25)])
def test_within_one_sign_the_estimate_carries_over(
    make: Make, change: Change, old: float, new: float
) -> None:
    owner = make(lam=old)
    owner.weigh(LOSSES)
    estimate = old * owner.log_s.item()
    change(owner, new)
    assert owner.lam.item() == new
    assert new * owner.log_s.item() == pytest.approx(estimate, rel=1e-15)
    owner.weigh(LOSSES)
    expected = average(estimate / new, first_log_s(new))
    assert owner.log_s.item() == pytest.approx(expected, rel=1e-13)


@ways
@makers
@pytest.mark.parametrize("old, new", [(1.0, -1.0), (-2.0, 1.0), (math.inf, 1.0), (-math.inf, -1.0)])
def test_a_change_of_sign_or_from_infinity_initialises(
    make: Make, change: Change, old: float, new: float
) -> None:
    owner = make(lam=old)
    owner.weigh(LOSSES)
    change(owner, new)
    owner.weigh(LOSSES)
    assert owner.log_s.item() == pytest.approx(first_log_s(new), rel=1e-13)

    owner = make(lam=old, s_init=3.0)
    owner.weigh(LOSSES)
    change(owner, new)
    owner.weigh(LOSSES)
    expected = average(math.log(3.0), first_log_s(new))
    assert owner.log_s.item() == pytest.approx(expected, rel=1e-13)


@ways
@makers
@pytest.mark.parametrize("infinity", [math.inf, -math.inf])
def test_infinity_leaves_log_s(make: Make, change: Change, infinity: float) -> None:
    owner = make(lam=1.0)
    owner.weigh(LOSSES)
    log_s = owner.log_s.clone()
    change(owner, infinity)
    assert owner.weigh(LOSSES).item() == pytest.approx(LOSSES.mean().item(), rel=1e-15)
    assert torch.equal(owner.weights, torch.ones_like(LOSSES))
    assert torch.equal(owner.log_s, log_s)


@makers
@pytest.mark.parametrize("lam", [math.nan, 0.0])
def test_an_invalid_lam_tensor_gives_nan_and_leaves_state(make: Make, lam: float) -> None:
    owner = make(lam=1.0)
    owner.weigh(LOSSES)
    log_s = owner.log_s.clone()
    owner.weigher.state.lam.fill_(lam)  # as a tensor on a device would, whose value is not read
    losses = LOSSES.clone().requires_grad_()
    total = owner.weigh(losses)
    total.backward()
    assert total.isnan() and losses.grad.isnan().all() and owner.weights.isnan().all()
    assert torch.equal(owner.log_s, log_s)
    owner.weigher.state.lam.fill_(1.0)  # and the next valid one goes on from there
    owner.weigh(LOSSES)
    assert owner.log_s.item() == pytest.approx(average(log_s.item(), first_log_s(1.0)), rel=1e-13)


@makers
def test_restart_forgets_log_s(make: Make) -> None:
    owner = make(lam=5.0)
    owner.weigh(LOSSES)
    owner.restart(1.0)
    assert owner.lam.item() == 1.0 and owner.log_s.isnan()
    owner.weigh(LOSSES)
    assert owner.log_s.item() == pytest.approx(first_log_s(1.0), rel=1e-13)
    owner.restart(lam=torch.tensor(-2.0))
    assert owner.lam.item() == -2.0 and owner.log_s.isnan()


@makers
@pytest.mark.parametrize("s_init, log_s_1", [(0.0, -math.inf), (2.0, math.log(2.0))])
def test_restart_with_s_init(make: Make, s_init: float, log_s_1: float) -> None:
    owner = make(lam=5.0, s_init=s_init)
    assert owner.log_s.item() == log_s_1
    owner.weigh(LOSSES)
    owner.restart(1.0)
    assert owner.log_s.item() == log_s_1
    owner.weigh(LOSSES)
    expected = average(log_s_1, first_log_s(1.0))
    assert owner.log_s.item() == pytest.approx(expected, rel=1e-13)


@makers
@pytest.mark.parametrize("before", [5.0, 0.05, -1.0, math.inf])
def test_restart_at_a_rule_with_s_init(make: Make, before: float) -> None:
    """s_1 is not carried over from a λ that is forgotten."""
    rule = EffectiveSampleSize(0.8)
    fresh, owner = (make(lam=lam, s_init=2.0, gamma=0.5) for lam in (rule, before))
    owner.weigh(LOSSES)
    owner.restart(rule)
    for each in (fresh, owner):
        each.weigh(LOSSES)
    assert owner.log_s.item() == fresh.log_s.item()


@pytest.mark.parametrize("form", ["torch", "polyak"])
def test_restart_keeps_momentum_unless_asked(form: str) -> None:
    p = torch.zeros(3, requires_grad=True)
    opt = ABSGD([p], momentum=0.9, momentum_form=form)
    p.grad = torch.ones(3)
    opt.step()
    (buffer,) = opt.state[p].values()
    before = buffer.clone()
    opt.restart(1.0)
    assert opt.state[p].values() and torch.equal(next(iter(opt.state[p].values())), before)
    memory = buffer.data_ptr()
    opt.restart(1.0, reset_momentum=True)
    opt.step()
    (buffer,) = opt.state[p].values()
    assert buffer.data_ptr() == memory  # which a captured graph writes to
    torch.testing.assert_close(buffer, torch.ones(3) * (1.0 if form == "torch" else -1e-3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_tensor_is_copied(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    lam = torch.full(shape, 2, dtype=dtype)
    opt = make_optimizer(lam)
    lam.fill_(3)
    assert opt.lam.item() == 2.0 and opt.lam.dim() == 0
    opt.lam = lam
    lam.fill_(4)
    assert opt.lam.item() == 3.0


def test_sharing_an_optimizer_s_state() -> None:
    opt = make_optimizer(lam=1.0)
    criterion = AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), optimizer=opt)
    assert not list(criterion.buffers()) and not criterion.state_dict()
    criterion(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    assert criterion.weigher is opt.weigher and opt.log_s.item() == pytest.approx(math.log(3))
    assert criterion.weights is opt.weights
    criterion.lam = 2.0
    assert opt.lam.item() == 2.0
    criterion.restart(-1.0)
    assert opt.lam.item() == -1.0 and opt.log_s.isnan()
