"""What a training should do: Algorithm 1 (tests/reference.py) and textbook momentum SGD."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import reference
from groups import LRSchedule, groups_of, regroup, set_lr
from programs import Program, Step
from small_model import Batch, losses_of, micro_batches, parameters

if TYPE_CHECKING:
    from ours import Ours


class Plain:
    """The reference. Losses and gradients are of the parameters' dtype, the rest is float64."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.named = {
            name: p.requires_grad_(not (name == "b1" and "frozen" in program.features))
            for name, p in parameters(program).items()
        }
        self.name_of = {p: name for name, p in self.named.items()}
        self.groups = torch.optim.SGD(groups_of(program, self.named), lr=0.1)  # takes no step
        self.schedule = LRSchedule(program.lr_schedule, self.groups)
        self.buffers: dict[str, Tensor] = {}
        self.moved: dict[str, float] = {}  # how far the last step went at most, and its parts
        self.exponent = 0.0  # the largest |L/λ| of the last batch
        rule = program.rule
        self.rule = reference.Algorithm1(
            torch.zeros(1), lr=0, gamma=1.0, alpha=rule["alpha"], s_init=rule["s_init"],
            max_weight=math.inf if rule["max_weight"] is None else rule["max_weight"],
            keep_loss=rule["keep_loss"],
        )  # fmt: skip
        self.wanted = rule["lam"]
        self.found = math.nan  # λ that the package found
        self.rule.lam = self.log_s_lam = self._start_of(self.wanted)
        self.epoch, self.ramp_start = -1, math.inf
        self.next_epoch()

    # ---- λ

    def _start_of(self, lam: Any) -> float:
        return (-math.inf if lam[2] else math.inf) if isinstance(lam, tuple) else lam

    @property
    def initial_log_s(self) -> float:
        s_init = self.program.rule["s_init"]
        return math.nan if s_init is None else math.log(s_init) if s_init > 0 else -math.inf

    def set_lam(self, lam: Any) -> None:
        self.wanted = lam
        self.rule.lam = self._start_of(lam)
        if not isinstance(lam, tuple):
            self._carry()

    def restart(self, lam: Any) -> None:
        self.set_lam(lam)
        self.rule.log_s, self.log_s_lam = self.initial_log_s, self.rule.lam

    def next_epoch(self) -> None:
        """A milestone restarts, or 1/λ is a line from what it was there to the milestone's,
        ``over`` epochs later."""
        milestones, over = dict(self.program.milestones), self.program.over
        self.epoch += 1
        if over == 0:
            if self.epoch in milestones:
                self.restart(milestones[self.epoch])
            return
        last = max((e for e in milestones if e < self.epoch), default=-math.inf)
        t = (self.epoch - last) / over
        if t <= 1:
            pull = (1 - t) / self.ramp_start + t / milestones[last]
            self.set_lam(milestones[last] if t == 1 else 1 / pull if abs(pull) > 1e-9 else math.inf)
        if self.epoch in milestones:
            if isinstance(self.wanted, tuple) and math.isfinite(milestones[self.epoch]):
                self.set_lam(math.inf)
            self.ramp_start = math.inf if isinstance(self.wanted, tuple) else self.wanted

    def _carry(self) -> None:
        """log_s·λ_old/λ_new within one sign; else the next batch initialises it."""
        old, lam = self.log_s_lam, self.rule.lam
        if lam == old:
            return
        self.log_s_lam = lam
        if math.isinf(lam):
            return
        is_carried = not math.isinf(old) and (old < 0) == (lam < 0)
        self.rule.log_s = self.rule.log_s * old / lam if is_carried else self.initial_log_s

    def _follow(self, losses: list[float], weight: list[float]) -> None:
        """λ* of the batch by bisection, where there is one."""
        kind, target, noisy = self.wanted
        pairs = [(-v if noisy else v, w) for v, w in zip(losses, weight, strict=True) if w > 0]
        top = max((v for v, _ in pairs), default=0.0)
        spread = top - min((v for v, _ in pairs), default=0.0)
        total = math.fsum(w for _, w in pairs)
        if spread == 0:
            return

        def excess(log_lam: float) -> float:  # < 0 where the weights are too selective
            lam = math.exp(log_lam)
            q = squares = moment = 0.0
            for v, w in pairs:
                y = (v - top) / lam
                e = math.exp(y)
                q, squares, moment = q + w * e, squares + w * e * e, moment + w * e * y
            if kind == "ess":
                return q * q / (total * squares) - target
            return target - (moment / q - math.log(q / total))

        low, high = math.log(spread * 1e-12), math.log(spread * 1e6)
        if excess(low) >= 0:
            return
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) < 0 else (low, middle)
        sign = -1 if noisy else 1
        slack = 1e-12 if self.program.precision == "float64" else 1e-5
        if 0 < sign * self.found < math.inf and abs(excess(math.log(abs(self.found)))) < slack:
            low = math.log(abs(self.found))  # as good an answer, where many λ are
        self.rule.lam = math.copysign(math.exp(low), sign)

    # ---- a step

    def coefficients(self, losses: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
        """c, such that Σ c_i ∂L_i is the gradient; takes the batch in."""
        n = len(losses)
        counts = [True] * n if mask is None else mask.tolist()
        measure = [1.0] * n if weight is None else weight.tolist()
        kept = [v for v, is_kept in zip(losses.tolist(), counts, strict=True) if is_kept]
        w = [v for v, is_kept in zip(measure, counts, strict=True) if is_kept]
        wide = torch.float64 if losses.dtype is torch.float64 else torch.float32
        if not any(w):
            return torch.zeros(n, dtype=wide)
        is_rule = isinstance(self.wanted, tuple)
        self.rule.gamma = self.program.rule["gamma"] or (1.0 if is_rule else 0.9)
        self.rule.bounded = is_rule
        if is_rule:
            self._follow(kept, w)
        self._carry()
        self.rule.weigh(kept, w)
        self.exponent = max(map(abs, kept)) / abs(self.rule.lam)
        c = iter([v * p / len(kept) for v, p in zip(w, self.rule.weights, strict=True)])
        return torch.tensor([next(c) if is_kept else 0.0 for is_kept in counts], dtype=wide)

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], summed: dict[str, float]) -> None:
        """``summed``: of each gradient, the sum of its micro-batches' largest elements."""
        for group in self.groups.param_groups:
            lr, beta, share = float(group["lr"]), group["momentum"], 1 - group["dampening"]
            for p in group["params"]:
                name = self.name_of[p]
                if name not in gradients:
                    continue
                wide = torch.complex128 if p.is_complex() else torch.float64
                g, old = gradients[name].to(wide), self.buffers.get(name)
                g = (-g if group["maximize"] else g) + group["weight_decay"] * p.to(wide)
                if beta == 0:
                    move = -lr * g
                elif self.program.form == "polyak":
                    move = -lr * g if old is None else beta * old.to(wide) - lr * g
                    self.buffers[name] = move
                else:
                    v = g if old is None else beta * old.to(wide) + share * g
                    move = -lr * (g + beta * v if group["nesterov"] else v)
                    self.buffers[name] = v
                p.copy_(p.to(wide) + move)
                if p.numel() > 0 and (self.program.precision != "float64" or self.exponent > 1e5):
                    parts = g.abs().max().item() + summed.get(name, 0.0)
                    self.moved[name] = move.abs().max().item() + lr * parts

    def summed(self, terms: Tensor, parts: int, trained: dict[str, Tensor]) -> dict[str, float]:
        """What micro-batches add up to where nothing cancels; empty for one."""
        summed: dict[str, float] = {}
        for part in terms.tensor_split(parts) if parts > 1 else ():
            found = torch.autograd.grad(
                part.sum(), [*trained.values()], allow_unused=True, retain_graph=True
            )
            for name, g in zip(trained, found, strict=True):
                if g is not None and g.numel() > 0:
                    summed[name] = summed.get(name, 0.0) + g.abs().max().item()
        return summed

    def change(self, step: Step) -> None:
        if step.event in ("lam", "restart"):
            (self.set_lam if step.event == "lam" else self.restart)(step.value)
        elif step.event == "lr":
            set_lr(self.groups, step.value)
        elif regroup(self.groups, self.program, self.named, step):
            self.schedule = LRSchedule(self.program.lr_schedule, self.groups)
            grouped = {self.name_of[p] for g in self.groups.param_groups for p in g["params"]}
            self.buffers = {n: b for n, b in self.buffers.items() if n in grouped}

    def run(self, step: Step, batch: Batch, is_skipped: bool = False) -> None:
        """``is_skipped``: by the GradScaler; a window that is not made a step leaves log_s."""
        self.change(step)
        if step.event != "no gradients":
            _, _, mask, weight = batch
            parts = micro_batches(step, batch) if self.program.precision != "float64" else [batch]
            losses = torch.cat(
                [losses_of(self.program, self.named, step.scale, x, y) for x, y, *_ in parts]
            )
            log_s = self.rule.log_s
            c = self.coefficients(losses, mask, weight)
            trained = {n: p for n, p in self.named.items() if p.requires_grad}
            total = (c * losses.to(c.dtype)).sum()
            summed = self.summed(c * losses.to(c.dtype), len(parts), trained)
            found = torch.autograd.grad(total, [*trained.values()], allow_unused=True)
            found = tuple(g if g is None else g.to_dense() for g in found)
            if not is_skipped:
                gradients = {n: g for n, g in zip(trained, found, strict=True) if g is not None}
                self.step(gradients, summed)
            elif step.parts > 1 and not step.is_unscaled_first and self.program.by != "fused":
                self.rule.log_s = log_s
        self.schedule.step()
        self.next_epoch()

    @torch.no_grad()
    def follow(self, ours: Ours) -> None:
        """Takes over what was found to be equal: a training that diverges magnifies rounding."""
        for name, p in self.named.items():
            p.copy_(ours.named[name])
            for buffer in ours.opt.state.get(ours.named[name], {}).values():
                if buffer is not None:
                    self.buffers[name] = buffer.clone().to_dense()
        self.rule.log_s, self.rule.lam = ours.opt.log_s.item(), ours.opt.lam.item()
        if not (isinstance(self.wanted, tuple) and math.isinf(self.rule.lam)):
            self.log_s_lam = self.rule.lam
