"""A checkpoint is the old one or the new one, whatever happens while it is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import checkpoint

RECIPES = Path(checkpoint.__file__).parents[1]


def test_round_trip(tmp_path):
    state = {"w": torch.randn(3), "epoch": 2, "nested": {"lam": float("inf"), "list": [1, 2]}}
    checkpoint.save(state, tmp_path / "c.pt")
    loaded = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(loaded["w"], state["w"]) and loaded["nested"] == state["nested"]
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    """The limit on file size makes a write fail as a full disk does: after part of it is out."""
    path = tmp_path / "c.pt"
    checkpoint.save({"w": torch.zeros(10)}, path)
    program = f"""
import resource, sys
from pathlib import Path
sys.path.insert(0, {str(RECIPES)!r})
import torch
from engine import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save({{"w": torch.ones(1_000_000)}}, Path({str(path)!r}))
except OSError as error:
    print("OSError:", error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "OSError: File too large"
    assert torch.equal(checkpoint.load(path)["w"], torch.zeros(10))
    assert os.listdir(tmp_path) == ["c.pt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_any_step_leaves_the_old_checkpoint(tmp_path, monkeypatch, step):
    path = tmp_path / "c.pt"
    checkpoint.save({"w": 1}, path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({"w": 2}, path)
    monkeypatch.undo()
    assert checkpoint.load(path) == {"w": 1}
    assert os.listdir(tmp_path) == ["c.pt"]
