"""The kernel's step takes what it can take, refuses the rest unharmed, and remembers nothing."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from step_twins import Twins
from torch_absgd import ABSGD
from torch_absgd.fused_step import MOMENTUM_KEYS, FusedStep, _forget, _Record, takes

HYPER = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def operator(params: list, grads: list, momenta: list, **scalars: Tensor) -> None:
    torch.ops.absgd.sgd_step_.default(
        params, grads, momenta, False, 0.1, scalars.get("lr_tensor"), 0.9, 0.0, 0.0, False, False,
        False, scalars.get("grad_scale"), scalars.get("found_inf"),
    )  # fmt: skip


def vector(*shape: int, **options: Any) -> Tensor:
    return torch.ones(shape or (4,), **options)


def shrunk() -> Tensor:
    t = vector(8)
    t.untyped_storage().resize_(8)
    return t


shared = vector(8)
table = vector(2, 3)


@pytest.mark.parametrize(
    "params, grads, momenta, message",
    [
        ([vector()], [vector(dtype=torch.float64)], [vector()], r"grads\[0\] must have the dtype"),
        ([vector()], [vector(5)], [vector()], r"grads\[0\] must have the dtype, shape"),
        ([vector()], [vector()], [vector(dtype=torch.bfloat16)], r"momenta\[0\] must have"),
        ([vector()], [vector()], [vector(3)], r"momenta\[0\] must have"),
        ([vector()], [vector(), vector()], [], "must have one length"),
        ([vector(dtype=torch.int64)], [vector(dtype=torch.int64)], [], "must be float32"),
        ([vector()], [vector(device="meta")], [vector()], r"grads\[0\] must have the dtype"),
        ([vector(device="meta")], [vector()], [], r"grads\[0\] must have the dtype"),
        ([vector(), vector(device="meta")], [vector()] * 2, [], r"params\[1\] must be on the dev"),
        ([torch._neg_view(vector())], [vector()], [vector()], "neg bit"),
        ([vector()], [vector()], [torch._neg_view(vector())], "neg bit"),
        ([shared[:4]], [vector()], [shared[3:7]], "must not share memory"),
        ([shared[:4], shared[3:7]], [vector()] * 2, [vector(), vector()], "must not share memory"),
        ([shared[:4]], [shared[1:5]], [vector()], "must not share memory"),
        ([table[:, :2], table[:, 1:]], [vector(2, 2)] * 2, [], "must not share memory"),
        (
            [vector(), vector(1).expand(3)],
            [vector(), vector(3)],
            [],
            "share memory with themselves",
        ),
        ([shrunk()], [vector(8)], [vector(8)], "has a storage of 8 bytes"),
        ([vector(8)], [shrunk()], [vector(8)], "has a storage of 8 bytes"),
    ],
)
def test_the_operator_refuses_before_it_writes(
    params: list, grads: list, momenta: list, message: str
) -> None:
    before = [t.clone() if t.device.type == "cpu" else t for t in params + momenta]
    with pytest.raises(RuntimeError, match=message):
        operator(params, grads, momenta)
    for t, old in zip(params + momenta, before, strict=True):
        assert t.device.type == "meta" or t.untyped_storage().nbytes() == 8 or torch.equal(t, old)


@pytest.mark.parametrize("name", ["lr_tensor", "grad_scale", "found_inf"])
@pytest.mark.parametrize("bad", [vector(1), vector(2, dtype=torch.float64), vector(device="meta")])
def test_scalars_are_checked(name: str, bad: Tensor) -> None:
    with pytest.raises(RuntimeError, match=f"{name} must be a contiguous float64 tensor of 1"):
        operator([vector()], [vector()], [vector()], **{name: bad})


def test_all_on_meta_does_nothing() -> None:
    operator([vector(device="meta")], [vector(device="meta")], [vector(device="meta")])


# ---- tensors of every kind


class Marked(Tensor):
    """A subclass of which the kernel knows nothing."""


def neg_parameter(p: Tensor) -> None:
    p.data = torch._neg_view(p.data)


def neg_gradient(p: Tensor) -> None:
    p.grad = torch._neg_view(p.grad)


def subclass_gradient(p: Tensor) -> None:
    p.grad = p.grad.as_subclass(Marked)


def strided_gradient(p: Tensor) -> None:
    p.grad = p.grad.t().contiguous().t()


def expanded_gradient(p: Tensor) -> None:
    p.grad = torch.ones((), dtype=p.dtype).expand(p.shape)


def sparse_gradient(p: Tensor) -> None:
    p.grad = p.grad.to_sparse()


def strided_parameter(p: Tensor) -> None:
    grad, p.grad = p.grad, None
    p.data = p.data.t().contiguous().t()
    p.grad = grad


def gappy_parameter(p: Tensor) -> None:
    p.data = p.data.repeat(1, 2)[:, ::2]


def viewed_as_another_dtype(p: Tensor) -> None:
    """At the same address, half as many elements of twice the size."""
    p.grad = None
    p.data = p.data.contiguous().view(torch.float64)
    p.grad = torch.full_like(p, 0.3)


KINDS = [
    neg_parameter, neg_gradient, subclass_gradient, strided_gradient, expanded_gradient,
    sparse_gradient, strided_parameter, gappy_parameter,
]  # fmt: skip


def train(optimizer: type[SGD], change: Callable[[Tensor], None], at: int, **options: Any) -> list:
    random_ = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(4, 6, generator=random_)) for _ in range(3)]
    opt = optimizer(params, **{**HYPER, **options})
    for step in range(6):
        for p in params:
            p.grad = torch.randn(p.shape, generator=random_, dtype=p.dtype)
        if step >= at:
            change(params[1])
        opt.step()
    return [*params, *(v for p in params for v in opt.state[p].values())]


@pytest.mark.parametrize("change", KINDS)
@pytest.mark.parametrize("at", [0, 3])
def test_every_kind_of_tensor_is_stepped_as_sgd_does(
    change: Callable[[Tensor], None], at: int
) -> None:
    options = {"weight_decay": 0} if change is sparse_gradient else {}
    ours = train(ABSGD, change, at, **options)
    theirs = train(SGD, change, at, foreach=False, **options)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_a_parameter_or_momentum_of_another_dtype_at_the_same_address() -> None:
    def run(optimizer: type[SGD], what: str) -> list[Tensor]:
        p = torch.linspace(0, 1, 16).requires_grad_()
        opt = optimizer([p], **HYPER)
        for step in range(5):
            p.grad = torch.full_like(p, 0.5)
            if step == 3 and what == "param":
                viewed_as_another_dtype(p)
                opt.state[p]["momentum_buffer"] = torch.ones_like(p)
            if step == 3 and what == "momentum":
                opt.state[p]["momentum_buffer"] = torch.ones(16, dtype=torch.float64)
            opt.step()
        return [p, opt.state[p]["momentum_buffer"]]

    for what in ("param", "momentum"):
        theirs = run(lambda *a, **k: SGD(*a, **k, foreach=False), what)
        for a, b in zip(run(ABSGD, what), theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_shared_momentum_is_used_in_turn() -> None:
    def run(optimizer: type[SGD], **options: Any) -> list[Tensor]:
        params = [torch.ones(3).requires_grad_() for _ in range(2)]
        opt = optimizer(params, **HYPER, **options)
        momentum = torch.ones(3)
        for p in params:
            opt.state[p]["momentum_buffer"] = momentum
        for _ in range(3):
            for i, p in enumerate(params):
                p.grad = torch.full_like(p, 1.0 + i)
            opt.step()
        return params

    for a, b in zip(run(ABSGD), run(SGD, foreach=False), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(not hasattr(Tensor, "grad_dtype"), reason="this torch has no grad_dtype")
def test_gradients_of_a_wider_dtype_are_not_rounded_first() -> None:
    def run(optimizer: type[SGD], **options: Any) -> list[Tensor]:
        p = torch.ones(64, dtype=torch.bfloat16).requires_grad_()
        p.grad_dtype = torch.float32
        opt = optimizer([p], lr=0.1, momentum=0.9, **options)
        for _ in range(3):
            p.grad = torch.linspace(0, 1, 64)
            opt.step()
        return [p, opt.state[p]["momentum_buffer"]]

    for a, b in zip(run(ABSGD), run(SGD, foreach=False), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_double_after_momentum_exists() -> None:
    def run(optimizer: type[SGD], **options: Any) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        opt = optimizer(model.parameters(), **HYPER, **options)
        for step in range(4):
            if step == 2:
                model.double()
            dtype = next(model.parameters()).dtype
            opt.zero_grad()
            model(torch.ones(2, 3, dtype=dtype)).square().sum().backward()
            opt.step()
        return list(model.parameters())

    for a, b in zip(run(ABSGD), run(SGD, foreach=False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# ---- FusedStep itself


def group_of(params: list[Tensor], **options: Any) -> dict[str, Any]:
    return SGD(params, **{**HYPER, **options}).param_groups[0] | {"momentum_form": "torch"}


@pytest.mark.parametrize(
    "options",
    [{"differentiable": True}, {"foreach": True}, {"foreach": False}, {"fused": False},
     {"weight_decay": torch.tensor(0.1)}],
    ids=str,
)  # fmt: skip
def test_hyper_parameters_that_ask_for_torch(options: dict[str, Any]) -> None:
    p = vector().requires_grad_()
    p.grad = vector()
    state: dict[Tensor, dict[str, Any]] = {}
    group = group_of([p], **options)
    assert not takes(group) and not FusedStep().step(group, state, None, None)
    assert state == {} and torch.equal(p, vector())


@torch.no_grad()
@pytest.mark.parametrize("form", MOMENTUM_KEYS)
def test_momentum_is_made_when_the_step_was_taken(form: str) -> None:
    p, fused = nn.Parameter(vector()), FusedStep()
    group, state = group_of([p]) | {"momentum_form": form}, defaultdict(dict)
    p.grad = vector()
    assert fused.step(group, state, None, torch.tensor(1.0))  # skipped
    assert state == {} and torch.equal(p, vector())
    p.grad = vector().to_sparse()
    assert not takes(group, state) and not fused.step(group, state, None, None)
    assert state == {} and torch.equal(p, vector())
    p.grad = vector()
    version = p._version
    assert takes(group, state) and fused.step(group, state, None, None)
    assert [*state[p]] == [MOMENTUM_KEYS[form]]
    assert p._version > version


def test_a_tensor_lr_on_the_cpu_is_handed_over_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    p = vector().requires_grad_()
    p.grad = vector()
    opt = ABSGD([p], lr=torch.tensor(0.25, dtype=torch.float64))

    def moved(*_: Any) -> None:
        raise AssertionError("a copy to the parameters' device waits for it")

    monkeypatch.setattr("torch_absgd.fused_step._float64_on", moved)
    opt.step()
    assert torch.equal(p, vector() - 0.25)


def test_opcheck() -> None:
    for n in (0, 1):
        lists = [[torch.randn(3, 4), torch.randn(5)] for _ in range(2 + n)]
        rest = (False, 0.1, None, 0.9 * n, 0.0, 0.01, False, False, False, None, None)
        torch.library.opcheck(
            torch.ops.absgd.sgd_step_.default, (*lists, *([] if n else [[]]), *rest)
        )


# ---- records, which hold the lists that come twice


def record_of(params: list[Tensor], momenta: list[Tensor]) -> int:
    return torch.ops.absgd.sgd_record.default(params, momenta)


def recorded(record: int, grads: list[Tensor]) -> None:
    torch.ops.absgd.sgd_step_recorded.default(
        record, grads, 0.1, None, 0.9, 0.0, 0.0, False, False, False, None, None
    )


def test_an_unknown_or_forgotten_record_is_refused() -> None:
    p, v = vector(), vector()
    record = record_of([p], [v])
    recorded(record, [vector()])
    assert not torch.equal(p, vector())
    _forget("CPU", record)
    _forget("CPU", record)
    for id_ in (record, record + 1, 0, -1, 2**62):
        with pytest.raises(RuntimeError, match=f"no step record has the id {id_}"):
            recorded(id_, [vector()])
    assert record_of([p], [v]) > record  # ids are never used twice


@pytest.mark.parametrize(
    "grads, message",
    [
        ([], "one length|no tensor arguments"),
        ([vector(), vector()], "one length"),
        ([vector(3)], r"grads\[0\]"),
        ([vector(dtype=torch.float64)], r"grads\[0\]"),
        ([vector(device="meta")], "cannot be traced"),
    ],
)
def test_a_record_refuses_what_does_not_fit(grads: list[Tensor], message: str) -> None:
    p, v = vector(), vector()
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        recorded(record_of([p], [v]), grads)
    assert torch.equal(p, vector()) and torch.equal(v, vector())


@pytest.mark.parametrize("change", [Tensor.double, lambda t: t[:3]])
@pytest.mark.parametrize("index", [0, 1])
def test_a_record_holds_the_tensors_not_what_they_were(
    change: Callable[[Tensor], Tensor], index: int
) -> None:
    tensors = [vector(), vector()]
    record = record_of(tensors[:1], tensors[1:])
    tensors[index].data = change(tensors[index].data)
    with pytest.raises(RuntimeError, match="must"):
        recorded(record, [vector()])


def test_meta_tensors_cannot_be_recorded() -> None:
    with pytest.raises(RuntimeError, match="without memory"):
        record_of([vector(device="meta")], [vector(device="meta")])


def stepped(n: int = 8, steps: int = 4) -> tuple[ABSGD, list[Tensor]]:
    params = [nn.Parameter(vector()) for _ in range(n)]
    opt = ABSGD(params, **HYPER)
    for _ in range(steps):
        for p in params:
            p.grad = vector()
        opt.step()
    return opt, params


def recorded_ids() -> set[int]:
    return {r.id for r in gc.get_objects() if type(r) is _Record}


def test_lists_that_come_twice_are_recorded_and_freed_with_the_optimizer() -> None:
    gc.collect()
    before = recorded_ids()
    opt, params = stepped()
    (record,) = recorded_ids() - before
    alive = [weakref.ref(params[0]), weakref.ref(opt.state[params[0]]["momentum_buffer"])]
    del opt, params
    gc.collect()
    assert [r() for r in alive] == [None, None]
    with pytest.raises(RuntimeError, match="no step record"):
        recorded(record, [vector()])


def test_a_replaced_momentum_is_not_kept() -> None:
    opt, params = stepped()
    old = weakref.ref(opt.state[params[0]]["momentum_buffer"])
    for p in params:
        opt.state[p]["momentum_buffer"] = vector()
    opt.step()
    assert old() is None


def test_gradients_are_not_kept() -> None:
    opt, params = stepped()
    grad = weakref.ref(params[0].grad)
    opt.zero_grad()
    assert grad() is None


def test_many_threads_step_and_forget() -> None:
    def work(_: int) -> bool:
        _opt, params = stepped(steps=20)
        same = stepped(steps=20)[1]
        return all(map(torch.equal, params, same))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(12)))


def test_records_may_be_alive_at_exit() -> None:
    source = (
        "import torch, torch_absgd as ta\n"
        "params = [torch.ones(4).requires_grad_() for _ in range(8)]\n"
        "opt = ta.ABSGD(params, lr=0.1, momentum=0.9)\n"
        "for _ in range(4):\n"
        "    for p in params: p.grad = torch.ones(4)\n"
        "    opt.step()\n"
        "torch.ops.absgd.sgd_record(params, params)\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_random_changes_between_steps() -> None:
    for seed in range(60):
        Twins(seed).run(15)


def test_parameters_over_one_memory_are_stepped_one_after_the_other() -> None:
    stepped = []
    for make in (SGD, ABSGD):
        base = torch.ones(2, 3)
        params = [nn.Parameter(base[:, :2]), nn.Parameter(base[:, 1:])]
        for p in params:
            p.grad = torch.ones_like(p)
        make(params, lr=0.1).step()
        stepped.append(base)
    assert torch.equal(*stepped)


def test_parameters_over_one_memory_may_come_later() -> None:
    stepped = []
    for make in (SGD, ABSGD):
        base, first = torch.ones(2, 3), nn.Parameter(torch.ones(2))
        params = [first, nn.Parameter(base[:, :2]), nn.Parameter(base[:, 1:])]
        opt = make(params, lr=0.1, momentum=0.9)
        for n in (1, 3):
            for p in params[:n]:
                p.grad = torch.ones_like(p)
            opt.step()
        stepped.append(torch.cat([first.detach(), base.flatten()]))
    assert torch.equal(*stepped)
