"""Imports within recipes/ go one way, and every folder has a line in its README."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

# A name imports from those left of it, and from its own folder.
ORDER = ["models", "presets", "data", "engine", "baselines", "train", "evaluate", "digits_lt",
         "studies", "paper"]  # fmt: skip


def imports():
    """{module: modules of recipes/ that it imports}; integrations/ stand alone."""
    files = {".".join(file.relative_to(RECIPES).with_suffix("").parts): file
             for file in RECIPES.rglob("*.py") if file.parent.name != "integrations"}  # fmt: skip
    graph = {}
    for name, file in files.items():
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[name] = (found & files.keys()) - {name}
    return graph


def test_no_circle():
    assert len(list(TopologicalSorter(imports()).static_order())) >= 40


def test_arrows_go_one_way():
    for name, others in imports().items():
        room = name.split(".")[0]
        if room == "__init__":
            continue
        for other in others:
            from_room = other.split(".")[0]
            assert from_room == room or ORDER.index(from_room) < ORDER.index(room), (name, other)


def test_every_folder_has_a_line():
    text = (RECIPES / "README.md").read_text()
    for folder in RECIPES.iterdir():
        if (folder / "__init__.py").exists() or folder.name == "integrations":
            assert f"`{folder.name}/`" in text
