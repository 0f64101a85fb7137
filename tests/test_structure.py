"""The package's files: arrows between them go one way, and each is short."""

import sys
from pathlib import Path

import torch_absgd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs"))
import import_graph

PACKAGE = Path(torch_absgd.__file__).parent
LONGEST = 350  # lines


def test_no_circle() -> None:
    graph = import_graph.imports(PACKAGE)
    assert {"optimizer", "weigher", "accumulation", "rule_state"} <= graph.keys()
    assert "weigher" in graph["optimizer"]
    assert import_graph.circle(graph) == []


def test_none_of_the_lower_files_knows_an_optimizer() -> None:
    arrows = import_graph.imports(PACKAGE)
    for name in ("losses", "lam_rules", "schedule", "stats", "metrics", "class_balance", "watch"):
        if name in arrows:
            assert not arrows[name] & {"optimizer", "weigher", "attentional_loss"}, name


def test_files_are_short() -> None:
    lengths = {file.name: len(file.read_text().splitlines()) for file in PACKAGE.glob("*.py")}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}
