"""kill −9 at random moments, each kind of data: the resumed run ends with the bits of a whole one.

tests/campaign/kills.py does it hundreds of times, and in more ways.
"""

from pathlib import Path

import pytest
import torch

import killed_runs
from engine import checkpoint
from kills import Kills


@pytest.mark.parametrize("kind", [data.__name__ for data in killed_runs.RECIPES])
def test_killed_at_random_moments(kind: str, tmp_path: Path) -> None:
    kills = Kills(kind, tmp_path / "kills", seed=0)
    while kills.done < 2:
        kills.next_story(["writing", "any"])


def test_a_checkpoint_written_in_place_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save", torch.save)
    with pytest.raises(AssertionError, match="not whole"):
        Kills("table", tmp_path / "kills", seed=0).next_story(["half"] * 10)
