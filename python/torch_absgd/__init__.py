"""Attentional-Biased SGD: train classifiers on imbalanced or noisily labelled data.

Qi, Xu, Yin, Jin, Yang: Attentional-Biased Stochastic Gradient Descent. TMLR 2023.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._config import cmake_dir, include_dir, show_config
from ._version import __version__
from .attentional_loss import AttentionalLoss
from .lam_rules import EffectiveSampleSize, KLRadius
from .losses import (
    PerSampleCrossEntropy,
    PerSampleFocal,
    PerSampleLDAM,
    PerSampleLogitAdjusted,
    logit_adjust,
)
from .optimizer import ABSGD
from .sigmoid_losses import PerSampleBCE, PerSampleSigmoidFocal
from .step_in_backward import step_in_backward

if TYPE_CHECKING:
    from . import metrics
    from .class_balance import (
        DeferredWeights,
        ImbalancedSubset,
        class_balanced_weights,
        class_counts,
        long_tailed_counts,
        step_counts,
    )
    from .linear_loss import PerSampleLinearCrossEntropy
    from .normed_linear import NormedLinear
    from .plots import plot_weights
    from .sample_record import SampleRecord
    from .schedule import LamScheduler
    from .stage_two import freeze_except, unfreeze

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

# What a training loop can do without is loaded when it is first asked for: a fifth of the time that
# the import takes.
_LATER = {
    "DeferredWeights": "class_balance",
    "ImbalancedSubset": "class_balance",
    "LamScheduler": "schedule",
    "NormedLinear": "normed_linear",
    "PerSampleLinearCrossEntropy": "linear_loss",
    "SampleRecord": "sample_record",
    "class_balanced_weights": "class_balance",
    "class_counts": "class_balance",
    "freeze_except": "stage_two",
    "long_tailed_counts": "class_balance",
    "plot_weights": "plots",
    "step_counts": "class_balance",
    "unfreeze": "stage_two",
}


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module(".metrics", __name__)
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
