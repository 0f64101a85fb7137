"""Algorithm 1 of ABSGD and the momentum step, in float64 and plain Python: what the package is
compared with. Nothing here comes from the package.

Qi, Xu, Yin, Jin, Yang: Attentional-Biased Stochastic Gradient Descent. TMLR 2023.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

INPUTS, HIDDEN, CLASSES = 5, 6, 3
SIZE = (INPUTS + 1) * HIDDEN + (HIDDEN + 1) * CLASSES  # of the small model's parameter vector


def log_mean_exp(z: list[float], weight: list[float] | None = None) -> float:
    """log of the mean of exp(z), under a base measure where one is given."""
    weight = [1.0] * len(z) if weight is None else weight
    largest = max(v for v, w in zip(z, weight, strict=True) if w > 0)
    sums = math.fsum(w * math.exp(v - largest) for v, w in zip(z, weight, strict=True) if w > 0)
    return largest + math.log(sums / math.fsum(weight))


@dataclass
class Algorithm1:
    """The state (w, v or d, log_s) of one run, and its steps."""

    w: Tensor
    lr: float
    lam: float = math.inf
    gamma: float = 0.9
    alpha: float = 1.0
    s_init: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    polyak: bool = False
    log_s: float = math.nan
    buffer: Tensor | None = None
    max_weight: float = math.inf
    keep_loss: bool = False
    bounded: bool = False  # s, by the batch's own: with guards, or under a rule for λ
    p: list[float] = field(default_factory=list)  # of the last batch, before guards
    weights: list[float] = field(default_factory=list)  # and after
    kappa: float = 1.0

    def __post_init__(self) -> None:
        if self.s_init is not None:
            self.log_s = math.log(self.s_init) if self.s_init > 0 else -math.inf

    def weigh(self, losses: list[float], weight: list[float] | None = None) -> float:
        """Lines 1 to 4: takes the batch into log_s, sets p, and returns (1/B) Σ w_i p_i L_i."""
        weight = [1.0] * len(losses) if weight is None else weight
        if math.isinf(self.lam):
            self.p = [1.0 if w > 0 else 0.0 for w in weight]
        else:
            z = [v / self.lam for v in losses]
            batch = math.log(self.alpha) + log_mean_exp(z, weight)
            if math.isnan(self.log_s):
                self.log_s = batch
            else:
                own = math.log(self.gamma) + batch
                old = math.log1p(-self.gamma) + self.log_s if self.gamma < 1 else -math.inf
                larger = max(old, own)
                self.log_s = larger + math.log(math.exp(old - larger) + math.exp(own - larger))
            if self.bounded or self.keep_loss or self.max_weight < math.inf:
                self.log_s = min(self.log_s, batch - math.log(self.gamma))
            self.p = [
                math.exp(v - self.log_s) if w > 0 else 0.0 for v, w in zip(z, weight, strict=True)
            ]
        return self._guarded(losses, weight)

    def _guarded(self, losses: list[float], weight: list[float]) -> float:
        plain = math.fsum(w * abs(v) for w, v in zip(weight, losses, strict=True))
        weighted = math.fsum(w * p * abs(v) for w, p, v in zip(weight, self.p, losses, strict=True))
        self.kappa = min(1.0, plain / weighted) if self.keep_loss and weighted > 0 else 1.0
        cap = math.inf if math.isinf(self.lam) else self.max_weight
        self.weights = [min(self.kappa * p, cap) for p in self.p]
        terms = zip(weight, self.weights, losses, strict=True)
        return math.fsum(w * p * v for w, p, v in terms) / len(losses)

    def move(self, gradient: Tensor) -> None:
        """Line 5, with r(w) = ½‖w‖²: v ← βv + g, w ← w − ηv, or the paper's Equation 2."""
        g = gradient + self.weight_decay * self.w
        if self.polyak:
            last = torch.zeros_like(g) if self.buffer is None else self.buffer
            self.buffer = self.momentum * last - self.lr * g
            self.w = self.w + self.buffer
        else:
            last = torch.zeros_like(g) if self.buffer is None else self.buffer
            self.buffer = self.momentum * last + g
            self.w = self.w - self.lr * self.buffer

    def step(self, x: Tensor, y: Tensor) -> float:
        """One iteration on the mini-batch (x, y) of the small model; its weighted loss."""
        w = self.w.clone().requires_grad_()
        losses = small_model_losses(w, x, y)
        weighted = self.weigh(losses.tolist())
        p = torch.tensor(self.p, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(losses, w, p / len(p))
        self.move(gradient)
        return weighted


def small_model_losses(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, one a sample, of a network with one hidden layer of tanh: not convex in w."""
    sizes = (INPUTS * HIDDEN, HIDDEN, HIDDEN * CLASSES, CLASSES)
    w1, b1, w2, b2 = w.split(sizes)
    hidden = torch.tanh(x @ w1.view(INPUTS, HIDDEN) + b1)
    logits = hidden @ w2.view(HIDDEN, CLASSES) + b2
    picked = logits.gather(1, y[:, None])[:, 0]
    return torch.logsumexp(logits, 1) - picked


def small_problem(seed: int, n: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Initial parameters [SIZE], inputs [n, INPUTS] and imbalanced labels [n], float64."""
    random = torch.Generator().manual_seed(seed)
    w = 0.5 * torch.randn(SIZE, generator=random, dtype=torch.float64)
    y = torch.randint(10, (n,), generator=random).sub(7).clamp(0)  # class 0 is eight in ten
    centres = torch.randn(CLASSES, INPUTS, generator=random, dtype=torch.float64)
    x = centres[y] + torch.randn(n, INPUTS, generator=random, dtype=torch.float64)
    return w, x, y


def objective(losses: Tensor, lam: float) -> Tensor:
    """F_λ = λ log mean exp(L/λ), the information-regularised DRO objective."""
    return lam * (torch.logsumexp(losses / lam, 0) - math.log(len(losses)))
