"""Attentional-Biased SGD: train classifiers on imbalanced or noisily labelled data.

Qi, Xu, Yin, Jin, Yang: Attentional-Biased Stochastic Gradient Descent. TMLR 2023.
"""

from . import metrics
from ._config import cmake_dir, include_dir, show_config
from ._version import __version__
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
from .linear_loss import PerSampleLinearCrossEntropy
from .losses import (
    PerSampleCrossEntropy,
    PerSampleFocal,
    PerSampleLDAM,
    PerSampleLogitAdjusted,
    logit_adjust,
)
from .normed_linear import NormedLinear
from .optimizer import ABSGD
from .plots import plot_weights
from .sample_record import SampleRecord
from .schedule import LamScheduler
from .sigmoid_losses import PerSampleBCE, PerSampleSigmoidFocal
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
    "PerSampleBCE",
    "PerSampleCrossEntropy",
    "PerSampleFocal",
    "PerSampleLDAM",
    "PerSampleLinearCrossEntropy",
    "PerSampleLogitAdjusted",
    "PerSampleSigmoidFocal",
    "SampleRecord",
    "__version__",
    "class_balanced_weights",
    "class_counts",
    "cmake_dir",
    "freeze_except",
    "include_dir",
    "logit_adjust",
    "long_tailed_counts",
    "metrics",
    "plot_weights",
    "show_config",
    "step_counts",
    "step_in_backward",
    "unfreeze",
]
