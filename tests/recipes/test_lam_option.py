"""λ on the command line: a number or a rule."""

import json

import pytest

import torch_absgd as ta
import train
from engine import lam_option, report

GOOD = {
    "5": 5.0,
    "-2.5": -2.5,
    "inf": float("inf"),
    "1e-2": 0.01,
    "ess:0.6": ta.EffectiveSampleSize(0.6),
    "ess:0.6:noisy": ta.EffectiveSampleSize(0.6, noisy=True),
    "kl:0.5": ta.KLRadius(0.5),
    "kl:0.5:noisy:rate=0.3": ta.KLRadius(0.5, noisy=True, rate=0.3),
    "kl:0.5:rate=0.3:noisy": ta.KLRadius(0.5, noisy=True, rate=0.3),
}
BAD = {
    "0": "not 0", "nan": "not 0 and not NaN", "five": "a number, ess:FRACTION",
    "": "a number, ess:FRACTION", "ess": "ess:FRACTION", "ess:": "ess:FRACTION",
    "ess:0": r"fraction value: 0.0 \(must be in \(0, 1\)\)",
    "ess:1": r"fraction value: 1.0", "ess:nan": "fraction value: nan",
    "kl:-1": "radius value: -1.0", "kl:inf": "radius value: inf",
    "ess:0.6:loud": "ess:0.6:loud", "ess:0.6:noisy:noisy": "with :noisy",
    "ess:0.6:noisy=1": "with :noisy", "ess:0.6:rate": "with :rate=R", "ess:0.6:rate=": ":rate=R",
    "ess:0.6:rate=2": "rate value: 2.0", "ess:0.6:rate=x": ":rate=R", "tv:0.5": "kl:RADIUS",
}  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_lam_is_read(text):
    args = train.parse(
        ["--data", "cifar10", "--output-dir", "x", "--lam", text, "--lam-start", text]
    )
    for value in (args.lam, args.lam_start):
        assert lam_option.parse(value) == GOOD[text]
        assert json.loads(json.dumps(report.jsonable(value))) is not None
    assert lam_option.parse(json.loads(json.dumps(str(args.lam)))) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_lam_is_refused(text, capsys):
    with pytest.raises(ValueError, match=BAD[text]):
        lam_option.parse(text)
    with pytest.raises(SystemExit):
        train.parse(["--data", "cifar10", "--output-dir", "x", "--lam", text])
    assert "argument --lam: Invalid" in capsys.readouterr().err
