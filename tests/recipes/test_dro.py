"""dro.py in float64: presets against what they name, RECOVER against its recursion."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch_absgd as ta
from baselines import dro

D = torch.float64


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def make_batches(n=6, size=8):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 4, generator=generator, dtype=D),
            torch.randint(3, (size,), generator=generator),
        )
        for _ in range(n)
    ]


def per_sample(logits, y):
    return F.cross_entropy(logits, y, reduction="none")


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def gradient(scalar, model):
    return flat(torch.autograd.grad(scalar, list(model.parameters())))


def put(model, w):
    nn.utils.vector_to_parameters(w, model.parameters())


def train_absgd(options, lr=0.2):
    model = make_model()
    opt = ta.ABSGD(model.parameters(), lr=lr, **options)
    for x, y in make_batches():
        opt.weigh(per_sample(model(x), y)).backward()
        opt.step()
        opt.zero_grad()
    return flat(model.parameters()), opt


@pytest.mark.parametrize(("t", "rate"), [(2.0, 0.3), (-0.5, 0.9)])
def test_term_is_a_setting_of_absgd(t, rate):
    """TERM's stochastic algorithm: R̃ ← (1/t) log((1−ρ) e^{tR̃} + ρ mean e^{tL}), then the step
    w ← w − η (1/B) Σ e^{t(L_i − R̃)} ∇L_i."""
    model, tilted = make_model(), None
    for x, y in make_batches():
        losses = per_sample(model(x), y)
        average = torch.exp(t * losses.detach()).mean()
        if tilted is not None:
            average = (1 - rate) * math.exp(t * tilted) + rate * average
        tilted = math.log(average) / t
        weights = torch.exp(t * (losses.detach() - tilted))
        step = gradient((weights * losses).mean(), model)
        put(model, flat(model.parameters()) - 0.2 * step)
    w, opt = train_absgd({"lam": 1 / t, "gamma": rate, "momentum": 0.0})
    torch.testing.assert_close(w, flat(model.parameters()), rtol=1e-12, atol=1e-12)
    assert float(opt.lam * opt.log_s) == pytest.approx(tilted, rel=1e-12)


def test_exponentiated_weights_are_a_setting_of_absgd():
    """w_i = e^{−ηL_i}/Σ_batch e^{−ηL}: one multiplicative update from uniform weights."""
    eta, model = 1.5, make_model()
    velocity = torch.zeros_like(flat(model.parameters()))
    for x, y in make_batches():
        losses = per_sample(model(x), y)
        weights = torch.softmax(-eta * losses.detach(), 0)
        velocity = 0.9 * velocity + gradient((weights * losses).sum(), model)
        put(model, flat(model.parameters()) - 0.2 * velocity)
    w, opt = train_absgd({"lam": -1 / eta, "gamma": 1.0, "momentum": 0.9})
    torch.testing.assert_close(w, flat(model.parameters()), rtol=1e-12, atol=1e-12)
    assert opt.weights.sum().item() == pytest.approx(8)


def inner(model, w, x, y, lam):
    """g(w) = mean exp(L/λ) of the batch, and its gradient."""
    now = flat(model.parameters())
    put(model, w)
    g = torch.exp(per_sample(model(x), y) / lam).mean()
    dg = gradient(g, model)
    put(model, now)
    return g.item(), dg


@pytest.mark.parametrize("a", [0.2, 0.7, 1.0])
def test_recover_is_its_recursion(a):
    lam, lr, decay = 0.8, 0.1, 0.01
    model = make_model()
    w, last, u, v = flat(model.parameters()), None, None, None
    for x, y in make_batches():
        g, dg = inner(model, w, x, y, lam)
        if u is None:
            u, v = g, dg
        else:
            g_last, dg_last = inner(model, last, x, y, lam)
            u, v = g + (1 - a) * (u - g_last), dg + (1 - a) * (v - dg_last)
        last, w = w, w - lr * (lam * v / u + decay * w)
    model = make_model()
    recover = dro.Recover(model, lr, lam, a, decay)
    for x, y in make_batches():
        losses = recover.step(x, lambda logits, y=y: per_sample(logits, y))
        assert losses.shape == (8,) and not losses.requires_grad
    torch.testing.assert_close(flat(model.parameters()), w, rtol=1e-11, atol=1e-12)


def test_recover_with_a_1_is_absgd_with_gamma_1_without_momentum():
    model = make_model()
    recover = dro.Recover(model, lr=0.2, lam=0.5, a=1.0)
    for x, y in make_batches():
        recover.step(x, lambda logits, y=y: per_sample(logits, y))
    w, _ = train_absgd({"lam": 0.5, "gamma": 1.0})
    torch.testing.assert_close(flat(model.parameters()), w, rtol=1e-12, atol=1e-12)


def test_recover_restarts_and_does_not_overflow():
    """exp(L/λ) overflows float64 at L/λ = 710; here it reaches thousands."""
    model = make_model()
    recover = dro.Recover(model, lr=1e-3, lam=1e-3, a=0.5)
    for i, (x, y) in enumerate(make_batches()):
        if i == 3:
            recover.restart()
            assert recover.u is None
        recover.step(x, lambda logits, y=y: 10 * per_sample(logits, y))
        assert recover.u > 0 and flat(model.parameters()).isfinite().all()
    assert float(recover.c) > 710


def test_recover_reduces_the_variance_of_the_gradient():
    """At nearly fixed w its direction comes nearer to ∇F_λ than that of one batch."""
    lam, model = 1.0, make_model()
    batches = make_batches(200)
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    g, dg = inner(model, flat(model.parameters()), x, y, lam)
    exact = lam * dg / g
    errors = {}
    for a in (1.0, 0.05):
        put(model, flat(make_model().parameters()))
        recover = dro.Recover(model, lr=1e-9, lam=lam, a=a)
        squares = []
        for i, (x, y) in enumerate(batches):
            recover.step(x, lambda logits, y=y: per_sample(logits, y))
            if i >= 60:
                squares.append((lam * flat(recover.v) / recover.u - exact).square().sum().item())
        errors[a] = sum(squares) / len(squares)
    assert errors[0.05] < 0.2 * errors[1.0]


def test_recover_leaves_running_statistics_to_the_pass_at_w_t():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    recover = dro.Recover(model, 0.1, 1.0)
    for x, y in make_batches(3):
        recover.step(x, lambda logits, y=y: per_sample(logits, y))
    assert model[1].num_batches_tracked == 3


@pytest.mark.parametrize("options", [{"lam": -1.0}, {"lam": math.inf}, {"a": 0.0}, {"a": 1.5}])
def test_recover_refuses(options):
    with pytest.raises(ValueError, match="Invalid"):
        dro.Recover(make_model(), 0.1, **{"lam": 1.0, **options})


def test_recover_begins_anew_where_its_estimate_is_impossible():
    """g ≥ 1 for losses ≥ 0. A second batch whose losses at w_{t−1} are far above the first's would
    give u < 0."""
    model = nn.Linear(1, 1, bias=False).double()
    recover = dro.Recover(model, lr=0.5, lam=0.5, a=0.1)
    small, large = torch.tensor([[0.1]], dtype=D), torch.tensor([[6.0]], dtype=D)
    with torch.no_grad():
        model.weight.fill_(1.0)
    recover.step(small, lambda out: out[:, 0].square())
    w_1 = model.weight.item()
    with torch.no_grad():
        model.weight.fill_(0.9)  # the step has hardly moved; here the loss falls by much
    recover.step(large, lambda out: out[:, 0].square())
    assert w_1 != 0.9 and recover.u * torch.exp(recover.c) >= 1
    expected = 0.9 - 0.5 * 2 * 36 * 0.9  # a = 1: λ ∇g/g = ∇L
    assert model.weight.item() == pytest.approx(expected)
