"""What the package does, used as its users would."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torch_absgd as ta
from groups import LRSchedule, groups_of, regroup, set_lr
from programs import Program, Step
from small_model import Batch, losses_of, micro_batches, parameters

BY = {
    "": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for-loop": {"fused": False},
}


def rule_of(lam: Any) -> Any:
    if not isinstance(lam, tuple):
        return lam
    kind = ta.EffectiveSampleSize if lam[0] == "ess" else ta.KLRadius
    return kind(lam[1], noisy=lam[2])


class Ours:
    """The package, used as its users would."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.named: Any = {name: nn.Parameter(p) for name, p in parameters(program).items()}
        if program.compiled:  # which sees only a module's parameters as leaves of its backward()
            self.named = nn.ParameterDict([*self.named.items()])
        if "frozen" in program.features:
            self.named["b1"].requires_grad_(False)
        self.scaler = torch.amp.GradScaler("cpu", 2.0**10, enabled=program.has_scaler)
        self.losses = self.plain_losses
        if program.compiled == "losses":
            self.losses = torch.compile(self.plain_losses, backend=program.backend)
        self.make(program.rule["lam"], [*groups_of(program, self.named)])

    def make(self, lam: Any, groups: list[dict[str, Any]]) -> None:
        program, rule = self.program, {**self.program.rule, "lam": rule_of(lam)}
        self.opt = ta.ABSGD(
            groups, lr=0.1, momentum_form=program.form, process_group="local", **BY[program.by],
            **rule,
        )  # fmt: skip
        self.lr_schedule = LRSchedule(program.lr_schedule, self.opt)
        milestones = {epoch: rule_of(lam) for epoch, lam in program.milestones}
        self.lam_schedule = ta.LamScheduler(self.opt, milestones, program.over)
        self.take_step: Callable[[], Any] = self.opt.step
        self.whole = None
        if program.compiled == "step":
            self.take_step = torch.compile(self.opt.step, backend=program.backend)
        elif program.compiled == "whole":
            self.whole = torch.compile(self.plain_whole, backend=program.backend, fullgraph=True)

    def plain_losses(self, scale: float, x: Tensor, y: Tensor) -> Tensor:
        return losses_of(self.program, self.named, scale, x, y)

    def plain_whole(
        self, scale: float, x: Tensor, y: Tensor, mask: Tensor | None, weight: Tensor | None
    ) -> Tensor:
        total = self.opt.weigh(self.plain_losses(scale, x, y), mask, weight)
        total.backward()
        ta.ABSGD.step(self.opt)  # for which an LR schedule puts what is not traced
        self.opt.zero_grad()
        return total.detach()

    def change(self, step: Step) -> None:
        if step.event == "reload":
            self.reload()
        elif step.event == "lam":
            self.opt.lam = rule_of(step.value)
        elif step.event == "restart":
            self.opt.restart(rule_of(step.value))
        elif step.event == "lr":
            set_lr(self.opt, step.value)
        elif regroup(self.opt, self.program, self.named, step):
            self.lr_schedule = LRSchedule(self.program.lr_schedule, self.opt)

    def reload(self) -> None:
        saved = io.BytesIO()
        parts = ("opt", "lr_schedule", "lam_schedule")
        torch.save({name: getattr(self, name).state_dict() for name in parts}, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=True)
        self.make(math.inf, [{"params": group["params"]} for group in self.opt.param_groups])
        for name in parts:
            getattr(self, name).load_state_dict(loaded[name])

    def run(self, step: Step, batch: Batch) -> bool:
        """Whether the gradients were finite."""
        self.change(step)
        is_finite = True
        if step.event == "no gradients":
            self.opt.step()
        else:
            self.look(step, batch)
            is_finite = self.train(step, batch)
        self.opt.zero_grad()
        for p in self.named.values():
            p.grad = None  # of those in no group too
        self.lr_schedule.step()
        self.lam_schedule.step()
        return is_finite

    def look(self, step: Step, batch: Batch) -> None:
        """What leaves no trace."""
        if step.event == "evaluate":
            with torch.no_grad():
                self.weigh(step, batch)
        elif step.event == "frozen":
            with self.opt.frozen():
                self.weigh(step, batch).backward()
            self.opt.zero_grad()
        elif step.event == "discard":
            with self.opt.accumulate():
                self.weigh(step, batch).backward()
            self.opt.discard()

    def train(self, step: Step, batch: Batch) -> bool:
        def backward() -> Tensor:
            self.opt.zero_grad()
            total = self.weigh(step, batch)
            self.scaler.scale(total).backward()
            return total

        if step.parts > 1:
            for part in micro_batches(step, batch):
                with self.opt.accumulate(divisor=step.divisor):
                    total = self.weigh(step, part)
                    self.scaler.scale(total / step.divisor).backward()
        elif step.event == "closure" and not self.program.has_scaler:
            self.opt.step(backward)
            return True
        elif self.whole is not None and step.event != "checkpointed":
            self.whole(step.scale, *batch)
            return True
        else:
            backward()
        return self.scaled_step(step)

    def scaled_step(self, step: Step) -> bool:
        params = [p for group in self.opt.param_groups for p in group["params"]]
        grads = [p.grad for p in params if p.grad is not None]
        if not grads:  # which GradScaler takes for an error
            self.take_step()
            return True
        if step.event == "overflow" and self.program.has_scaler:
            for g in [g for g in grads if g.numel() > 0][:1]:
                g.view(-1)[0] = math.inf
        is_exact = self.program.precision == "float64" and not self.program.has_scaler
        is_finite = is_exact or all(bool(g.isfinite().all()) for g in grads)
        if step.is_unscaled_first:
            self.scaler.unscale_(self.opt)
            self.opt.finalize_grads_()
        if self.program.has_scaler:
            self.scaler.step(self.opt)
            self.scaler.update()
        elif step.parts == 1:
            self.take_step()
        else:
            self.opt.step()
        return is_finite

    def weigh(self, step: Step, batch: Batch) -> Tensor:
        def forward(x: Tensor) -> Tensor:
            _, y, mask, weight = batch
            return self.opt.weigh(self.losses(step.scale, x, y), mask, weight)

        if step.event == "checkpointed" and step.parts == 1:
            total: Tensor = checkpoint(forward, batch[0], use_reentrant=False)
            return total
        return forward(batch[0])
