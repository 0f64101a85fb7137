"""evaluate.py says what a run reported, and says so when it does not."""

import json

import numpy as np
import pytest
import torch

import evaluate
import train
from data import named
from engine import checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = [
    "--data", "cifar10", "--imbalance", "lt", "--imbalance-ratio", "8", "--arch", "resnet8",
    "--batch-size", "32", "--epochs", "2",
    "--stage-two", "1", "--warmup-epochs", "0", "--lr-milestones", "--lr", "0.05", "--limit", "24",
    "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def run(small_data_dir, tmp_path):
    """A finished run on a few of CIFAR-10's images: its folder, and where the images are."""
    words = [*SMALL, "--data-dir", str(small_data_dir), "--output-dir", str(tmp_path / "run")]
    train.main(words)
    return tmp_path / "run", ["--data-dir", str(small_data_dir), "--device", "cpu"]


def test_the_same_numbers_a_table_and_a_picture(run, capsys):
    directory, where = run
    assert evaluate.main([str(directory / "checkpoint.pt"), *where]) == []
    printed = capsys.readouterr().out
    assert "the same numbers" in printed and "after 2 epochs: test accuracy overall" in printed
    assert "| airplane " in printed and printed.count("\n|") >= 11
    written = json.loads((directory / "evaluation.json").read_text())
    reported = json.loads((directory / "results.json").read_text())
    assert written["metrics"] == reported["metrics"] and written["split"] == "test"
    assert (directory / "confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_a_runs_folder_is_its_checkpoint(run, capsys):
    directory, where = run
    assert evaluate.main([str(directory), *where]) == []
    assert "the same numbers" in capsys.readouterr().out


def test_weights_alone_are_no_run(tmp_path):
    checkpoint.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt holds no run, such as weights alone"):
        evaluate.main([str(tmp_path / "w.pt")])


def test_other_numbers_are_told_and_fail(run, tmp_path, recipe):
    directory, where = run
    state = checkpoint.load(directory / "checkpoint.pt")
    state["model"]["fc.weight"] = state["model"]["fc.weight"].flip(0)
    checkpoint.save(state, directory / "checkpoint.pt")
    words = [directory / "checkpoint.pt", "--output-dir", tmp_path / "elsewhere", *where]
    process = recipe("evaluate.py", *words)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "here" in output.splitlines()[-1] and "overall" in output.splitlines()[-1]
    assert (tmp_path / "elsewhere" / "confusion.png").exists()


def test_a_split_that_was_not_held_out(run):
    directory, where = run
    with pytest.raises(ValueError, match="judged by its test split"):
        evaluate.main([str(directory / "checkpoint.pt"), "--split", "validation", *where])


def test_a_checkpoint_of_the_validation_split_leaves_the_test_set_unread(
    small_data_dir, tmp_path, monkeypatch
):
    where = ["--data-dir", str(small_data_dir), "--device", "cpu"]
    train.main([*SMALL, *where, "--validate", "0.3", "--output-dir", str(tmp_path)])
    load = named.load_cifar

    def load_training_set_only(root, name, train, download):
        assert train, "the test set was read"
        return load(root, name, train, download)

    monkeypatch.setattr(named, "load_cifar", load_training_set_only)
    assert evaluate.main([str(tmp_path / "checkpoint.pt"), *where]) == []


def test_a_confusion_matrix_has_the_largest_class_first(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(evaluate.report, "save", lambda figure, _: shown.append(figure))
    targets, predictions = torch.tensor([0, 1, 2, 3, 3]), torch.tensor([1, 0, 0, 3, 0])
    evaluate.plot_confusion(targets, predictions, [1, 2, 3, 4], list("abcd"), "test", tmp_path)
    axes = shown[0].axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == list("dcba")
    expected = [[50, 0, 0, 50], [0, 0, 0, 100], [0, 0, 0, 100], [0, 0, 100, 0]]
    np.testing.assert_allclose(axes.images[0].get_array(), expected)


def test_a_table_and_that_other_data_are_refused(tmp_path, capsys):
    rows = [f"{i % 7},{'ill' if i % 7 > 3 else 'well'}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["x,outcome", *rows]))
    train.main(["--data", str(tmp_path / "t.csv"), "--target", "outcome", "--validate", "0.25",
                "--epochs", "2", "--stage-two", "1", "--device", "cpu", "--output-dir",
                str(tmp_path / "run")])  # fmt: skip
    words = [str(tmp_path / "run" / "checkpoint.pt"), "--device", "cpu"]
    assert evaluate.main(words) == []
    assert "the same numbers" in capsys.readouterr().out
    (tmp_path / "t.csv").write_text("\n".join(["x,outcome", *rows[:-1], "6,well"]))
    with pytest.raises(ValueError, match="of a run on other data"):
        evaluate.main(words)
