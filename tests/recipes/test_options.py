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
    assert said in capsys.readouterr().err


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
def test_stage_one_may_have_been_computed_otherwise(faster, tmp_path):
    common = ["--data", "digits", "--device", "cpu", "--epochs", "2", "--stage-two", "1",
              "--warmup-epochs", "0", "--limit", "20"]  # fmt: skip
    train.main([*common, "--stop-epoch", "1", "--output-dir", str(tmp_path / "one")])
    begin = ["--stage-one", str(tmp_path / "one" / "checkpoint.pt")]
    results = train.main([*common, *faster, *begin, "--output-dir", str(tmp_path / "two")])
    assert results["split"] == "test"
