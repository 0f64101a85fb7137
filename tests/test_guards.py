"""The cap, the kept loss and the base measure: against Algorithm 1 in plain float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from reference import Algorithm1
from torch_absgd import (
    ABSGD,
    AttentionalLoss,
    EffectiveSampleSize,
    KLRadius,
    PerSampleBCE,
    PerSampleCrossEntropy,
)
from torch_absgd.attentional_loss import gathered

LAMS = [0.05, 1.0, -0.5, math.inf]
GUARDS = [
    {},
    {"max_weight": 1.0},
    {"max_weight": 2.5},
    {"keep_loss": True},
    {"keep_loss": True, "max_weight": 1.5},
]


def make(**rule: object) -> ABSGD:
    return ABSGD([torch.zeros(1, requires_grad=True)], **rule)


def reference(**rule: object) -> Algorithm1:
    return Algorithm1(torch.zeros(1), lr=0.1, **rule)


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Losses that jump in scale, and weights of which some are 0."""
    random = torch.Generator().manual_seed(3)
    out = []
    for i in range(count):
        n = 3 + 4 * i
        losses = torch.rand(n, generator=random, dtype=torch.float64) * 3 ** (i % 3)
        weight = torch.rand(n, generator=random, dtype=torch.float64) * 5
        weight[::4] = 0
        out.append((losses, weight))
    return out


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("guards", GUARDS, ids=str)
@pytest.mark.parametrize("lam", LAMS)
def test_agrees_with_the_reference(
    lam: float, guards: dict[str, object], gamma: float, weighted: bool
) -> None:
    opt, plain = make(lam=lam, gamma=gamma, **guards), reference(lam=lam, gamma=gamma, **guards)
    for losses, weight in batches():
        x = losses.clone().requires_grad_()
        total = opt.weigh(x, weight=weight if weighted else None)
        total.backward()
        w = weight if weighted else torch.ones_like(weight)
        expected = plain.weigh(losses.tolist(), w.tolist())
        assert total.item() == pytest.approx(expected, rel=1e-12)
        assert opt.log_s.item() == pytest.approx(plain.log_s, rel=1e-12, nan_ok=True)
        assert opt.weights.tolist() == pytest.approx(plain.weights, rel=1e-12)
        grad = w * torch.tensor(plain.weights, dtype=torch.float64) / len(w)
        torch.testing.assert_close(x.grad, grad, rtol=1e-12, atol=0)
        last = opt.stats().last
        assert last.kappa == pytest.approx(plain.kappa, rel=1e-12)
        mean = (w * losses).sum().item() / len(w)
        assert last.mean_loss == pytest.approx(mean, rel=1e-12)
        p = torch.tensor(plain.p, dtype=torch.float64)
        effective = len(w) * (w * p).sum() ** 2 / (w.sum() * (w * p * p).sum())
        assert last.effective_samples == pytest.approx(effective.item(), rel=1e-12)
        capped = sum(plain.kappa * v > plain.max_weight for v in plain.p) / len(w)
        assert last.capped == (0 if math.isinf(lam) else pytest.approx(capped))


@pytest.mark.parametrize("lam", [0.05, 0.5, 5.0])
def test_a_kept_loss_is_the_plain_mean(lam: float) -> None:
    """Where losses are ≥ 0 and κ < 1."""
    opt = make(lam=lam, gamma=1.0, keep_loss=True)
    for losses, weight in batches():
        assert opt.weigh(losses).item() == pytest.approx(losses.mean().item(), rel=1e-12)
        assert opt.stats().last.kappa < 1
        kept = opt.weigh(losses, weight=weight)
        expected = (weight * losses).sum() / len(losses)
        assert kept.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_guards_do_nothing_for_negative_lam_and_infinity() -> None:
    for lam in (-1.0, math.inf):
        kept, plain = make(lam=lam, gamma=1.0, keep_loss=True), make(lam=lam, gamma=1.0)
        for losses, _ in batches():
            assert kept.weigh(losses).item() == pytest.approx(plain.weigh(losses).item(), rel=1e-14)


@pytest.mark.parametrize("guards", [{"max_weight": 3.0}, {"keep_loss": True}], ids=str)
def test_an_outlier_does_not_silence_the_batches_after_it(guards: dict[str, object]) -> None:
    quiet = torch.linspace(0.1, 1.0, 16, dtype=torch.float64)
    outlier = quiet.clone()
    outlier[0] = 50.0
    guarded, letter = make(lam=1.0, **guards), make(lam=1.0)
    for opt in (guarded, letter):
        opt.weigh(quiet)
        opt.weigh(outlier)
        opt.weigh(quiet)
    assert letter.weights.sum() < 1e-10  # Algorithm 1 to the letter
    assert guarded.weights.mean() > 0.5


def test_an_outlier_under_a_rule_that_averages() -> None:
    opt = make(lam=EffectiveSampleSize(0.5, rate=0.2), gamma=0.5)
    quiet = torch.linspace(0.1, 1.0, 16, dtype=torch.float64)
    for losses in (quiet, quiet * 50, quiet, quiet):
        opt.weigh(losses)
    assert opt.weights.mean() > 0.4


def test_a_weight_of_zero_counts_and_is_silent() -> None:
    losses = torch.tensor([1.0, 2.0, 1e6], dtype=torch.float64)
    weight = torch.tensor([1.0, 3.0, 0.0])
    for lam in (0.5, -0.5):
        opt, without = make(lam=lam), make(lam=lam)
        total = opt.weigh(losses, weight=weight)
        other = without.weigh(losses[:2], weight=weight[:2])
        assert total.item() == pytest.approx(other.item() * 2 / 3, rel=1e-12)
        assert opt.log_s.item() == without.log_s.item()
        assert opt.weights[2] == 0 and opt.stats().last.count == 3


@pytest.mark.parametrize("guards", GUARDS, ids=str)
@pytest.mark.parametrize("fresh", [True, False])
def test_no_weight_at_all_changes_nothing(fresh: bool, guards: dict[str, object]) -> None:
    opt = make(lam=1.0, **guards)
    if fresh:
        losses = torch.rand(5, requires_grad=True)
        total = opt.weigh(losses, weight=torch.zeros(5))
        total.backward()
        assert total == 0 and torch.equal(losses.grad, torch.zeros(5)) and opt.log_s.isnan()
        return
    opt.weigh(torch.ones(3))
    before = opt.log_s.item()
    losses = torch.ones(2, requires_grad=True)
    total = opt.weigh(losses, weight=torch.zeros(2))
    total.backward()
    assert total == 0 and torch.equal(losses.grad, torch.zeros(2))
    assert opt.log_s.item() == before and opt.stats().last.count == 3


def test_a_non_finite_loss_of_weight_zero_is_a_bad_batch() -> None:
    opt = make(lam=1.0)
    opt.weigh(torch.ones(3))
    before = opt.log_s.item()
    losses = torch.tensor([1.0, math.inf, 2.0])
    assert not opt.weigh(losses, weight=torch.tensor([1.0, 0.0, 1.0])).isfinite()
    assert opt.log_s.item() == before


def test_masked_weights_are_not_read() -> None:
    opt = make(lam=1.0)
    mask = torch.tensor([True, False, True])
    total = opt.weigh(torch.ones(3), mask, torch.tensor([1.0, math.nan, 2.0]))
    assert total.item() == pytest.approx(1.5)


@pytest.mark.parametrize("weighted", [False, True])
def test_evaluation_is_the_weighted_mean(weighted: bool) -> None:
    opt = make(lam=0.1, keep_loss=True)
    losses, weight = batches()[2]
    with torch.no_grad():
        total = opt.weigh(losses, weight=weight if weighted else None)
        mask = losses > 0.5
        masked = opt.weigh(losses, mask, weight)
    expected = (weight * losses).sum() / len(losses) if weighted else losses.mean()
    assert total.item() == pytest.approx(expected.item(), rel=1e-12) and opt.weights is None
    assert masked.item() == pytest.approx(((weight * losses)[mask].sum() / mask.sum()).item())


@pytest.mark.parametrize("rule", [EffectiveSampleSize(0.6), KLRadius(0.2)], ids=str)
def test_rules_measure_against_the_base_measure(rule: object) -> None:
    """Integer weights are repetitions; a common factor changes nothing; nor do scale and shift."""
    losses = torch.tensor([0.1, 0.7, 2.0, 1.1, 0.4, 3.0], dtype=torch.float64)
    repeats = torch.tensor([1, 3, 2, 0, 4, 1])
    once = make(lam=rule)
    once.weigh(losses.repeat_interleave(repeats))
    for factor, shift in itertools.product((1.0, 7.0), (0.0, 5.0)):
        opt = make(lam=rule)
        opt.weigh(factor * losses + shift, weight=factor * repeats.double())
        assert opt.lam.item() == pytest.approx(factor * once.lam.item(), rel=1e-9)
        p = opt.weights[repeats > 0] * repeats[repeats > 0]
        expected = once.weights.split([r for r in repeats.tolist() if r])
        assert p.tolist() == pytest.approx([e.sum().item() for e in expected], rel=1e-9)


@pytest.mark.parametrize("rule", [EffectiveSampleSize(0.5), KLRadius(0.3)], ids=str)
@pytest.mark.parametrize("noisy", [False, True])
def test_a_rule_without_an_answer_is_plain_sgd(rule: object, noisy: bool) -> None:
    rule = type(rule)(rule.target, noisy=noisy)
    opt = make(lam=rule)
    sign = -1 if noisy else 1
    ties, one = torch.full((8,), math.log(10)), torch.tensor([2.0])
    masked = torch.tensor([True] + [False] * 7)
    for losses, mask in ((one, None), (ties, None), (torch.arange(8.0), masked), (ties[:0], None)):
        opt.weigh(losses, mask)
        assert opt.lam.item() == sign * math.inf and opt.log_s.isnan()
    assert opt.weigh(ties).item() == pytest.approx(ties.mean().item(), rel=1e-6)
    opt.weigh(torch.arange(8.0))
    found = opt.lam.item()
    assert math.isfinite(found) and found * sign > 0
    opt.weigh(ties)  # again without an answer: λ stays, and equal losses have equal weights
    assert opt.lam.item() == found and opt.weights.std() < 1e-6


def test_a_head_that_starts_at_zero_trains() -> None:
    """torchvision's ViT has one: all losses of the first batch are log C."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    opt = ABSGD(model.parameters(), lr=0.1, lam=EffectiveSampleSize(0.8))
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    for _ in range(5):
        opt.weigh(nn.functional.cross_entropy(model(x), y, reduction="none")).backward()
        opt.step()
        opt.zero_grad()
    assert all(p.isfinite().all() for p in model.parameters())
    assert opt.lam.isfinite()


def test_a_rule_under_accumulation_of_sizes_1_16_16() -> None:
    opt = make(lam=EffectiveSampleSize(0.5))
    p = opt.param_groups[0]["params"][0]
    for sizes in ((1, 16, 16), (16, 16, 1)):
        for n in sizes:
            with opt.accumulate():
                opt.weigh(torch.linspace(0.1, 3, n) + p).backward()
        opt.step()
        assert p.grad.isfinite().all() and p.isfinite().all()
        opt.zero_grad()


def test_gamma_none_is_resolved_whenever_lam_is_set() -> None:
    opt = make(lam=1.0)
    rule = opt.weigher.state
    assert rule.constants()[0] == 0.9
    opt.lam = EffectiveSampleSize(0.5)
    assert rule.constants()[0] == 1.0
    opt.lam = 2.0
    assert rule.constants()[0] == 0.9
    assert make(lam=EffectiveSampleSize(0.5), gamma=0.3).weigher.state.constants()[0] == 0.3


def logistic(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.softplus(-y * (x @ w))


def test_the_optimum_under_a_base_measure() -> None:
    """Full batches at γ = 1 descend on F_λ(w) = λ log Σ w_i exp(L_i/λ)/Σ w_i: to the optimum that
    L-BFGS finds."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=random, dtype=torch.float64)
    y = torch.sign(torch.randn(40, generator=random, dtype=torch.float64))
    weight = 4 * torch.rand(40, generator=random, dtype=torch.float64)
    lam = 0.3

    def objective(w: Tensor) -> Tensor:
        z = logistic(w, x, y) / lam + (weight / weight.sum()).log()
        return lam * z.logsumexp(0) + 0.05 * w.square().sum()

    best = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    lbfgs = torch.optim.LBFGS(
        [best], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        lbfgs.zero_grad()
        value = objective(best)
        value.backward()
        return value

    lbfgs.step(closure)
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    opt = ABSGD([w], lr=0.3, lam=lam, gamma=1.0)
    for _ in range(2500):
        opt.zero_grad()
        total = opt.weigh(logistic(w, x, y), weight=weight)
        (total * len(x) / weight.sum() + 0.05 * w.square().sum()).backward()
        opt.step()
    torch.testing.assert_close(w.detach(), best.detach(), rtol=1e-4, atol=1e-7)


COUNTS = torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)


def classified(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(12, 3, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    target = torch.randint(3, (12,), generator=random)
    target[5] = -100
    return logits, target


@pytest.mark.parametrize(
    "lam", [0.4, EffectiveSampleSize(0.7), EffectiveSampleSize(0.9, noisy=True)]
)
@pytest.mark.parametrize("guards", GUARDS, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["", "mask and weight"])
def test_class_weights_in_one_operator_and_apart(lam: object, guards: dict, given: bool) -> None:
    """Our loss, torch's, and `weigh` on gathered weights: one result."""
    logits, target = classified()
    mask = torch.arange(12) % 5 != 0 if given else None
    weight = torch.linspace(0, 2, 12, dtype=torch.float64) if given else None
    results = []
    for base in (PerSampleCrossEntropy(), nn.CrossEntropyLoss(reduction="none")):
        criterion = AttentionalLoss(base, lam, class_weight=COUNTS, **guards)
        logits.grad = None
        total = criterion(logits, target, mask, weight)
        total.backward()
        results.append(
            [total.detach(), logits.grad, criterion.weights, criterion.log_s, criterion.lam]
        )
    opt = make(lam=lam, **guards)
    logits.grad = None
    counts = target != -100
    gathered = COUNTS[target.clamp(min=0)]
    losses = nn.functional.cross_entropy(logits, target, reduction="none")
    total = opt.weigh(
        losses,
        counts if mask is None else counts & mask,
        gathered if weight is None else gathered * weight,
    )
    total.backward()
    results.append([total.detach(), logits.grad, opt.weights, opt.log_s, opt.lam])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_class_weights_of_soft_targets() -> None:
    logits, _ = classified()
    soft = torch.rand(12, 3, dtype=torch.float64).softmax(1)
    criteria = [
        AttentionalLoss(base, 0.5, class_weight=COUNTS)
        for base in (PerSampleCrossEntropy(), nn.CrossEntropyLoss(reduction="none"))
    ]
    ours, theirs = (criterion(logits, soft) for criterion in criteria)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    opt = make(lam=0.5)
    losses = nn.functional.cross_entropy(logits, soft, reduction="none")
    torch.testing.assert_close(ours, opt.weigh(losses, weight=soft @ COUNTS), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(3,), (12, 3), (4, 3, 5)])
def test_class_weights_of_soft_targets_under_autocast(shape: tuple[int, ...]) -> None:
    weights = torch.tensor([1.0, 1.0, 70000.0])  # more than float16 holds
    soft = torch.rand(shape).softmax(min(len(shape) - 1, 1))
    losses = soft.sum(min(len(shape) - 1, 1))
    want = torch.tensordot(soft, weights, dims=([min(len(shape) - 1, 1)], [0]))
    with torch.autocast("cpu", torch.float16):
        torch.testing.assert_close(gathered(weights, soft, losses, None), want)


def test_class_weights_are_of_one_class_a_sample() -> None:
    several = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    criterion = AttentionalLoss(PerSampleBCE(), class_weight=torch.ones(3))
    for rows, total in ((slice(0, 1), "2"), (slice(1, 2), "0")):
        with pytest.raises(ValueError, match=f"sum to 1, got a sum of {total}. Several labels"):
            criterion(torch.zeros(1, 3), several[rows])
    mask = torch.tensor([False, False, True])
    assert criterion(torch.zeros(3, 3), several, mask).isfinite()


def test_class_weights_of_small_integers() -> None:
    logits, target = torch.randn(3, 3), torch.ones(3, dtype=torch.int64)
    criterion = AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), class_weight=COUNTS)
    assert criterion(logits, target.byte()) == criterion(logits, target)


def test_guards_are_saved_and_loaded() -> None:
    opt = make(lam=0.5, max_weight=2.0, keep_loss=True)
    opt.weigh(torch.rand(5))
    other = make(lam=3.0)
    other.load_state_dict(opt.state_dict())
    assert other.weigher.state.constants() == pytest.approx(
        opt.weigher.state.constants(), nan_ok=True
    )
    criterion = AttentionalLoss(nn.Identity(), 0.5, 0.3, 0.7, max_weight=2.0, keep_loss=True)
    fresh = AttentionalLoss(nn.Identity())
    fresh.load_state_dict(criterion.state_dict())
    assert fresh.weigher.state.constants() == criterion.weigher.state.constants()
