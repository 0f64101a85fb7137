"""Random trainings by the package, beside the same by plain float64 torch: they must stay equal.

    python tests/campaign/trainings.py 10000 [first seed]

A training is a `Program`: data, drawn from a seed, so that a failing one can be made smaller and
printed. `Plain` is what it should do: Algorithm 1 (tests/reference.py) and textbook momentum SGD.
"""

from __future__ import annotations

import copy
import io
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import reference
import torch_absgd as ta

INPUTS, CLASSES = 4, 3
FEATURES = ("tied", "frozen", "empty", "complex", "embedding", "strided")
TOLERANCE = 1e-9  # of float64 parameters, relative to 1 and the largest; and of log_s
DIVERGED = 100.0  # a parameter; exponentials of losses then magnify rounding


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


@dataclass(frozen=True)
class Program:
    """A training: the model's kind, the optimizer's arguments, and its steps."""

    seed: int
    features: tuple[str, ...]
    rule: dict[str, Any]
    groups: tuple[dict[str, Any], ...]
    form: str
    steps: tuple[Step, ...]


# ---- programs


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


def rule_of(lam: Any) -> Any:
    if not isinstance(lam, tuple):
        return lam
    kind = ta.EffectiveSampleSize if lam[0] == "ess" else ta.KLRadius
    return kind(lam[1], noisy=lam[2])


# ---- the model and its data, as functions of named parameters


def parameters(program: Program) -> dict[str, Tensor]:
    values = torch.Generator().manual_seed(program.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=values, dtype=torch.float64) * 0.5

    named = {"w1": normal(INPUTS, INPUTS), "b1": normal(INPUTS), "w2": normal(INPUTS, CLASSES)}
    if "empty" in program.features:
        named["empty"] = normal(0, 3)
    if "complex" in program.features:
        named["complex"] = torch.complex(normal(INPUTS), normal(INPUTS))
    if "embedding" in program.features:
        named["embedding"] = normal(6, INPUTS)
    if "strided" in program.features:
        named["w2"] = normal(CLASSES, INPUTS).t()
    return named


def logits(program: Program, named: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = torch.tanh(x @ named["w1"] + named["b1"])
    if "tied" in program.features:
        hidden = torch.tanh(hidden @ named["w1"])
    if "complex" in program.features:
        hidden = hidden * (named["complex"] * named["complex"].conj().resolve_conj()).real
    if "embedding" in program.features:
        rows = (x[:, 0].abs() * 10).long() % 6
        hidden = hidden + F.embedding(rows, named["embedding"])
    if "empty" in program.features:
        hidden = hidden + named["empty"].sum()
    return hidden @ named["w2"]


def batch_of(step: Step) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    values = torch.Generator().manual_seed(step.seed)
    x = torch.randn(step.n, INPUTS, generator=values, dtype=torch.float64)
    y = torch.randint(CLASSES, (step.n,), generator=values)
    mask = torch.rand(step.n, generator=values) < 0.7 if step.has_mask else None
    weight = torch.rand(step.n, generator=values, dtype=torch.float64) * 3
    weight[weight < 0.5] = 0
    return x, y, mask, weight if step.has_weight else None


def losses_of(
    program: Program, named: dict[str, Tensor], step: Step, x: Tensor, y: Tensor
) -> Tensor:
    return step.scale * F.cross_entropy(logits(program, named, x), y, reduction="none")


def in_groups(program: Program, names: list[str]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Each group with the names of its parameters: in turn."""
    n = len(program.groups)
    for i, group in enumerate(program.groups):
        yield group, names[i::n]


# ---- what it should do


class Plain:
    """The reference."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.named = {
            name: p.requires_grad_(not (name == "b1" and "frozen" in program.features))
            for name, p in parameters(program).items()
        }
        groups = in_groups(program, [*self.named])
        self.group_of = {n: dict(group) for group, names in groups for n in names}
        self.buffers: dict[str, Tensor] = {}
        rule = program.rule
        self.rule = reference.Algorithm1(
            torch.zeros(1), lr=0, gamma=1.0, alpha=rule["alpha"], s_init=rule["s_init"],
            max_weight=math.inf if rule["max_weight"] is None else rule["max_weight"],
            keep_loss=rule["keep_loss"],
        )  # fmt: skip
        self.wanted = rule["lam"]
        self.found = math.nan  # λ that the package found
        self.rule.lam = self.log_s_lam = self._start_of(self.wanted)

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
        self.rule.log_s = self.initial_log_s

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

    def _follow(self, losses: Tensor, weight: Tensor) -> None:
        """λ* of the batch by bisection, where there is one."""
        kind, target, noisy = self.wanted
        pairs = zip(losses.tolist(), weight.tolist(), strict=True)
        pairs = [(-v if noisy else v, w) for v, w in pairs if w > 0]
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
        if 0 < sign * self.found < math.inf and abs(excess(math.log(abs(self.found)))) < 1e-12:
            low = math.log(abs(self.found))  # as good an answer, where many λ are
        self.rule.lam = math.copysign(math.exp(low), sign)

    def coefficients(self, losses: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
        """c, such that Σ c_i ∂L_i is the gradient; takes the batch in."""
        counts = torch.ones(len(losses), dtype=torch.bool) if mask is None else mask
        measure = torch.ones_like(losses) if weight is None else weight
        kept, w = losses[counts].detach(), measure[counts]
        out = torch.zeros_like(losses)
        if w.sum() == 0:
            return out
        gamma = self.program.rule["gamma"]
        self.rule.gamma = gamma or (1.0 if isinstance(self.wanted, tuple) else 0.9)
        self.rule.bounded = isinstance(self.wanted, tuple)
        if isinstance(self.wanted, tuple):
            self._follow(kept, w)
        self._carry()
        self.rule.weigh(kept.tolist(), w.tolist())
        p = torch.tensor(self.rule.weights, dtype=torch.float64)
        out[counts] = w * p / len(kept)
        return out

    def step(self, gradients: dict[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            p, group = self.named[name], self.group_of[name]
            with torch.no_grad():
                g = -gradient if group["maximize"] else gradient
                g = g + group["weight_decay"] * p
                beta, old = group["momentum"], self.buffers.get(name)
                if beta == 0:
                    p -= group["lr"] * g
                elif self.program.form == "polyak":
                    last = torch.zeros_like(g) if old is None else old
                    self.buffers[name] = beta * last - group["lr"] * g
                    p += self.buffers[name]
                else:
                    share = 1 - group["dampening"]
                    v = g.clone() if old is None else beta * old + share * g
                    self.buffers[name] = v
                    p -= group["lr"] * (g + beta * v if group["nesterov"] else v)

    def run(self, step: Step) -> None:
        if step.event in ("lam", "restart"):
            (self.set_lam if step.event == "lam" else self.restart)(step.value)
        if step.event == "lr":
            for group in self.group_of.values():
                group["lr"] = step.value
        if step.event == "no gradients":
            return
        x, y, mask, weight = batch_of(step)
        losses = losses_of(self.program, self.named, step, x, y)
        total = (self.coefficients(losses, mask, weight) * losses).sum()
        trained = {n: p for n, p in self.named.items() if p.requires_grad}
        found = torch.autograd.grad(total, [*trained.values()], allow_unused=True)
        self.step({n: g for n, g in zip(trained, found, strict=True) if g is not None})

    @torch.no_grad()
    def follow(self, ours: Ours) -> None:
        """Takes over what was found to be equal: a training that diverges magnifies rounding."""
        for name, p in self.named.items():
            p.copy_(ours.named[name])
            for buffer in ours.opt.state[ours.named[name]].values():
                self.buffers[name] = buffer.clone()
        self.rule.log_s, self.rule.lam = ours.opt.log_s.item(), ours.opt.lam.item()
        if not (isinstance(self.wanted, tuple) and math.isinf(self.rule.lam)):
            self.log_s_lam = self.rule.lam


# ---- what the package does


class Ours:
    """The package, used as its users would."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.named = {name: nn.Parameter(p) for name, p in parameters(program).items()}
        if "frozen" in program.features:
            self.named["b1"].requires_grad_(False)
        self.opt = self.make(program.rule["lam"])

    def make(self, lam: Any) -> ta.ABSGD:
        groups = [
            {**group, "params": [self.named[n] for n in names]}
            for group, names in in_groups(self.program, [*self.named])
        ]
        rule = {**self.program.rule, "lam": rule_of(lam)}
        return ta.ABSGD(
            groups, lr=0.1, momentum_form=self.program.form, process_group="local", **rule
        )

    def losses(self, step: Step, x: Tensor, y: Tensor) -> Tensor:
        return losses_of(self.program, self.named, step, x, y)

    def run(self, step: Step) -> None:
        opt = self.opt
        if step.event == "reload":
            saved = io.BytesIO()
            torch.save(copy.deepcopy(opt.state_dict()), saved)
            saved.seek(0)
            self.opt = opt = self.make(math.inf)
            opt.load_state_dict(torch.load(saved, weights_only=True))
        elif step.event == "lam":
            opt.lam = rule_of(step.value)
        elif step.event == "restart":
            opt.restart(rule_of(step.value))
        elif step.event == "lr":
            for group in opt.param_groups:
                group["lr"] = step.value
        elif step.event == "no gradients":
            opt.step()
            return
        x, y, mask, weight = batch_of(step)
        if step.event == "evaluate":
            with torch.no_grad():
                opt.weigh(self.losses(step, x, y), mask, weight)
        elif step.event == "frozen":
            with opt.frozen():
                opt.weigh(self.losses(step, x, y), mask, weight).backward()
            opt.zero_grad()
        elif step.event == "discard":
            with opt.accumulate():
                opt.weigh(self.losses(step, x, y), mask, weight).backward()
            opt.discard()

        def backward() -> Tensor:
            opt.zero_grad()
            total = self.weighed(step, x, y, mask, weight)
            total.backward()
            return total

        if step.parts > 1:
            self.accumulate(step, x, y, mask, weight)
            opt.step()
        elif step.event == "closure":
            opt.step(backward)
        else:
            backward()
            opt.step()
        opt.zero_grad()

    def weighed(
        self, step: Step, x: Tensor, y: Tensor, mask: Tensor | None, weight: Tensor | None
    ) -> Tensor:
        if step.event == "checkpointed":
            from torch.utils.checkpoint import checkpoint

            def forward(x: Tensor) -> Tensor:
                return self.opt.weigh(self.losses(step, x, y), mask, weight)

            return checkpoint(forward, x, use_reentrant=False)
        return self.opt.weigh(self.losses(step, x, y), mask, weight)

    def accumulate(
        self, step: Step, x: Tensor, y: Tensor, mask: Tensor | None, weight: Tensor | None
    ) -> None:
        cuts = torch.tensor_split(torch.arange(step.n), step.parts)
        for part in cuts:
            with self.opt.accumulate(divisor=step.divisor):
                total = self.opt.weigh(
                    self.losses(step, x[part], y[part]),
                    None if mask is None else mask[part],
                    None if weight is None else weight[part],
                )
                (total / step.divisor).backward()


# ---- comparison


def follows_a_rule(program: Program, upto: int) -> bool:
    lam = program.rule["lam"]
    for step in program.steps[: upto + 1]:
        if step.event in ("lam", "restart"):
            lam = step.value
    return isinstance(lam, tuple)


def run(program: Program) -> str:
    """What went wrong; empty if nothing did."""
    plain, ours = Plain(program), Ours(program)
    for i, step in enumerate(program.steps):
        if step.parts > 1 and follows_a_rule(program, i):  # λ would be the first micro-batch's
            step = replace(step, parts=1, divisor=1.0)
        try:
            ours.run(step)
        except Exception as error:
            return f"step {i}: {type(error).__name__}: {error}"
        plain.found = ours.opt.lam.item()
        plain.run(step)
        for name, expected in plain.named.items():
            if expected.numel() == 0:
                continue
            away = (ours.named[name] - expected).abs().max().item()
            if not away <= TOLERANCE * (1 + expected.abs().max().item()):
                return f"step {i}: {name} is {away:.3g} away"
        a, b = ours.opt.log_s.item(), plain.rule.log_s
        if not (
            a == b
            or (math.isnan(a) and math.isnan(b))
            or math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        ):
            return f"step {i}: log_s is {a!r}, not {b!r}"
        if any(not p.abs().max() < DIVERGED for p in plain.named.values() if p.numel() > 0):
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


def main(count: int, first: int = 0) -> int:
    from tqdm import trange

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*(out of reach|of a batch effective)")
    steps = 0
    for seed in trange(first, first + count, unit="training"):
        program = any_program(seed)
        steps += len(program.steps)
        if run(program):
            small = shrunk(program)
            print(f"\nseed {seed}: {run(small)}\n{small}")
            return 1
    print(f"{count} trainings, {steps} steps, seeds from {first}: all equal to {TOLERANCE:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
