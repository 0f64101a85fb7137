"""Random trainings by the package, beside the same by plain torch: they must stay equal.

    python tests/campaign/trainings.py COUNT [FIRST_SEED] [--sparse | --extended | --compiled]

A training is a `Program`: data, drawn from a seed, so that a failing one can be made smaller and
printed. `Plain` is what it should do. Parameters, momenta and λ are taken over after each step, so
that a step is compared, not a chain of them.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ours import Ours
from plain import Plain
from programs import Program, Step, any_program, compiled, extended, sparse
from small_model import batch_of

ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # half an ulp of 1
DIVERGED = 100.0  # a parameter; exponentials of losses then magnify rounding


def largest(tensors: list[Tensor]) -> list[float]:
    """Of each, the largest absolute value."""
    values: list[float] = torch.stack(torch._foreach_norm(tensors, math.inf)).double().tolist()
    return values


@torch.no_grad()
def difference(program: Program, plain: Plain, ours: Ours) -> str:
    names = [name for name, p in plain.named.items() if p.numel() > 0]
    expected = [plain.named[name] for name in names]
    away = largest(torch._foreach_sub([ours.named[name] for name in names], expected))
    for name, far, size in zip(names, away, largest(expected), strict=True):
        moved = plain.moved.get(name, 0.0)
        if not far <= tolerance(program, size, moved, plain.exponent):
            return f"{name} is {far:.3g} away"
    slack = 1e-9 if program.precision == "float64" else 1e-4
    for name, a, b in (
        ("log_s", ours.opt.log_s.item(), plain.rule.log_s),
        ("lam", ours.opt.lam.item(), plain.rule.lam),
    ):
        is_same = a == b or (math.isnan(a) and math.isnan(b))
        if not (is_same or math.isclose(a, b, rel_tol=slack, abs_tol=slack)):
            return f"{name} is {a!r}, not {b!r}"
    return ""


def tolerance(program: Program, size: float, moved: float, exponent: float) -> float:
    """Of a parameter's elements: how it, its gradient and L/λ are rounded.

    L/λ is large where λ is found from losses that differ by rounding alone.
    """
    own, *is_autocast = program.precision.split()
    if own == "float64":
        return 1e-9 * (1 + size) + 4 * exponent * 2.0**-53 * moved
    of_gradient = 8 * ROUNDING[own] + 2 * exponent * ROUNDING["float32"]
    return 2 * ROUNDING["float32" if is_autocast else own] * size + of_gradient * moved


def run(program: Program) -> str:
    """What went wrong; empty if nothing did."""
    if program.compiled:
        torch._dynamo.reset()
    plain, ours = Plain(program), Ours(program)
    for i, step in enumerate(program.steps):
        lam = step.value if step.event in ("lam", "restart") else plain.wanted
        if step.parts > 1 and isinstance(lam, tuple):  # λ would be the first micro-batch's
            step = replace(step, parts=1, divisor=1.0)
        batch = batch_of(program, step)
        try:
            is_finite = ours.run(step, batch)
        except Exception as error:
            return f"step {i}: {type(error).__name__}: {error}"
        if not is_finite and step.event != "overflow":
            return "" if "16" in program.precision else f"step {i}: gradients are not finite"
        plain.found = ours.opt.lam.item()
        plain.run(step, batch, is_skipped=not is_finite)
        if wrong := difference(program, plain, ours):
            return f"step {i}: {wrong}"
        if not max(largest([p for p in plain.named.values() if p.numel() > 0])) < DIVERGED:
            return ""  # diverged alike: nothing more to learn
        plain.follow(ours)
    return ""


def simpler(program: Program) -> Iterator[Program]:
    for i in reversed(range(len(program.steps))):
        yield replace(program, steps=program.steps[:i] + program.steps[i + 1 :])
    for feature in program.features:
        yield replace(program, features=tuple(f for f in program.features if f != feature))
    for i in range(len(program.groups)):
        if len(program.groups) > 1:
            yield replace(program, groups=program.groups[:i] + program.groups[i + 1 :])
    for name in ("precision", "has_scaler", "by", "has_tensor_lr", "lr_schedule", "milestones",
                 "over", "compiled", "backend"):  # fmt: skip
        if getattr(program, name) != getattr(Program, name):
            yield replace(program, **{name: getattr(Program, name)})
    plain = {"gamma": None, "s_init": None, "alpha": 1.0, "max_weight": None, "keep_loss": False}
    for name, value in plain.items():
        if program.rule[name] != value:
            yield replace(program, rule={**program.rule, name: value})
    for i, step in enumerate(program.steps):
        default = Step(seed=step.seed)
        for name in ("event", "parts", "divisor", "has_mask", "has_weight", "scale"):
            if getattr(step, name) != getattr(default, name):
                one = replace(step, **{name: getattr(default, name)})
                yield replace(program, steps=(*program.steps[:i], one, *program.steps[i + 1 :]))


def shrunk(program: Program, fails: Callable[[Program], str] = run) -> Program:
    """The smallest program that still fails, one simplification after the other."""
    while True:
        for other in simpler(program):
            if fails(other):
                program = other
                break
        else:
            return program


def main() -> int:
    from tqdm import trange

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("first", type=int, nargs="?", default=0, help="seed")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--sparse", action="store_const", dest="kind", const=sparse)
    kind.add_argument("--extended", action="store_const", dest="kind", const=extended)
    kind.add_argument("--compiled", action="store_const", dest="kind", const=compiled)
    parser.set_defaults(kind=any_program)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    if wanted.kind is compiled:
        torch._dynamo.config.trace_autograd_ops = True
    warnings.filterwarnings(
        "ignore", message=".*(out of reach|of a batch effective|optimizer.step|sparse tensor)"
    )
    steps = 0
    for seed in trange(wanted.first, wanted.first + wanted.count, unit="training", mininterval=10):
        program = wanted.kind(seed)
        steps += len(program.steps)
        if run(program):
            small = shrunk(program)
            print(f"\nseed {seed}: {run(small)}\n{small}")
            return 1
    print(f"{wanted.count} trainings, {steps} steps, seeds from {wanted.first}: all equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
