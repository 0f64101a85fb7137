"""The suite of recipes/studies: its reference of the rule, its batched runs, its tables."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torch_absgd as ta
from studies import suite_report
from studies.lstm_rows import LSTMRows
from studies.reference import Rule, Weighting, effective_size, find_lam
from studies.run_suite import first_steps, methods, run
from studies.suite import WATCHED, Method, Training, look, schedule, train
from studies.tasks import TASKS

STUDIES = Path(__file__).resolve().parents[2] / "recipes" / "studies"
inf = math.inf


def losses_of(steps, runs=1, B=32):
    """Positive losses whose scale falls as in training."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(1.5, 0.2, steps).view(-1, 1, 1).double()
    return scale * torch.rand(steps, runs, B, generator=generator).double().log().neg()


def test_a_target_is_met_by_the_base_measure():
    L = losses_of(1, 4)[0]
    w = torch.rand(4, 32, generator=torch.Generator().manual_seed(1)).double() + 0.1
    w[:, :3] = 0
    sign, target = torch.tensor([1.0, -1, 1, -1]).double(), torch.tensor([0.8, 0.8, 0.4, 0.3])
    lam = find_lam(L, w, sign, target.double())
    x = L / lam[:, None] - (L / lam[:, None]).amax(1, keepdim=True)
    assert torch.allclose(effective_size(torch.ones(4).double(), x, w), target.double(), atol=1e-7)


@pytest.mark.parametrize("B", [1, 8])
def test_a_batch_without_an_answer_is_not_weighted(B):
    rule = Rule([Weighting(inf, 0.8)])
    coefficients, _ = rule(torch.full((1, B), 2.3))
    assert torch.equal(coefficients, torch.ones(1, B).double())
    assert rule.lam.item() == inf and math.isnan(rule.log_s.item())


def test_kept_loss_keeps_the_scale_and_the_cap_caps():
    L = losses_of(1)[0]
    kept, p = Rule([Weighting(inf, 0.5, keep_loss=True)])(L)
    assert (kept * L).mean() == pytest.approx(L.mean().item())
    assert torch.allclose(kept / p, (kept / p)[:, :1])
    capped, _ = Rule([Weighting(0.1, max_weight=2)])(L)
    assert capped.max() == 2
    later = Rule([Weighting(0.1, keep_loss=True, max_weight=2)])(L)[0]
    first = Rule([Weighting(0.1, keep_loss=True, max_weight=2, cap_first=True)])(L)[0]
    assert later.max() <= 2 and first.max() <= 2 and (first * L).mean() > (later * L).mean()


def test_one_outlier_does_not_silence_what_follows():
    quiet, loud = torch.full((1, 16), 0.1).double(), torch.full((1, 16), 50.0).double()
    for weighting, is_silent in ((Weighting(1.0), True), (Weighting(1.0, keep_loss=True), False)):
        rule = Rule([weighting])
        for batch in (quiet, loud, quiet, quiet):
            coefficients, _ = rule(batch)
        assert (coefficients.mean() < 0.5) == is_silent


@pytest.mark.parametrize("lam, falls", [(0.3, False), (0.3, True), (3.0, False), (-0.1, True)])
def test_the_table_of_warnings_asks_what_the_package_asks(lam, falls):
    L = losses_of(WATCHED) if falls else losses_of(1).expand(WATCHED, 1, 32)
    L = L ** (2 if falls else 1)
    rule, opt = Rule([Weighting(lam)]), ta.ABSGD([torch.zeros(1, requires_grad=True)], lam=lam)
    watch, seen = torch.full((1, WATCHED, 3), math.nan), torch.zeros(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in L:
            _, p = rule(batch)
            look(watch, seen, torch.tensor([True]), batch, torch.ones_like(p), p, rule.lam)
            opt.weigh(batch[0])
    made = {"method": f"λ = {lam}", **first_steps(watch)}
    assert suite_report.is_warned(made, 0) == bool(caught) == (lam < 0 or (lam < 1 and not falls))


def test_a_row_is_a_run_of_its_own():
    task = replace(TASKS["wine"]("validation"), epochs=6)
    some = [Method(Weighting()), Method(Weighting(0.5, keep_loss=True), 0.5, 0.25, True)]
    one = train(task, some[1:], [1], Training("sgd", 0.1, "cosine"))["accuracy"]
    many = train(task, some, [0, 1], Training("sgd", 0.1, "cosine"))["accuracy"]
    assert torch.allclose(one[0, 0], many[1, 1], atol=0.05)
    assert many.shape == (2, 2, 3) and (many > 0.5).any()


def test_the_schedule_of_selectivity():
    ramp = Method(Weighting(inf, 0.5), start=0.5, over=0.3)
    targets = [schedule(ramp, epoch, 10)[1] for epoch in range(10)]
    assert all(math.isnan(t) for t in targets[:5])
    assert targets[5:] == pytest.approx([0.875, 0.75, 0.625, 0.5, 0.5])
    number = Method(Weighting(-0.5), over=0.1)
    assert [schedule(number, epoch, 10)[0] for epoch in range(3)] == [-1.0, -0.5, -0.5]


def test_holm_gives_the_smallest_p_the_whole_correction():
    rng = np.random.default_rng(0)
    cells = [rng.normal(size=6), rng.normal(5, 1, size=6), np.zeros(6)]
    corrected = suite_report.holm(cells)
    assert corrected[1] == suite_report.interval(cells[1], 0.05 / 3)
    assert corrected[2] == (0, 0, 0)


def test_a_small_suite_from_run_to_table(tmp_path):
    task = replace(TASKS["wine"]("validation"), epochs=6)
    training = Training("sgd", 0.1, "cosine")
    records = run(task, training, [0, 1, 2])
    assert len(records) == len(methods(task, training)) == 2 * (1 + 2 * 11)
    results = {"snippet": "EffectiveSampleSize(0.8), keep_loss", "seeds": [0, 1, 2],
               "trainings": [str(training)], "command": "-", "machine": "-", "commit": "-",
               "runs": json.loads(json.dumps(records))}  # fmt: skip
    text = suite_report.render(results)
    assert text.count(f"| {task.name} |") == 3 * 4
    suite_report.plot(results, tmp_path / "suite.png")
    assert (tmp_path / "suite.png").stat().st_size > 1000


def test_the_table_is_what_the_runs_give():
    results = json.loads((STUDIES / "results" / "suite.json").read_text())
    assert (STUDIES / "results" / "suite.md").read_text() == suite_report.render(results)


GUARDS = [
    Weighting(0.5),
    Weighting(0.5, keep_loss=True),
    Weighting(0.2, keep_loss=True, max_weight=2.0),
    Weighting(-0.5, max_weight=1.5),
    Weighting(inf, 0.8, keep_loss=True),
    Weighting(-inf, 0.6),
]


@pytest.mark.parametrize("weighting", GUARDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_package_agrees(weighting, weighted):
    lam = weighting.lam
    if weighting.target is not None:
        lam = ta.EffectiveSampleSize(weighting.target, noisy=lam < 0)
    cap = weighting.max_weight if math.isfinite(weighting.max_weight) else None
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lr=0.1, lam=lam, max_weight=cap,
                   keep_loss=weighting.keep_loss)  # fmt: skip
    rule = Rule([weighting])
    generator = torch.Generator().manual_seed(2)
    for L in losses_of(12):
        w = torch.rand(L.shape, generator=generator).double() + 0.1 if weighted else None
        ours, _ = rule(L, w)
        losses = L[0].clone().requires_grad_()
        opt.weigh(losses, weight=None if w is None else w[0]).backward()
        torch.testing.assert_close(losses.grad * losses.numel(), ours[0], rtol=1e-7, atol=1e-9)


def test_rows_of_lstms_are_torchs():
    rows = LSTMRows(50, 8, 2, [0, 1], 2)
    torch.manual_seed(0)
    lstm, words, last = nn.LSTM(8, 8), nn.Embedding(50, 8), nn.Linear(8, 2)
    ids = torch.randint(50, (4, 5, 7))
    made = rows(ids)
    for row in (0, 2):  # seed 0 of either method
        want = last(lstm(words(ids[row]).transpose(0, 1))[0].amax(0))
        torch.testing.assert_close(made[row], want)
    torch.testing.assert_close(rows(ids[0])[1], rows(ids[:1].expand(4, 5, 7))[1])


def test_the_warning_is_counted_by_what_became_of_a_setting():
    common = {"task": "t", "class_weights": False, "training": "sgd 0.1 cosine", "start": 0.0}
    runs = [{**common, "method": "SGD", "average": [0.9, 0.9], "size": [None, None]}]
    for name, average, size in (
        ("λ = 5", 0.9, [0.5, 0.8]),
        ("λ = 2", 0.89, [0.7, 0.7]),
        ("λ = 1", 0.87, [0.5, 0.5]),
        ("λ = 0.1", 0.5, [0.1, 0.8]),
        ("λ = 0.1, guarded", 0.5, [0.1, 0.1]),
    ):
        large = {"level": [1.0, 1.0], "fall": [1.0, 1.0]}
        runs.append({**common, "method": name, "average": [average] * 2, "size": size, **large})
    table = suite_report.warning_table({"runs": runs})
    cells = {
        "to the letter": "1 of 2, 0 of 2, 2 of 2, 1 of 2",
        "guarded": "0 of 0, " * 3 + "0 of 2",
    }
    for form, counts in cells.items():
        row = " | ".join(f"{count} runs" for count in counts.split(", "))
        assert f"| λ > 0, {form} | {row} |" in table
