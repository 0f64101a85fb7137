"""State dicts: a resumed run is bit for bit the run that was never stopped."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_absgd import ABSGD, AttentionalLoss

STEPS, STOP, RESTART = 12, 7, 4
FORMS = pytest.mark.parametrize("form", ["torch", "polyak"])
KEY = {"torch": "momentum_buffer", "polyak": "displacement_buffer"}


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def batch(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, generator=random), torch.randint(3, (8,), generator=random)


class Run:
    """A model with ABSGD, as a training script has it."""

    def __init__(self, form: str = "torch", lam: float = 2.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 3)
        groups = [{"params": [self.model.weight]}, {"params": [self.model.bias], "lr": 0.05}]
        self.opt = ABSGD(groups, lr=0.1, momentum=0.9, lam=lam, s_init=0.7, momentum_form=form)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.opt, 5)

    def train(self, begin: int, end: int) -> None:
        for step in range(begin, end):
            if step == RESTART:
                self.opt.restart(0.5)
            x, y = batch(step)
            self.opt.zero_grad()
            self.opt.weigh(
                nn.functional.cross_entropy(self.model(x), y, reduction="none")
            ).backward()
            self.opt.step()
            self.schedule.step()

    def state(self) -> dict[str, Any]:
        parts = {"model": self.model, "opt": self.opt, "schedule": self.schedule}
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.opt.load_state_dict(state["opt"])
        self.schedule.load_state_dict(state["schedule"])


class AdamRun(Run):
    """The same with AttentionalLoss and Adam."""

    def __init__(self, form: str = "", lam: float = 2.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 3)
        self.criterion = AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam, s_init=0.7)
        self.opt = torch.optim.Adam(self.model.parameters())

    def train(self, begin: int, end: int) -> None:
        for step in range(begin, end):
            if step == RESTART:
                self.criterion.restart(0.5)
            x, y = batch(step)
            self.opt.zero_grad()
            self.criterion(self.model(x), y).backward()
            self.opt.step()

    def state(self) -> dict[str, Any]:
        parts = {"model": self.model, "opt": self.opt, "criterion": self.criterion}
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.opt.load_state_dict(state["opt"])
        self.criterion.load_state_dict(state["criterion"])


def assert_same(a: Any, b: Any) -> None:
    """Equal to the bit, NaN being equal to NaN."""
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)


@pytest.mark.parametrize("stop", [0, RESTART, STOP])
@pytest.mark.parametrize("make", [Run, lambda: Run("polyak"), AdamRun])
def test_a_resumed_run_is_the_uninterrupted_run(make: Callable[[], Run], stop: int) -> None:
    whole = make()
    whole.train(0, STEPS)
    first = make()
    first.train(0, stop)
    state = saved_and_loaded(first.state())
    second = make()
    second.train(0, 2)  # whatever it held before is replaced
    second.load(state)
    second.train(stop, STEPS)
    assert_same(second.state(), whole.state())


@FORMS
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
def test_copies_go_on_alike_and_apart(form: str, copied: Callable[[Run], Run]) -> None:
    for run in (Run(form), AdamRun()):
        run.train(0, STOP)
        other = copied(run)
        assert_same(other.state(), run.state())
        other.train(STOP, STEPS)
        run.train(STOP, STEPS)
        assert_same(other.state(), run.state())


@FORMS
def test_groups_share_one_state(form: str) -> None:
    run = Run(form)
    for opt in (run.opt, copy.deepcopy(run.opt), pickle.loads(pickle.dumps(run.opt))):
        opt.load_state_dict(saved_and_loaded(opt.state_dict()))
        for name in ("lam", "log_s", "log_s_lam", "reports"):
            assert opt.param_groups[0][name] is opt.param_groups[1][name]


def test_loading_copies_into_the_existing_tensors() -> None:
    run, other = Run(), AdamRun()
    run.train(0, 3)
    other.train(0, 3)
    for owner, state in ((run.opt, run.opt.state_dict()), (other.criterion, None)):
        state = saved_and_loaded(state or owner.state_dict())
        owner.restart(9.0)
        rule = owner.weigher.state
        lam, log_s = rule.lam, rule.log_s
        owner.load_state_dict(state)
        assert rule.lam is lam and rule.log_s is log_s
        assert lam.item() == 2.0 and not log_s.isnan()


def test_loading_leaves_the_state_dict_as_it_was() -> None:
    run, other = Run("torch"), Run("polyak")
    run.train(0, 3)
    state = run.opt.state_dict()
    before = copy.deepcopy(state)
    other.opt.load_state_dict(state)
    other.train(0, 3)
    assert_same(state, before)  # though the buffers had to be converted


@FORMS
def test_plain_sgd_s_state(form: str) -> None:
    """Its momentum and hyper-parameters are taken over, λ and what belongs to it stay."""
    run = Run(form)
    sgd = torch.optim.SGD(Run().opt.param_groups[0]["params"], lr=0.3, momentum=0.8)
    sgd.add_param_group({"params": Run().opt.param_groups[1]["params"], "lr": 0.2})
    for group in sgd.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    sgd.step()
    run.train(0, 2)
    lam, log_s = run.opt.lam.clone(), run.opt.log_s.clone()
    run.opt.load_state_dict(saved_and_loaded(sgd.state_dict()))
    assert torch.equal(run.opt.lam, lam) and torch.equal(run.opt.log_s, log_s)
    for group, lr in zip(run.opt.param_groups, (0.3, 0.2), strict=True):
        assert group["lr"] == lr and group["momentum"] == 0.8 and group["gamma"] is None
        assert group["momentum_form"] == form
        (p,) = group["params"]
        expected = torch.ones_like(p) * (1.0 if form == "torch" else -lr)
        torch.testing.assert_close(run.opt.state[p][KEY[form]], expected)
    run.train(2, 4)


def test_the_other_form_s_momentum_is_converted() -> None:
    """At a constant η both forms are one sequence, so a run may change over in the middle."""
    runs = {form: Run(form) for form in KEY}
    for run in runs.values():
        run.schedule = torch.optim.lr_scheduler.ConstantLR(run.opt, factor=1.0)
        run.train(0, RESTART)
    states = {form: saved_and_loaded(run.opt.state_dict()) for form, run in runs.items()}
    for form, other in (("torch", "polyak"), ("polyak", "torch")):
        changed = Run(form)
        changed.model.load_state_dict(runs[other].model.state_dict())
        changed.opt.load_state_dict(states[other])
        changed.schedule = torch.optim.lr_scheduler.ConstantLR(changed.opt, factor=1.0)
        changed.train(RESTART, STEPS)
        runs[other].train(RESTART, STEPS)
        torch.testing.assert_close(changed.model.weight, runs[other].model.weight)
        assert changed.opt.param_groups[1]["momentum_form"] == form


def inconsistent(state: dict[str, Any]) -> None:
    state["param_groups"][1]["gamma"] = 0.5


def inconsistent_lam(state: dict[str, Any]) -> None:
    state["param_groups"][1]["lam"] = torch.tensor(1.0, dtype=torch.float64)


def changed(**entries: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            group.update(entries)

    return change


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (inconsistent, ValueError, "gamma is the whole optimizer's, but parameter groups disagree"),
        (inconsistent_lam, ValueError, "lam is the whole optimizer's"),
        (changed(lam=0.0), ValueError, "Invalid lam value: 0.0"),
        (changed(lam=torch.tensor(math.nan)), ValueError, "Invalid lam value: nan"),
        (changed(gamma=2.0), ValueError, "Invalid gamma value: 2.0"),
        (changed(alpha="x"), TypeError, "alpha must be a number"),
        (changed(s_init=-1.0), ValueError, "Invalid s_init value: -1.0"),
        (changed(log_s=torch.zeros(2)), ValueError, "log_s must hold 1 number"),
        (changed(momentum_form="nag"), ValueError, "Invalid momentum_form value: 'nag'"),
        (changed(lr=-1.0), ValueError, "Invalid lr value: -1.0"),
        (changed(momentum_form="torch", dampening=0.5), ValueError, "polyak.*dampening"),
        (lambda s: s["param_groups"].pop(), ValueError, "different number of parameter groups"),
    ],
)
def test_a_bad_state_dict_is_an_error_that_changes_nothing(
    damage: Callable[[dict[str, Any]], None], error: type[Exception], message: str
) -> None:
    run, other = Run("polyak"), Run("polyak")
    run.train(0, 3)
    other.train(0, 5)
    before, weights = copy.deepcopy(run.state()), run.opt.weights
    state = saved_and_loaded(other.opt.state_dict())
    damage(state)
    with pytest.raises(error, match=message):
        run.opt.load_state_dict(state)
    assert_same(run.state(), before)
    assert run.opt.weights is weights


def test_polyak_momentum_without_a_learning_rate_cannot_be_converted() -> None:
    run, other = Run("torch"), Run("polyak")
    other.train(0, 2)
    state = saved_and_loaded(other.opt.state_dict())
    changed(lr=0.0)(state)
    before = copy.deepcopy(run.state())
    with pytest.raises(ValueError, match="where lr is 0"):
        run.opt.load_state_dict(state)
    assert_same(run.state(), before)


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float32),
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.to_empty(device="cpu"),
    ],
)
def test_the_module_s_state_stays_float64(convert: Callable[[nn.Module], nn.Module]) -> None:
    run = AdamRun()
    run.train(0, 3)
    before = copy.deepcopy(run.criterion.state_dict())
    model = nn.Sequential(run.criterion)
    convert(model)
    state = run.criterion.state_dict()
    assert len(state) == 6 and all(t.dtype is torch.float64 for t in state.values())
    assert_same(run.criterion.state_dict(), before)
    assert {"attention.lam", "attention.log_s", "attention.log_s_lam"} <= before.keys()


def test_loading_keeps_float64() -> None:
    """load_state_dict casts state[p] to the parameter's dtype; λ and log_s are not there."""
    p = torch.ones(2, dtype=torch.float16, requires_grad=True)
    opt = ABSGD([p], lam=0.1)
    opt.weigh(p * (1 / 3))
    log_s = opt.log_s.clone()
    opt.load_state_dict(saved_and_loaded(opt.state_dict()))
    assert opt.log_s.dtype is torch.float64 and torch.equal(opt.log_s, log_s)


def test_torch_s_checkpoint_tools() -> None:
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    run, other = Run(), Run()
    run.train(0, STOP)
    other.model.load_state_dict(run.model.state_dict())
    state = saved_and_loaded(get_optimizer_state_dict(run.model, run.opt))
    set_optimizer_state_dict(other.model, other.opt, state)
    assert_same(other.opt.state_dict(), run.opt.state_dict())
