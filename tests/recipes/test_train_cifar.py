"""train.py on a few of CIFAR-10's images: what a run leaves, and how it goes on."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

import models
import train
from data import memory, named
from data.source import Source
from engine import checkpoint, folder
from engine.run import Run
from runs import assert_same_run, records_of

pytestmark = pytest.mark.usefixtures("no_pictures")  # whole_run has them

SMALL = [
    "--data", "cifar10", "--imbalance", "lt", "--imbalance-ratio", "8", "--arch", "resnet8",
    "--batch-size", "32", "--epochs", "4",
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
    train.main(options_for(small_data_dir, directory, *curve))
    return directory


def test_what_a_run_leaves(whole_run):
    files = set(os.listdir(whole_run))
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert files - events == {
        "accuracy.png", "checkpoint.pt", "class_weight.png", "config.json", "lock", "log.jsonl",
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
    load = named.load_cifar

    def load_training_set_only(root, name, train, download):
        assert train, "the test set was read"
        return load(root, name, train, download)

    monkeypatch.setattr(named, "load_cifar", load_training_set_only)
    results = train.main(
        options_for(small_data_dir, tmp_path, "--validate", 0.25, "--eval-every", 2)
    )
    assert results["split"] == "validation"
    assert results["class_counts"][0] == 48
    assert [r["split"] for r in records_of(tmp_path) if r["split"] != "train"] == ["validation"] * 2


def test_what_was_logged_after_the_last_checkpoint_is_dropped(
    small_data_dir, whole_run, tmp_path, recwarn
):
    flags = options_for(small_data_dir, tmp_path, "--eval-every", 1, "--eval-split", "test")
    train.main([*flags, "--stop-epoch", "2"])
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"split": "train", "epoch": 2, "loss"')
    train.main([*flags, "--resume"])
    assert_same_run(tmp_path, whole_run)
    assert not [w for w in recwarn if "lr_scheduler.step()" in str(w.message)]


def test_workers_change_nothing(small_data_dir, whole_run, tmp_path):
    flags = ("--eval-every", 1, "--eval-split", "test", "--workers", 2)
    train.main(options_for(small_data_dir, tmp_path, *flags))
    assert_same_run(tmp_path, whole_run)


def test_a_shared_stage_one_gives_the_bits_of_a_run_of_its_own(small_data_dir, whole_run, tmp_path):
    curve = ("--eval-every", 1, "--eval-split", "test")
    first, second = tmp_path / "first", tmp_path / "second"
    stop = ("--optimizer", "sgd", "--class-balance", "drw", "--stop-epoch", 2)
    assert train.main(options_for(small_data_dir, first, *curve, *stop)) is None
    assert not (first / "results.json").exists()
    flags = options_for(small_data_dir, second, *curve, "--stage-one", first / "checkpoint.pt")
    train.main(flags)
    assert_same_run(second, whole_run)


def test_a_folder_is_not_overwritten_and_other_options_do_not_resume(
    small_data_dir, whole_run, recipe
):
    curve = ("--eval-every", 1, "--eval-split", "test")
    flags = options_for(small_data_dir, whole_run, *curve)
    with pytest.raises(FileExistsError, match="--resume"):
        train.main(flags)
    before = (whole_run / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=r"lr = 0.05, here 0.3"):
        train.main([*flags, "--resume", "--lr", "0.3"])
    with pytest.raises(ValueError, match=r"epochs = 4, here 9; .* are a new run, in another --out"):
        train.main([*flags, "--resume", "--epochs", "9"])
    assert (whole_run / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    "flags",
    [
        ("--loss", "ldam", "--class-balance", "drw", "--imbalance", "step"),
        ("--loss", "focal", "--class-balance", "cb", "--momentum-form", "polyak"),
        ("--lam", "-1", "--label-noise", "asym:0.4", "--imbalance", "none"),
        ("--lam", "2", "--lam-over", 2, "--amp", "bf16"),
        ("--optimizer", "sgd", "--channels-last"),
    ],
)
def test_other_options(small_data_dir, tmp_path, flags):
    results = train.main(options_for(small_data_dir, tmp_path, *flags, "--limit", 24))
    training = records_of(tmp_path)
    assert all(math.isfinite(record["loss"]) for record in training)
    assert results["metrics"]["overall"] >= 0.1 - 1e-9
    if "sgd" in flags:
        assert all(float(record["lam"]) == math.inf for record in training)
    if "--lam-over" in flags:  # 1/λ is linear
        assert [float(record["lam"]) for record in training] == pytest.approx(
            [math.inf] * 3 + [4.0]
        )


def test_a_loss_that_is_not_finite_stops_the_run(small_data_dir, tmp_path):
    with pytest.raises(FloatingPointError, match="not finite"):
        train.main(options_for(small_data_dir, tmp_path, "--lr", "1e30", "--limit", 24))


def test_missing_data_is_told_in_one_line(tmp_path, recipe):
    process = recipe("train.py", *options_for(tmp_path, tmp_path / "out"))
    output, _ = process.communicate()
    assert process.returncode == 1
    assert output.startswith("error:") and "--download" in output
    assert len(output.splitlines()) == 1


# ---- stage one taken over


def stage_one(small_data_dir, directory, *more):
    """A stage one, and what a run that begins with it has after its stage two."""
    first = directory / "first"
    train.main(options_for(small_data_dir, first, "--limit", 24, "--stop-epoch", 2))
    flags = options_for(small_data_dir, directory / "second", "--limit", 24,
                        "--stage-one", first / "checkpoint.pt", *more)  # fmt: skip
    train.main(flags)
    return checkpoint.load(directory / "second" / "checkpoint.pt")


def test_stage_two_has_its_own_gamma_alpha_weight_decay_and_factor(small_data_dir, tmp_path):
    """These played no part before; what the checkpoint says of them must not win."""
    own = {"gamma": 0.3, "alpha": 2.0, "weight_decay": 0.01, "lr_factor": 0.5}
    flags = [word for k, v in own.items() for word in (f"--{k.replace('_', '-')}", v)]
    state = stage_one(small_data_dir, tmp_path, *flags, "--lr-milestones", 2)
    (group,) = state["optimizer"]["param_groups"]
    assert {k: group[k] for k in ("gamma", "alpha", "weight_decay")} == {
        k: own[k] for k in ("gamma", "alpha", "weight_decay")
    }
    assert group["lr"] == pytest.approx(0.05 * 0.5)


@pytest.mark.parametrize(
    "more", [("--lr", 0.1), ("--momentum", 0.5), ("--lr-milestones", 1), ("--seed", 1)]
)
def test_another_stage_one_is_refused(small_data_dir, tmp_path, more):
    with pytest.raises(ValueError, match="other options"):
        stage_one(small_data_dir, tmp_path, *more)


def test_a_finite_lam_in_stage_one_keeps_gamma_and_alpha(small_data_dir, tmp_path):
    first = ("--lam-start", 2, "--limit", 24, "--momentum", 0)
    train.main(options_for(small_data_dir, tmp_path / "first", *first, "--stop-epoch", 2))
    flags = [*first, "--stage-one", tmp_path / "first" / "checkpoint.pt", "--weight-decay", 0.5]
    with pytest.raises(ValueError, match=r"gamma = None, here 0\.5"):
        train.main(options_for(small_data_dir, tmp_path / "other", *flags, "--gamma", 0.5))
    train.main(options_for(small_data_dir, tmp_path / "second", *flags))
    (group,) = checkpoint.load(tmp_path / "second" / "checkpoint.pt")["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.5


def test_checkpoints_of_the_scripts_before_are_taken_over(tmp_path):
    """Made by cifar_lt.py: another name for --data, γ = 0.9 by name, no hash of the data."""
    shared = Path(os.environ.get("ABSGD_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = shared / "stage_one" / "cifar10-lt-100-seed0" / "checkpoint.pt"
    if not path.exists():
        pytest.skip(f"no stage one: {path} does not exist")
    args = train.parse(
        ["--preset", "cifar10-lt-100-absgd-cb-ce", "--amp", "bf16", "--channels-last", "--lam", "1",
         "--compile", "--lr-factor", "0.1", "--weight-decay", "1e-3", "--gamma", "0.5",
         "--device", "cpu", "--output-dir", str(tmp_path)]
    )  # fmt: skip
    args.arch, args.compile = "resnet32", False
    state = checkpoint.load(path)
    images = memory.Images(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.arange(20) % 10,
                           list("abcdefghij"))  # fmt: skip
    source = Source(images, lambda: images, ("image", 3), memory.CropAndFlip, None)
    task = train.task_of(args, source, {"train": images, "test": images}, "test")
    run = Run(args, models.build("resnet32", 10), task)
    args.compile = True
    run.take_over(state)
    run.begin_epoch()
    (group,) = run.optimizer.param_groups
    assert run.epoch == 160 and float(run.optimizer.lam) == 1
    assert group["lr"] == pytest.approx(0.1 * 0.1) and group["weight_decay"] == 1e-3
    assert group["gamma"] == 0.5
    momentum = run.optimizer.state[run.model.conv.weight]["momentum_buffer"]
    assert torch.equal(momentum, state["optimizer"]["state"][0]["momentum_buffer"])
    assert torch.equal(run.model.fc.weight, state["model"]["fc.weight"])


# ---- one run a folder, and its end


def test_two_runs_do_not_write_one_folder(small_data_dir, tmp_path, recipe):
    with folder.locked(tmp_path / "run"):
        flags = options_for(small_data_dir, tmp_path / "run", "--limit", 24, "--keep-going")
        process = recipe("train.py", *flags)
        output, _ = process.communicate()
    assert process.returncode == 1 and f"process {os.getpid()} on" in output.splitlines()[-1]
    assert recipe("train.py", *flags).wait() == 0


def test_a_run_at_chance_ends_loudly(small_data_dir, tmp_path, recipe):
    flags = options_for(small_data_dir, tmp_path, "--limit", 24, "--lr", "1e-6", "--epochs", 1,
                        "--stage-two", 1, "--imbalance-ratio", 24)  # fmt: skip
    process = recipe("train.py", *flags)
    output, _ = process.communicate()
    assert process.returncode == 3, output
    assert "ALARM: the balanced accuracy" in output and "that of chance" in output
    assert output.splitlines()[-1].startswith("next: ")
    again = recipe("train.py", *flags, "--resume", "--keep-going")
    assert again.wait() == 0
