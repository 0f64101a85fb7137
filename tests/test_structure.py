"""The package's files: arrows between them go one way, and each is short."""

import ast
from pathlib import Path

import torch_absgd

PACKAGE = Path(torch_absgd.__file__).parent
LONGEST = 350  # lines


def imports() -> dict[str, set[str]]:
    """File → the files of the package that it imports, those for type checkers included."""
    arrows: dict[str, set[str]] = {}
    for file in PACKAGE.glob("*.py"):
        found = arrows.setdefault(file.stem, set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                found.update(name.split(".")[0] for name in names)
    files = set(arrows)
    return {name: targets & files for name, targets in arrows.items()}


def test_no_circle() -> None:
    left = imports()
    assert {"optimizer", "weigher", "accumulation", "rule_state"} <= left.keys()
    assert "weigher" in left["optimizer"]
    while left:
        free = [name for name, targets in left.items() if not targets & left.keys()]
        assert free, f"these files import one another in a circle: {sorted(left)}"
        for name in free:
            del left[name]


def test_a_circle_would_be_noticed() -> None:
    arrows = {"a": {"b"}, "b": {"a"}, "c": set()}
    free = [name for name, targets in arrows.items() if not targets & arrows.keys()]
    assert free == ["c"]


def test_none_of_the_lower_files_knows_an_optimizer() -> None:
    arrows = imports()
    for name in ("losses", "lam_rules", "schedule", "stats", "metrics", "class_balance", "watch"):
        if name in arrows:
            assert not arrows[name] & {"optimizer", "weigher", "attentional_loss"}, name


def test_files_are_short() -> None:
    lengths = {file.name: len(file.read_text().splitlines()) for file in PACKAGE.glob("*.py")}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}
