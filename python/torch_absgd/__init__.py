"""Attentional-Biased SGD: train classifiers on imbalanced or noisily labelled data.

Qi, Xu, Yin, Jin, Yang: Attentional-Biased Stochastic Gradient Descent. TMLR 2023.
"""

from ._config import cmake_dir, include_dir, show_config
from ._version import __version__
from .attentional_loss import AttentionalLoss
from .class_balance import (
    DeferredWeights,
    ImbalancedSubset,
    class_balanced_weights,
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
from .schedule import Damping, LamScheduler
from .stage_two import freeze_except, unfreeze
from .step_in_backward import step_in_backward

__all__ = [
    "ABSGD",
    "AttentionalLoss",
    "Damping",
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
    "__version__",
    "class_balanced_weights",
    "cmake_dir",
    "freeze_except",
    "include_dir",
    "long_tailed_counts",
    "show_config",
    "step_counts",
    "step_in_backward",
    "unfreeze",
]
