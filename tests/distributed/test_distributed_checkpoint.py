"""torch.distributed.checkpoint: saved on two ranks, resumed on one, two and four."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import torch_absgd as ta
from parallel import RULE, batches, cut, losses, small_model, whole, wrapped
from ranks import Ranks

STOP, END = 6, 12


def train(model: nn.Module, opt: ta.ABSGD, begin: int, end: int) -> None:
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for step, batch in list(enumerate(batches(END)))[begin:end]:
        if step == 3:
            opt.restart(lam=0.5)
        opt.weigh(losses(model, cut(batch, size, seed=step)[rank])).backward()
        opt.step()
        opt.zero_grad()


def numbers(model: nn.Module, opt: ta.ABSGD) -> dict[str, Tensor]:
    """All state, as one process has it."""
    momenta = {f"momentum of {i}": whole(opt.state[p]["momentum_buffer"])
               for i, p in enumerate(model.parameters())}  # fmt: skip
    parameters = {f"parameter {i}": whole(p.detach()) for i, p in enumerate(model.parameters())}
    reports = torch.tensor([opt.stats().last, opt.stats().mean], dtype=torch.float64)
    return {**parameters, **momenta, "log_s": opt.log_s, "lam": opt.lam, "reports": reports}


def built(wrapper: str) -> tuple[nn.Module, ta.ABSGD]:
    model = small_model() if wrapper == "none" else wrapped(small_model(), wrapper)
    return model, ta.ABSGD(model.parameters(), **RULE, lam=2.0)


def save(wrapper: str, directory: Path, options: dict[str, Any]) -> dict[str, Tensor]:
    """Saves in the middle; returns the end of the run that was not stopped."""
    model, opt = built(wrapper)
    train(model, opt, 0, STOP)
    state = get_state_dict(model, opt, options=StateDictOptions(**options))
    dcp.save(dict(zip(("model", "opt"), state, strict=True)), checkpoint_id=directory)
    train(model, opt, STOP, END)
    return numbers(model, opt)


def resume(wrapper: str, directory: Path, options: dict[str, Any]) -> dict[str, Tensor]:
    model, opt = built(wrapper)
    opt.lam = 7.0  # another than the saved
    options = StateDictOptions(**options)
    state = dict(zip(("model", "opt"), get_state_dict(model, opt, options=options), strict=True))
    dcp.load(state, checkpoint_id=directory)
    set_state_dict(
        model, opt, model_state_dict=state["model"], optim_state_dict=state["opt"], options=options
    )
    train(model, opt, STOP, END)
    return numbers(model, opt)


def assert_close(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("wrapper", ["fsdp2", "ddp"])
def test_a_checkpoint_of_two_ranks_resumes_on_any_number(
    two: Ranks, four: Ranks, tmp_path: Path, wrapper: str, flat: bool
) -> None:
    options = {"flatten_optimizer_state_dict": flat}
    expected, _ = two.run(save, wrapper, tmp_path, options)
    for again in two.run(resume, wrapper, tmp_path, options):
        assert_close(again, expected, 0)  # bit for bit
    for other in [*four.run(resume, wrapper, tmp_path, options), resume("none", tmp_path, options)]:
        assert_close(other, expected, 1e-12)


def gather_and_broadcast() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A full state dict on rank 0, from which all ranks are then set."""
    model, opt = built("fsdp2")
    train(model, opt, 0, STOP)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    states = (
        get_model_state_dict(model, options=options),
        get_optimizer_state_dict(model, opt, options=options),
    )
    states = copy.deepcopy(states)  # log_s and λ in it are the optimizer's own tensors
    train(model, opt, STOP, END)

    resumed, resumed_opt = built("fsdp2")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    model_state, opt_state = states if dist.get_rank() == 0 else ({}, {})
    set_model_state_dict(resumed, model_state, options=options)
    set_optimizer_state_dict(resumed, resumed_opt, opt_state, options=options)
    train(resumed, resumed_opt, STOP, END)
    return numbers(resumed, resumed_opt), numbers(model, opt)


def test_a_full_state_dict_is_broadcast(two: Ranks) -> None:
    for resumed, expected in two.run(gather_and_broadcast):
        assert_close(resumed, expected, 0)


def take_over_sgd(directory: Path) -> None:
    """A run of torch.optim.SGD goes on as ABSGD: momentum is taken over, λ is the new one's."""
    model = wrapped(small_model(), "fsdp2")
    sgd = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.8)
    losses(model, next(batches(1))).mean().backward()
    sgd.step()
    dcp.save({"opt": get_optimizer_state_dict(model, sgd)}, checkpoint_id=directory)
    buffers = [whole(sgd.state[p]["momentum_buffer"]).clone() for p in model.parameters()]

    opt = ta.ABSGD(model.parameters(), lr=0.1, lam=3.0, gamma=0.5)
    state = {"opt": get_optimizer_state_dict(model, sgd)}
    dcp.load(state, checkpoint_id=directory)
    set_optimizer_state_dict(model, opt, state["opt"])
    group = opt.param_groups[0]
    assert (group["lr"], group["momentum"], group["gamma"], opt.lam) == (0.3, 0.8, 0.5, 3.0)
    for p, buffer in zip(model.parameters(), buffers, strict=True):
        assert torch.equal(whole(opt.state[p]["momentum_buffer"]), buffer)


def test_a_plain_sgd_s_state_is_taken_over(two: Ranks, tmp_path: Path) -> None:
    two.run(take_over_sgd, tmp_path)
