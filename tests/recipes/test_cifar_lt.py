"""cifar_lt.py on a few real images: what a run leaves, and that it can be killed at any time."""

import json
import math
import os
import signal
import time

import pytest
from runs import assert_same_run, records_of

import checkpoint
import cifar_lt

SMALL = [
    "--arch", "resnet8", "--imbalance-ratio", "8", "--batch-size", "32", "--epochs", "4",
    "--stage-two", "2", "--warmup-epochs", "1", "--lr-milestones", "3", "--lr", "0.05",
    "--device", "cpu",
]  # fmt: skip


def options_for(data, directory, *more):
    return [*SMALL, "--data-dir", str(data), "--output-dir", str(directory), *map(str, more)]


@pytest.fixture(scope="module")
def whole_run(small_data_dir, tmp_path_factory):
    """A run that was never stopped, with evaluations of the test set on the way."""
    directory = tmp_path_factory.mktemp("whole")
    curve = ("--eval-every", 1, "--eval-split", "test", "--tsne")
    cifar_lt.main(options_for(small_data_dir, directory, *curve))
    return directory


def test_what_a_run_leaves(whole_run):
    files = set(os.listdir(whole_run))
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert files - events == {
        "accuracy.png", "checkpoint.pt", "class_weight.png", "config.json", "log.jsonl",
        "per_class.png", "results.json", "tsne.png",
    }  # fmt: skip
    results = json.loads((whole_run / "results.json").read_text())
    assert results["split"] == "test"
    assert results["class_counts"][0] == 64 and results["class_counts"][-1] == 8
    assert 0 <= results["metrics"]["overall"] <= 1
    assert len(results["metrics"]["per_class"]) == 10
    assert json.loads((whole_run / "config.json").read_text()) == results["config"]


def test_the_log_names_splits_and_follows_the_schedules(whole_run):
    records = records_of(whole_run)
    training = [r for r in records if r["split"] == "train"]
    assert [r["epoch"] for r in training] == [0, 1, 2, 3]
    assert [float(r["lam"]) for r in training] == [math.inf, math.inf, 5.0, 5.0]
    assert [r["lr"] for r in training] == pytest.approx([0.05, 0.05, 0.05, 0.0005])
    for record in training[:2]:
        assert record["weighted_loss"] == pytest.approx(record["loss"], rel=1e-6)
        assert record["ess"] == 1 and record["class_weight"] == [1.0] * 10
    for record in training[2:]:
        assert record["weighted_loss"] > record["loss"]
        assert 0.1 < record["ess"] < 1
    assert [r["split"] for r in records if r["split"] != "train"] == ["test"] * 4


def test_tensorboard_holds_the_same_numbers(whole_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole_run)).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([r["loss"] for r in records_of(whole_run) if "loss" in r])


def test_validate_reports_on_a_part_of_the_training_set_and_reads_no_test_set(
    small_data_dir, tmp_path, monkeypatch
):
    load = cifar_lt.load

    def load_training_set_only(args, train):
        assert train, "the test set was read"
        return load(args, train)

    monkeypatch.setattr(cifar_lt, "load", load_training_set_only)
    results = cifar_lt.main(
        options_for(small_data_dir, tmp_path, "--validate", 0.25, "--eval-every", 2)
    )
    assert results["split"] == "validation"
    assert results["class_counts"][0] == 48
    assert [r["split"] for r in records_of(tmp_path) if r["split"] != "train"] == ["validation"] * 2


def test_sigkill_in_mid_epoch_and_resume_ends_with_the_same_bits(
    small_data_dir, whole_run, tmp_path, recipe
):
    """Killed once in stage one and once in stage two, each time between two checkpoints."""
    curve = ("--eval-every", 1, "--eval-split", "test", "--checkpoint-every", 2)
    flags = options_for(small_data_dir, tmp_path, *curve, "--resume")
    for kill_at in ((1, 3), (2, 2)):
        process = recipe("cifar_lt.py", *flags)
        deadline = time.monotonic() + 120
        while position(tmp_path) < kill_at:
            time.sleep(0.02)
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert position(tmp_path) < (4, 0)
    process = recipe("cifar_lt.py", *flags)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert_same_run(tmp_path, whole_run)


def test_what_was_logged_after_the_last_checkpoint_is_dropped(small_data_dir, whole_run, tmp_path):
    flags = options_for(small_data_dir, tmp_path, "--eval-every", 1, "--eval-split", "test")
    cifar_lt.main([*flags, "--stop-epoch", "2"])
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"split": "train", "epoch": 2, "loss"')
    cifar_lt.main([*flags, "--resume"])
    assert_same_run(tmp_path, whole_run)


def position(directory):
    """(epoch, batch) of the checkpoint; it is whole whenever it is there."""
    path = directory / "checkpoint.pt"
    if not path.exists():
        return (-1, 0)
    state = checkpoint.load(path)
    return state["epoch"], state["batch"]


def test_workers_change_nothing(small_data_dir, whole_run, tmp_path):
    flags = ("--eval-every", 1, "--eval-split", "test", "--workers", 2)
    cifar_lt.main(options_for(small_data_dir, tmp_path, *flags))
    assert_same_run(tmp_path, whole_run)


def test_a_shared_stage_one_gives_the_bits_of_a_run_of_its_own(small_data_dir, whole_run, tmp_path):
    curve = ("--eval-every", 1, "--eval-split", "test")
    first, second = tmp_path / "first", tmp_path / "second"
    stop = ("--optimizer", "sgd", "--class-balance", "drw", "--stop-epoch", 2)
    assert cifar_lt.main(options_for(small_data_dir, first, *curve, *stop)) is None
    assert not (first / "results.json").exists()
    flags = options_for(small_data_dir, second, *curve, "--stage-one", first / "checkpoint.pt")
    cifar_lt.main(flags)
    assert_same_run(second, whole_run)


def test_a_folder_is_not_overwritten_and_other_options_do_not_resume(
    small_data_dir, whole_run, recipe
):
    curve = ("--eval-every", 1, "--eval-split", "test")
    flags = options_for(small_data_dir, whole_run, *curve)
    with pytest.raises(FileExistsError, match="--resume"):
        cifar_lt.main(flags)
    before = (whole_run / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=r"lr = 0.05, here 0.3"):
        cifar_lt.main([*flags, "--resume", "--lr", "0.3"])
    assert (whole_run / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    "flags",
    [
        ("--loss", "ldam", "--class-balance", "drw", "--imbalance", "step"),
        ("--loss", "focal", "--class-balance", "cb", "--momentum-form", "polyak"),
        ("--lam", "-1", "--label-noise", "asym:0.4", "--imbalance", "none"),
        ("--lam", "2", "--lam-over", 2, "--lam-damping", "cosine", "--amp", "bf16"),
        ("--optimizer", "sgd", "--channels-last"),
    ],
)
def test_other_options(small_data_dir, tmp_path, flags):
    results = cifar_lt.main(options_for(small_data_dir, tmp_path, *flags, "--limit", 24))
    training = records_of(tmp_path)
    assert all(math.isfinite(record["loss"]) for record in training)
    assert results["metrics"]["overall"] >= 0.1 - 1e-9
    if "sgd" in flags:
        assert all(float(record["lam"]) == math.inf for record in training)
    if "cosine" in flags:
        assert [float(record["lam"]) for record in training] == pytest.approx(
            [math.inf] * 3 + [4.0]
        )


def test_a_loss_that_is_not_finite_stops_the_run(small_data_dir, tmp_path):
    with pytest.raises(FloatingPointError, match="not finite"):
        cifar_lt.main(options_for(small_data_dir, tmp_path, "--lr", "1e30", "--limit", 24))


def test_missing_data_is_told_in_one_line(tmp_path, recipe):
    process = recipe("cifar_lt.py", *options_for(tmp_path, tmp_path / "out"))
    output, _ = process.communicate()
    assert process.returncode == 1
    assert output.startswith("error:") and "--download" in output
    assert len(output.splitlines()) == 1
