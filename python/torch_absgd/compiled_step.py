"""What a step that torch.compile traces has to do for itself."""

from __future__ import annotations

from typing import Any

Groups = list[dict[str, Any]]


def zero_grad(groups: Groups, set_to_none: bool) -> None:
    """torch's own is not traced."""
    for p in (p for group in groups for p in group["params"]):
        if set_to_none:
            p.grad = None
        elif p.grad is not None:
            p.grad.detach_().zero_()


def check_gradients(groups: Groups) -> None:
    """Raises where no parameter has a gradient: the graph would do nothing, at each step. torch's
    backward() in a graph may leave parameters of no module out in silence
    (tests/RELIABILITY.md)."""
    if all(p.grad is None for group in groups for p in group["params"]):
        raise RuntimeError(
            "step() is being compiled, and no parameter has a gradient: a backward() in the graph "
            "finds an nn.Module's parameters only; give the optimizer those"
        )
