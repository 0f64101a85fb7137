"""The evidence: RESULTS.md is what its script renders, and the runs of the paper's cell."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn

import paper
import train
from studies import cifar_cell, evidence, evidence_plot, imdb_table, paper_figures
from studies.tables import FIGURES


def test_results_are_what_the_records_give():
    assert evidence.OUT.read_text() == evidence.render()


def test_every_part_is_used_once():
    words = (evidence.RESULTS / "RESULTS.md.in").read_text()
    for name in evidence.PARTS:
        assert words.count("{{" + name + "}}") == 1, name


def test_forty_runs_that_train_py_takes(tmp_path):
    names = [cifar_cell.name_of(*run) for run in cifar_cell.RUNS]
    assert len(set(names)) == len(names) == 40
    for method, factor, seed, _ in cifar_cell.RUNS:
        words = cifar_cell.words_of(method, factor, seed)
        args = train.parse([*words, "--output-dir", str(tmp_path)])
        assert args.seed == seed and args.stage_two == cifar_cell.STAGE_TWO
        assert args.lr_factor == (1 if method == "cRT" else factor)
        assert (args.optimizer == "sgd") == (method in ("SGD", "CB, SGD", "cRT"))


def test_runs_of_the_imdb_table(tmp_path, monkeypatch):
    results = {"class_counts": [3, 30], "metrics": {"per_class": [0.25, 0.75]}, "torch": "2"}
    for loss in imdb_table.LOSSES:
        for method in imdb_table.METHODS:
            words = imdb_table.words_of(method, loss, 3)
            args = train.parse([*words, "--output-dir", str(tmp_path)])
            assert (args.loss, args.lr, args.seed, args.stage_two) == (loss, 0.2, 3, 8)
            assert (args.optimizer == "sgd") == (method == "SGD")
            for seed in (0, 1):
                folder = imdb_table.directory(tmp_path, method, loss, seed)
                folder.mkdir()
                (folder / "results.json").write_text(json.dumps(results))
    made = imdb_table.gather(tmp_path)
    assert len(made) == 12 and made[0]["per_class"] == [25, 75]
    (tmp_path / "imdb_table.json").write_text(json.dumps(made))
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    evidence.imdb.cache_clear()
    rows = evidence.imdb_rows()
    assert "| CE | SGD | 50.00 ± 0.00 | 25.00 ± 0.00 | 75.00 ± 0.00 |  | 2 |" in rows
    evidence.imdb.cache_clear()


def test_figures_of_the_paper_are_gathered_and_drawn(tmp_path):
    (cell,) = (c for c in FIGURES["figure4"][1] if (c.row, c.column) == ("SGD", "CIFAR-10"))
    plan = paper.Plan(Namespace(output_dir=tmp_path, small=False), [cell], paper_figures.WORDS)
    assert train.parse([*plan.words(cell, 1), "--output-dir", "-"]).stage_two == 20
    for seed in (0, 2):
        folder = plan.directory(cell, seed)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text("{}")
        lines = [
            {"split": split, "epoch": e, "overall": (e + seed) / 100 + more}
            for e in range(26)
            for split, more in (("test", 0), ("train accuracy", 0.5))
        ]
        (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))  # fmt: skip
    made = paper_figures.gather(tmp_path)
    assert [(r["figure"], r["row"], r["seed"]) for r in made] == [
        ("figure4", "SGD", 0), ("figure4", "SGD", 2)]  # fmt: skip
    row = paper_figures.rows(made).splitlines()[-1]
    assert [c.strip() for c in row.split("|")[1:-1]] == [
        "Figure 4", "SGD", "20.0", "26.0", "26.0", "76.0", "2"]  # fmt: skip
    paper_figures.plot(made, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_classifier_after_training():
    fc = nn.Linear(4, 10)
    x, y = torch.randn(50, 4), torch.arange(50) % 9  # none of class 9
    made = cifar_cell.after_training(x, fc, y, torch.arange(10, 0, -1))
    plain = (fc(x).argmax(1) == y).float()
    assert made["adjusted"][0][:2] == [round(100 * float(plain[y == c].mean()), 2) for c in (0, 1)]
    assert len(made["adjusted"]) == len(cifar_cell.TAUS) and made["adjusted"][0][9] == 0
    fc.weight.data /= fc.weight.norm(dim=1, keepdim=True)
    unit = cifar_cell.after_training(x, fc, y, torch.ones(10))["normalised"]
    assert unit[0] == unit[-1]


def test_tau_is_chosen_on_what_was_left_out():
    taus = len(cifar_cell.TAUS)
    left = [[100.0] + [float(i == 3)] * 9 for i in range(taus)]
    test = [[float(i)] * 10 for i in range(taus)]
    run = {"seed": 0, "class_counts": [1000] * 6 + [50] * 4,
           "left_out": {"adjusted": left}, "test": {"adjusted": test}}  # fmt: skip
    made = evidence.judged(run)
    assert (made["tau"], made["adjusted"], made["test"], made["at_one"]) == (0.75, 3, 0, 4)


def test_a_difference_is_named_by_its_interval():
    up, mixed = np.array([1.0, 1.2, 0.8]), np.array([1.0, -1.0, 0.1])
    assert [evidence.verdict(d) for d in (up, -up, mixed)] == ["win", "loss", "tie"]
    assert evidence.with_interval(up).startswith("**+1.0 ±")
    assert "*" not in evidence.with_interval(mixed)


def test_hard_groups_are_the_rarest_or_the_worst(monkeypatch):
    monkeypatch.setattr(evidence, "present", lambda names: [{"task": "t", "optimizer": "sgd"}])
    a = np.array([[90.0, 1, 80, 70, 60, 50]])
    tail = {"task": "t", "optimizer": "sgd", "counts": [1, 9, 2, 8, 3, 7]}
    assert evidence.hard(tail, a) == pytest.approx([(90 + 80 + 60) / 3])
    assert evidence.hard({**tail, "task": "u"}, a) == pytest.approx([(1 + 50 + 60) / 3])


def test_the_picture_is_drawn(tmp_path):
    tradeoff = json.loads((evidence.RESULTS / "tradeoff.json").read_text())
    bars = [("noise", "a task", np.array([1.0, 2.0])), ("hidden groups", "another", np.zeros(3))]
    evidence_plot.plot(bars, tradeoff, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
