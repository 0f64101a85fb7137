"""No circle in the package, and the order of its files from top to bottom."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs"))
import import_graph

# From top to bottom; a file may import what is named further down, and files that are not named.
ORDER = (
    "step_in_backward", "attentional_loss", "optimizer", "weigher", "accumulation", "collective",
    "rule_state", "fused_step", "losses", "lam_rules", "schedule", "stats", "metrics",
    "class_balance", "_checks",
)  # fmt: skip
GRAPH = import_graph.imports()


def test_nobody_imports_in_a_circle() -> None:
    assert import_graph.circle(GRAPH) == []


def test_imports_go_down() -> None:
    """The independent ones at the bottom of the table (losses, schedule, …) may use one another."""
    row = {name: min(i, ORDER.index("losses")) for i, name in enumerate(ORDER[:-1])}
    row["_checks"] = len(ORDER)
    for name, others in GRAPH.items():
        up = [other for other in others if row.get(other, len(ORDER)) < row.get(name, 0)]
        assert not up, f"{name} imports {up}"
    assert GRAPH["_checks"] <= {"_ops", "_config"}


def test_a_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from .b import f\n")
    (tmp_path / "b.py").write_text("def f():\n    from . import c\n")
    (tmp_path / "c.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import g\n"
    )
    graph = import_graph.imports(tmp_path)
    assert import_graph.circle(graph) == ["a", "b", "c", "a"]
    (tmp_path / "c.py").write_text("")
    graph = import_graph.imports(tmp_path)
    assert import_graph.circle(graph) == [] and import_graph.rows(graph) == [["a"], ["b"], ["c"]]
    assert import_graph.svg(graph).count("<rect") == 1 + 3
