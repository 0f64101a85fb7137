"""Who imports whom in the package, from the files themselves, as an SVG.

    python docs/import_graph.py [imports.svg]

Imports for type checkers and those inside functions count like any other.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "python" / "torch_absgd"
WIDTH, HEIGHT, GAP_X, GAP_Y = 150, 28, 16, 46  # of a box, and between boxes


def imports(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports. Without those that are the package's
    face: __init__ and __main__, and the generated _version."""
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__", "_version"}
    return {name: _imported(package / f"{name}.py") & modules for name in sorted(modules)}


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found - {path.stem}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, the first again at the end; [] if none do."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def rows(graph: dict[str, set[str]]) -> list[list[str]]:
    """The modules from top to bottom: each one above all that it imports."""
    depth: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in depth:
            depth[name] = 0  # a circle ends here
            depth[name] = 1 + max((height(other) for other in graph[name]), default=-1)
        return depth[name]

    levels = sorted({height(name) for name in graph}, reverse=True)
    return [[name for name in graph if depth[name] == level] for level in levels]


def svg(graph: dict[str, set[str]]) -> str:
    table = rows(graph)
    width = max(len(row) for row in table) * (WIDTH + GAP_X) + GAP_X
    place = {}
    for i, row in enumerate(table):
        left = (width - len(row) * (WIDTH + GAP_X) + GAP_X) / 2
        for j, name in enumerate(row):
            place[name] = (left + j * (WIDTH + GAP_X), GAP_X + i * (HEIGHT + GAP_Y))
    height = GAP_X + len(table) * (HEIGHT + GAP_Y)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        'font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#5c6bc0"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="white"/>',
    ]
    for name, others in graph.items():
        x, y = place[name][0] + WIDTH / 2, place[name][1] + HEIGHT
        for other in sorted(others):
            to_x, to_y = place[other][0] + WIDTH / 2, place[other][1]
            bend = (to_y - y) / 2
            lines.append(
                f'<path d="M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} '
                f'{to_x:g} {to_y:g}" fill="none" stroke="#5c6bc0" stroke-opacity="0.6" '
                'marker-end="url(#tip)"/>'
            )
    for name, (x, y) in place.items():
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#e8eaf6" '
            f'stroke="#5c6bc0"/><text x="{x + WIDTH / 2:g}" y="{y + 18:g}" text-anchor="middle">'
            f"{name}</text>"
        )
    return "\n".join([*lines, "</svg>"])


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "imports.svg").write_text(svg(imports()))
