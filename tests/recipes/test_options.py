"""Options that reach the optimizer, or are refused."""

import pytest
import torch
from torch import nn

import train
from engine import options

DIGITS = ["--data", "digits", "--device", "cpu", "--output-dir", "never"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--max-weight", "0", "max_weight"),
        ("--gamma", "0", "gamma"),
        ("--lr", "-1", "lr"),
        ("--limit", "-1", "must be >= 0"),
        ("--hidden", "0", "must be >= 1"),
        ("--epochs", "0", "must be >= 1"),
        ("--workers", "-1", "must be >= 0"),
        ("--epochs", "ten", "--epochs"),
        ("--imbalance-ratio", "0.5", "must be >= 1"),
    ],
)
def test_what_is_out_of_range_is_refused_before_data_are_read(option, value, said, capsys):
    with pytest.raises(SystemExit):
        train.parse([*DIGITS, option, value])
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "--help" in error


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for default in ("200", "5.0", "inf", "128", "0.01", "0.0002", "160; of at most 160"):
        assert f"(default: {default}" in printed, default
    for nothing in ("None", "False", "[]", "=="):
        assert f"(default: {nothing}" not in printed


@pytest.mark.parametrize(
    ("words", "stage_two", "milestones", "warmup"),
    [
        ([], 160, [160, 180], 5),
        (["--epochs", "161"], 160, [160, 180], 5),
        (["--epochs", "160"], 128, [128, 144], 5),
        (["--epochs", "4"], 3, [3], 0),
        (["--epochs", "1"], 0, [], 0),
        (["--epochs", "30", "--stage-two", "9"], 9, [24, 27], 3),
        (["--epochs", "30", "--lr-milestones", "--warmup-epochs", "2"], 24, [], 2),
        (["--epochs", "90", "--lr-schedule", "cosine"], 72, [160, 180], 5),
    ],
)
def test_a_short_run_has_a_stage_two(words, stage_two, milestones, warmup):
    """At 160 of 200 whatever --epochs was, it trained SGD without a word."""
    args = train.parse([*DIGITS, *words])
    assert (args.stage_two, args.lr_milestones, args.warmup_epochs) == (
        stage_two, milestones, warmup,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ([], "--lam 5.0"),
        (["--optimizer", "sgd", "--class-balance", "drw"], "--class-balance drw"),
        (["--optimizer", "sgd", "--stage-two-layers", "fc"], "--stage-two-layers"),
        (["--method", "meta"], "--method meta"),
    ],
)
def test_a_stage_two_past_the_end(words, lost, capsys):
    words = [*DIGITS, "--epochs", "4", *words]
    with pytest.raises(SystemExit):
        train.parse([*words, "--stage-two", "5"])
    assert f"--stage-two 5 is past --epochs 4, so {lost} has" in capsys.readouterr().err
    train.parse([*words, "--stage-two", "5", "--stop-epoch", "3"])
    args = train.parse([*words, "--stage-two", "4"])  # stage one alone
    assert train.plan(args) == f"no stage two in 4 epochs: {lost} will not begin"
    assert train.plan(train.parse(words)) == f"stage two from epoch 3 of 4: {lost}"


def test_a_stage_two_past_the_end_may_be_a_presets(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--preset", "imdb-absgd-ce", "--epochs", "20", "--output-dir", "never"])
    assert "--stage-two 60 of --preset imdb-absgd-ce is past" in capsys.readouterr().err


def test_without_anything_for_it_a_stage_two_may_be_anywhere():
    words = [*DIGITS, "--epochs", "4", "--stage-two", "5"]
    assert train.plan(train.parse([*words, "--optimizer", "sgd"])) == "one stage, of sgd"
    said = "one stage, of absgd at lambda 2.0"
    assert train.plan(train.parse([*words, "--lam", "2", "--lam-start", "2"])) == said


@pytest.mark.parametrize(
    "words",
    [
        ["--pretrained", "imagenet"], ["--online"], ["--tau", "2"], ["--meta-rate", "2"],
        ["--recover-a", "0.2"], ["--focal-gamma", "2"], ["--class-weights", "outside"],
        ["--eval-train"], ["--stop-epoch", "9"], ["--lam", "1", "--optimizer", "sgd"],
        ["--class-balance", "drw", "--method", "la"],
    ],
)  # fmt: skip
def test_an_option_without_effect_is_noted(words, capsys):
    train.main([*DIGITS, "--epochs", "4", *words, "--dry-run"])
    assert f"note: {words[0]} has no effect here\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--method", "la-absgd", "--tau", "2", "--lam", "1"], ["--method", "recover", "--lam", "1"],
        ["--preset", "cifar10-sym-0.4-sgd"], ["--stop-epoch", "4"],
    ],
)  # fmt: skip
def test_an_option_with_effect_is_not(words, capsys):
    train.main([*words, *DIGITS, "--epochs", "4", "--stage-two", "3", "--label-noise", "sym:0.2",
                "--dry-run"])  # fmt: skip
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--layers", "--stage-two-layers"])
def test_layers_that_are_not_there_are_told_at_once(option):
    with pytest.raises(ValueError, match=f"{option}: Invalid name: 'fcc'; available: "):
        train.main([*DIGITS, "--epochs", "4", option, "fcc", "--dry-run"])


def test_a_method_that_is_a_loss_takes_no_other(capsys):
    words = [*DIGITS, "--method", "la", "--class-balance", "drw"]
    assert train.plan(train.parse(words)) == "one stage, of sgd"
    with pytest.raises(SystemExit):
        train.parse([*words, "--loss", "focal"])
    assert "--method la is a loss of its own: leave out --loss focal" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "is_noted"),
    [([], True), (["--lr-schedule", "cosine"], False), (["--lr-factor", "0.1"], False)],
)
def test_a_new_layer_at_a_small_learning_rate_is_noted(words, is_noted):
    args = train.parse([*DIGITS, "--epochs", "60", "--method", "crt", *words])
    wanted = ["note: --method crt begins a part of the network anew, at a learning rate of 0.001: "
              "try --lr-schedule cosine or --lr-factor 0.1"]  # fmt: skip
    assert train.notes(args) == wanted * is_noted


def test_weights_alone_are_no_stage_one(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt holds no run, such as weights alone"):
        train.main([*DIGITS, "--epochs", "4", "--stage-one", str(tmp_path / "w.pt"),
                    "--output-dir", str(tmp_path / "out")])  # fmt: skip


def test_guards_and_a_ramp_to_a_rule_together():
    args = train.parse([*DIGITS, "--max-weight", "2", "--keep-loss", "--gamma", "0.5", "--lam",
                        "ess:0.8:rate=1", "--lam-over", "2", "--stage-two", "1"])  # fmt: skip
    optimizer = options.build_optimizer(args, nn.Linear(2, 2))
    lr, lam = options.build_schedules(args, optimizer)
    for _ in range(6):
        loss = optimizer.weigh(torch.tensor([0.1, 0.2, 0.4, 3.0], requires_grad=True))
        loss.backward()
        optimizer.step()
        lr.step()
        lam.step()
    assert optimizer.weights.max() <= 2
    assert 0 < optimizer.lam < float("inf")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="MPS is there")
def test_a_device_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        train.parse([*DIGITS, "--device", "mps"])
    assert "--device mps: no such device" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("faster", [["--amp", "bf16"], ["--amp", "fp16"], ["--channels-last"]])
def test_stage_one_may_have_been_computed_otherwise(faster, tmp_path, recwarn):
    common = ["--data", "digits", "--device", "cpu", "--epochs", "2", "--stage-two", "1",
              "--warmup-epochs", "0", "--limit", "20"]  # fmt: skip
    train.main([*common, "--stop-epoch", "1", "--output-dir", str(tmp_path / "one")])
    begin = ["--stage-one", str(tmp_path / "one" / "checkpoint.pt")]
    results = train.main([*common, *faster, *begin, "--output-dir", str(tmp_path / "two")])
    assert results["split"] == "test"
    assert not [w for w in recwarn if "goes on from a loaded state" in str(w.message)]
