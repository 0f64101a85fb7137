"""What can be done to a trained network's classifier alone: cRT, LWS, τ-normalisation, NCM, and
post-hoc logit adjustment.

Kang et al.: Decoupling Representation and Classifier for Long-Tailed Recognition. ICLR 2020,
Section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_absgd as ta


def retrain_classifier(model: nn.Module) -> list[nn.Parameter]:
    """cRT: makes ``model.fc`` random anew and freezes the rest, batch norm included. To be trained
    with class-balanced sampling.

    Returns:
        The parameters to train.
    """
    model.fc.reset_parameters()
    return ta.freeze_except(model, "fc")


class ScaledClassifier(nn.Module):
    """LWS: f_c·(w_c·x + b_c) with w and b fixed and f learnable, 1 at first."""

    def __init__(self, fc: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.fc = fc.requires_grad_(False)
        some = next(fc.parameters())
        self.scale = nn.Parameter(torch.ones(num_classes, dtype=some.dtype, device=some.device))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * self.fc(features)


def learn_scales(model: nn.Module, num_classes: int) -> list[nn.Parameter]:
    """LWS: puts a :class:`ScaledClassifier` around ``model.fc`` and freezes the rest. To be trained
    with class-balanced sampling.

    Returns:
        The parameters to train: the C scales.
    """
    model.fc = ScaledClassifier(model.fc, num_classes)
    return ta.freeze_except(model, "fc")


@torch.no_grad()
def normalise(fc: nn.Linear, tau: float) -> None:
    """τ-normalisation (Equation 5): w_c ← w_c/‖w_c‖^τ in place; the bias is dropped, as there."""
    fc.weight.div_(fc.weight.norm(dim=1, keepdim=True) ** tau)
    if fc.bias is not None:
        fc.bias.zero_()


class NearestClassMean(nn.Module):
    """NCM: features to the cosine similarity with the mean feature of each class.

    Args:
        features: [N, D] of the training images, without augmentation.
        targets: int64 [N]. A class without any is never predicted.
    """

    def __init__(self, features: Tensor, targets: Tensor, num_classes: int) -> None:
        super().__init__()
        members = F.one_hot(targets, num_classes).to(features.dtype)
        self.register_buffer("means", (members.T @ features) / members.sum(0)[:, None])

    def forward(self, features: Tensor) -> Tensor:
        similarity = F.normalize(features, dim=1) @ F.normalize(self.means, dim=1).T
        return similarity.masked_fill(self.means.isnan().any(1), -torch.inf)


def adjust_logits(logits: Tensor, class_counts: Tensor, tau: float) -> Tensor:
    """Post-hoc logit adjustment: f_c − τ·log π_c, π_c being the share of class c in training; −∞
    for a class without samples, which the network has not learned.

    Menon et al.: Long-Tail Learning via Logit Adjustment. ICLR 2021, Equation 9.
    """
    share = class_counts.double() / class_counts.sum()
    adjusted = logits - tau * share.log().to(logits)
    return adjusted.masked_fill((class_counts == 0).to(logits.device), -torch.inf)


class AdjustedClassifier(nn.Module):
    """A classifier whose logits are adjusted after the fact: see :func:`adjust_logits`."""

    def __init__(self, fc: nn.Module, class_counts: Sequence[int], tau: float) -> None:
        super().__init__()
        self.fc, self.tau = fc, tau
        self.register_buffer("class_counts", torch.tensor(class_counts))

    def forward(self, features: Tensor) -> Tensor:
        return adjust_logits(self.fc(features), self.class_counts, self.tau)
