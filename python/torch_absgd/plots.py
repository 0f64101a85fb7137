"""Pictures of what the weights do. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import _checks
from .sample_record import SampleRecord


def plot_weights(record_or_losses: SampleRecord | Tensor, weights: Tensor | None = None,
                 ax: Any = None) -> Any:  # fmt: skip
    """Draws each sample's weight against its loss; the dashed line is plain SGD's weight, 1.

        ta.plot_weights(record).figure.savefig("weights.png")
        ta.plot_weights(losses, opt.weights)

    Args:
        record_or_losses: a `SampleRecord`, of which the means of the samples seen are drawn, or
            per-sample losses of any shape.
        weights: beside losses, in their shape.
        ax: the matplotlib axes to draw on; new ones if None.

    Returns:
        the axes.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
        ImportError: matplotlib is not installed.
    """
    if isinstance(record_or_losses, SampleRecord) and weights is None:
        seen = record_or_losses.times > 0
        losses, weights = record_or_losses.loss[seen], record_or_losses.weight[seen]
    else:
        losses, weights = _checks.check_losses_and_weights(record_or_losses, weights)
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    x, y = (values.detach().flatten().double().cpu().tolist() for values in (losses, weights))
    ax.scatter(x, y, s=6, alpha=0.4, linewidths=0)
    ax.axhline(1, color="gray", linestyle="--", linewidth=1)
    ax.set(xlabel="loss", ylabel="weight $p$")
    return ax
