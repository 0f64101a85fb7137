"""digits_lt.py through main(): its table, picture and JSON, small."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import digits_lt


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(digits_lt, "EPOCHS", dict.fromkeys(digits_lt.EPOCHS, 4))
    monkeypatch.setattr(digits_lt, "LRS", (0.1, 0.2))
    monkeypatch.setattr(digits_lt, "WEIGHT_DECAYS", (1e-2,))
    monkeypatch.setattr(digits_lt, "FIRST_SEEDS", (100,))
    monkeypatch.setattr(digits_lt, "FURTHER_SEEDS", (101, 102))
    monkeypatch.setattr(digits_lt, "FINALISTS", 1)


def test_main_writes_the_numbers_that_it_prints(short, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = digits_lt.main(["--seeds", "0", "1", "--output-dir", str(tmp_path)])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "digits_lt.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert digits_lt.table(results) in capsys.readouterr().out
    for task, result in results.items():
        assert result["split"] == "test" and digits_lt.table(results).count(task) == 2
        for runs in result["per_digit"].values():
            assert len(runs) == 2 and all(0.1 < sum(run) / 10 < 1 for run in runs)
    counts = results["long tail"]["counts"]
    assert counts[0] / counts[-1] == pytest.approx(50, rel=0.1)


def test_a_run_is_a_function_of_its_seed(short):
    pool, test = digits_lt.load_pool_and_test()
    setting = digits_lt.SETTINGS["long tail"]["ABSGD"]
    logits = []
    for seed in (0, 0, 1):
        data = digits_lt.training_set("long tail", pool, seed)
        model, _ = digits_lt.train("long tail", data, setting, seed)
        logits.append(model(test.images))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("task", digits_lt.EPOCHS)
def test_the_weights_go_where_they_should(task):
    pool, _ = digits_lt.load_pool_and_test()
    data = digits_lt.training_set(task, pool, 0)
    _, weight = digits_lt.train(task, data, digits_lt.SETTINGS[task]["ABSGD"], 0)
    weight = weight[len(weight) // 4 :].mean(0)
    if task == "noise":
        assert weight[1] > 1.5 * weight[0]
    else:
        counts = torch.tensor(digits_lt.group_counts(task, pool))
        assert weight[counts < 20].mean() > 2 * weight[counts > 60].mean()


def test_hidden_groups_are_not_in_the_labels():
    pool, _ = digits_lt.load_pool_and_test()
    data = digits_lt.training_set("hidden groups", pool, 0)
    even, odd = torch.bincount(data.label).tolist()
    assert even == odd and torch.equal(data.label, data.digit % 2)
    assert torch.bincount(data.digit).min() * 40 < torch.bincount(data.digit).max()


def test_select_reads_no_test_set_and_has_equal_budgets(short, tmp_path, monkeypatch):
    pool, test = digits_lt.load_pool_and_test()
    nothing = replace(test, images=test.images * math.nan)
    monkeypatch.setattr(digits_lt, "load_pool_and_test", lambda: (pool, nothing))
    chosen = digits_lt.main(["--select", "--output-dir", str(tmp_path)])
    assert json.loads((tmp_path / "select.json").read_text()) == chosen
    for methods in chosen.values():
        for method, trials in methods.items():
            assert [len(trial["validation"]) for trial in trials] == [3, 1]
            assert all((trial["size"] is None) == (method == "SGD") for trial in trials)


@pytest.mark.parametrize("task", digits_lt.EPOCHS)
def test_the_settings_are_among_the_candidates(task):
    for method, setting in digits_lt.SETTINGS[task].items():
        assert setting in digits_lt.candidates(method)


def test_one_seed_has_no_interval():
    assert digits_lt.paired(np.array([-1.25])) == "−1.2"
    assert digits_lt.paired(np.array([1.0, 2.0])) == "+1.5 ± 6.4"


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as end:
        digits_lt.main(["--help"])
    assert end.value.code == 0
    assert "--select" in capsys.readouterr().out
