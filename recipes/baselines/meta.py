"""Weights that are learned: those which lower the loss of a small balanced set.

Ren, Zeng, Yang, Urtasun: Learning to Reweight Examples for Robust Deep Learning. ICML 2018.
Jamal, Brown, Yang, Wang, Gong: Rethinking Class-Balanced Methods for Long-Tailed Visual Recognition
from a Domain Adaptation Perspective. CVPR 2020.

Both look one step ahead: θ̂(ε) = θ − α·(1/B) Σ (b_i + ε_i) ∇L_i(θ), and ask how ε should change for
the loss of the held-out batch at θ̂ to fall. That takes three backward passes (through the step, the
held-out loss, and the step's gradient) before the one that trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]  # inputs and targets
PerSample = Callable[[Tensor, Tensor], Tensor]  # from logits and targets to a loss a sample


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def twice_differentiable(
    loss: str, class_counts: Sequence[int], focal_gamma: float = 1.0
) -> PerSample:
    """--loss composed of torch's operations: a look ahead differentiates twice, which the fused
    losses do not. LDAM's margins and scale are torch_absgd.PerSampleLDAM's defaults."""
    if loss == "ce":
        return cross_entropy
    if loss == "focal":

        def focal(logits: Tensor, targets: Tensor) -> Tensor:
            ce = cross_entropy(logits, targets)
            return (1 - torch.exp(-ce)) ** focal_gamma * ce

        return focal
    margins = torch.tensor(class_counts, dtype=torch.float32) ** -0.25
    margins = 0.5 * margins / margins.max()

    def ldam(logits: Tensor, targets: Tensor) -> Tensor:
        shift = F.one_hot(targets, logits.shape[1]) * margins.to(logits)
        return cross_entropy(30 * (logits - shift), targets)

    return ldam


def look_ahead(
    model: nn.Module,
    batch: Batch,
    held_out: Batch,
    lr: float,
    base: Tensor | None = None,
    loss: PerSample = cross_entropy,
) -> Tensor:
    """−∂L_held-out(θ̂(ε))/∂ε_i at ε = 0: what one more unit of weight on sample i gains.

    The model, running statistics included, is left as it was.

    Args:
        model: its trainable parameters are θ.
        batch, held_out: model inputs and int64 targets.
        lr: α of the step ahead.
        base: b, [B]; None: 0, as Ren et al., and θ̂ = θ at ε = 0.
        loss: of both batches, differentiable twice.

    Returns:
        [B], of the parameters' dtype.
    """
    trainable = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    fixed = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    first = next(iter(trainable.values()))
    epsilon = torch.zeros(len(batch[1]), dtype=first.dtype, device=first.device)
    base = epsilon if base is None else base

    def losses(theta: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        buffers = {n: b.clone() for n, b in model.named_buffers()}  # batch norm writes to them
        logits = functional_call(model, ({**theta, **fixed}, buffers), (inputs,))
        return loss(logits, targets)

    def held_out_loss(epsilon: Tensor) -> Tensor:
        step = grad(lambda theta: ((base + epsilon) * losses(theta, *batch)).mean())(trainable)
        ahead = {n: p - lr * step[n] for n, p in trainable.items()}
        return losses(ahead, *held_out).mean()

    return -grad(held_out_loss)(epsilon)


def learned_weights(gain: Tensor) -> Tensor:
    """Ren et al. 2018, Equations 9 and 10: max(gain, 0), here with mean 1 rather than sum 1; all 0
    if no sample gains."""
    positive = gain.clamp(min=0)
    total = positive.sum()
    return positive * (len(gain) / torch.where(total > 0, total, 1))


def adapted_weights(gain: Tensor, base: Tensor, rate: float) -> Tensor:
    """Jamal et al. 2020, Algorithm 1: the class-balanced weight w_y and a learned ε_i = τ·gain_i.

    Args:
        gain: [B], from :func:`look_ahead` with this ``base``.
        base: w_y of each sample, [B].
        rate: τ, the step of ε.
    """
    return base + rate * gain
