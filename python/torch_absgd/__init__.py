"""Attentional-Biased SGD: train classifiers on imbalanced or noisily labelled data.

Qi, Xu, Yin, Jin, Yang: Attentional-Biased Stochastic Gradient Descent. TMLR 2023.
"""

from . import metrics
from .attentional_loss import AttentionalLoss
from .class_balance import (
    DeferredWeights,
    ImbalancedSubset,
    class_balanced_weights,
    class_counts,
    long_tailed_counts,
    step_counts,
)
from .lam_rules import EffectiveSampleSize, KLRadius
from .losses import (
    PerSampleCrossEntropy,
    PerSampleFocal,
    PerSampleLDAM,
    PerSampleLogitAdjusted,
)
from .normed_linear import NormedLinear
from .optimizer import ABSGD
from .plots import plot_weights
from .sample_record import SampleRecord
from .schedule import LamScheduler
from .stage_two import freeze_except, unfreeze
from .step_in_backward import step_in_backward

__all__ = [
    "ABSGD",
    "AttentionalLoss",
    "DeferredWeights",
    "EffectiveSampleSize",
    "ImbalancedSubset",
    "KLRadius",
    "LamScheduler",
    "NormedLinear",
    "PerSampleCrossEntropy",
    "PerSampleFocal",
    "PerSampleLDAM",
    "PerSampleLogitAdjusted",
    "SampleRecord",
    "class_balanced_weights",
    "class_counts",
    "freeze_except",
    "long_tailed_counts",
    "metrics",
    "plot_weights",
    "step_counts",
    "step_in_backward",
    "unfreeze",
]
