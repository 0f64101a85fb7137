"""ABSGD: momentum SGD whose mini-batches are weighed by Algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import _checks, _rule_checks, compiled_step
from .collective import Collective, ProcessGroup
from .fused_step import MOMENTUM_KEYS, FusedStep
from .lam_rules import LamRule
from .rule_state import Lam, RuleState
from .shared_groups import SharedGroups
from .stats import Stats
from .torch_step import torch_step
from .weigher import Weigher


class ABSGD(SharedGroups):
    r"""Attentional-Biased SGD (Qi, Xu, Yin, Jin, Yang, TMLR 2023, Algorithm 1).

    `weigh` turns per-sample losses into the scalar to differentiate, with weights
    :math:`p_i = \exp(L_i/\lambda - \log s)`; `step` is the momentum step::

        opt = ABSGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, lam=1.0)
        loss = opt.weigh(F.cross_entropy(model(x), y, reduction="none"))
        loss.backward(); opt.step(); opt.zero_grad()

    All arguments of `torch.optim.SGD` mean what they mean there; a tensor ``lr`` may live on any
    device and be changed in place. The step runs in one fused kernel for dense float32, float64,
    float16, bfloat16 and complex parameters; ``foreach=True|False``, ``fused=False``,
    ``differentiable=True``, a tensor ``weight_decay`` and sparse gradients take torch's own.

    Args:
        lam: temperature λ, a number ≠ 0 or a 0-dim tensor. ``math.inf`` (default): all weights are
            1, plain momentum SGD. λ > 0 attends to large losses (imbalance), λ < 0 to small ones
            (noisy labels). Settable later as ``opt.lam``. Or an `EffectiveSampleSize` or
            `KLRadius`, and λ is found.
        gamma: γ in (0, 1], the moving-average rate of the normaliser s; 1: this batch alone. None
            (default): 0.9 where λ is a number, 1 where a rule finds it.
        s_init: s_1, the normaliser before the first batch. None (default): the first batch sets
            it. 0.0 reproduces the authors' released code.
        alpha: α > 0, a factor on each batch's mean of exp(L/λ) (the released ``abalpha``).
        max_weight: a cap c ≥ 1 on the weights, not renormalised: min(κp, c). None: no cap.
        keep_loss: multiply the weights by κ = min(1, Σ|L| / Σ p|L|), so that the gradient keeps
            the scale that the learning rate was chosen for; where κ < 1, and losses are ≥ 0, the
            scalar reads as the plain mean loss. With either guard, or under a rule, s stays below
            1/γ times the batch's own mean: one outlier does not silence the batches after it.
        momentum_form: ``"torch"``: v ← βv + (1−dampening)g, w ← w − ηv. ``"polyak"``: the paper's
            Equation 2, w_{t+1} = w_t − ηg + β(w_t − w_{t−1}). The same sequence while η and β are
            constant.
        process_group: the group whose gradients are averaged, over which the batch is one. None
            (default): the default group, if one is initialised; ``"local"``: each rank weighs its
            own batch.

    λ and the arguments from gamma to momentum_form are the whole optimizer's: a parameter group
    that names another value is an error.

    Raises:
        ValueError: an argument is out of its range; the message says which.
        TypeError: an argument is not a number.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        lam: Lam = math.inf,
        gamma: float | None = None,
        s_init: float | None = None,
        alpha: float = 1.0,
        max_weight: float | None = None,
        keep_loss: bool = False,
        momentum_form: Literal["torch", "polyak"] = "torch",
        process_group: ProcessGroup | Literal["local"] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        _rule_checks.check_rule(lam, gamma, s_init, alpha, max_weight, keep_loss, process_group)
        _checks.check_choice("momentum_form", momentum_form, tuple(MOMENTUM_KEYS))
        sgd_arguments = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        _rule_checks.check_group({**sgd_arguments, "momentum_form": momentum_form})
        state = RuleState(lam, gamma, s_init, alpha, max_weight, keep_loss)
        weigher = Weigher(state, Collective(process_group))
        super().__init__(params, sgd_arguments, weigher, momentum_form)

    # ---- the weighting

    def weigh(
        self, losses: Tensor, mask: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        r"""Weighs per-sample losses by Algorithm 1 and returns the scalar to differentiate.

        .. math::
            p_i = \exp(L_i/\lambda - \log s), \qquad \frac{1}{B} \sum_i w_i p_i L_i

        with :math:`p` a constant in the backward pass (Qi et al. 2023, Algorithm 1), after
        :math:`\log s` has taken in this batch. The batch is that of all ranks of
        ``process_group``; the result is scaled so that gradients averaged over the ranks are those
        of one process with the whole batch.

        Under ``torch.no_grad()`` the result is the plain mean, (1/B) Σ w_i L_i, and nothing
        changes.

        Args:
            losses: per-sample losses, of any shape but (), in any floating dtype. Half precision
                is computed in float32.
            mask: bool, the losses' shape and device: True where a loss counts. The others count
                neither in B nor in log_s, and their weight is 0.
            weight: class or sample weights w_i ≥ 0, finite, of the losses' shape and device: the
                base measure of the DRO problem, outside the exponential. A sample of weight 0
                counts in B and nowhere else. Not read where masked.

        Returns:
            a scalar, float64 for float64 losses and float32 otherwise; 0, attached to the graph,
            if no loss counts; non-finite if one that counts is (``log_s`` then stays as it was).

        Raises:
            TypeError: ``losses`` or ``weight`` is not a floating-point tensor, or ``mask`` not a
                bool one.
            ValueError: ``losses`` is a scalar; ``mask`` or ``weight`` differs in shape or device;
                a weight is negative or not finite (asked where no device has to be waited for).
            RuntimeError: micro-batches wait to be made a step.
        """
        self._adopt()
        return self.weigher.weigh(losses, mask, weight)

    @property
    def weights(self) -> Tensor | None:
        """The weights of the last batch, min(κp_i, c): p_i without guards. Detached, in the shape
        of its losses; float64 for float64 losses, float32 otherwise. None before the first."""
        return self.weigher.weights

    @property
    def lam(self) -> Tensor:
        """λ now, a 0-dim float64 copy (``float(opt.lam)`` for a number). Assign a number or a 0-dim
        tensor to change it: within one sign, ``log_s`` is carried over as
        ``log_s · λ_old/λ_new``; on a change of sign, or from ±inf, the next batch initialises it.
        Assign an `EffectiveSampleSize` or a `KLRadius` to let it be found; it then reads ±inf until
        a batch has an answer, and the current value from there on."""
        self._adopt()
        return self.weigher.state.lam.clone()

    @lam.setter
    def lam(self, value: Lam) -> None:
        self._adopt()
        self.weigher.set_lam(value)

    @property
    def lam_rule(self) -> LamRule | None:
        """The `EffectiveSampleSize` or `KLRadius` that finds λ; None where λ is a number."""
        self._adopt()
        return self.weigher.state.rule

    @property
    def log_s(self) -> Tensor:
        """log s, a 0-dim float64 copy: the normaliser, in the log domain. NaN while unset."""
        self._adopt()
        return self.weigher.state.log_s.clone()

    def restart(self, lam: Lam, reset_momentum: bool = False) -> None:
        """Stage two: begins Algorithm 1 anew at another λ ("restarting it with a decayed λ", Qi et
        al. 2023, Section 4.3). Forgets ``log_s``, and the momentum too if asked to.

        Args:
            lam: the new λ, as at construction.
            reset_momentum: forget the momentum. Without dampening the buffers become 0: the same,
                and a captured CUDA graph finds them where they were.
        """
        _checks.check_choice("reset_momentum", reset_momentum, (True, False))
        self._adopt()
        self.weigher.restart(lam)
        if reset_momentum:
            key = MOMENTUM_KEYS[self.momentum_form]
            for group in self.param_groups:
                for p in group["params"]:
                    if group["dampening"]:  # a buffer's first step knows none
                        self.state[p].pop(key, None)
                    elif self.state[p].get(key) is not None:
                        self.state[p][key].zero_()

    def stats(self) -> Stats:
        """What the weights did in the last batch and as a running mean: see `Stats`. Reading a
        number from it is what synchronises, not this call."""
        return self.weigher.stats()

    def frozen(self) -> AbstractContextManager[None]:
        """Weighs without taking the batch in: λ, ``log_s`` and the statistics stay as they were.
        For a second forward pass on one batch, such as SAM's at the perturbed parameters::

            opt.weigh(losses(model, batch)).backward()
            perturb(model)
            with opt.frozen():
                opt.weigh(losses(model, batch)).backward()
        """
        return self.weigher.frozen()

    # ---- gradient accumulation

    def accumulate(
        self, divisor: float = 1, overlap: bool = False, params: Iterable[Tensor] = ()
    ) -> AbstractContextManager[None]:
        """Marks micro-batches that together make one step: k of them give, exactly, the step of
        the k times larger batch (where a rule finds λ, at the λ of the first of them)::

            for x, y in micro_batches:
                with opt.accumulate():
                    opt.weigh(F.cross_entropy(model(x), y, reduction="none")).backward()
            opt.step(); opt.zero_grad()          # clip between opt.finalize_grads_() and step()

        Run each micro-batch's backward pass before the next `weigh`. Everything in ``.grad`` is
        scaled at the end: the backward pass of a loss that is not `weigh`'s (a penalty, an
        auxiliary head) belongs after `finalize_grads_`. With ``max_weight`` the cap is taken
        against the normaliser of the batches before, or of the first micro-batch. `discard` drops
        micro-batches that cannot be finished.

        Args:
            divisor: what the loop divides each micro-batch's scalar by before ``backward()``: 1
                here; k where a framework takes the mean over k micro-batches (Lightning,
                accelerate, HF Trainer).
            overlap: with several ranks and a number for λ, start the collective and go on with the
                backward pass; `finalize_grads_` waits for it. Also useful for a single batch. The
                weights then use the normaliser of the batches before, which is not raised for this
                one.
            params: parameters of other optimizers whose gradients come from the same losses, and
                so have to be scaled too.
        """
        others = _rule_checks.tensors("params", params)

        def gradients() -> list[Tensor]:
            own = (p for g in self.param_groups for p in g["params"])
            return [p.grad for p in dict.fromkeys((*own, *others)) if p.grad is not None]

        return self.weigher.accumulate(gradients, divisor, overlap)

    def finalize_grads_(self) -> None:
        """Turns gradients accumulated under `accumulate` into those of the whole batch, in place,
        and takes that batch into ``log_s``. It belongs after ``GradScaler.unscale_`` and before
        clipping; `step` calls it if nobody has. Without an accumulation it does nothing."""
        self.weigher.finalize_grads_()

    def discard(self) -> None:
        """Drops micro-batches that cannot be made a step (a NaN, an interrupted window), and the
        gradients of this optimizer's parameters: ``log_s`` and the parameters stay as they were."""
        self.weigher.discard()
        super().zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        if torch.compiler.is_compiling():  # which does not trace torch's own
            compiled_step.zero_grad(self.param_groups, set_to_none)
        else:
            super().zero_grad(set_to_none)
        self.weigher.on_zero_grad()

    def join_hook(self, **_: Any) -> NoReturn:
        """What ``torch.distributed.algorithms.Join`` would call for ranks that run out of batches.

        Raises:
            NotImplementedError: DDP's own hook waits there for the other ranks' backward pass, and
                those wait, within `weigh`, for this rank's statistics.
        """
        raise NotImplementedError(
            "ABSGD cannot be joined: a rank that has run out of batches goes on with empty ones, "
            "x[:0] and y[:0], which count nothing, until every rank has run out"
        )

    # ---- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One momentum step, as `torch.optim.SGD.step`.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            the closure's result, or None.

        Raises:
            RuntimeError: no parameter has a gradient in a step that is being compiled.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.weigher.finalize_grads_()
        if torch.compiler.is_compiling():
            compiled_step.check_gradients(self.param_groups)
        elif self.weigher.rows is None:
            self.weigher.watch.miss(self.weigher.state)
        grad_scale, found_inf = (getattr(self, n, None) for n in ("grad_scale", "found_inf"))
        while len(self._fused) < len(self.param_groups):
            self._fused.append(FusedStep())
        while len(self._fused) > len(self.param_groups):  # a group was removed
            self._fused.pop()
        for fused, group in zip(self._fused, self.param_groups, strict=True):
            if not fused.step(group, self.state, grad_scale, found_inf):
                torch_step(self, group, grad_scale, found_inf)
        return loss

    def step_parameter(self, p: Tensor) -> None:
        """The step of one parameter, by its ``.grad`` and its group's hyper-parameters.

        Raises:
            ValueError: ``p`` is not a parameter of this optimizer.
        """
        for group in self.param_groups:
            if any(p is q for q in group["params"]):
                alone = {**group, "params": [p]}
                with torch.no_grad():
                    if not FusedStep().step(alone, self.state, None, None):
                        torch_step(self, alone, None, None)
                return
        raise ValueError(f"p must be a parameter of this optimizer, got {type(p)}")

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler leaves scale and overflow to `step`, which then reads them on the
        device: with ``fused=True``, as torch.optim.SGD has it. There may be no defaults for
        grad_scale and found_inf: the scaler multiplies a grad_scale that is there."""
        return all(group["fused"] for group in self.param_groups)

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        pass  # torch.optim.SGD sets it where fused=True
