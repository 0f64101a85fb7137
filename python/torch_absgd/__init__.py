"""Attentional-Biased SGD: train classifiers on imbalanced or noisily labelled data.

Qi, Xu, Yin, Jin, Yang: Attentional-Biased Stochastic Gradient Descent. TMLR 2023.
"""

from .attentional_loss import AttentionalLoss
from .lam_rules import EffectiveSampleSize, KLRadius
from .optimizer import ABSGD

__all__ = [
    "ABSGD",
    "AttentionalLoss",
    "EffectiveSampleSize",
    "KLRadius",
]
