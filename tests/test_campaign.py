"""Short runs of the campaign (tests/campaign.sh), and that it finds what is planted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bad_inputs
import programs
import soak
import trainings
from torch_absgd import ABSGD, fused_step

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*out of reach:UserWarning",
    "ignore:.*optimizer.step:UserWarning",
    "ignore:.*sparse tensor:UserWarning",
)


@pytest.mark.parametrize("kind", [programs.any_program, programs.sparse, programs.extended])
def test_random_trainings_are_those_of_the_reference(
    kind: Callable[[int], programs.Program],
) -> None:
    for seed in range(30):
        assert trainings.run(kind(seed)) == "", seed


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"),
    reason="this torch cannot trace backward(): torch._dynamo.config.trace_autograd_ops is missing",
)
def test_a_random_compiled_training_is_that_of_the_reference() -> None:
    program = programs.compiled(8)  # whole steps and an eager one; without momentum, of one graph
    group = {**program.groups[0], "momentum": 0.0, "nesterov": False}
    program = replace(program, groups=(group,), steps=program.steps[:5])
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        assert trainings.run(program) == ""


def test_a_planted_fault_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ABSGD, "frozen", lambda self: contextlib.nullcontext())
    some = map(programs.any_program, range(40))
    small = trainings.shrunk(next(p for p in some if trainings.run(p)))
    assert len(small.steps) == 1 and small.steps[0].event == "frozen"
    assert trainings.run(replace(small, steps=(replace(small.steps[0], event=""),))) == ""


def test_a_fault_of_half_precision_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A β of 0.72, in bfloat16, where the step before is taken over."""
    form = {"momentum": 0.9, "lr": 0.2}
    program = programs.extended(0)
    program = replace(
        program, precision="bfloat16", features=(), by="", form="torch", has_scaler=False
    )
    group = {**program.groups[0], **form, "dampening": 0.0}
    program = replace(program, groups=(group,))
    assert trainings.run(program) == ""
    hyper_parameters = fused_step._hyper_parameters

    def off(*args: Any) -> tuple[Any, ...]:
        found = list(hyper_parameters(*args))
        found[2] *= 0.8
        return tuple(found)

    monkeypatch.setattr(fused_step, "_hyper_parameters", off)
    assert "away" in trainings.run(program)


def test_every_odd_value_is_refused_by_name_or_taken() -> None:
    calls, findings = bad_inputs.run()
    assert findings == [] and calls >= 2000


def test_an_error_that_names_nothing_is_a_finding() -> None:
    def half(x: int) -> float:
        return x / 2

    case = bad_inputs.Case("half", half, {"x": 1})
    assert bad_inputs.tried(case, "x", 3) is None
    assert "does not name it" in bad_inputs.tried(case, "x", "a")


def test_a_soak_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "SAVE", 100)
    whole = soak.soak(300)
    soak.soak(200, tmp_path / "soak.pt")
    resumed = soak.soak(300, tmp_path / "soak.pt")
    assert resumed.done == whole.done == 300 and resumed.away == whole.away < 1e-12
    assert resumed.opt.log_s == whole.opt.log_s
    parameters = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in parameters)


def test_a_soak_sees_a_drift() -> None:
    run = soak.Soak()
    run.plain.gamma = 0.8
    run.block()
    assert run.away > 1e-3
