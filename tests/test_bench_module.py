"""``python -m torch_absgd.bench`` prints its three rows; no time is asserted."""

from __future__ import annotations

import re

import pytest

from torch_absgd import bench


def test_three_rows(capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--seconds", "0.01", "--threads", "1"])
    printed = capsys.readouterr().out
    for row in bench.ROWS:
        times = printed.split(f"\n{row}\n")[1].split("\n\n")[0].splitlines()
        assert len(times) >= 2
        assert all(re.fullmatch(r"  \S.* +[\d,]+\.\d µs +\d+\.\d\d×", line) for line in times)
        assert times[0].endswith(" 1.00×")


def test_the_network_has_the_tensors_of_resnet_32() -> None:
    parameters = list(bench.network("cpu").parameters())
    assert len(parameters) == 95
    assert 0.46e6 < sum(p.numel() for p in parameters) < 0.47e6


@pytest.mark.parametrize(
    ("option", "value"), [("--seconds", "0"), ("--threads", "0"), ("--device", "tpu")]
)
def test_a_wrong_option_is_named(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench.main([option, value])
    assert option in capsys.readouterr().err
