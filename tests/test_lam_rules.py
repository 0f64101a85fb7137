"""λ that follows a target: the search against a plain one, invariances, its life in training."""

import copy
import io
import math
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import torch_absgd as ta

KINDS = {
    "ess": lambda fraction=0.6, **options: ta.EffectiveSampleSize(fraction, **options),
    "kl": lambda radius=0.5, **options: ta.KLRadius(radius, **options),
}


def selectivity(kind: str, losses: torch.Tensor, lam: float) -> float:
    """The quantity that the rule targets, written from its definition."""
    q = (losses.double() / lam).softmax(0)
    if kind == "ess":
        return float(1 / (q.square().sum() * len(q)))
    return float((q * (q * len(q)).log().nan_to_num(neginf=0.0)).sum())


def reference_lam(kind: str, losses: torch.Tensor, target: float, sign: float) -> float:
    """|λ*| by 200 bisections of log |λ|, with the sign."""
    spread = float(losses.max() - losses.min())
    low, high = math.log(spread * 1e-12), math.log(spread * 1e6)
    for _ in range(200):
        middle = (low + high) / 2
        value = selectivity(kind, losses, sign * math.exp(middle))
        is_too_selective = value < target if kind == "ess" else value > target
        low, high = (middle, high) if is_too_selective else (low, middle)
    return sign * math.exp(low)


def found_lam(rule: ta.EffectiveSampleSize | ta.KLRadius, losses: torch.Tensor) -> float:
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=rule)
    opt.weigh(losses)
    return float(opt.lam)


def batches() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    u = torch.rand(512, generator=g, dtype=torch.float64)
    outlier = u.clone()
    outlier[0] = 1e6
    return {
        "uniform": u,
        "exponential": -u.log(),
        "heavy-tailed": u**-3,
        "few values": (u * 5).floor(),
        "one outlier": outlier,
        "two samples": torch.tensor([1.0, 2.0], dtype=torch.float64),
        "most tied": (torch.arange(512) < 5).double(),
    }


@pytest.mark.parametrize("name", batches())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_finds_the_root_that_bisection_finds(kind: str, name: str, sign: float) -> None:
    losses = batches()[name]
    target = 0.6
    q_extreme = (losses == (losses.max() if sign > 0 else losses.min())).double().mean()
    reachable = float(q_extreme) if kind == "ess" else -math.log(float(q_extreme))
    has_answer = reachable < target if kind == "ess" else reachable > target
    lam = found_lam(KINDS[kind](target, noisy=sign < 0), losses)
    if not has_answer:
        assert lam == sign * math.inf  # left as it was: plain SGD
        return
    assert lam == pytest.approx(reference_lam(kind, losses, target, sign), rel=1e-9)
    assert selectivity(kind, losses, lam) == pytest.approx(target, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_more_selective_target_gives_a_smaller_lam(kind: str) -> None:
    losses = batches()["exponential"]
    targets = [0.1, 0.2, 0.4, 0.6, 0.8, 0.95]
    lams = [found_lam(KINDS[kind](t), losses) for t in targets]
    assert lams == sorted(lams, reverse=kind == "kl")
    assert len(set(lams)) == len(lams)


@pytest.mark.parametrize(
    "losses",
    [
        torch.ones(8),
        torch.ones(1),
        torch.tensor([1.0, math.nan]),
        torch.tensor([1.0, math.inf]),
        torch.empty(0),
        torch.tensor([0.0, 0.0, 0.0, 1.0]).bfloat16() * 0,
    ],
    ids=["all equal", "one sample", "nan", "inf", "empty", "all zero"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_an_answer_leaves_lam(kind: str, losses: torch.Tensor) -> None:
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=KINDS[kind](0.6, rate=1.0))
    opt.weigh(batches()["uniform"])
    before = opt.lam.clone()
    assert torch.isfinite(before)
    opt.weigh(losses)
    assert torch.equal(opt.lam, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_agree_with_float64_of_the_same_numbers(dtype: torch.dtype) -> None:
    losses = batches()["exponential"].to(dtype)
    expected = found_lam(ta.EffectiveSampleSize(0.6), losses.double())
    assert found_lam(ta.EffectiveSampleSize(0.6), losses) == pytest.approx(expected, rel=1e-12)


def test_masked_losses_do_not_take_part() -> None:
    losses = batches()["exponential"]
    mask = torch.arange(len(losses)) % 3 != 0
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=ta.EffectiveSampleSize(0.6))
    opt.weigh(losses.masked_fill(~mask, math.nan), mask)
    expected = found_lam(ta.EffectiveSampleSize(0.6), losses[mask])
    assert float(opt.lam) == pytest.approx(expected, rel=1e-12)


def trajectory(
    rule: ta.EffectiveSampleSize | ta.KLRadius, factor: float = 1.0, shift: float = 0.0
) -> tuple[list[float], list[torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=rule)
    lams, weights = [], []
    for _ in range(8):
        losses = -torch.rand(64, generator=g, dtype=torch.float64).log()
        opt.weigh(losses * factor + shift)
        lams.append(float(opt.lam))
        weights.append(opt.weights)
    return lams, weights


@pytest.mark.parametrize("factor", [1e-3, 1e-1, 10.0, 1e3])
@pytest.mark.parametrize("kind", KINDS)
def test_is_scale_free(kind: str, factor: float) -> None:
    lams, weights = trajectory(KINDS[kind]())
    scaled_lams, scaled_weights = trajectory(KINDS[kind](), factor=factor)
    assert scaled_lams == pytest.approx([lam * factor for lam in lams], rel=1e-12)
    torch.testing.assert_close(scaled_weights, weights, rtol=1e-11, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_added_to_all_losses_changes_nothing(kind: str) -> None:
    lams, weights = trajectory(KINDS[kind]())
    shifted_lams, shifted_weights = trajectory(KINDS[kind](), shift=3.0)
    assert shifted_lams == pytest.approx(lams, rel=1e-12)
    torch.testing.assert_close(shifted_weights, weights, rtol=1e-11, atol=0)


def test_log_lam_is_an_exponential_average_within_bounds() -> None:
    g = torch.Generator().manual_seed(2)
    rule = ta.EffectiveSampleSize(0.5, rate=0.25)
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=rule)
    expected = math.nan
    for _ in range(6):
        losses = -torch.rand(64, generator=g, dtype=torch.float64).log()
        own = math.log(reference_lam("ess", losses, 0.5, 1.0))
        expected = own if math.isnan(expected) else expected + 0.25 * (own - expected)
        opt.weigh(losses)
        assert math.log(float(opt.lam)) == pytest.approx(expected, rel=1e-9)
    bounded = ta.EffectiveSampleSize(0.9999, high=2.0)
    before = found_lam(ta.EffectiveSampleSize(0.9999), losses)
    spread = float(losses.max() - losses.min())
    assert before > 2 * spread  # so that the bound below binds
    assert found_lam(bounded, losses) == pytest.approx(2 * spread, rel=1e-9)


def test_log_s_carries_over_and_a_number_ends_the_search() -> None:
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=ta.EffectiveSampleSize(0.6), gamma=0.5)
    first, second = batches()["uniform"], batches()["exponential"]
    opt.weigh(first)
    lam, log_s = float(opt.lam), float(opt.log_s)
    opt.weigh(second)
    ell = float((second / opt.lam).logsumexp(0)) - math.log(len(second))
    carried = log_s * lam / float(opt.lam)
    averaged = math.log(0.5 * math.exp(carried) + 0.5 * math.exp(ell))
    assert float(opt.log_s) == pytest.approx(min(averaged, ell - math.log(0.5)), rel=1e-12)
    opt.lam = 2.0
    opt.weigh(first)
    assert float(opt.lam) == 2.0
    opt.restart(lam=ta.EffectiveSampleSize(0.6, noisy=True))
    assert float(opt.lam) == -math.inf
    opt.weigh(first)
    assert float(opt.lam) == pytest.approx(reference_lam("ess", first, 0.6, -1.0), rel=1e-9)


def train(opt: ta.ABSGD, model: nn.Module, batches_: range) -> None:
    for i in batches_:
        g = torch.Generator().manual_seed(i)
        x, y = torch.randn(16, 4, generator=g), torch.randint(3, (16,), generator=g)
        opt.weigh(nn.functional.cross_entropy(model(x), y, reduction="none")).backward()
        opt.step()
        opt.zero_grad()


@pytest.mark.parametrize("before_first", [True, False])
def test_resumes_bit_for_bit(before_first: bool) -> None:
    def new() -> tuple[nn.Module, ta.ABSGD]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        return model, ta.ABSGD(
            model.parameters(), lr=0.1, momentum=0.9, lam=ta.EffectiveSampleSize(0.6)
        )

    split = 0 if before_first else 5
    straight_model, straight = new()
    train(straight, straight_model, range(10))
    model, opt = new()
    train(opt, model, range(split))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(1)
    resumed_model = nn.Linear(4, 3)
    resumed = ta.ABSGD(resumed_model.parameters(), lr=0.5)  # λ and its rule come with the state
    resumed_model.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    train(resumed, resumed_model, range(split, 10))
    assert torch.equal(resumed.lam, straight.lam)
    assert torch.equal(resumed.log_s, straight.log_s)
    for a, b in zip(resumed_model.parameters(), straight_model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_attentional_loss_keeps_its_rule_in_its_state_dict() -> None:
    losses = batches()["exponential"]
    criterion = ta.AttentionalLoss(lambda x, _: x, lam=ta.EffectiveSampleSize(0.6))
    criterion(losses, None)
    other = ta.AttentionalLoss(lambda x, _: x)
    other.load_state_dict(criterion.state_dict())
    copied = copy.deepcopy(criterion)
    half = copy.deepcopy(criterion).half()
    for module in (criterion, other, copied, half):
        module(losses.flip(0) ** 2, None)
    assert not torch.equal(criterion.lam, torch.tensor(math.inf))
    for module in (other, copied, half):
        assert torch.equal(module.lam, criterion.lam)


def test_one_lam_for_all_micro_batches() -> None:
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=ta.EffectiveSampleSize(0.6, rate=1.0))
    lams = []
    for losses in (batches()["uniform"], batches()["exponential"]):
        with opt.accumulate():
            opt.weigh(losses)
        lams.append(float(opt.lam))
    opt.step()
    assert (
        lams[0]
        == lams[1]
        == pytest.approx(found_lam(ta.EffectiveSampleSize(0.6), batches()["uniform"]))
    )


def test_compiles_without_recompilation() -> None:
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=ta.EffectiveSampleSize(0.6))
    eager = copy.deepcopy(opt)
    counter = CompileCounter()
    compiled = torch.compile(opt.weigh, fullgraph=True, backend=counter)
    for i in range(4):
        losses = batches()["exponential"].roll(i) ** (1 + i / 4)
        torch.testing.assert_close(compiled(losses), eager.weigh(losses))
        torch.testing.assert_close(opt.lam, eager.lam)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ta.EffectiveSampleSize(0.0),
            ValueError,
            r"Invalid fraction value: 0.0 .*\(0, 1\)",
        ),
        (
            lambda: ta.EffectiveSampleSize(1.0),
            ValueError,
            r"Invalid fraction value: 1.0 .*\(0, 1\)",
        ),
        (lambda: ta.EffectiveSampleSize(math.nan), ValueError, "Invalid fraction value: nan"),
        (lambda: ta.EffectiveSampleSize("half"), TypeError, "fraction must be a number"),
        (lambda: ta.KLRadius(0.0), ValueError, "Invalid radius value: 0.0 .*> 0"),
        (lambda: ta.KLRadius(math.inf), ValueError, "Invalid radius value: inf"),
        (
            lambda: ta.EffectiveSampleSize(0.5, rate=0.0),
            ValueError,
            r"Invalid rate value.*\(0, 1\]",
        ),
        (lambda: ta.EffectiveSampleSize(0.5, rate=2.0), ValueError, "Invalid rate value: 2.0"),
        (lambda: ta.EffectiveSampleSize(0.5, low=0.0), ValueError, "Invalid low value: 0.0 .*> 0"),
        (lambda: ta.EffectiveSampleSize(0.5, low=2, high=1), ValueError, "Invalid high value: 1"),
    ],
)
def test_bad_input(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "op, arguments",
    [
        ("follow_lam", ("losses", None, None, "rule", "lam")),
        ("lam_sums", ("losses", None, None, "rule", "search")),
        ("lam_round", ("rule", "row", "search")),
        ("lam_update", ("rule", "search", "lam")),
    ],
)
def test_opcheck(op: str, arguments: tuple[str | None, ...]) -> None:
    tensors = {
        "losses": batches()["uniform"],
        "rule": ta.EffectiveSampleSize(0.6).to_tensor(torch.device("cpu")),
        "lam": torch.tensor(1.0, dtype=torch.float64),
        "search": torch.zeros(9, dtype=torch.float64),
    }
    tensors["row"] = torch.ops.absgd.lam_sums(
        tensors["losses"], None, None, tensors["rule"], tensors["search"]
    )
    values = tuple(None if name is None else tensors[name] for name in arguments)
    torch.library.opcheck(getattr(torch.ops.absgd, op).default, values)


@pytest.mark.parametrize("spread", [1e-3, 0.02, 0.5, 3.0, 40.0])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_a_target_that_only_one_sample_could_meet_is_no_answer(n: int, spread: float) -> None:
    """1/n of a batch is effective at no λ > 0, however small: λ must not go there."""
    opt = ta.ABSGD([torch.zeros(1, requires_grad=True)], lam=ta.EffectiveSampleSize(1 / n))
    losses = torch.linspace(0.1, 0.1 + spread, n, dtype=torch.float64).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that the target is out of reach
        opt.weigh(losses)
    assert opt.lam == math.inf
    assert torch.equal(opt.weights, torch.ones(n, dtype=torch.float64))
