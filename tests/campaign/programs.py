"""Random trainings as data, drawn from a seed: a failing one can be made smaller and printed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

FEATURES = ("tied", "frozen", "empty", "complex", "embedding", "strided")
PRECISIONS = ("float64", "float32", "bfloat16", "float16", "bfloat16 autocast", "float16 autocast")
LR_SCHEDULES = ("", "", "step", "milestones", "exponential", "cosine", "warm restarts", "linear",
                "polynomial", "lambda", "multiplicative", "cyclic", "one cycle", "sequential",
                "plateau")  # fmt: skip
CYCLED_MOMENTUM = ("cyclic", "one cycle")  # a constant of the graph: each step would compile anew


@dataclass(frozen=True)
class Step:
    """One batch and what comes before it."""

    seed: int
    n: int = 8
    scale: float = 1.0  # of the losses
    has_mask: bool = False
    has_weight: bool = False
    parts: int = 1  # micro-batches
    divisor: float = 1.0
    event: str = ""
    value: Any = None

    @property
    def is_unscaled_first(self) -> bool:
        """Whether the loop unscales and finalizes the gradients before the GradScaler's step."""
        return self.event == "unscale" or (self.event == "overflow" and self.value)


@dataclass(frozen=True)
class Program:
    """A training: the model's kind, the optimizer's arguments, and its steps."""

    seed: int
    features: tuple[str, ...]
    rule: dict[str, Any]
    groups: tuple[dict[str, Any], ...]
    form: str
    steps: tuple[Step, ...]
    precision: str = "float64"
    has_scaler: bool = False
    by: str = ""  # whose step: the default, "fused", "foreach" or "for-loop"
    has_tensor_lr: bool = False
    lr_schedule: str = ""
    milestones: tuple[tuple[int, Any], ...] = ()  # LamScheduler's
    over: int = 0
    compiled: str = ""  # "losses", "step" or "whole"
    backend: str = "aot_eager"


def any_lam(r: random.Random) -> Any:
    """Rules as ("ess" or "kl", target, noisy), so that programs print as data."""
    if r.random() < 0.3:
        return r.choice([("ess", 0.8, False), ("ess", 0.5, False), ("ess", 0.8, True),
                         ("kl", 0.1, False), ("kl", 0.3, True)])  # fmt: skip
    return r.choice([math.inf, 5.0, 1.0, 0.5, 0.2, -0.5, -2.0, -math.inf])


def any_group(r: random.Random, form: str) -> dict[str, Any]:
    momentum = r.choice([0.0, 0.9])
    kind = r.choice(["", "", "dampened", "nesterov"]) if form == "torch" else ""
    return {
        "lr": r.choice([0.05, 0.2]),
        "momentum": momentum,
        "dampening": 0.5 if kind == "dampened" else 0.0,
        "nesterov": kind == "nesterov" and momentum > 0,
        "weight_decay": r.choice([0.0, 0.01]),
        "maximize": r.random() < 0.05,
    }


def any_step(r: random.Random, has_cap: bool) -> Step:
    parts = r.choice([1, 1, 1, 2, 3]) if not has_cap else 1  # a cap is not exact over micro-batches
    event = r.choice(["", "", "", "reload", "lam", "restart", "lr", "frozen", "evaluate", "closure",
                      "no gradients", "discard", "checkpointed"])  # fmt: skip
    value = any_lam(r) if event in ("lam", "restart") else None
    if event == "lr":
        value = r.choice([0.01, 0.1])
    return Step(
        seed=r.randrange(1 << 30),
        n=r.choice([1, 2, 5, 8, 17]),
        scale=r.choice([1.0, 1.0, 1.0, 0.1, 5.0]),
        has_mask=r.random() < 0.2,
        has_weight=r.random() < 0.3,
        parts=parts,
        divisor=r.choice([1.0, float(parts)]),
        event=event,
        value=value,
    )


def any_program(seed: int, steps: int = 20) -> Program:
    """In float64, with one learning rate until it is changed by hand."""
    r = random.Random(seed)
    rule = {
        "lam": any_lam(r),
        "gamma": r.choice([None, 0.1, 0.9, 1.0]),
        "s_init": r.choice([None, None, 0.0, 2.0]),
        "alpha": r.choice([1.0, 1.0, 0.5]),
        "max_weight": r.choice([None, None, 1.5]),
        "keep_loss": r.random() < 0.4,
    }
    features = tuple(f for f in FEATURES if r.random() < 0.25)
    form = r.choice(["torch", "torch", "polyak"])
    return Program(
        seed=seed,
        features=features,
        rule=rule,
        groups=tuple(any_group(r, form) for _ in range(r.choice([1, 2]))),
        form=form,
        steps=tuple(any_step(r, rule["max_weight"] is not None) for _ in range(steps)),
    )


def sparse(seed: int) -> Program:
    """With an embedding whose gradient is sparse: no weight decay, which torch refuses, and torch's
    form of momentum, which the package asks for then."""
    program = any_program(seed)
    features = tuple(f for f in program.features if f != "embedding")
    groups = tuple({**group, "weight_decay": 0.0} for group in program.groups)
    return replace(
        program, features=(*features, "embedding", "sparse"), groups=groups, form="torch"
    )


def extended(seed: int) -> Program:
    """The same in any precision, with a GradScaler, schedules, and groups that come and go."""
    program, r = any_program(seed), random.Random(f"extended {seed}")
    precision = r.choice(PRECISIONS)
    is_single = "autocast" in precision or precision == "float32"
    has_scaler = is_single and r.random() < 0.6
    features = program.features + (("late",) if r.random() < 0.5 else ())
    if has_scaler or precision in ("bfloat16", "float16"):  # torch has no complex numbers for it
        features = tuple(f for f in features if f != "complex")
    by = r.choice(
        ["", "", "fused"] if program.form == "polyak" else ["", "fused", "foreach", "for-loop"]
    )
    steps = [_extended(r, step, program.form, has_scaler) for step in program.steps]
    if precision.startswith("float16") and not has_scaler:  # small provisional weights underflow
        steps = [replace(step, parts=1, divisor=1.0) for step in steps]
    return replace(
        program,
        features=features,
        steps=tuple(steps),
        precision=precision,
        has_scaler=has_scaler,
        by=by,
        has_tensor_lr=by in ("", "fused") and r.random() < 0.2,
        lr_schedule=r.choice(LR_SCHEDULES),
        **any_lam_schedule(r),
    )


def _extended(r: random.Random, step: Step, form: str, has_scaler: bool) -> Step:
    events = ["add", "remove", *(["overflow", "overflow", "unscale"] if has_scaler else [])]
    event = r.choice(events) if r.random() < 0.3 else step.event
    values = {
        "add": any_group(r, form),
        "remove": r.choice([0, -1]),  # which group
        "overflow": r.choice([False, True]),  # in gradients that are unscaled first
    }
    return replace(step, event=event, value=values.get(event, step.value))


def any_lam_schedule(r: random.Random) -> dict[str, Any]:
    if r.random() < 0.6:
        return {}
    epochs, over = sorted(r.sample(range(20), r.choice([1, 2]))), r.choice([0, 0, 1, 4])
    lams = [any_lam(r) for _ in epochs]
    if over > 0:  # a line between numbers is the reference's only one
        lams = [1.0 if isinstance(lam, tuple) or math.isinf(lam) else lam for lam in lams]
    return {"milestones": tuple(zip(epochs, lams, strict=True)), "over": over}


def compiled(seed: int) -> Program:
    """The same by torch.compile, all batches of one kind, so that it compiles a few times only."""
    program, r = extended(seed), random.Random(f"compiled {seed}")
    what = r.choice(["losses", "step", "whole", "whole"])
    precision = program.precision
    if what != "step" and "16" in precision:  # losses are rounded elsewhere than in eager code
        precision = "float64"
    n, has_mask, has_weight = r.choice([5, 8, 17]), r.random() < 0.2, r.random() < 0.3
    anew = [i for i, step in enumerate(program.steps) if step.event in ("reload", "add", "remove")]
    steps = [
        replace(
            step,
            n=n,
            scale=1.0,
            has_mask=has_mask,
            has_weight=has_weight,
            event="" if i in anew[1:] else step.event,
        )
        for i, step in enumerate(program.steps)
    ]
    return replace(
        program,
        steps=tuple(steps),
        precision=precision,
        has_scaler=False,
        by="" if program.by in ("foreach", "for-loop") else program.by,  # torch's own step
        lr_schedule="" if program.lr_schedule in CYCLED_MOMENTUM else program.lr_schedule,
        has_tensor_lr=r.random() < 0.6,
        compiled=what,
        backend="inductor" if r.random() < 0.05 else "aot_eager",
    )
