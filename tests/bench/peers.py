"""What we compare against, in torch's own operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Criterion = Callable[[Tensor, Tensor], Tensor]


class ReleasedABLoss(nn.Module):
    """The authors' released ABLoss (absgd 0.0.1), operation for operation, past its milestone.

    But u takes in detached losses: in the release its graph grows with every step.
    """

    def __init__(self, criterion: Criterion, lam: float, gamma: float = 0.9) -> None:
        super().__init__()
        self.criterion = criterion
        self.lam, self.gamma = lam, gamma
        self.register_buffer("u", torch.zeros(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.weigh(self.criterion(output, target))

    def weigh(self, losses: Tensor) -> Tensor:
        exp_losses = torch.exp(losses.detach() / self.lam)
        self.u = (1 - self.gamma) * self.u + self.gamma * torch.mean(exp_losses)
        p = exp_losses / (self.u * len(losses))
        return torch.sum(p * losses)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


def focal(output: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """As in the LDAM paper's release: of the cross-entropy and its exponential."""
    losses = F.cross_entropy(output, target, reduction="none")
    return (1 - torch.exp(-losses)) ** gamma * losses


class LDAM(nn.Module):
    """As in the LDAM paper's release: a one-hot mask, the margins by a matrix product, `where`."""

    def __init__(self, class_counts: Tensor, max_margin: float = 0.5, scale: float = 30.0) -> None:
        super().__init__()
        margins = class_counts.float() ** -0.25
        self.register_buffer("margins", margins * (max_margin / margins.max()))
        self.scale = scale

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        is_target = torch.zeros_like(output, dtype=torch.bool).scatter_(1, target[:, None], True)
        margins = self.margins.to(output.dtype)
        margin = torch.matmul(margins[None], is_target.to(output.dtype).t()).view(-1, 1)
        shifted = torch.where(is_target, output - margin, output)
        return F.cross_entropy(self.scale * shifted, target, reduction="none")


class LeanLDAM(LDAM):
    """The same with a gather and a scatter in place of mask and product: the best we know."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        index = target[:, None]
        margin = self.margins[index].to(output.dtype)
        shifted = output.scatter_add(1, index, -margin)
        return F.cross_entropy(self.scale * shifted, target, reduction="none")


def soft_focal(output: Tensor, q: Tensor, gamma: float = 2.0) -> Tensor:
    """The mean under q of the loss of each class; digits of 1 − P are lost where P is near 1."""
    log_p = F.log_softmax(output, 1)
    return -(q * (1 - log_p.exp()) ** gamma * log_p).sum(1)


class SoftLDAM(LDAM):
    """The same of LDAM: a margin m on z_y alone adds log(1 − P_y(1 − e^−m)) to log Σ e^z."""

    def forward(self, output: Tensor, q: Tensor) -> Tensor:
        m = self.scale * self.margins.to(output.dtype)
        log_p = F.log_softmax(self.scale * output, 1)
        return (q * (m - log_p + torch.log1p(log_p.exp() * torch.expm1(-m)))).sum(1)
