"""digits_lt.py through main(): its table, picture and JSON, small."""

import json
import math
from dataclasses import replace

import pytest
import torch

import digits_lt
from engine import report


@pytest.fixture
def short(monkeypatch):
    settings = {
        task: {name: replace(s, stage_two=2, epochs=4) for name, s in methods.items()}
        for task, methods in digits_lt.SETTINGS.items()
    }
    monkeypatch.setattr(digits_lt, "SETTINGS", settings)
    grid = {"lr": (0.05, 0.1), "lr_factor": (1,), "weight_decay": (1e-2,)}
    monkeypatch.setattr(digits_lt, "GRID", grid)
    monkeypatch.setattr(digits_lt, "FIRST_SEEDS", (0,))
    monkeypatch.setattr(digits_lt, "FURTHER_SEEDS", (1, 2))
    monkeypatch.setattr(digits_lt, "FINALISTS", 1)


def test_main_writes_the_numbers_that_it_prints(short, tmp_path, capsys):
    results = digits_lt.main(["--seeds", "0", "1", "--output-dir", str(tmp_path)])
    assert json.loads((tmp_path / "results.json").read_text()) == report.jsonable(results)
    assert (tmp_path / "digits_lt.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    out = capsys.readouterr().out
    for task in ("long-tailed", "noisy"):
        assert results[task]["split"] == "test" and f"{task}: test accuracy" in out
        assert digits_lt.table(task, results[task]) in out
        for runs in results[task]["metrics"].values():
            assert len(runs) == 2 and all(0.1 < run["overall"] < 1 for run in runs)
    counts = results["long-tailed"]["class_counts"]
    assert counts[0] / counts[-1] == pytest.approx(50, rel=0.1)


def test_a_run_is_a_function_of_its_seed(short):
    pool, test = digits_lt.load_splits()
    setting = digits_lt.SETTINGS["long-tailed"]["ABSGD"]
    predictions = []
    for seed in (0, 0, 1):
        model, _ = digits_lt.train(digits_lt.make_long_tailed(pool, seed), setting, seed)
        predictions.append(model(test.images))
    assert torch.equal(predictions[0], predictions[1])
    assert not torch.equal(predictions[0], predictions[2])


def test_stage_two_moves_weight_to_the_rare_classes():
    pool, _ = digits_lt.load_splits()
    setting = digits_lt.SETTINGS["long-tailed"]["ABSGD"]
    _, weight = digits_lt.train(digits_lt.make_long_tailed(pool, 0), setting, 0)
    assert torch.equal(weight[: setting.stage_two], torch.ones(setting.stage_two, 10))
    first = weight[setting.stage_two]
    assert first[7:].mean() > 2 * first[:3].mean()


def test_select_reads_no_test_set_and_has_equal_budgets(short, tmp_path, monkeypatch):
    pool, test = digits_lt.load_splits()
    nothing = digits_lt.Split(test.images * math.nan, test.targets)
    monkeypatch.setattr(digits_lt, "load_splits", lambda: (pool, nothing))
    trials = digits_lt.main(["--select", "--output-dir", str(tmp_path)])
    assert json.loads((tmp_path / "select.json").read_text()) == report.jsonable(trials)
    for task, methods in trials.items():
        for method, of_method in methods.items():
            assert [len(trial["validation"]) for trial in of_method] == [3, 1]
            assert len({(trial["lr"], trial["lam"]) for trial in of_method}) == 2
            sign = -1 if (task, method) == ("noisy", "ABSGD") else 1
            assert all(math.copysign(1, trial["lam"]) == sign for trial in of_method)


@pytest.mark.parametrize("task", digits_lt.SETTINGS)
def test_the_defaults_are_among_the_candidates(task):
    for method, setting in digits_lt.SETTINGS[task].items():
        assert setting in digits_lt.candidates(task, method)


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as end:
        digits_lt.main(["--help"])
    assert end.value.code == 0
    assert "--select" in capsys.readouterr().out
