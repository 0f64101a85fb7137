"""The raw operators torch.ops.absgd.*: opcheck, bad arguments, and that their bits are fixed."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_absgd import _ops

ABSGD = torch.ops.absgd
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NAN = float("nan")


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def reports() -> Tensor:
    return torch.full((2, _ops.REPORT_SIZE), NAN, dtype=torch.float64)


def weigh_arguments(dtype: torch.dtype = torch.float32, n: int = 6, **changed: Any) -> tuple:
    arguments = {
        "losses": torch.linspace(0, 3, n).to(dtype),
        "mask": torch.arange(n) % 3 != 0,
        "rows": None,
        "lam": scalar(0.5),
        "log_s": scalar(1.0),
        "log_s_lam": scalar(0.5),
        "reports": reports(),
        "gamma": 0.9,
        "alpha": 1.0,
        "s_init": NAN,
        "factor": 1.0,
    }
    return tuple({**arguments, **changed}.values())


def provisional_arguments(dtype: torch.dtype = torch.float32, **changed: Any) -> tuple:
    arguments = {
        "losses": torch.linspace(0, 3, 6).to(dtype),
        "mask": None,
        "rows": None,
        "lam": scalar(0.5),
        "log_s": scalar(1.0),
        "log_s_lam": scalar(0.5),
        "accumulation": torch.zeros(_ops.ACCUMULATION_SIZE, dtype=torch.float64),
        "shrink": scalar(0.0),
        "alpha": 1.0,
        "s_init": NAN,
        "factor": 1.0,
    }
    return tuple({**arguments, **changed}.values())


def settle_arguments(**changed: Any) -> tuple:
    accumulation = torch.tensor([4, 0, 2, 3, 2.5, 3, 4, 1, 4], dtype=torch.float64)
    arguments = {
        "accumulation": accumulation,
        "rows": None,
        "lam": scalar(0.5),
        "log_s": scalar(1.0),
        "log_s_lam": scalar(0.5),
        "reports": reports(),
        "gamma": 0.9,
        "alpha": 1.0,
        "s_init": NAN,
        "divisor": 1.0,
    }
    return tuple({**arguments, **changed}.values())


def step_arguments(dtype: torch.dtype = torch.float32, n: int = 6, **changed: Any) -> tuple:
    random = torch.Generator().manual_seed(0)

    def tensors() -> list[Tensor]:
        return [torch.randn(n, generator=random).to(dtype), torch.ones(2, 3).to(dtype)]

    arguments = {
        "params": tensors(),
        "grads": tensors(),
        "momenta": tensors(),
        "fresh": False,
        "lr": 0.1,
        "lr_tensor": None,
        "momentum": 0.9,
        "dampening": 0.0,
        "weight_decay": 0.01,
        "nesterov": False,
        "maximize": False,
        "polyak": False,
        "grad_scale": None,
        "found_inf": None,
    }
    return tuple({**arguments, **changed}.values())


ROWS = torch.tensor([[4, 0, 2, 3, 2.5, 3, 4], [1, 0, 3, 1, 1, 1, 1]], dtype=torch.float64)
CALLS: list[tuple[str, tuple]] = [
    ("batch_stats", (torch.rand(5), None, scalar(0.5))),
    ("batch_stats", (torch.rand(2, 5), torch.rand(2, 5) < 0.5, scalar(-0.5))),
    *[("weigh", weigh_arguments(dtype)) for dtype in DTYPES],
    ("weigh", weigh_arguments(rows=ROWS, losses=torch.rand(2, 3), mask=None)),
    ("carry_log_s", (scalar(2.0), scalar(1.0), scalar(0.5), NAN)),
    *[("weigh_provisionally", provisional_arguments(dtype)) for dtype in DTYPES],
    ("settle", settle_arguments()),
    ("settle", settle_arguments(rows=ROWS)),
    *[("sgd_step_", step_arguments(dtype)) for dtype in DTYPES],
    ("sgd_step_", step_arguments(momenta=[], momentum=0.0, lr_tensor=scalar(0.1))),
    ("sgd_step_", step_arguments(grad_scale=scalar(2.0), found_inf=scalar(0.0), fresh=True)),
]


@pytest.mark.parametrize("name, arguments", CALLS, ids=lambda v: v if isinstance(v, str) else "")
def test_opcheck(name: str, arguments: tuple) -> None:
    torch.library.opcheck(getattr(ABSGD, name).default, arguments)


BAD_CALLS: list[tuple[str, tuple, str]] = [
    ("batch_stats", (torch.arange(3), None, scalar(1.0)), "losses must be float32"),
    ("batch_stats", (torch.rand(3), torch.ones(3), scalar(1.0)), "mask must be bool, got"),
    ("batch_stats", (torch.rand(3), torch.ones(2).bool(), scalar(1.0)), "losses' 3 elements"),
    ("batch_stats", (torch.rand(3), None, torch.ones(2).double()), "lam must be a contig"),
    ("batch_stats", (torch.rand(3), None, torch.tensor(1.0)), "lam must be .* float64 .* got"),
    ("weigh", weigh_arguments(losses=torch.ones(6, dtype=torch.int32)), "losses must be float32"),
    ("weigh", weigh_arguments(mask=torch.ones(5).bool()), "mask must have the losses' 6 elements"),
    ("weigh", weigh_arguments(mask=torch.ones(6)), "mask must be bool"),
    ("weigh", weigh_arguments(rows=torch.ones(8).double()), "rows must be a contiguous float64"),
    ("weigh", weigh_arguments(rows=ROWS.float()), "rows must be a contiguous float64"),
    ("weigh", weigh_arguments(log_s=torch.tensor(1.0)), "log_s must be a contiguous float64"),
    ("weigh", weigh_arguments(log_s_lam=torch.ones(3).double()), "log_s_lam must be"),
    ("weigh", weigh_arguments(reports=torch.ones(3).double()), "reports must be .* 14 element"),
    ("weigh", weigh_arguments(gamma=0.0), "absgd::weigh: a hyper-parameter is outside its range"),
    ("weigh", weigh_arguments(gamma=1.5), "absgd::weigh: a hyper-parameter"),
    ("weigh", weigh_arguments(gamma=NAN), "absgd::weigh: a hyper-parameter"),
    ("weigh", weigh_arguments(alpha=0.0), "absgd::weigh: a hyper-parameter"),
    ("weigh", weigh_arguments(alpha=float("inf")), "absgd::weigh: a hyper-parameter"),
    ("weigh", weigh_arguments(s_init=-1.0), "absgd::weigh: a hyper-parameter"),
    ("carry_log_s", (scalar(2.0), scalar(1.0), scalar(0.5), -1.0), "absgd::carry_log_s: a hyper"),
    ("carry_log_s", (scalar(2.0), torch.tensor(1.0), scalar(0.5), NAN), "log_s must be"),
    ("weigh_provisionally", provisional_arguments(alpha=-1.0), "absgd::weigh_provisionally: a hyp"),
    (
        "weigh_provisionally",
        provisional_arguments(accumulation=torch.zeros(3).double()),
        "accumulation must be a contiguous float64 tensor of 9 element",
    ),
    ("weigh_provisionally", provisional_arguments(shrink=torch.tensor(0.0)), "shrink must be"),
    ("settle", settle_arguments(divisor=0.0), "absgd::settle: a hyper-parameter"),
    ("settle", settle_arguments(divisor=NAN, rows=ROWS), "absgd::settle: a hyper-parameter"),
    ("settle", settle_arguments(gamma=2.0, rows=ROWS), "absgd::settle: a hyper-parameter"),
    ("settle", settle_arguments(accumulation=torch.ones(9)), "accumulation must be"),
    ("sgd_step_", step_arguments(grads=[torch.ones(6)]), "must have one length .* 2, 1 and 2"),
    ("sgd_step_", step_arguments(momenta=[torch.ones(6)]), "must have one length"),
    ("sgd_step_", step_arguments(grads=[torch.ones(6), torch.ones(3, 2)]), r"grads\[1\] must have"),
    ("sgd_step_", step_arguments(grads=[torch.ones(5), torch.ones(2, 3)]), r"grads\[0\] must have"),
    (
        "sgd_step_",
        step_arguments(momenta=[torch.ones(6), torch.ones(2, 3).double()]),
        r"momenta\[1\] must have the dtype, shape and device of params\[1\]",
    ),
    ("sgd_step_", step_arguments(torch.int64), "params must be float32"),
    ("sgd_step_", step_arguments(momentum=-0.1), "absgd::sgd_step_: a hyper-parameter"),
    ("sgd_step_", step_arguments(momentum=NAN), "absgd::sgd_step_: a hyper-parameter"),
    ("sgd_step_", step_arguments(momenta=[]), "absgd::sgd_step_: a required pointer is NULL"),
    ("sgd_step_", step_arguments(nesterov=True, dampening=0.5), "absgd::sgd_step_: a hyper-param"),
    ("sgd_step_", step_arguments(polyak=True, nesterov=True), "absgd::sgd_step_: a hyper-param"),
    ("sgd_step_", step_arguments(lr_tensor=torch.ones(2).double()), "lr_tensor must be"),
    ("sgd_step_", step_arguments(found_inf=torch.ones(2).double()), "found_inf must be"),
    ("sgd_step_", step_arguments(grad_scale=torch.ones(())), "grad_scale must be .* float64"),
]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a.nan_to_num(-7.5), b.nan_to_num(-7.5))
    return all(map(equal, a, b)) if isinstance(a, list | tuple) else a == b or a != a


@pytest.mark.parametrize("name, arguments, message", BAD_CALLS)
def test_bad_arguments_change_nothing(name: str, arguments: tuple, message: str) -> None:
    before = copy.deepcopy(arguments)
    with pytest.raises(RuntimeError, match=message):
        getattr(ABSGD, name)(*arguments)
    assert equal(arguments, before)


@pytest.mark.parametrize("name, arguments", CALLS, ids=lambda v: v if isinstance(v, str) else "")
def test_meta_tensors_compute_nothing(name: str, arguments: tuple) -> None:
    def meta(v: Any) -> Any:
        if isinstance(v, list):
            return [meta(t) for t in v]
        return v.to("meta") if isinstance(v, Tensor) else v

    out = getattr(ABSGD, name)(*map(meta, arguments))
    expected = getattr(ABSGD, name)(*copy.deepcopy(arguments))
    if expected is None:
        assert out is None
    else:
        assert out.is_meta and (out.shape, out.dtype) == (expected.shape, expected.dtype)


def results(call: Callable[[], tuple], name: str) -> list[Tensor]:
    """Everything that a call returns or changes."""
    arguments = call()
    out = getattr(ABSGD, name)(*arguments)
    tensors = [t for a in arguments for t in (a if isinstance(a, list) else [a])]
    return [t for t in (out, *tensors) if isinstance(t, Tensor)]


BIG = 300_007  # many chunks, and a remainder


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name, call",
    [
        ("weigh", lambda dtype: weigh_arguments(dtype, BIG)),
        ("weigh", lambda dtype: weigh_arguments(dtype, BIG, mask=None)),
        ("sgd_step_", lambda dtype: step_arguments(dtype, BIG)),
        ("sgd_step_", lambda dtype: step_arguments(dtype, BIG, polyak=True)),
    ],
    ids=["weigh masked", "weigh", "torch", "polyak"],
)
def test_the_same_bits_for_any_number_of_threads(
    name: str, call: Callable, dtype: torch.dtype
) -> None:
    first = results(lambda: call(dtype), name)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        again = results(lambda: call(dtype), name)
        assert equal(first, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_whole_weigh_has_the_same_bits(dtype: torch.dtype) -> None:
    """The scalar and its gradient too."""
    from torch_absgd import ABSGD as Optimizer  # noqa: N811

    def run() -> list[Tensor]:
        losses = torch.linspace(0, 3, BIG).to(dtype).requires_grad_()
        opt = Optimizer([torch.zeros(1, requires_grad=True)], lam=0.7)
        total = opt.weigh(losses)
        total.backward()
        return [total.detach(), losses.grad, opt.log_s.clone(), opt.weights]

    first = run()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert equal(run(), first)


LEVEL_SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
import test_operators as t
torch.set_num_threads(1)
calls = [lambda d=d: t.weigh_arguments(d, 1003) for d in t.DTYPES]
steps = [lambda d=d: t.step_arguments(d, 1003, nesterov=True) for d in t.DTYPES]
out = [t.results(c, "weigh") for c in calls] + [t.results(s, "sgd_step_") for s in steps]
torch.save(out, sys.argv[1])
"""


def test_instruction_sets_agree(tmp_path: Any) -> None:
    """x86-64-v2, AVX2 and, where the processor has it, AVX-512."""
    script = LEVEL_SCRIPT.format(tests=os.path.dirname(__file__))
    outputs = []
    for level in ("2", "3", "4"):
        path = str(tmp_path / level)
        environment = {**os.environ, "ABSGD_CPU_LEVEL": level}
        subprocess.run([sys.executable, "-c", script, path], env=environment, check=True)
        outputs.append(torch.load(path))
    for other in outputs[1:]:
        for a, b in zip(outputs[0], other, strict=True):
            eps = torch.finfo(a[1].dtype).eps
            for x, y in zip(a, b, strict=True):
                tolerance = 1e-14 if x.dtype is torch.float64 else 2 * eps
                torch.testing.assert_close(x, y, rtol=tolerance, atol=0, equal_nan=True)
