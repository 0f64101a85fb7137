"""meta.py in float64 against the definition: differences of the held-out loss, and by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from baselines import meta
from data.memory import Images
from data.subsets import class_counts, take_balanced

LR = 0.3


@pytest.fixture
def small():
    """(model, batch, held-out batch) in float64, with batch norm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 0, 1, 2, 0])
    held = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    return model, (x, y), held


def held_out_loss_after_a_step(model, batch, held, weights):
    """L_held-out(θ − α·(1/B) Σ w_i ∇L_i) by torch.autograd alone."""
    ahead = copy.deepcopy(model)
    losses = F.cross_entropy(ahead(batch[0]), batch[1], reduction="none")
    gradients = torch.autograd.grad((weights * losses).mean(), list(ahead.parameters()))
    with torch.no_grad():
        for p, g in zip(ahead.parameters(), gradients, strict=True):
            p.sub_(LR * g)
        return F.cross_entropy(ahead(held[0]), held[1])


@pytest.mark.parametrize("base", [None, [1.0, 1.0, 2.0, 0.5, 1.0]])
def test_look_ahead_is_the_derivative_by_each_weight(small, base):
    model, batch, held = small
    base = None if base is None else torch.tensor(base, dtype=torch.float64)
    gain = meta.look_ahead(model, batch, held, LR, base)
    at = torch.zeros(5, dtype=torch.float64) if base is None else base
    h = 1e-5
    for i, unit in enumerate(torch.eye(5, dtype=torch.float64)):
        higher, lower = (
            held_out_loss_after_a_step(model, batch, held, at + s * h * unit) for s in (1, -1)
        )
        assert gain[i].item() == pytest.approx(-(higher - lower).item() / (2 * h), abs=1e-8)
    assert gain.abs().max() > 1e-3


def test_look_ahead_from_zero_is_the_inner_product_of_gradients(small):
    """Ren et al. 2018, Equation 12 in words: samples whose gradient agrees with the held-out's."""
    model, (x, y), held = small
    model.eval()  # batch norm would mix the samples of a batch
    parameters = list(model.parameters())

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    of_held = gradient(F.cross_entropy(model(held[0]), held[1]))
    expected = [
        (LR / 5 * gradient(F.cross_entropy(model(x[i, None]), y[i, None])) @ of_held).item()
        for i in range(5)
    ]
    actual = meta.look_ahead(model, (x, y), held, LR)
    assert actual.tolist() == pytest.approx(expected, abs=1e-12)


def test_look_ahead_leaves_the_model_as_it_was(small):
    model, batch, held = small
    before = copy.deepcopy(model.state_dict())
    model.get_parameter("0.weight").requires_grad_(False)
    meta.look_ahead(model, batch, held, LR)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in model.parameters())


def test_weights_by_hand():
    gain = torch.tensor([0.2, -0.1, 0.0, 0.6])
    assert meta.learned_weights(gain).tolist() == pytest.approx([1.0, 0.0, 0.0, 3.0])
    assert meta.learned_weights(-gain.abs()).tolist() == [0.0] * 4
    base = torch.tensor([0.5, 0.5, 2.0, 2.0])
    expected = [0.7, 0.4, 2.0, 2.6]
    assert meta.adapted_weights(gain, base, 1.0).tolist() == pytest.approx(expected)


def test_weights_rise_for_the_minority():
    """A logistic model that has learned the majority: a balanced set asks for the minority."""
    generator = torch.Generator().manual_seed(0)

    def points(n_major, n_minor):
        y = torch.tensor([0] * n_major + [1] * n_minor)
        x = torch.randn(len(y), 2, generator=generator) + 1.5 * y[:, None]
        return x.double(), y

    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([2.0, -2.0]))  # says 0, whatever it sees
    batch, held = points(57, 7), points(10, 10)
    weights = meta.learned_weights(meta.look_ahead(model, batch, held, LR))
    assert weights[57:].mean() > 5 * weights[:57].mean()
    assert weights.mean().item() == pytest.approx(1)
    base = torch.ones(64, dtype=torch.float64)
    gain = meta.look_ahead(model, batch, held, LR, base)
    adapted = meta.adapted_weights(gain, base, 100.0)
    assert adapted[57:].mean() > 1 > adapted[:57].mean()


def test_a_balanced_split_is_taken_from_the_training_set():
    targets = torch.tensor([0] * 9 + [1] * 5 + [2] * 3)
    images = Images(torch.arange(17), targets, "abc")
    rest, held = take_balanced(images, 2, seed=0)
    assert class_counts(held) == [2, 2, 2] and class_counts(rest) == [7, 3, 1]
    assert sorted([*rest.images.tolist(), *held.images.tolist()]) == list(range(17))
    assert torch.equal(take_balanced(images, 2, seed=0)[1].images, held.images)
    with pytest.raises(ValueError, match=r"per_class: 3 \(must be in \[1, 2\]"):
        take_balanced(images, 3, seed=0)
