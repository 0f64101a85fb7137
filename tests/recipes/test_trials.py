"""recipes/studies/trials.py: rows with settings of their own, against torch and formulas."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from studies import families, run_trials, trials
from studies.reference import Weighting
from studies.tasks import TASKS
from studies.trials import Coefficients, Losses, Rows, Steps, Way

TASK = replace(TASKS["wine"]("validation"), epochs=4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rows_step_as_torch_does(optimizer):
    ways = [Way("", 0.1, 0.01), Way("", 0.02, 0.1)]
    rows = Rows(TASK, [0, 1], 2)
    step = Steps(optimizer, rows.parameters, ways)
    kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    more = {} if optimizer == "adamw" else {"momentum": 0.9}
    theirs = [rows.parameters[2][1, i].detach().clone().requires_grad_() for i in (0, 1)]
    optimizers = [
        kind([p], w.lr, weight_decay=w.weight_decay, **more)
        for p, w in zip(theirs, ways, strict=True)
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for p in rows.parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        for i, p in enumerate(theirs):
            p.grad = rows.parameters[2].grad[1, i].clone()
        step(1.0)
        for opt in optimizers:
            opt.step()
    for i, p in enumerate(theirs):
        torch.testing.assert_close(rows.parameters[2][1, i], p)


def test_a_row_does_not_see_the_others():
    ways = [Way("", 0.1), Way("", 0.4, weighting=Weighting(math.inf, 0.5, keep_loss=True)),
            Way("", 0.2, kind="dro", value=0.1), Way("", 0.2, kind="jtt", value=4.0)]  # fmt: skip
    some = [torch.empty(2, 4, 3), torch.empty(2, 1, 3)]
    for them, accuracy in ((ways, some[0]), (ways[1:2], some[1])):
        for index, rows in trials.train(TASK, them, [3, 4]):
            accuracy[:, index] = trials.evaluate(rows, TASK)[0]
    assert torch.allclose(some[0][:, 1:2], some[1], atol=0.05)
    assert not some[0].isnan().any() and some[0].mean() > 0.5


def test_losses_are_the_formulas():
    ways = [Way("", focal=2.0), Way("", gce=0.5), Way("", smooth=0.1), Way("", tau=1.0), Way("")]
    logits = torch.randn(2, 5, 8, 3, generator=torch.Generator().manual_seed(0))
    y, prior = torch.randint(3, (2, 8)), torch.tensor([0.7, 0.2, 0.1])
    made = Losses(ways, prior)(logits, y)
    p = logits.softmax(3).gather(3, y[:, None, :, None].expand(2, 5, 8, 1)).squeeze(3)
    torch.testing.assert_close(made[:, 0], (1 - p[:, 0]) ** 2 * -p[:, 0].log())
    torch.testing.assert_close(made[:, 1], (1 - p[:, 1] ** 0.5) / 0.5)
    flat = [logits[:, i].flatten(0, 1) for i in range(5)]
    smooth = F.cross_entropy(flat[2], y.flatten(), label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(made[:, 2].flatten(), smooth)
    adjusted = F.cross_entropy(flat[3] + prior.log(), y.flatten(), reduction="none")
    torch.testing.assert_close(made[:, 3].flatten(), adjusted)
    torch.testing.assert_close(made[:, 4], -p[:, 4].log())


def test_coefficients_are_the_rules():
    ways = [Way("", kind="small", value=0.5), Way("", kind="dro", value=1.0),
            Way("", weighting=Weighting(1.0), kind="per class"),
            Way("", weighting=Weighting(1.0), kind="scent", value=1.0)]  # fmt: skip
    made = Coefficients(ways, 1, TASK, None)
    made.begin(2, 4)
    y = torch.tensor([[0, 0, 1, 1, 2, 2]])
    L = torch.tensor([0.1, 2.0, 0.3, 0.4, 0.5, 0.6]).expand(1, 4, 6)
    c = made(L, y, y, torch.arange(6)[None])
    assert c[0, 0].tolist() == [2, 0, 2, 2, 0, 0]
    q = torch.softmax(torch.tensor([1.05, 0.35, 0.55]), 0)
    torch.testing.assert_close(
        (c[0, 1] * L[0, 1]).mean(), (q * torch.tensor([1.05, 0.35, 0.55])).sum()
    )
    assert [c[0, 2, y[0] == k].mean().item() for k in range(3)] == pytest.approx([1, 1, 1])
    assert c[0, 3].mean() == pytest.approx(1)  # the first batch: s = m


def test_all_methods_have_as_many_trials():
    names = ("digits_lt", "digits_hidden", "digits_noise")
    for task in (TASKS[name]("validation") for name in names):
        for optimizer in ("sgd", "adamw"):
            made = [families.trials(f, optimizer, task.noise > 0) for f in families.families(task)]
            assert {len(set(family)) for family in made} == {36 if task.noise else 24}


def test_a_study_from_trials_to_record(monkeypatch):
    monkeypatch.setattr(run_trials, "TASKS", {"wine": lambda _: TASK})
    monkeypatch.setattr(run_trials, "SEEDS", [0, 1])
    monkeypatch.setattr(families, "LRS", [0.1, 0.1])
    made = run_trials.run("wine")
    names = [m["method"] for m in made["methods"]]
    assert names[:3] == ["SGD", "SGD, logit adjustment", "SGD, τ-normalised"]
    assert len(set(names)) == len(names)
    for method in made["methods"]:
        assert len(method["accuracy"]) == 2 and len(method["accuracy"][0]) == 3
        assert method["settings"]["lr"] == 0.1
    assert "adjusted" in made["methods"][1]["settings"]
    assert "normalised" in made["methods"][2]["settings"]
