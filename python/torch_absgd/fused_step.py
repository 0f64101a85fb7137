"""STUB, replaced by the step branch."""
from __future__ import annotations
import math
import torch
MOMENTUM_KEYS = {"torch": "momentum_buffer", "polyak": "displacement_buffer"}
def _local(t):
    if hasattr(t, "to_local"):
        t = t.to_local()
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
def _f64(value, device):
    return value.to(device, torch.float64).reshape(()) if isinstance(value, torch.Tensor) else None
class FusedStep:
    def step(self, group, state, grad_scale, found_inf):
        if (group["differentiable"] or group["foreach"] is not None or group["fused"] is False
            or isinstance(group["weight_decay"], torch.Tensor)
            or any(p.grad is not None and p.grad.is_sparse for p in group["params"])):
            return False
        if found_inf is not None and found_inf.item() != 0:
            return True
        key = MOMENTUM_KEYS[group["momentum_form"]]
        batches = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            momentum = state[p].get(key) if group["momentum"] != 0 else None
            fresh = group["momentum"] != 0 and momentum is None
            if fresh:
                momentum = torch.empty_like(p)
            batches.setdefault((p.device, fresh), []).append((p, p.grad, momentum))
        for (device, fresh), tensors in batches.items():
            params = [_local(p) for p, _, _ in tensors]
            grads = [_local(g.to(p.dtype)) for p, g, _ in tensors]
            momenta = [_local(v) for _, _, v in tensors if v is not None]
            lr = group["lr"]
            if torch.compiler.is_compiling() and not isinstance(lr, torch.Tensor):
                lr = torch.ones((), dtype=torch.float64, device=device) * lr
            torch.ops.absgd.sgd_step_(params, grads, momenta, fresh,
                math.nan if isinstance(lr, torch.Tensor) else lr, _f64(lr, device),
                group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"],
                group["maximize"], group["momentum_form"] == "polyak",
                _f64(grad_scale, device), _f64(found_inf, device))
            torch.autograd.graph.increment_version(params + momenta)
            if group["momentum"] != 0:
                for p, _, momentum in tensors:
                    state[p][key] = momentum
        return True
