"""Every preset parses, and its command is the same settings."""

import shlex
import subprocess
import sys

import pytest

import presets
import train
from engine import options


def test_a_preset_for_each_row_of_the_tables():
    rows = [name for name in presets.PRESETS if name.startswith("cifar") and "noise" not in name]
    table = {
        f"cifar{classes}-{kind}-{ratio}-{optimizer}-{loss}"
        for classes in (10, 100)
        for kind in ("lt", "st")
        for ratio in (10, 100)
        for optimizer in ("sgd", "absgd")
        for loss in ("ce", "focal", "cb-ce", "cb-focal", "cb-ldam")
    }
    assert len(table) == 80 and table <= set(rows)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_and_its_command_are_the_same(name):
    by_name = train.parse(["--preset", name, "--output-dir", "x"])
    words = shlex.split(presets.command(name))
    assert words[:2] == ["python", "recipes/train.py"]
    assert options.config_of(train.parse(words[2:])) == options.config_of(by_name)
    assert {key: getattr(by_name, key) for key in presets.PRESETS[name]} == presets.PRESETS[name]


def test_options_given_beside_a_preset_win():
    args = train.parse(
        ["--preset", "cifar100-st-10-absgd-cb-ldam", "--lam", "-2.5", "--epochs", "7",
         "--output-dir", "x"]
    )  # fmt: skip
    assert (args.lam, args.epochs, args.data, args.loss) == (-2.5, 7, "cifar100", "ldam")


def test_the_list_is_one_command_a_line():
    done = subprocess.run([sys.executable, presets.__file__], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [presets.command(name) for name in presets.PRESETS]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval-every", "1"], "needs --validate"),
        (["--eval-every", "1", "--eval-split", "test", "--validate", "0.2"], "unread"),
        (["--validate", "1.0"], "--validate"),
        (["--stage-one", "nowhere.pt"], "no such file: nowhere.pt"),
        (["--label-noise", "sym"], "sym:RATE"),
        (["--lam", "0"], "lam"),
        (["--device", "cuda:77"], "torch sees"),
        (["--device", "gpu"], "no such device"),
        (["--preset", "cifar10-x"], "there is none; try cifar10-lt-100-sgd-ce"),
        (["--online", "--class-balance", "drw"], "class counts are not known"),
        (["--pretrained", "nowhere.pt"], "nor a file"),
        (["--imbalance-ratio", "0.5"], "--imbalance-ratio"),
    ],
)
def test_contradictions_are_told(flags, message, capsys):
    with pytest.raises(SystemExit):
        train.parse([*flags, "--data", "cifar10", "--output-dir", "x"])
    assert message in capsys.readouterr().err
