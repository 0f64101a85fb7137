"""With s_init=0.0, losses and gradients are those of the authors' released package, absgd 0.0.1."""

import math

import pytest
import torch
from absgd.losses import ABLoss
from torch import Tensor
from torch.nn import CrossEntropyLoss

from reference import Algorithm1
from torch_absgd import ABSGD, AttentionalLoss

PER_SAMPLE = CrossEntropyLoss(reduction="none")


def released(lam: float, gamma: float, alpha: float = 1.0) -> ABLoss:
    criterion = ABLoss(lam, milestone=0, criterion=PER_SAMPLE, abgamma=gamma, abalpha=alpha)
    criterion.updateLambda()  # past the milestone: from here on it weighs
    return criterion


def logits_and_labels(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    logits = 2 * torch.randn(16 + step, 10, generator=random, dtype=torch.float64)
    labels = torch.randint(10, (len(logits),), generator=random)
    return logits.to(dtype).requires_grad_(), labels


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("gamma", [0.1, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.5, 1.0, 10.0, -1.0])
def test_losses_and_gradients(
    lam: float, gamma: float, alpha: float, dtype: torch.dtype, tolerance: float
) -> None:
    theirs = released(lam, gamma, alpha)
    ours = AttentionalLoss(PER_SAMPLE, lam, gamma, s_init=0.0, alpha=alpha)
    for step in range(10):
        results = []
        for criterion in (ours, theirs):
            logits, labels = logits_and_labels(step, dtype)
            loss = criterion(logits, labels)
            loss.backward()
            results.append((loss.detach(), logits.grad))
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
        u = math.log(theirs.u.item())
        assert float(ours.log_s) == pytest.approx(u, rel=tolerance, abs=tolerance)


def test_before_its_milestone_it_is_lambda_infinity() -> None:
    logits, labels = logits_and_labels(0, torch.float64)
    theirs = ABLoss(1.0, milestone=5, criterion=PER_SAMPLE)(logits, labels)
    torch.testing.assert_close(AttentionalLoss(PER_SAMPLE)(logits, labels), theirs)


def test_finite_where_the_released_code_overflows() -> None:
    """exp(10/0.05) is no float32."""
    losses = torch.tensor([10.0, 9.9, 0.1], requires_grad=True)
    theirs = ABLoss(0.05, criterion=lambda losses, _: losses)
    theirs.updateLambda()
    assert theirs(losses, None).isnan()

    opt = ABSGD([torch.zeros(1, requires_grad=True)], lam=0.05, s_init=0.0)
    reference = Algorithm1(torch.zeros(1), lr=0.1, lam=0.05, s_init=0.0)
    for _ in range(3):
        ours = opt.weigh(losses)
        expected = reference.weigh(losses.tolist())
        assert ours.item() == pytest.approx(expected, rel=1e-6)
        assert opt.log_s.item() == pytest.approx(reference.log_s, rel=1e-12)
    ours.backward()
    assert losses.grad.tolist() == pytest.approx([p / 3 for p in reference.p], rel=1e-6)
