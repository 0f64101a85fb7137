"""The raw operators torch.ops.absgd.*: opcheck, bad arguments, and that their bits are fixed."""

import copy
import math
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
        "weight": None,
        "rows": None,
        "lam_rule": None,
        "lam": scalar(0.5),
        "log_s": scalar(1.0),
        "log_s_lam": scalar(0.5),
        "reports": reports(),
        "gamma": 0.9,
        "alpha": 1.0,
        "s_init": NAN,
        "max_weight": math.inf,
        "keep_loss": False,
        "bounded": False,
        "factor": 1.0,
    }
    return tuple({**arguments, **changed}.values())


def provisional_arguments(dtype: torch.dtype = torch.float32, **changed: Any) -> tuple:
    arguments = {
        "losses": torch.linspace(0, 3, 6).to(dtype),
        "mask": None,
        "weight": None,
        "rows": None,
        "lam": scalar(0.5),
        "log_s": scalar(1.0),
        "log_s_lam": scalar(0.5),
        "accumulation": torch.zeros(_ops.ACCUMULATION_SIZE, dtype=torch.float64),
        "shrink": scalar(0.0),
        "gamma": 0.9,
        "alpha": 1.0,
        "s_init": NAN,
        "max_weight": math.inf,
        "keep_loss": False,
        "bounded": False,
        "factor": 1.0,
    }
    return tuple({**arguments, **changed}.values())


def settle_arguments(**changed: Any) -> tuple:
    accumulation = torch.tensor([4, 0, 4, 2, 3, 2.5, 3, 4, 3, 4, 1, 4, 0], dtype=torch.float64)
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
        "max_weight": math.inf,
        "keep_loss": False,
        "bounded": False,
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


ROWS = torch.tensor(
    [[4, 0, 4, 2, 3, 2.5, 3, 4, 3, 4], [1, 0, 1, 3, 1, 1, 1, 1, 1, 1]], dtype=torch.float64
)
LAM_RULE = torch.tensor([1, 0.6, 1, 1, 1e-12, 1e6], dtype=torch.float64)
GUARDED = {"max_weight": 2.0, "keep_loss": True, "bounded": True}


def weights(dtype: torch.dtype = torch.float32, n: int = 6) -> Tensor:
    return torch.linspace(0, 2, n).to(torch.float64 if dtype is torch.float64 else torch.float32)


def weighted_loss_arguments(dtype: torch.dtype = torch.float32, **changed: Any) -> tuple:
    random = torch.Generator().manual_seed(0)
    arguments = {
        "logits": torch.randn(6, 3, generator=random).to(dtype),
        "target": torch.tensor([0, 1, 2, 1, -100, 0]),
        "weight": None,
        "margin": None,
        "offset": None,
        "scale": 1.0,
        "focal_gamma": 0.0,
        "label_smoothing": 0.0,
        "ignore_index": -100,
        "mask": torch.arange(6) != 3,
        "base_weight": weights(dtype),
        "class_weight": weights(dtype, 3),
        "lam_rule": LAM_RULE.clone(),
        "lam": scalar(0.5),
        "log_s": scalar(1.0),
        "log_s_lam": scalar(0.5),
        "reports": reports().nan_to_num(1.0),
        "gamma": 0.9,
        "alpha": 1.0,
        "s_init": NAN,
        **GUARDED,
    }
    return tuple({**arguments, **changed}.values())


CALLS: list[tuple[str, tuple]] = [
    ("batch_stats", (torch.rand(5), None, None, scalar(0.5))),
    ("batch_stats", (torch.rand(2, 5), torch.rand(2, 5) < 0.5, torch.rand(2, 5), scalar(-0.5))),
    *[("weigh", weigh_arguments(dtype)) for dtype in DTYPES],
    *[("weigh", weigh_arguments(dtype, weight=weights(dtype), **GUARDED)) for dtype in DTYPES],
    ("weigh", weigh_arguments(rows=ROWS, losses=torch.rand(2, 3), mask=None)),
    ("weigh", weigh_arguments(lam_rule=LAM_RULE.clone(), weight=weights(), **GUARDED)),
    ("carry_log_s", (scalar(2.0), scalar(1.0), scalar(0.5), NAN)),
    *[("weigh_provisionally", provisional_arguments(dtype)) for dtype in DTYPES],
    ("weigh_provisionally", provisional_arguments(weight=weights(), **GUARDED)),
    ("settle", settle_arguments()),
    ("settle", settle_arguments(rows=ROWS, **GUARDED)),
    ("follow_lam", (torch.rand(5), None, torch.rand(5), LAM_RULE.clone(), scalar(0.5))),
    ("lam_sums", (torch.rand(5), None, torch.rand(5), LAM_RULE.clone(), torch.zeros(9).double())),
    *[("weighted_softmax_loss", weighted_loss_arguments(dtype)) for dtype in DTYPES],
    ("weighted_softmax_loss", weighted_loss_arguments(at_once=False)),
    *[("sgd_step_", step_arguments(dtype)) for dtype in DTYPES],
    ("sgd_step_", step_arguments(momenta=[], momentum=0.0, lr_tensor=scalar(0.1))),
    ("sgd_step_", step_arguments(grad_scale=scalar(2.0), found_inf=scalar(0.0), fresh=True)),
]


@pytest.mark.parametrize("name, arguments", CALLS, ids=lambda v: v if isinstance(v, str) else "")
def test_opcheck(name: str, arguments: tuple) -> None:
    torch.library.opcheck(getattr(ABSGD, name).default, arguments)


BAD_CALLS: list[tuple[str, tuple, str]] = [
    ("batch_stats", (torch.arange(3), None, None, scalar(1.0)), "losses must be float32"),
    ("batch_stats", (torch.rand(3), torch.ones(3), None, scalar(1.0)), "mask must be .*ool.*got"),
    ("batch_stats", (torch.rand(3), torch.ones(2).bool(), None, scalar(1.0)), "the losses' shape"),
    ("batch_stats", (torch.rand(3), None, None, torch.ones(2).double()), "lam must be a contig"),
    (
        "batch_stats",
        (torch.rand(3), None, None, torch.tensor(1.0)),
        "lam must be .* float64 .* got",
    ),
    ("weigh", weigh_arguments(losses=torch.ones(6, dtype=torch.int32)), "losses must be float32"),
    ("weigh", weigh_arguments(lam_rule=torch.ones(5).double()), "lam_rule must be"),
    ("weigh", weigh_arguments(lam_rule=LAM_RULE * -1), "a hyper-parameter"),
    ("weigh", weigh_arguments(lam_rule=LAM_RULE.clone(), rows=ROWS), "lam_rule must be None where"),
    ("weigh", weigh_arguments(mask=torch.ones(5).bool()), "mask must have the losses' shape"),
    ("weigh", weigh_arguments(mask=torch.ones(6)), "mask must be .*ool"),
    ("weigh", weigh_arguments(mask=torch.ones(2, 3).bool()), "mask must have the losses' shape"),
    ("weigh", weigh_arguments(weight=torch.ones(5)), "weight must have the losses' shape"),
    ("weigh", weigh_arguments(weight=torch.ones(6).double()), "weight must be .*loat.*got"),
    ("weigh", weigh_arguments(torch.float64, weight=torch.ones(6)), "weight must be .*ouble.*got"),
    ("weigh", weigh_arguments(max_weight=0.5), "absgd::weigh: a hyper-parameter"),
    ("weigh", weigh_arguments(max_weight=NAN), "absgd::weigh: a hyper-parameter"),
    ("weigh", weigh_arguments(rows=torch.ones(11).double()), "rows must be a contiguous float64"),
    ("weigh", weigh_arguments(rows=ROWS.float()), "rows must be a contiguous float64"),
    ("weigh", weigh_arguments(log_s=torch.tensor(1.0)), "log_s must be a contiguous float64"),
    ("weigh", weigh_arguments(log_s_lam=torch.ones(3).double()), "log_s_lam must be"),
    ("weigh", weigh_arguments(reports=torch.ones(3).double()), "reports must be .* 18 element"),
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
        "accumulation must be a contiguous float64 tensor of 13 element",
    ),
    ("weigh_provisionally", provisional_arguments(shrink=torch.tensor(0.0)), "shrink must be"),
    ("weigh_provisionally", provisional_arguments(weight=torch.ones(3)), "weight must have"),
    ("follow_lam", (torch.rand(3), None, None, torch.ones(5).double(), scalar(1.0)), "lam_rule mu"),
    ("follow_lam", (torch.rand(3), None, torch.rand(2), LAM_RULE, scalar(1.0)), "weight must have"),
    ("follow_lam", (torch.rand(3), None, None, LAM_RULE * -1, scalar(1.0)), "a hyper-parameter"),
    ("follow_lam", (torch.rand(3), None, None, LAM_RULE + math.inf, scalar(1.0)), "a hyper-param"),
    *[
        ("weighted_softmax_loss", weighted_loss_arguments(**{name: value}), message)
        for name, value, message in [
            ("gamma", 0.0, "a hyper-parameter"),
            ("max_weight", 0.5, "a hyper-parameter"),
            ("mask", torch.ones(5).bool(), "mask must have"),
            ("base_weight", torch.ones(6).double(), "weight must be"),
            ("class_weight", torch.ones(4), "class_weight must be"),
            ("class_weight", torch.ones(3).double(), "class_weight must be"),
            ("lam_rule", torch.ones(5).double(), "lam_rule must be"),
            ("reports", torch.ones(5).double(), "reports must be"),
        ]
    ],
    ("settle", settle_arguments(divisor=0.0), "absgd::settle: a hyper-parameter"),
    ("settle", settle_arguments(divisor=NAN, rows=ROWS), "absgd::settle: a hyper-parameter"),
    ("settle", settle_arguments(gamma=2.0, rows=ROWS), "absgd::settle: a hyper-parameter"),
    ("settle", settle_arguments(accumulation=torch.ones(13)), "accumulation must be"),
    ("sgd_step_", step_arguments(grads=[torch.ones(6)]), "must have one length .* 2, 1 and 2"),
    ("sgd_step_", step_arguments(momenta=[torch.ones(6)]), "must have one length"),
    ("sgd_step_", step_arguments(grads=[torch.ones(6), torch.ones(3, 2)]), r"grads\[1\] must have"),
    ("sgd_step_", step_arguments(grads=[torch.ones(5), torch.ones(2, 3)]), r"grads\[0\] must have"),
    (
        "sgd_step_",
        step_arguments(momenta=[torch.ones(6), torch.ones(2, 3).double()]),
        r"momenta\[1\] must have the dtype, shape and device of params\[1\]",
    ),
    ("sgd_step_", step_arguments(torch.int64), r"params\[0\] must be float32"),
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
    for a, b in zip(results_of(out), results_of(expected), strict=True):
        assert a.is_meta and (a.shape, a.dtype) == (b.shape, b.dtype)


def results_of(out: Any) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else () if out is None else (out,)


WEIGHTING = [c for c in CALLS if not c[0].startswith("sgd")]


@pytest.mark.parametrize(
    "name, arguments, message",
    [c for c in BAD_CALLS if not c[0].startswith("sgd") and "hyp" not in c[2]],
)
def test_meta_tensors_raise_what_real_ones_raise(name: str, arguments: tuple, message: str) -> None:
    on_meta = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]
    with pytest.raises(RuntimeError, match=message.replace("ouble", "loat64")):
        getattr(ABSGD, name)(*on_meta)


@pytest.mark.parametrize(
    "name, arguments", WEIGHTING, ids=lambda v: v if isinstance(v, str) else ""
)
def test_meta_and_real_tensors_do_not_mix(name: str, arguments: tuple) -> None:
    """Any one of the tensors on another device than the others."""
    tensors = [i for i, a in enumerate(arguments) if isinstance(a, Tensor)]
    for stray in tensors:
        for others in ("meta", "cpu"):
            mixed = list(copy.deepcopy(arguments))
            for i in tensors:
                if (i == stray) == (others == "cpu"):
                    mixed[i] = mixed[i].to("meta")
            before = copy.deepcopy([m for m in mixed if isinstance(m, Tensor) and not m.is_meta])
            with pytest.raises(RuntimeError, match="must be on"):
                getattr(ABSGD, name)(*mixed)
            after = [m for m in mixed if isinstance(m, Tensor) and not m.is_meta]
            assert equal(before, after)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("rule", [False, True])
def test_weighted_softmax_loss_is_its_parts(dtype: torch.dtype, soft: bool, rule: bool) -> None:
    """The losses, then follow_lam, then weigh, with class weights gathered in torch."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    target = torch.tensor([0, 1, 2, 1, -100, 0])
    if soft:
        target = torch.softmax(torch.randn(6, 3, dtype=wide), 1)
    arguments = weighted_loss_arguments(dtype, target=target)
    if not rule:
        arguments = weighted_loss_arguments(dtype, target=target, lam_rule=None)
    logits, _, *options = arguments[:9]
    mask, base, class_weight, lam_rule, lam, *state = copy.deepcopy(arguments[9:17])
    losses, _ = ABSGD.softmax_loss(logits, target, *options)
    if soft:
        base = base * (class_weight.double() * target.double()).sum(1).to(wide)
    else:
        base = base * class_weight[target.clamp(min=0)]
        mask = mask & (target != -100)
    if rule:
        ABSGD.follow_lam(losses, mask, base, lam_rule, lam)
    expected = ABSGD.weigh(losses, mask, base, None, None, lam, *state, *arguments[17:], 1.0)
    total, got_losses, weights_, grad = ABSGD.weighted_softmax_loss(*arguments)
    assert equal([losses, lam, *state], [got_losses, arguments[13], *arguments[14:17]])
    torch.testing.assert_close(weights_, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(total, (expected[1] * losses)[mask].sum(), rtol=1e-5, atol=0)
    x = logits.detach().to(wide).requires_grad_()
    (torch.nn.functional.cross_entropy(x, target, reduction="none") * expected[1]).sum().backward()
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-5)
    torch.testing.assert_close(grad.to(wide), x.grad, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weighing_moves_lam_first(dtype: torch.dtype) -> None:
    arguments = weigh_arguments(dtype, 500, lam_rule=LAM_RULE.clone(), **GUARDED)
    losses, mask, weight, rows, rule, lam, *rest = copy.deepcopy(arguments)
    ABSGD.follow_lam(losses, mask, weight, rule, lam)
    expected = ABSGD.weigh(losses, mask, weight, rows, None, lam, *rest)
    assert equal([ABSGD.weigh(*arguments), *arguments[5:9]], [expected, lam, *rest[:3]])
    assert lam != 0.5


def test_a_masked_loss_is_not_read_as_a_number() -> None:
    arguments = weighted_loss_arguments(base_weight=torch.tensor([1.0, 1, 1, NAN, NAN, 1]))
    arguments[0][3] = NAN
    total, *_ = ABSGD.weighted_softmax_loss(*arguments)
    assert total.isfinite()


def test_what_is_capped_is_told() -> None:
    arguments = weigh_arguments(mask=None, max_weight=1.0, bounded=True, log_s=scalar(NAN))
    out = ABSGD.weigh(*arguments)
    assert out[0].max() == 1.0
    last = arguments[8][0]
    assert last[-1] == (out[0] == 1).double().mean()
    acc = provisional_arguments(max_weight=1.0, log_s=scalar(NAN))
    out = ABSGD.weigh_provisionally(*acc)
    settled = settle_arguments(accumulation=acc[7], max_weight=1.0)
    ABSGD.settle(*settled)
    assert settled[5][0, -1] == (out[0] == 1).double().mean()


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
        (
            "weigh",
            lambda dtype: weigh_arguments(dtype, BIG, weight=weights(dtype, BIG), **GUARDED),
        ),
        ("sgd_step_", lambda dtype: step_arguments(dtype, BIG)),
        ("sgd_step_", lambda dtype: step_arguments(dtype, BIG, polyak=True)),
    ],
    ids=["weigh masked", "weigh", "weigh guarded", "torch", "polyak"],
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
calls += [lambda d=d: t.weigh_arguments(d, 1003, weight=t.weights(d, 1003)) for d in t.DTYPES]
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
