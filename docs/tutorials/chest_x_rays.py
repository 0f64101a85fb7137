"""Multi-label data as chest X-rays have it: rare findings, of which some were never looked for.

    python docs/tutorials/chest_x_rays.py

Features made on the spot: eight findings, in 40 % to 1 % of the patients, a tenth of the labels
unknown (−1). The same network by SGD and by ABSGD with attention to samples. Seconds on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import torch_absgd as ta

FINDINGS, FEATURES, UNKNOWN = 8, 20, -1
SHARES = torch.logspace(-0.4, -2, FINDINGS)  # of patients who have it
SIGNS = torch.randn(FINDINGS, FEATURES, generator=torch.Generator().manual_seed(7))


def patients(n: int) -> tuple[Tensor, Tensor]:
    """Features, and which findings are there."""
    has = (torch.rand(n, FINDINGS) < SHARES).float()
    return has @ SIGNS + torch.randn(n, FEATURES), has


def balanced_accuracy(model: nn.Module, x: Tensor, has: Tensor) -> Tensor:
    """Of each finding, with the threshold at its share."""
    with torch.no_grad():
        says = model(x).sigmoid() > SHARES
    found = (says * has).sum(0) / has.sum(0)
    cleared = (~says * (1 - has)).sum(0) / (1 - has).sum(0)
    return (found + cleared) / 2


def train(lam: float) -> Tensor:
    torch.manual_seed(0)
    x, has = patients(4000)
    labels = has.masked_fill(torch.rand_like(has) < 0.1, UNKNOWN)
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, FINDINGS))
    opt = ta.ABSGD(model.parameters(), lr=0.2, momentum=0.9, lam=lam, keep_loss=True)
    criterion = ta.AttentionalLoss(ta.PerSampleBCE(ignore_index=UNKNOWN), optimizer=opt)
    for _ in range(10):
        for batch in torch.randperm(len(x)).split(128):
            criterion(model(x[batch]), labels[batch]).backward()
            opt.step()
            opt.zero_grad()
    return balanced_accuracy(model, *patients(4000))


def main() -> None:
    print("balanced accuracy of findings, common to rare")
    for name, lam in (("SGD", float("inf")), ("ABSGD, λ = 0.5", 0.5)):
        print(f"{name:15}", " ".join(f"{a:.3f}" for a in train(lam).tolist()))


if __name__ == "__main__":
    main()
