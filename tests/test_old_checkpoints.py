"""Earlier checkpoints, and those of today's code, load, and training goes on as it did there."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent / "checkpoints"
sys.path.insert(0, str(HERE))

from write import AFTER, BEFORE, Run, states  # noqa: E402

from torch_absgd import __version__  # noqa: E402

SAVED = {file.stem: torch.load(file, weights_only=True) for file in HERE.glob("*.pt")}


def shape(value: Any) -> Any:
    """Names, types and sizes: of numbers, the last bits depend on the machine."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shape(item) for item in value]
    return (value.dtype, value.shape) if isinstance(value, torch.Tensor) else type(value)


def test_they_are_here() -> None:
    assert "0.1.0" in SAVED and __version__ in SAVED  # else: tests/checkpoints/write.py


def test_todays_are_what_today_s_code_writes() -> None:
    assert shape(SAVED[__version__]) == shape(states())


@pytest.mark.parametrize("release, name", [(r, name) for r in sorted(SAVED) for name in SAVED[r]])
def test_loads_and_goes_on(release: str, name: str) -> None:
    saved = SAVED[release][name]
    run = Run(name)
    run.train(0, 2)  # whatever it held before is replaced
    run.load(saved["state"])
    run.train(BEFORE, BEFORE + AFTER)
    for key, value in run.result().items():
        torch.testing.assert_close(
            value, saved["later"][key], rtol=1e-11, atol=1e-13, equal_nan=True
        )
