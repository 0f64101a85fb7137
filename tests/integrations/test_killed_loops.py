"""kill −9 of the frameworks' own loops; tests/campaign/kills.py does it many times."""

from __future__ import annotations

from pathlib import Path

import pytest

from kills import Kills

pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks' own


@pytest.mark.parametrize("kind", ["lightning", "hf_trainer"])
def test_killed_while_it_writes(kind: str, tmp_path: Path) -> None:
    kills = Kills(kind, tmp_path / "kills", seed=0)
    while kills.done < 2:
        kills.next_story(["writing", "writing"])
