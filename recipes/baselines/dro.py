"""Relatives of ABSGD in distributionally robust optimisation, all with F_λ = λ log E exp(L/λ).

Two are settings of ABSGD, by name in methods.py. TERM (Li, Beirami, Sanjabi, Smith: Tilted
Empirical Risk Minimization. ICLR 2021, stochastic Algorithm): tilt 1/λ, average at rate γ, no
momentum. Exponentiated weights (after Majidi, Amid, Talebi, Warmuth: Exponentiated Gradient
Reweighting for Robust Training under Label Noise and Beyond. 2021): exp(−ηL) normalised over the
batch alone, λ = −1/η and γ = 1; their weights that are kept from epoch to epoch are not.

RECOVER is no setting: it reduces the variance of F_λ's gradient recursively, with two gradients an
iteration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

# c, g/e^c and ∇g/e^c: exp(L/λ) itself overflows.
Inner = tuple[Tensor, Tensor, tuple[Tensor, ...]]


class Recover:
    r"""RECOVER (Qi, Guo, Xu, Jin, Yang: An Online Method for a Class of Distributionally Robust
    Optimization with Non-Convex Objectives. NeurIPS 2021; first of 2020), for λ > 0, losses ≥ 0.

    With g(w) = E exp(L(w)/λ), batch z_t gives, at both w_t and w_{t−1},

    .. math::
        u_t &= g_{z_t}(w_t) + (1-a)\,(u_{t-1} - g_{z_t}(w_{t-1})) \\
        v_t &= \nabla g_{z_t}(w_t) + (1-a)\,(v_{t-1} - \nabla g_{z_t}(w_{t-1})) \\
        w_{t+1} &= w_t - \eta\,(\lambda v_t/u_t + \text{weight\_decay} \cdot w_t)

    The first batch, and the first after :meth:`restart` ("RE"), has a = 1. So has one that would
    bring u_t below 1: as L ≥ 0, g ≥ 1, and a difference of estimates that says otherwise would send
    w far away.

    Args:
        model: its trainable parameters are w.
        lr: η, ``lam``: λ > 0, finite; ``a``: in (0, 1]; 1 is ABSGD with γ = 1 and no momentum.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, model: nn.Module, lr: float, lam: float, a: float = 0.1, weight_decay: float = 0.0
    ) -> None:
        if not 0 < lam < math.inf:
            raise ValueError(f"Invalid lam value: {lam} (must be > 0 and finite)")
        if not 0 < a <= 1:
            raise ValueError(f"Invalid a value: {a} (must be in (0, 1])")
        self.model, self.lr, self.lam, self.a = model, lr, lam, a
        self.weight_decay = weight_decay
        self.names, self.w = zip(
            *((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True
        )
        self.restart()

    def restart(self) -> None:
        """Forgets u, v and w_{t−1}: a new stage, usually with a smaller lr."""
        self.u: Tensor | None = None
        self.v: tuple[Tensor, ...] = ()
        self.c = torch.zeros((), dtype=torch.float64)
        self.last: tuple[Tensor, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        return {"u": self.u, "v": list(self.v), "c": self.c, "last": list(self.last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.u, self.c = state["u"], state["c"]
        self.v = tuple(state["v"])
        self.last = tuple(w.requires_grad_() for w in state["last"])

    def step(self, inputs: Tensor, losses_of: Callable[[Tensor], Tensor]) -> Tensor:
        """One iteration; returns the batch's losses at w_t, detached.

        Args:
            inputs: of the model, one batch.
            losses_of: from the model's output to per-sample losses, [B].
        """
        losses = losses_of(self.model(inputs))
        now, before = self._inner(losses, self.w), None
        if self.u is not None and self.a < 1:
            buffers = {n: b.clone() for n, b in self.model.named_buffers()}
            last = dict(zip(self.names, self.last, strict=True))
            outputs = functional_call(self.model, (last, buffers), (inputs,))
            before = self._inner(losses_of(outputs), self.last)
        self._estimate(now, before)
        with torch.no_grad():
            direction = [self.lam * v / self.u.to(v.dtype) for v in self.v]
            self.last = tuple(w.clone().requires_grad_() for w in self.w)
            for w, d in zip(self.w, direction, strict=True):
                w.sub_(d + self.weight_decay * w, alpha=self.lr)
        return losses.detach()

    def _inner(self, losses: Tensor, at: Sequence[Tensor]) -> Inner:
        """g of the batch and ∇g, at the parameters ``at``."""
        z = losses.detach().double() / self.lam
        c = z.max()
        weights = torch.exp(z - c)
        total = (weights.to(losses.dtype) * losses).mean() / self.lam
        return c, weights.mean(), torch.autograd.grad(total, tuple(at))

    def _estimate(self, now: Inner, before: Inner | None) -> None:
        """Takes the batch at w_t and at w_{t−1} into u and v."""
        if before is None:
            self.c, self.u, self.v = now
            return
        c = torch.stack([self.c, now[0], before[0]]).max()
        u, v = _rescaled(now, c)
        u_old, v_old = _rescaled((self.c, self.u, self.v), c)
        g_last, dg_last = _rescaled(before, c)
        changed = u + (1 - self.a) * (u_old - g_last)
        possible = changed.log() + c >= 0  # NaN, of a negative: False
        keep = (1 - self.a) * possible.to(u)
        self.c, self.u = c, u + keep * (u_old - g_last)
        keep = keep.to(v[0])
        self.v = tuple(
            new + keep * (old - last) for new, old, last in zip(v, v_old, dg_last, strict=True)
        )


def _rescaled(inner: Inner, c: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Its two values, divided by e^c instead."""
    factor = torch.exp(inner[0] - c)
    return factor * inner[1], tuple(factor.to(v) * v for v in inner[2])
