"""ABSGD against Algorithm 1 in plain float64, and against the objective that it minimises."""

import math

import pytest
import torch
from torch import Tensor

from reference import Algorithm1, objective, small_model_losses, small_problem
from torch_absgd import ABSGD

LAMBDAS = [0.05, 0.1, 1.0, 10.0, math.inf, -1.0]
GAMMAS = [0.1, 0.9, 1.0]
FORMS = ["torch", "polyak"]
STEPS = 200
RULE = {"momentum": 0.9, "weight_decay": 1e-3}
KEY = {"torch": "momentum_buffer", "polyak": "displacement_buffer"}


def batches(n: int, steps: int = STEPS) -> list[Tensor]:
    """Indices of mini-batches of 1 to 24 samples."""
    random = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 25, (steps,), generator=random).tolist()
    return [torch.randperm(n, generator=random)[:size] for size in sizes]


def learning_rate(lam: float, step: int) -> float:
    """Small for a small |λ|, where the weights of a batch are large; a tenth from the middle on."""
    lr = 0.02 * min(1.0, abs(lam))
    return lr if step < STEPS // 2 else lr / 10


def pair(lam: float, gamma: float, form: str, **rule: float) -> tuple[Algorithm1, Tensor, ABSGD]:
    w, _, _ = small_problem(seed=0)
    lr = learning_rate(lam, 0)
    reference = Algorithm1(w, lr, lam, gamma, polyak=form == "polyak", **RULE, **rule)
    parameter = w.clone().requires_grad_()
    opt = ABSGD([parameter], lr, lam=lam, gamma=gamma, momentum_form=form, **RULE, **rule)
    return reference, parameter, opt


def close(actual: Tensor, expected: Tensor | list[float] | float, tolerance: float) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("s_init", [None, 2.5])
def test_every_step_agrees(lam: float, gamma: float, form: str, s_init: float | None) -> None:
    _, x, y = small_problem(seed=0)
    reference, parameter, opt = pair(lam, gamma, form, s_init=s_init, alpha=0.7)
    for step, batch in enumerate(batches(len(x))[::4]):
        reference.lr = opt.param_groups[0]["lr"] = learning_rate(lam, 4 * step)
        with torch.no_grad():  # both start the step from the same state
            parameter.copy_(reference.w)
            opt.log_s.fill_(reference.log_s)
            if reference.buffer is not None:
                opt.state[parameter][KEY[form]].copy_(reference.buffer)

        opt.zero_grad()
        weighted = opt.weigh(small_model_losses(parameter, x[batch], y[batch]))
        weighted.backward()
        opt.step()

        close(weighted, reference.step(x[batch], y[batch]), 1e-12)
        close(opt.weights, reference.p, 1e-12)
        close(parameter, reference.w, 1e-12)
        close(opt.state[parameter][KEY[form]], reference.buffer, 1e-12)
        torch.testing.assert_close(
            opt.log_s.item(), reference.log_s, rtol=1e-12, atol=1e-12, equal_nan=True
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("lam", LAMBDAS)
def test_a_whole_run_agrees(lam: float, gamma: float, form: str) -> None:
    _, x, y = small_problem(seed=0)
    reference, parameter, opt = pair(lam, gamma, form)
    permuted, _, _ = pair(lam, gamma, form)
    for step, batch in enumerate(batches(len(x))):
        lr = reference.lr = permuted.lr = opt.param_groups[0]["lr"] = learning_rate(lam, step)
        assert lr > 0
        opt.zero_grad()
        opt.weigh(small_model_losses(parameter, x[batch], y[batch])).backward()
        opt.step()
        reference.step(x[batch], y[batch])
        permuted.step(x[batch.flip(0)], y[batch.flip(0)])
    # Precondition: rounding alone, here of sums in the other order, does not drive runs apart.
    close(permuted.w, reference.w, 1e-10)
    close(parameter, reference.w, 1e-10)
    assert (reference.w - small_problem(seed=0)[0]).abs().max() > 1e-3  # and they went somewhere


@pytest.mark.parametrize("lam", [0.05, 0.1, 1.0, 10.0, -1.0])
def test_gradient_of_the_full_batch_is_the_objective_s(lam: float) -> None:
    w, x, y = small_problem(seed=2)
    w.requires_grad_()
    opt = ABSGD([w], lam=lam, gamma=1.0)
    (ours,) = torch.autograd.grad(opt.weigh(small_model_losses(w, x, y)), w)
    value = objective(small_model_losses(w, x, y), lam)
    (expected,) = torch.autograd.grad(value, w)
    close(ours, expected, 1e-12)
    close(lam * opt.log_s, value.detach(), 1e-12)


def test_lambda_goes_from_the_maximal_loss_to_the_mean() -> None:
    losses = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    parameter = torch.zeros(1, requires_grad=True)
    estimates = []
    for lam in (1e-3, 0.1, 1.0, 10.0, 1e6):
        opt = ABSGD([parameter], lam=lam, gamma=1.0)
        opt.weigh(losses)
        estimates.append(lam * opt.log_s.item())
    assert estimates == sorted(estimates, reverse=True)
    assert estimates[0] == pytest.approx(3.0, abs=2e-3)
    assert estimates[-1] == pytest.approx(1.5, abs=2e-6)
