"""The paper's claim: a moving average of the normaliser removes the bias of one batch's own.

With γ = 1 every mini-batch is normalised by itself, so the expected step is not along ∇F_λ, and
‖∇F_λ‖ stalls. With a small γ, at the same budget of samples, it gets well below (Qi et al. 2023,
Theorem 1, against mini-batch normalisation).
"""

import torch
from torch import Tensor

from reference import objective
from torch_absgd import ABSGD

LAM = 0.5
SAMPLES = 64
BATCH = 2
STEPS = 2000
SEEDS = range(6)


def final_gradient_norm(gamma: float, seed: int) -> float:
    """‖∇F_λ‖ after training a logistic regression whose labels are wrong one time in ten."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, 3, generator=random, dtype=torch.float64)
    y = torch.where(torch.rand(SAMPLES, generator=random) < 0.1, -1.0, 1.0).double()
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def losses(batch: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-y[batch] * (x[batch] @ w))

    opt = ABSGD([w], lr=0.05, lam=LAM, gamma=gamma)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(SAMPLES, (BATCH,), generator=random)
        opt.zero_grad()
        opt.weigh(losses(batch)).backward()
        opt.step()
        decay.step()
    (gradient,) = torch.autograd.grad(objective(losses(torch.arange(SAMPLES)), LAM), w)
    return gradient.norm().item()


def test_a_small_gamma_gets_below_where_gamma_one_stalls() -> None:
    moving = [final_gradient_norm(0.1, seed) for seed in SEEDS]
    own = [final_gradient_norm(1.0, seed) for seed in SEEDS]
    assert all(m < o for m, o in zip(moving, own, strict=True)), (moving, own)
    assert sum(moving) < 0.5 * sum(own), (moving, own)
