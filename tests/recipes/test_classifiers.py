"""classifiers.py against its formulas, by hand and in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
import torch_absgd as ta
from baselines import classifiers


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.build("resnet8", 4).double()


def train_a_step(model, parameters, lr=0.1):
    x, y = torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 4
    opt = ta.ABSGD(parameters, lr=lr)
    opt.weigh(F.cross_entropy(model(x), y, reduction="none")).backward()
    opt.step()
    return x


def test_crt_trains_a_new_classifier_on_frozen_features(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = classifiers.retrain_classifier(model)
    assert parameters == [model.fc.weight, model.fc.bias]
    assert not torch.equal(model.fc.weight, before["fc.weight"])
    begun = model.fc.weight.clone()
    model.train()
    train_a_step(model, parameters)
    assert not torch.equal(model.fc.weight, begun)
    for name, value in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, before[name]), name


def test_lws_learns_one_scale_a_class(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    model.eval()
    plain = model(x)
    parameters = classifiers.learn_scales(model, 4)
    assert [p.shape for p in parameters] == [(4,)]
    torch.testing.assert_close(model(x), plain)  # f = 1 changes nothing
    model.train()
    train_a_step(model, parameters)
    scale = model.fc.scale.detach()
    assert (scale != 1).all()
    assert torch.equal(model.fc.fc.weight, before["fc.weight"])
    model.eval()
    torch.testing.assert_close(model(x), scale * plain)


def test_tau_normalisation_by_hand():
    fc = nn.Linear(2, 3)
    with torch.no_grad():
        fc.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]))
    classifiers.normalise(fc, 1.0)
    expected = [[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]]
    torch.testing.assert_close(fc.weight, torch.tensor(expected))
    assert torch.equal(fc.bias, torch.zeros(3))
    with torch.no_grad():
        fc.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 4.0], [1.0, 0.0]]))
    classifiers.normalise(fc, 0.5)
    expected = [[3 / 5**0.5, 4 / 5**0.5], [0.0, 2.0], [1.0, 0.0]]
    torch.testing.assert_close(fc.weight, torch.tensor(expected))


def test_nearest_class_mean_by_hand():
    features = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    ncm = classifiers.NearestClassMean(features, torch.tensor([0, 0, 1, 2]), 3)
    torch.testing.assert_close(ncm.means, torch.tensor([[3.0, 0.0], [0.0, 1.0], [3.0, 4.0]]))
    similarity = ncm(torch.tensor([[5.0, 0.0], [0.3, 0.4]]))
    torch.testing.assert_close(similarity, torch.tensor([[1.0, 0.0, 0.6], [0.6, 0.8, 1.0]]))


def test_a_class_without_samples_is_never_predicted():
    counts = [70, 0, 10, 0]
    adjusted = classifiers.adjust_logits(torch.zeros(1, 4), torch.tensor(counts), 1.0)
    ncm = classifiers.NearestClassMean(torch.eye(3)[:2], torch.tensor([0, 2]), 4)
    for logits in (adjusted, ncm(torch.ones(1, 3))):
        assert logits.isinf().tolist() == [[False, True, False, True]]
        assert logits.argmax() in (0, 2) and not logits.isnan().any()


def test_post_hoc_adjustment_by_hand():
    """log π = log(0.7, 0.2, 0.1) is taken from the logits, τ times."""
    logits, counts = torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([70, 20, 10])
    expected = [[1.0 - 2 * -0.3566749, 0.5 - 2 * -1.6094379, 0.0 - 2 * -2.3025851]]
    adjusted = classifiers.adjust_logits(logits, counts, 2.0)
    torch.testing.assert_close(adjusted, torch.tensor(expected))
    assert adjusted.argmax() == 2 and adjusted.dtype is torch.float32
    module = classifiers.AdjustedClassifier(nn.Identity(), [70, 20, 10], 2.0)
    assert torch.equal(module(logits), adjusted)


def test_the_loss_is_the_adjustments_other_half():
    """Menon et al. 2021: the loss trains f + τ·log π to fit; post hoc takes τ·log π from what
    fits. A network trained with the loss and then shifted back is the plain one."""
    counts, tau = torch.tensor([70, 20, 10]), 1.5
    logits, y = torch.randn(16, 3, dtype=torch.float64), torch.arange(16) % 3
    plain = F.cross_entropy(logits, y, reduction="none")
    adjusted = classifiers.adjust_logits(logits, counts, tau)
    loss = ta.PerSampleLogitAdjusted(counts, tau)(adjusted, y)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)


def test_balanced_softmax_is_logit_adjustment_with_tau_1():
    """Ren et al. 2020, Equation 3: −log(n_y e^{f_y} / Σ n_c e^{f_c})."""
    counts = torch.tensor([70.0, 20.0, 10.0], dtype=torch.float64)
    logits, y = torch.randn(16, 3, dtype=torch.float64), torch.arange(16) % 3
    weighted = counts * logits.exp()
    expected = -(weighted.gather(1, y[:, None])[:, 0] / weighted.sum(1)).log()
    actual = ta.PerSampleLogitAdjusted(counts, tau=1.0)(logits, y)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_logit_adjustment_combined_with_absgd():
    """The weights are of the adjusted losses: p_i = exp(L_i/λ)/s."""
    counts, lam = [70, 20, 10], 0.7
    logits = torch.randn(16, 3, dtype=torch.float64, requires_grad=True)
    y = torch.arange(16) % 3
    opt = ta.ABSGD([logits], lr=0.1, lam=lam)
    losses = ta.PerSampleLogitAdjusted(counts)(logits, y)
    total = opt.weigh(losses)
    share = torch.tensor(counts, dtype=torch.float64) / 100
    expected = F.cross_entropy(logits + share.log(), y, reduction="none")
    p = torch.softmax(expected / lam, 0) * 16
    torch.testing.assert_close(opt.weights, p.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total, (p.detach() * expected).mean(), rtol=1e-5, atol=1e-6)
