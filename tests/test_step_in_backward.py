"""Steps taken by the backward pass: the ordinary run, with one gradient alive at a time."""

from __future__ import annotations

import copy
import math
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_absgd as ta


def small_model() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)]
    return nn.Sequential(*layers).double()


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(0)
    return [
        (
            2 * torch.randn(16, 6, generator=random, dtype=torch.float64),
            torch.randint(4, (16,), generator=random),
        )
        for _ in range(steps)
    ]


def optimizer(model: nn.Module, **arguments: object) -> ta.ABSGD:
    groups = [
        {"params": model[0].parameters(), "lr": 0.02},
        {"params": [*model[2].parameters(), *model[4].parameters()], "weight_decay": 0.0},
    ]
    rule = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "lam": 0.5, **arguments}
    return ta.ABSGD(groups, **rule)


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("rule", [
    {}, {"momentum_form": "polyak"}, {"nesterov": True}, {"momentum": 0}, {"foreach": False},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("calls_step", [True, False])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_the_trajectory_is_the_ordinary_one(rule: dict[str, object], calls_step: bool) -> None:
    model, reference = small_model(), small_model()
    opt, ordinary = optimizer(model, **rule), optimizer(reference, **rule)
    ta.step_in_backward(opt)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 3, 0.3) for o in (opt, ordinary)]
    for step, batch in enumerate(batches(10)):
        if step == 5:
            opt.restart(lam=2.0)
            ordinary.restart(lam=2.0)
        opt.weigh(losses(model, batch)).backward()
        assert all(p.grad is None for p in model.parameters())
        if calls_step:  # as a loop that was written for step() goes on doing
            opt.step()
            opt.zero_grad()
        ordinary.weigh(losses(reference, batch)).backward()
        ordinary.step()
        ordinary.zero_grad()
        for scheduler in schedulers:
            scheduler.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q)
        for key, value in ordinary.state[q].items():
            assert torch.equal(opt.state[p][key], value)
    assert torch.equal(opt.log_s, ordinary.log_s)


def most_gradient_bytes(in_backward: bool) -> int:
    """The most bytes of gradients that were alive at once in a backward pass."""
    model = small_model()
    opt = optimizer(model)
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def look(p: Tensor) -> None:
        nonlocal most
        alive.append(weakref.ref(p.grad.untyped_storage()))
        most = max(most, sum(s().nbytes() for s in alive if s() is not None))

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(look)
    if in_backward:
        ta.step_in_backward(opt)
    for batch in batches(2):
        opt.weigh(losses(model, batch)).backward()
        opt.step()
        opt.zero_grad()
    return most


def test_one_gradient_is_alive_at_a_time() -> None:
    sizes = [p.numel() * p.element_size() for p in small_model().parameters()]
    assert most_gradient_bytes(in_backward=False) == sum(sizes)
    assert most_gradient_bytes(in_backward=True) == max(sizes)


def test_remove_gives_the_step_back() -> None:
    model = small_model()
    opt = optimizer(model)
    handle = ta.step_in_backward(opt)
    first, second = batches(2)
    opt.weigh(losses(model, first)).backward()
    handle.remove()
    before = [p.detach().clone() for p in model.parameters()]
    with opt.accumulate():
        opt.weigh(losses(model, second)).backward()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    opt.step()
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    ta.step_in_backward(opt)


def test_an_attentional_loss_that_shares_the_optimizer_is_looked_at_too() -> None:
    model, reference = small_model(), small_model()
    opt, ordinary = optimizer(model), optimizer(reference)
    criterion = ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), optimizer=opt)
    ta.step_in_backward(opt)
    for x, y in batches(3):
        criterion(model(x), y).backward()
        ordinary.weigh(losses(reference, (x, y))).backward()
        ordinary.step()
        ordinary.zero_grad()
    assert all(map(torch.equal, model.parameters(), reference.parameters()))
    with pytest.raises(RuntimeError, match="accumulate"), criterion.accumulate(model.parameters()):
        pass


def test_it_cannot_go_with_accumulation() -> None:
    model = small_model()
    opt = optimizer(model)
    with opt.accumulate():
        opt.weigh(losses(model, batches(1)[0])).backward()
    with pytest.raises(RuntimeError, match="micro-batches wait"):
        ta.step_in_backward(opt)
    opt.step()
    ta.step_in_backward(opt)
    with pytest.raises(RuntimeError, match="cannot go with step_in_backward"), opt.accumulate():
        pass


@pytest.mark.parametrize("init_scale", [1024.0, 1.0])
def test_it_cannot_go_with_a_grad_scaler(init_scale: float) -> None:
    model = small_model()
    opt = optimizer(model)
    ta.step_in_backward(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    before = [p.detach().clone() for p in model.parameters()]
    loss = scaler.scale(opt.weigh(losses(model, batches(1)[0])))
    if init_scale != 1:
        with pytest.raises(RuntimeError, match="multiplied by 1024 before backward"):
            loss.backward()
        assert all(map(torch.equal, model.parameters(), before))  # nothing has changed
        return
    loss.backward()
    with pytest.raises(RuntimeError, match="cannot go with GradScaler"):
        opt.found_inf = torch.zeros(())  # what scaler.step(opt) does before its call
        opt.step()


def test_a_loss_divided_for_accumulation_is_refused_before_a_step() -> None:
    model = small_model()
    opt = optimizer(model)
    ta.step_in_backward(opt)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"multiplied by 0\.25"):
        (opt.weigh(losses(model, batches(1)[0])) / 4).backward()
    assert all(map(torch.equal, model.parameters(), before))


def test_clip_grad_norm_finds_no_gradients() -> None:
    model = small_model()
    opt = optimizer(model)
    ta.step_in_backward(opt)
    opt.weigh(losses(model, batches(1)[0])).backward()
    assert nn.utils.clip_grad_norm_(model.parameters(), 1e-3) == 0


def test_what_else_is_refused() -> None:
    model = small_model()
    with pytest.raises(TypeError, match="ABSGD"):
        ta.step_in_backward(torch.optim.SGD(model.parameters()))
    with pytest.raises(RuntimeError, match="differentiable"):
        ta.step_in_backward(ta.ABSGD(model.parameters(), differentiable=True))
    opt = optimizer(model)
    ta.step_in_backward(opt)
    with pytest.raises(RuntimeError, match="already"):
        ta.step_in_backward(opt)


def test_frozen_and_later_parameters_are_left_to_the_step() -> None:
    model = small_model()
    model[4].requires_grad_(False)
    opt = ta.ABSGD(model[0].parameters(), lr=0.1)
    ta.step_in_backward(opt)
    opt.add_param_group({"params": [*model[2].parameters(), *model[4].parameters()]})
    opt.weigh(losses(model, batches(1)[0])).backward()
    assert all(p.grad is None for p in model[0].parameters())
    before = [p.detach().clone() for p in model.parameters()]
    opt.step()
    changed = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert changed == [False, False, True, True, False, False]


def test_a_loaded_state_is_stepped_from() -> None:
    model, reference = small_model(), small_model()
    opt, ordinary = optimizer(model), optimizer(reference)
    first, second = batches(2)
    ordinary.weigh(losses(reference, first)).backward()
    ordinary.step()
    ordinary.zero_grad()
    ta.step_in_backward(opt)
    model.load_state_dict(reference.state_dict())
    opt.load_state_dict(copy.deepcopy(ordinary.state_dict()))  # else they share momentum
    for m, o in ((model, opt), (reference, ordinary)):
        o.weigh(losses(m, second)).backward()
        o.step()
    assert all(map(torch.equal, model.parameters(), reference.parameters()))
    assert math.isfinite(opt.log_s)
    assert pickle.loads(pickle.dumps(opt)).weigher.stepper is None
