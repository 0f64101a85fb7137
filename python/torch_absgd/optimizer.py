"""ABSGD: momentum SGD whose mini-batches are weighed by Algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from . import _checks
from .fused_step import MOMENTUM_KEYS, FusedStep, takes
from .lam_rules import LamRule
from .optimizer_state import (
    OPTIMIZER_WIDE,
    agreed_entries,
    convert_momentum,
    same,
)
from .weighting import STATE, Lam, Memory, ProcessGroup, Weighting, new_state, number_or_nan


class ABSGD(Weighting, SGD):
    r"""Attentional-Biased SGD (Qi, Xu, Yin, Jin, Yang, TMLR 2023, Algorithm 1).

    `weigh` turns per-sample losses into the scalar to differentiate, with weights
    :math:`p_i = \exp(L_i/\lambda - \log s)`; `step` is the momentum step::

        opt = ABSGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, lam=1.0)
        loss = opt.weigh(F.cross_entropy(model(x), y, reduction="none"))
        loss.backward(); opt.step(); opt.zero_grad()

    All arguments of `torch.optim.SGD` mean what they mean there; a tensor ``lr`` may live on any
    device and be changed in place. The step runs in one fused kernel for dense float32, float64,
    float16, bfloat16 and complex parameters; ``foreach=True|False``, ``fused=False``,
    ``differentiable=True`` and sparse gradients take torch's own implementation.

    Args:
        lam: temperature λ, a number ≠ 0 or a 0-dim tensor. ``math.inf`` (default): all weights are
            1, plain momentum SGD. λ > 0 attends to large losses (imbalance), λ < 0 to small ones
            (noisy labels). Settable later as ``opt.lam``. Or an `EffectiveSampleSize` or
            `KLRadius`, and λ is found.
        gamma: γ in (0, 1], the moving-average rate of the normaliser s; 1: this batch alone.
        s_init: s_1, the normaliser before the first batch. None (default): the first batch sets
            it. 0.0 reproduces the authors' released code.
        alpha: α > 0, a factor on each batch's mean of exp(L/λ) (the released ``abalpha``).
        momentum_form: ``"torch"``: v ← βv + (1−dampening)g, w ← w − ηv. ``"polyak"``: the paper's
            Equation 2, w_{t+1} = w_t − ηg + β(w_t − w_{t−1}). The same sequence while η and β are
            constant.
        process_group: the group whose gradients are averaged, over which the batch is one. None
            (default): the default group, if one is initialised; ``"local"``: each rank weighs its
            own batch.

    λ, γ, α, s_init and momentum_form are the whole optimizer's: a parameter group that names
    another value is an error.

    Raises:
        ValueError: an argument is out of its range; the message says which.
        TypeError: an argument is not a number.
    """

    # GradScaler then sets grad_scale and found_inf before step(), which reads them on the device,
    # and deletes them after. There may be no defaults: it multiplies a grad_scale that is there.
    _step_supports_amp_scaling = True

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
        gamma: float = 0.9,
        s_init: float | None = None,
        alpha: float = 1.0,
        momentum_form: Literal["torch", "polyak"] = "torch",
        process_group: ProcessGroup | Literal["local"] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        _checks.check_rule(lam, gamma, s_init, alpha, process_group)
        if momentum_form not in MOMENTUM_KEYS:
            raise ValueError(
                f"Invalid momentum_form value: {momentum_form!r} (must be 'torch' or 'polyak')"
            )
        _checks.check_group(
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                "foreach": foreach,
                "differentiable": differentiable,
                "fused": fused,
                "momentum_form": momentum_form,
            }
        )
        self.process_group = process_group
        self._memory = Memory(follows=isinstance(lam, LamRule))
        self._fused: dict[int, FusedStep] = {}
        s_init = number_or_nan(s_init)
        self._at_construction: dict[str, Any] = {
            **new_state(lam, s_init, torch.device("cpu")),
            "gamma": float(gamma),
            "alpha": float(alpha),
            "s_init": s_init,
            "momentum_form": momentum_form,
        }
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        del self._at_construction
        device = self.param_groups[0]["params"][0].device
        if device.type != "meta":
            self._move_state(device)

    # ---- the weighting rule's state, in the parameter groups

    def _state(self) -> MutableMapping[str, Tensor]:
        return self.param_groups[0]

    def _rule(self) -> tuple[float, float, float]:
        group = self.param_groups[0]
        return group["gamma"], group["alpha"], group["s_init"]

    def _move_state(self, device: torch.device) -> None:
        moved = {name: self.param_groups[0][name].to(device) for name in STATE}
        for group in self.param_groups:
            group.update(moved)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.add_param_group`. The group may name SGD's hyper-parameters;
        another value of λ, γ, α, s_init or momentum_form than the optimizer's is an error."""
        shared = self.param_groups[0] if self.param_groups else self._at_construction
        shared = {name: shared[name] for name in OPTIMIZER_WIDE}
        if isinstance(param_group, dict):
            for name, value in shared.items():
                if name in param_group and not same(param_group[name], value):
                    raise ValueError(
                        f"{name} is the whole optimizer's: a parameter group may not set it to "
                        f"{param_group[name]} (it is {value})"
                    )
            param_group = {**param_group, **shared}
            _checks.check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def restart(self, lam: Lam, reset_momentum: bool = False) -> None:
        """Stage two: begins Algorithm 1 anew at another λ ("restarting it with a decayed λ", Qi et
        al. 2023, Section 4.3). Forgets ``log_s``, and the momentum too if asked to.

        Args:
            lam: the new λ, a number ≠ 0 or a 0-dim tensor.
            reset_momentum: forget the momentum buffers.
        """
        _checks.check_choice("reset_momentum", reset_momentum, (True, False))
        super().restart(lam)
        if reset_momentum:
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p].pop(MOMENTUM_KEYS[group["momentum_form"]], None)

    # ---- gradient accumulation

    def accumulate(self, divisor: float = 1, overlap: bool = False) -> AbstractContextManager[None]:
        """Marks micro-batches that together make one step: k of them give, exactly, the step of
        the k times larger batch::

            for x, y in micro_batches:
                with opt.accumulate():
                    opt.weigh(F.cross_entropy(model(x), y, reduction="none")).backward()
            opt.step(); opt.zero_grad()          # clip between opt.finalize_grads_() and step()

        Run each micro-batch's backward pass before the next `weigh`. Everything in ``.grad`` is
        scaled at the end: the backward pass of a loss that is not `weigh`'s (a penalty, an
        auxiliary head) belongs after `finalize_grads_`.

        Args:
            divisor: what the loop divides each micro-batch's scalar by before ``backward()``: 1
                here; k where a framework takes the mean over k micro-batches (Lightning,
                accelerate, HF Trainer).
            overlap: with several ranks, start the collective and go on with the backward pass;
                `finalize_grads_` waits for it. Also useful for a single batch. The weights then
                use the normaliser of the batches before, which is not raised for this one.
        """
        return self._accumulate(self._gradients, divisor, overlap)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        if self._memory.accumulation is not None:
            self._memory.accumulation = self._memory.accumulation.after_zero_grad()

    # ---- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One momentum step, as `torch.optim.SGD.step`.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            the closure's result, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.finalize_grads_()
        if self._must_skip():
            return loss
        for index, group in enumerate(self.param_groups):
            self._step_group(group, self._fused.setdefault(index, FusedStep()))
        return loss

    def _step_group(self, group: dict[str, Any], fused: FusedStep | None = None) -> None:
        scaler = self._from_scaler("grad_scale"), self._from_scaler("found_inf")
        if not (fused or FusedStep()).step(group, self.state, *scaler):
            self._torch_step(group)

    def _must_skip(self) -> bool:
        """Whether the host knows, or has to know now, that gradients overflowed under AMP.

        On a device, the kernels read found_inf themselves; torch's implementation does not.
        """
        found_inf = self._from_scaler("found_inf")
        if found_inf is None:
            return False
        must_ask = found_inf.device.type == "cpu" or not all(
            takes(group, self.state) for group in self.param_groups
        )
        return must_ask and found_inf.item() != 0

    def _from_scaler(self, name: Literal["grad_scale", "found_inf"]) -> Tensor | None:
        return getattr(self, name, None)

    def _torch_step(self, group: dict[str, Any]) -> None:
        """torch.optim.SGD's own step of one group."""
        params: list[Tensor] = []
        grads: list[Tensor] = []
        momenta: list[Tensor | None] = []
        has_sparse_grad = self._init_group(group, params, grads, momenta)
        if group["momentum_form"] == "polyak" and group["momentum"] != 0:
            raise RuntimeError("sparse gradients need momentum_form='torch', got 'polyak'")
        grad_scale = self._from_scaler("grad_scale")
        if grad_scale is not None:
            grads = [g / grad_scale.to(g.device) for g in grads]
        with torch.set_grad_enabled(group["differentiable"]):
            sgd(
                params,
                grads,
                momenta,
                has_sparse_grad=has_sparse_grad,
                foreach=group["foreach"],
                fused=group["fused"],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
            )
        if group["momentum"] != 0:
            for p, momentum in zip(params, momenta, strict=True):
                self.state[p]["momentum_buffer"] = momentum

    # ---- state dicts, pickling, copying

    def __getstate__(self) -> dict[str, Any]:
        # A process group cannot be copied; a copy finds the default group again.
        is_local = isinstance(self.process_group, str)
        return {**super().__getstate__(), "process_group": "local" if is_local else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over a pickled optimizer or, from load_state_dict, loaded state: into the tensors
        that exist, on their device. What it lacks (a plain SGD's has no λ) stays as it was."""
        if "param_groups" not in self.__dict__:
            super().__setstate__(state)
            self._fused = {}
            self._forget()
            return
        own = {name: self.param_groups[0][name] for name in OPTIMIZER_WIDE}
        loaded = agreed_entries(state["param_groups"])
        form = loaded.pop("momentum_form", "torch")
        for group in state["param_groups"]:
            here = {"momentum_form": own["momentum_form"]}
            _checks.check_group({**self.defaults, **group, **here})
        if form != own["momentum_form"]:
            convert_momentum(state, form, own["momentum_form"])
        super().__setstate__(state)
        for name in STATE:
            if name in loaded:
                own[name].copy_(torch.as_tensor(loaded.pop(name)))
        own.update(loaded)
        for group in self.param_groups:
            group.update(own)
        self._forget()
