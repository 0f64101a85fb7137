"""Noise finding on digits: tiny, and judged by hand."""

import importlib.util
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "recipes" / "studies" / "find_noise.py"
spec = importlib.util.spec_from_file_location("find_noise", PATH)
find_noise = importlib.util.module_from_spec(spec)
spec.loader.exec_module(find_noise)


def test_flips_exactly_the_share_to_other_classes():
    y = torch.arange(10).repeat(20)
    noisy, is_flipped = find_noise.flip(y, 0.2, seed=3)
    assert int(is_flipped.sum()) == 40
    assert torch.equal(noisy != y, is_flipped)
    assert torch.equal(find_noise.flip(y, 0.2, seed=3)[0], noisy)
    assert noisy.min() >= 0 and noisy.max() <= 9


def test_judges_a_ranking():
    is_flipped = torch.zeros(10, dtype=torch.bool)
    is_flipped[[2, 7]] = True
    numbers = find_noise.judge(torch.tensor([2, 0, 7, 1, 3, 4, 5, 6, 8, 9]), is_flipped)
    assert numbers["P = R at k"] == 50
    assert (numbers["P at 10%"], numbers["R at 10%"]) == (100, 50)
    assert numbers["P at 30%"] == pytest.approx(200 / 3) and numbers["R at 30%"] == 100
    assert numbers["AP"] == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_finds_flipped_labels_and_prints_a_row_a_ranking(capsys):
    words = ["--seeds", "2", "--epochs", "12", "--per-class", "60", "--lams", "-1"]
    results = find_noise.main(words)
    assert list(results) == ["SGD, by loss", "λ -1, by weight", "λ -1, by loss"]
    for runs in results.values():
        assert all(run["P = R at k"] > 60 for run in runs), "by chance it is 20"
    lines = capsys.readouterr().out.strip().splitlines()
    assert "600 training samples, 20% of the labels flipped" in lines[0]
    assert [line.split("  ")[0] for line in lines[3:]] == list(results)
    assert "±" in lines[-1]


def test_cifar_needs_a_root(capsys):
    with pytest.raises(SystemExit):
        find_noise.main(["--data", "cifar10"])
    assert "needs --root" in capsys.readouterr().err
