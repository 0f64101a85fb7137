"""Every argument of every public function, given one odd value after the other.

    python tests/campaign/bad_inputs.py

Made from the signatures. An odd value is either refused, by an error of the standard kinds that
names the argument, with nothing changed; or taken, if what it means is beyond doubt.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import torch_absgd as ta
from torch_absgd import metrics

PATIENCE = 20  # seconds
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError)  # KeyErrors and the like name nothing


class Odd:
    """An object that is nothing in particular."""

    def __repr__(self) -> str:
        return "an odd object"


ODD: dict[str, Any] = {
    "None": None, "True": True, "a string": "x", "an empty string": "", "bytes": b"1", "-1": -1,
    "0": 0, "1": 1, "-0.5": -0.5, "0.5": 0.5, "2.5": 2.5, "1e300": 1e300, "10**30": 10**30,
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "1j": 1j, "a list": [1.0, 2.0],
    "an empty list": [], "nested": [[1], [2, 3]], "a dict": {"a": 1}, "a set": {1},
    "an object": Odd(), "a type": int, "a function": len, "numpy": np.float32(0.5),
    "numpy array": np.ones((2, 2)), "numpy of strings": np.array(["a", "b"]), "empty tensor": torch.zeros(0),
    "0-dim nan": torch.tensor(math.nan), "0-dim": torch.tensor(0.5), "int tensor": torch.arange(4),
    "bool tensor": torch.ones(4, dtype=torch.bool), "complex tensor": torch.ones(4) * 1j,
    "meta tensor": torch.ones(4, device="meta"), "sparse tensor": torch.eye(4).to_sparse(),
    "quite another shape": torch.ones(2, 3, 5), "negative tensor": -torch.ones(4),
    "nan tensor": torch.full((4,), math.nan), "half tensor": torch.ones(4, dtype=torch.float16),
}  # fmt: skip


@dataclass
class Case:
    """A callable with arguments that it takes, and what it must leave alone when it refuses."""

    name: str
    call: Callable[..., Any]
    valid: dict[str, Any]
    watched: Callable[[], Any] = lambda: None


def trained() -> tuple[ta.ABSGD, Tensor]:
    p = torch.ones(4, requires_grad=True)
    opt = ta.ABSGD([p], lr=0.1, momentum=0.9, lam=0.5)
    opt.weigh(p * torch.arange(4)).backward()
    opt.step()
    return opt, p


def of_optimizer(name: str, **valid: Any) -> Case:
    opt, p = trained()

    def watched() -> Any:
        return copy.deepcopy(opt.state_dict()), p.detach().clone()

    return Case(f"ABSGD.{name}", getattr(opt, name), valid, watched)


def entered(context: Callable[..., Any]) -> Callable[..., Any]:
    """Of a context manager, whose checks may wait until then."""

    @functools.wraps(context)
    def enter(**arguments: Any) -> None:
        with context(**arguments):
            pass

    return enter


def of_loss(loss: nn.Module, **valid: Any) -> Case:
    return Case(f"{type(loss).__name__}.forward", loss.forward, valid)


def cases() -> Iterator[Case]:
    counts, logits, y = [9, 5, 2, 1], torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    labels = torch.randint(2, (6, 4)).float()
    opt, p = trained()
    ce = nn.CrossEntropyLoss(reduction="none")
    dataset = TensorDataset(logits, y)
    yield Case("ABSGD", ta.ABSGD, {"params": [p]})
    yield Case("AttentionalLoss", ta.AttentionalLoss, {"criterion": ce, "lam": 1.0})
    yield Case("EffectiveSampleSize", ta.EffectiveSampleSize, {"fraction": 0.5})
    yield Case("KLRadius", ta.KLRadius, {"radius": 0.5})
    yield Case("LamScheduler", ta.LamScheduler, {"target": opt, "milestones": {3: 1.0}})
    deferred = {"criterion": ta.PerSampleCrossEntropy(), "weight": torch.ones(4), "start_epoch": 2}
    yield Case("DeferredWeights", ta.DeferredWeights, deferred)
    yield Case("ImbalancedSubset", ta.ImbalancedSubset, {
        "dataset": dataset, "kind": "step", "imbalance_ratio": 1.0, "targets": y})  # fmt: skip
    yield Case("NormedLinear", ta.NormedLinear, {"in_features": 3, "out_features": 2})
    yield Case("SampleRecord", ta.SampleRecord, {"size": 5})
    for loss in ("CrossEntropy", "Focal", "BCE", "SigmoidFocal"):
        yield Case(f"PerSample{loss}", getattr(ta, f"PerSample{loss}"), {})
    for loss in ("LDAM", "LogitAdjusted"):
        yield Case(f"PerSample{loss}", getattr(ta, f"PerSample{loss}"), {"class_counts": counts})
    yield Case("class_balanced_weights", ta.class_balanced_weights, {"class_counts": counts})
    yield Case("class_counts", ta.class_counts, {"dataset": dataset})
    yield Case("logit_adjust", ta.logit_adjust, {"logits": logits, "class_counts": counts})
    for name in ("long_tailed_counts", "step_counts"):
        yield Case(name, getattr(ta, name), {
            "n_max": 9, "num_classes": 4, "imbalance_ratio": 3.0})  # fmt: skip
    yield Case("step_in_backward", ta.step_in_backward, {"opt": opt})
    losses = torch.rand(4, requires_grad=True)
    yield of_optimizer("weigh", losses=losses, mask=None, weight=None)
    yield of_optimizer("restart", lam=1.0)
    for context in ("accumulate", "frozen"):
        yield Case(f"ABSGD.{context}", entered(getattr(opt, context)), {})
    yield of_optimizer("step_parameter", p=p)
    yield of_optimizer("add_param_group", param_group={"params": [torch.ones(2)]})
    yield of_optimizer("load_state_dict", state_dict=opt.state_dict())
    for loss in (ta.PerSampleCrossEntropy(), ta.PerSampleFocal(), ta.PerSampleLDAM(counts),
                 ta.PerSampleLogitAdjusted(counts)):  # fmt: skip
        yield of_loss(loss, input=logits, target=y)
    for loss in (ta.PerSampleBCE(), ta.PerSampleSigmoidFocal()):
        yield of_loss(loss, input=logits, target=labels)
    record = ta.SampleRecord(6)
    yield Case("SampleRecord.update", record.update, {
        "indices": torch.arange(6), "losses": torch.rand(6), "weights": torch.rand(6)})  # fmt: skip
    for name, function in inspect.getmembers(metrics, inspect.isfunction):
        if not name.startswith("_") and function.__module__ == metrics.__name__:
            valid = {"prediction": y, "predictions": y, "target": y, "targets": y,
                     "num_classes": 4, "class_counts": counts, "training_counts": counts,
                     "groups": y, "probabilities": logits.softmax(1), "logits": logits}  # fmt: skip
            wanted = inspect.signature(function).parameters
            yield Case(f"metrics.{name}", function, {k: v for k, v in valid.items() if k in wanted})


def arguments(case: Case) -> Iterator[str]:
    for name, p in inspect.signature(case.call).parameters.items():
        is_torch_s = name in ("device", "dtype")  # and so are their errors
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and not is_torch_s:
            yield name


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a.nan_to_num(-7.5), b.nan_to_num(-7.5))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b or (a != a and b != b))


def tried(case: Case, name: str, value: Any) -> str | None:
    """None if the value was taken, "" if it was refused as it should be, else what went wrong."""
    before = case.watched()
    signal.alarm(PATIENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.call(**{**case.valid, name: value})
        return None
    except REFUSALS as error:
        words = [name, name.rstrip("s"), name.replace("_", " ")]
        if not any(word in str(error) for word in words):
            return f"{type(error).__name__} does not name it: {error}"
        return "" if same(before, case.watched()) else "refused, but something has changed"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def is_overdue(*_: object) -> None:
    raise TimeoutError(f"it had not returned after {PATIENCE} s")


def run(show_taken: bool = False) -> tuple[int, list[str]]:
    """The number of calls, and the findings."""
    signal.signal(signal.SIGALRM, is_overdue)
    calls, findings = 0, []
    for case in cases():
        for name in arguments(case):
            for label, value in ODD.items():
                calls += 1
                result = tried(case, name, value)
                if result:
                    findings.append(f"{case.name}({name}={label}): {result}")
                if result is None and show_taken:
                    print(f"taken: {case.name}({name}={label})")
    return calls, findings


if __name__ == "__main__":
    calls, findings = run(show_taken="--taken" in sys.argv)
    print(*findings, sep="\n")
    print(f"{calls} calls, {len(findings)} findings")
    sys.exit(bool(findings))
