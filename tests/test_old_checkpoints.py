"""Checkpoints of earlier releases load, and training goes on as it would have there."""

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent / "checkpoints"
sys.path.insert(0, str(HERE))

from write import AFTER, BEFORE, RUNS, Run  # noqa: E402

RELEASES = sorted(file.stem for file in HERE.glob("*.pt"))


def test_they_are_here() -> None:
    assert "0.1.0" in RELEASES


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("release", RELEASES)
def test_loads_and_goes_on(release: str, name: str) -> None:
    saved = torch.load(HERE / f"{release}.pt", weights_only=True)[name]
    run = Run(name)
    run.train(0, 2)  # whatever it held before is replaced
    run.load(saved["state"])
    run.train(BEFORE, BEFORE + AFTER)
    for key, value in run.result().items():
        torch.testing.assert_close(
            value, saved["later"][key], rtol=1e-11, atol=1e-13, equal_nan=True
        )
