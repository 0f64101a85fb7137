"""Every public argument, given what it does not allow: the error, and that nothing has changed."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_absgd import ABSGD, AttentionalLoss

NAN, INF = math.nan, math.inf
CE = nn.CrossEntropyLoss(reduction="none")
Rows = list[tuple[dict[str, Any], type[Exception], str]]


def parameter() -> Tensor:
    return torch.ones(3, requires_grad=True)


def trained() -> ABSGD:
    """An optimizer with a history in every part of its state."""
    p = parameter()
    opt = ABSGD([p], lr=0.1, momentum=0.9, lam=0.5, s_init=0.3)
    opt.weigh(p * torch.arange(3)).backward()
    opt.step()
    return opt


def trained_module() -> AttentionalLoss:
    criterion = AttentionalLoss(CE, lam=0.5, s_init=0.3)
    criterion(torch.rand(4, 3), torch.tensor([0, 1, 2, 0]))
    return criterion


def everything(owner: ABSGD | AttentionalLoss) -> list[Any]:
    """All that an error must not change."""
    state = copy.deepcopy(owner.state_dict())
    params = [p for g in getattr(owner, "param_groups", []) for p in g["params"]]
    return [state, [(p.detach().clone(), p.grad) for p in params], owner.weights]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(-7.5), b.nan_to_num(-7.5))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)


NONNEGATIVE = r"\(must be finite and ≥ 0"
SGD_ARGUMENTS: Rows = [
    ({"lr": -0.1}, ValueError, rf"Invalid lr value: -0.1 {NONNEGATIVE}"),
    ({"lr": NAN}, ValueError, rf"Invalid lr value: nan {NONNEGATIVE}"),
    ({"lr": INF}, ValueError, rf"Invalid lr value: inf {NONNEGATIVE}"),
    ({"lr": "0.1"}, TypeError, "lr must be a number finite and ≥ 0, got '0.1'"),
    ({"lr": True}, TypeError, "lr must be a number finite and ≥ 0, got True"),
    ({"lr": torch.tensor(-1.0)}, ValueError, "Invalid lr value: -1.0"),
    ({"lr": torch.ones(2)}, ValueError, r"Invalid lr value: tensor of shape \(2,\)"),
    ({"momentum": -0.1}, ValueError, rf"Invalid momentum value: -0.1 {NONNEGATIVE}"),
    ({"momentum": NAN}, ValueError, "Invalid momentum value: nan"),
    ({"momentum": None}, TypeError, "momentum must be a number"),
    ({"momentum": torch.tensor(0.9)}, TypeError, "momentum must be a number"),
    ({"dampening": INF}, ValueError, r"Invalid dampening value: inf \(must be finite\)"),
    ({"dampening": "a"}, TypeError, "dampening must be a number finite"),
    ({"weight_decay": -1e-4}, ValueError, rf"Invalid weight_decay value: -0.0001 {NONNEGATIVE}"),
    ({"weight_decay": NAN}, ValueError, "Invalid weight_decay value: nan"),
    ({"weight_decay": torch.zeros(3)}, ValueError, "Invalid weight_decay value: tensor of shape"),
    ({"nesterov": 2}, ValueError, r"Invalid nesterov value: 2 \(must be one of \(True, False\)\)"),
    ({"nesterov": True}, ValueError, "Nesterov momentum requires a momentum and zero dampening"),
    (
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        ValueError,
        "Nesterov momentum requires a momentum and zero dampening, got .*dampening=0.1",
    ),
    ({"maximize": "yes"}, ValueError, "Invalid maximize value: 'yes'"),
    ({"differentiable": None}, ValueError, "Invalid differentiable value: None"),
    ({"foreach": "x"}, ValueError, r"Invalid foreach value: 'x' \(must be one of"),
    ({"fused": 3}, ValueError, r"Invalid fused value: 3 \(must be one of"),
    ({"fused": True, "foreach": True}, RuntimeError, "fused.*foreach"),
    ({"fused": True, "differentiable": True}, RuntimeError, "fused.*differentiable"),
]
POLYAK: Rows = [
    (
        {"momentum_form": "polyak", "momentum": 0.9, name: value},
        ValueError,
        f"momentum_form='polyak' needs {name} in .*, got {value}",
    )
    for name, value in (
        ("dampening", 0.1),
        ("nesterov", True),
        ("differentiable", True),
        ("foreach", True),
        ("foreach", False),
        ("fused", False),
    )
]
RULE: Rows = [
    ({"lam": 0.0}, ValueError, r"Invalid lam value: 0.0 \(must be ≠ 0 and not NaN"),
    ({"lam": -0.0}, ValueError, "Invalid lam value: -0.0"),
    ({"lam": NAN}, ValueError, "Invalid lam value: nan"),
    ({"lam": "1"}, TypeError, "lam must be a number ≠ 0 and not NaN .* got '1'"),
    ({"lam": False}, TypeError, "lam must be a number"),
    ({"lam": 1j}, TypeError, "lam must be a number"),
    ({"lam": torch.tensor(NAN)}, ValueError, "Invalid lam value: nan"),
    ({"lam": torch.tensor(0)}, ValueError, "Invalid lam value: 0"),
    ({"lam": torch.ones(2)}, ValueError, r"Invalid lam value: tensor of shape \(2,\)"),
    ({"lam": torch.tensor(True)}, ValueError, "Invalid lam value: tensor .* torch.bool"),
    ({"lam": torch.tensor(1j)}, ValueError, "Invalid lam value: tensor .* torch.complex64"),
    ({"lam": torch.ones((), device="meta")}, ValueError, "Invalid lam value: a tensor on meta"),
    ({"gamma": 0.0}, ValueError, r"Invalid gamma value: 0.0 \(must be in \(0, 1\]\)"),
    ({"gamma": 1.01}, ValueError, "Invalid gamma value: 1.01"),
    ({"gamma": -0.5}, ValueError, "Invalid gamma value: -0.5"),
    ({"gamma": NAN}, ValueError, "Invalid gamma value: nan"),
    ({"gamma": "x"}, TypeError, r"gamma must be a number in \(0, 1\], got 'x'"),
    ({"s_init": -1.0}, ValueError, rf"Invalid s_init value: -1.0 {NONNEGATIVE}"),
    ({"s_init": INF}, ValueError, "Invalid s_init value: inf"),
    ({"s_init": NAN}, ValueError, "Invalid s_init value: nan"),
    ({"s_init": [0]}, TypeError, r"s_init must be a number finite and ≥ 0, got \[0\]"),
    ({"alpha": 0.0}, ValueError, r"Invalid alpha value: 0.0 \(must be finite and > 0\)"),
    ({"alpha": INF}, ValueError, "Invalid alpha value: inf"),
    ({"alpha": NAN}, ValueError, "Invalid alpha value: nan"),
    ({"alpha": "a"}, TypeError, "alpha must be a number finite and > 0"),
    ({"process_group": "all"}, ValueError, "Invalid process_group value: 'all' .*'local'"),
]
FORM: Rows = [
    (
        {"momentum_form": "nag"},
        ValueError,
        r"Invalid momentum_form value: 'nag' \(must be one of",
    ),
    ({"momentum_form": 1}, ValueError, "Invalid momentum_form value: 1"),
]


@pytest.mark.parametrize("arguments, error, message", SGD_ARGUMENTS + POLYAK + RULE + FORM)
def test_constructing(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        ABSGD([parameter()], **arguments)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "params, error, message",
    [
        ([], ValueError, "empty parameter list"),
        (parameter(), TypeError, "params argument"),
        ([1.0], TypeError, "can only optimize Tensors"),
        ([{"params": [parameter()], "lam": 3.0}], ValueError, "lam is the whole optimizer's"),
    ],
)
def test_constructing_with_bad_params(params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ABSGD(params)


@pytest.mark.parametrize(
    "name, value",
    [("gamma", 0.5), ("alpha", 2.0), ("lam", 3.0), ("s_init", 1.0), ("momentum_form", "polyak")],
)
def test_a_group_may_not_set_what_is_optimizer_wide(name: str, value: Any) -> None:
    opt = trained()
    before = everything(opt)
    with pytest.raises(ValueError, match=f"{name} is the whole optimizer's"):
        opt.add_param_group({"params": [parameter()], name: value})
    assert equal(everything(opt), before)


@pytest.mark.parametrize("arguments, error, message", SGD_ARGUMENTS[:-2])
def test_adding_a_group(arguments: dict, error: type[Exception], message: str) -> None:
    opt = trained() if arguments.get("nesterov") is not True else ABSGD([parameter()])
    before = everything(opt)
    with pytest.raises(error, match=message):
        opt.add_param_group({"params": [parameter()], **arguments})
    assert equal(everything(opt), before)


@pytest.mark.parametrize("make", [trained, trained_module])
@pytest.mark.parametrize("arguments, error, message", [row for row in RULE if "lam" in row[0]])
def test_setting_lam(
    make: Callable[[], Any], arguments: dict, error: type[Exception], message: str
) -> None:
    owner = make()
    before = everything(owner)
    for change in (
        lambda lam: setattr(owner, "lam", lam),
        lambda lam: owner.restart(lam),
        lambda lam: owner.restart(lam=lam),
    ):
        with pytest.raises(error, match=message):
            change(arguments["lam"])
        assert equal(everything(owner), before)


def test_restart_s_other_argument() -> None:
    opt = trained()
    before = everything(opt)
    with pytest.raises(ValueError, match="Invalid reset_momentum value: 'yes'"):
        opt.restart(1.0, reset_momentum="yes")
    assert equal(everything(opt), before)


@pytest.mark.parametrize("make", [trained, trained_module])
@pytest.mark.parametrize(
    "losses, mask, error, message",
    [
        (
            [1.0],
            None,
            TypeError,
            "losses must be a tensor of per-sample losses, got <class 'list'>",
        ),
        (torch.tensor(1.0), None, ValueError, 'got a scalar: .*reduction="none"'),
        (torch.ones(3, dtype=torch.int64), None, TypeError, "floating point, got torch.int64"),
        (torch.ones(3, dtype=torch.complex64), None, TypeError, "floating point, got torch.comple"),
        (torch.ones(3, device="meta"), None, ValueError, "losses must be on a device .* got meta"),
        (torch.ones(3), torch.ones(3), TypeError, "mask must be a bool tensor.*got torch.float32"),
        (torch.ones(3), [True] * 3, TypeError, "mask must be a bool tensor.*got <class 'list'>"),
        (torch.ones(3), torch.ones(2).bool(), ValueError, r"losses' shape \(3,\).*got \(2,\)"),
        (torch.ones(3), torch.ones(3, 1).bool(), ValueError, r"losses' shape \(3,\)"),
        (
            torch.ones(3),
            torch.ones(3, dtype=torch.bool, device="meta"),
            ValueError,
            "device cpu, got .* on meta",
        ),
    ],
)
def test_weighing(
    make: Callable[[], Any], losses: Any, mask: Any, error: type[Exception], message: str
) -> None:
    owner = make()
    before = everything(owner)
    with pytest.raises(error, match=message):
        owner.weigh(losses, mask)
    with torch.no_grad(), pytest.raises(error, match=message):
        owner.weigh(losses, mask)
    if isinstance(owner, nn.Module):
        with pytest.raises(error, match=message):
            owner.eval().weigh(losses, mask)
        owner.train()
    assert equal(everything(owner), before)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weighing_dtypes_without_a_kernel(dtype: torch.dtype) -> None:
    opt = trained()
    before = everything(opt)
    with pytest.raises((TypeError, RuntimeError), match="losses must be float"):
        opt.weigh(torch.ones(3).to(dtype))
    assert equal(everything(opt), before)


@pytest.mark.parametrize("divisor", [0, -1, NAN, INF])
def test_accumulating(divisor: float) -> None:
    opt, criterion = trained(), trained_module()
    for owner, arguments in ((opt, []), (criterion, [[parameter()]])):
        before = everything(owner)
        with (
            pytest.raises(ValueError, match=r"Invalid divisor value: .*must be finite and > 0"),
            owner.accumulate(*arguments, divisor=divisor),
        ):
            pass
        with (
            pytest.raises(TypeError, match="divisor must be a number"),
            owner.accumulate(*arguments, divisor="2"),
        ):
            pass
        assert equal(everything(owner), before)


@pytest.mark.parametrize("arguments, error, message", RULE)
def test_constructing_the_module(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        AttentionalLoss(CE, **arguments)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"criterion": 3}, TypeError, "criterion must be a module or a function, got 3"),
        (
            {"criterion": nn.CrossEntropyLoss()},
            ValueError,
            "criterion must return one loss a sample: give it reduction=\"none\", not 'mean'",
        ),
        ({"optimizer": "sgd"}, TypeError, "optimizer must be an ABSGD, got <class 'str'>"),
        (
            {"optimizer": torch.optim.SGD([parameter()], 0.1)},
            TypeError,
            "optimizer must be an ABSGD",
        ),
        (
            {"optimizer": trained(), "lam": 1.0, "alpha": 2.0},
            ValueError,
            "lam, alpha: these are the optimizer's",
        ),
    ],
)
def test_the_module_s_own_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AttentionalLoss(**{"criterion": CE, **arguments})


def test_a_criterion_that_reduces_after_all() -> None:
    criterion = AttentionalLoss(lambda x, y: nn.functional.cross_entropy(x, y))
    before = everything(criterion)
    with pytest.raises(ValueError, match='reduction="none"'):
        criterion(torch.rand(4, 3), torch.tensor([0, 1, 2, 0]))
    assert equal(everything(criterion), before)


@pytest.mark.parametrize("form", ["torch", "polyak"])
def test_a_step_that_cannot_be_taken_changes_nothing(form: str) -> None:
    """The second parameter's buffer has been damaged: the first must not move either."""
    p, q = parameter(), parameter()
    opt = ABSGD([p, q], lr=0.1, momentum=0.9, momentum_form=form)
    for _ in range(2):
        p.grad, q.grad = torch.ones(3), torch.ones(3)
        opt.step()
    (key,) = opt.state[q]
    opt.state[q][key] = torch.ones(4)
    before = everything(opt)
    with pytest.raises(RuntimeError, match=r"momenta\[1\] must have the .*shape"):
        opt.step()
    assert equal(everything(opt), before)
