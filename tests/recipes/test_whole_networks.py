"""recipes/studies/whole_networks.py at a thousandth of its size."""

import argparse
import json
import math
from dataclasses import replace

import pytest
import torch

from data.memory import Images
from studies import evidence, whole_networks
from studies.tasks import Part
from studies.tasks import Task as SmallTask
from studies.trials import Coefficients, Way
from studies.whole_networks import SEEDS, SETTINGS, TASKS, TRIAL_SEED, Base, Training

COUNTS = (40, 34, 28, 24, 22, 20, 18, 16, 14, 12)


@pytest.fixture
def small(monkeypatch):
    torch.manual_seed(0)
    y = torch.arange(1000) % 10
    x = torch.randn(1000, 3, 16, 16) + y[:, None, None, None] / 5
    monkeypatch.setattr(whole_networks, "images", lambda data, train: Images(x, y, list(range(10))))
    monkeypatch.setattr(whole_networks, "EPOCHS", 2)
    monkeypatch.setattr(whole_networks, "BATCH_SIZE", 16)
    monkeypatch.setattr(whole_networks, "HELD_OUT_EACH", 30)
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: network)


def sized(name):
    return replace(TASKS[name], counts=COUNTS)


@pytest.mark.parametrize("name", TASKS)
def test_what_is_held_out_is_not_trained_on(small, name):
    train, held = whole_networks.drawn(sized(name), None, 7)
    assert torch.bincount(train.targets).tolist() == list(COUNTS)
    assert torch.bincount(held.targets).tolist() == [30] * 10
    both = torch.cat([train.images, held.images]).flatten(1)
    assert len(both.unique(dim=0)) == len(both)
    again, _ = whole_networks.drawn(sized(name), None, 7)
    assert torch.equal(again.images, train.images)


@pytest.mark.parametrize(("name", "method"), [(n, m) for n, t in TASKS.items() for m in t.methods])
def test_every_method_trains(small, name, method):
    task = sized(name)
    network, rest = whole_networks.train(task, task.methods[method], (0.05, 5e-4), None, 3)
    made = whole_networks.accuracies(network, rest, task)
    assert len(made) == (13 if name == "whole_lt" else 1)
    assert all(len(row) == 10 and all(0 <= a <= 100 for a in row) for row in made)
    assert sum(made[0]) > 0


def test_absgd_begins_when_the_classes_are_learned(small, monkeypatch):
    task, seen = sized("whole_asym"), []
    monkeypatch.setattr(whole_networks, "EPOCHS", 8)
    train, _ = whole_networks.drawn(task, None, 0)
    run = Training(task, task.methods["ABSGD"], (0.1, 0.0), train, 0)
    before = run.step

    def step(*args):
        before(*args)
        seen.append((run.progress, float(run.optimizer.lam), run.optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr(run, "step", step)
    run.fit(Base(run.method, train, None, None))
    assert all((lam < 0 and math.isfinite(lam)) == (at > 0.249) for at, lam, _ in seen)
    assert all(lr == pytest.approx(0.05 * (1 + math.cos(math.pi * at))) for at, _, lr in seen)


def test_groups_weigh_as_in_part_a():
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    part = Part(torch.zeros(6, 1), torch.zeros(6).long(), groups)
    task = SmallTask("t", part, part, (3, 2, 1), 0, 1, has_class_weights=False)
    way = Way("", kind="dro", value=0.1)
    theirs = Coefficients([way], 1, task, None)
    ours = Base(whole_networks.Method(base="dro"), Images(part.x, groups, [0, 1, 2]), None, None)
    for seed in range(3):
        losses = torch.rand(6, generator=torch.Generator().manual_seed(seed))
        wanted = theirs.dro(0, way, losses.double()[None], groups[None])[0]
        torch.testing.assert_close(
            ours._of_groups(losses, groups).double(), wanted, rtol=1e-5, atol=0
        )


def test_class_weights_are_deferred():
    train = Images(torch.zeros(3, 1), torch.tensor([0, 0, 1]), [0, 1])
    base = Base(whole_networks.Method(base="deferred"), train, None, None)
    run = argparse.Namespace(progress=0.79)
    place = torch.tensor([0, 2])
    assert base(run, None, None, None, place) is None
    run.progress = 0.8
    made = base(run, None, None, None, place)
    assert made[0] < made[1]


def test_a_run_is_written_and_read(small, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "whole_noise", sized("whole_noise"))
    args = argparse.Namespace(work=tmp_path, data=None)
    made = whole_networks.made_or_read("whole_noise", "SGD", SETTINGS[0], TRIAL_SEED, args)
    monkeypatch.setattr(whole_networks, "train", lambda *_: pytest.fail("trained again"))
    assert made == whole_networks.made_or_read(
        "whole_noise", "SGD", SETTINGS[0], TRIAL_SEED, args)  # fmt: skip


def test_the_best_trial_is_judged_and_nothing_is_made_twice(tmp_path, monkeypatch):
    name, taus = "whole_lt", len(whole_networks.TAUS)
    monkeypatch.setattr(whole_networks, "train", lambda *_: pytest.fail("trained again"))
    for method in TASKS[name].methods:
        for k, (lr, decay) in enumerate(SETTINGS):
            for seed in (TRIAL_SEED, *SEEDS):
                rows = [[10.0 * k + (20 if k == 1 and t == 3 else 0) + (seed != TRIAL_SEED)] * 10
                        for t in range(taus)]  # fmt: skip
                file = tmp_path / name / method / f"lr{lr:g}-decay{decay:g}-seed{seed}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"accuracy": rows}))
    (tmp_path / "trials").mkdir()
    monkeypatch.setattr("sys.argv", ["", "--data", ".", "--work", str(tmp_path), "--tasks", name,
                                     "--out", str(tmp_path / "trials")])  # fmt: skip
    whole_networks.main()
    made = json.loads((tmp_path / "trials" / f"{name}.json").read_text())
    rows = {row["method"]: row for row in made["methods"]}
    assert rows["SGD"]["settings"] == {"lr": 0.2, "weight_decay": 5e-3}
    assert rows["SGD"]["accuracy"] == [[31.0] * 10] * len(SEEDS)
    assert rows["SGD, logit adjustment"]["settings"] == {
        "lr": 0.05, "weight_decay": 5e-3, "adjusted": 0.75}  # fmt: skip
    assert rows["SGD, logit adjustment"]["accuracy"][0] == [31.0] * 10
    assert "LDAM-DRW, logit adjustment" not in rows and len(rows) == len(TASKS[name].methods) + 2
    gain = evidence.gain(made, "SGD, logit adjustment", evidence.average)
    assert gain.tolist() == [0.0] * len(SEEDS)
