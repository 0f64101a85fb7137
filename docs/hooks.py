"""For mkdocs: draws the import graph, and turns docstrings' Sphinx into what it means."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
SYMBOLS = {
    r"\frac{1}{B}": "(1/B)", r"\lambda": "λ", r"\sum": "Σ", r"\exp": "exp", r"\log": "log ",
    r"\propto": "∝", r"\qquad": "   ", r"\ ": " ", "^*": "*", "_i": "ᵢ",
}  # fmt: skip


def on_pre_build(config: Any) -> None:
    sys.path.insert(0, str(DOCS))
    import import_graph

    drawing, path = import_graph.svg(import_graph.imports()), DOCS / "images" / "imports.svg"
    if not path.exists() or path.read_text(encoding="utf-8") != drawing:
        path.write_text(drawing, encoding="utf-8")


def plain(formula: str) -> str:
    """A formula as text: these are simple enough."""
    for latex, symbol in SYMBOLS.items():
        formula = formula.replace(latex, symbol)
    return " ".join(formula.split())


def on_page_content(html: str, page: Any, **_: Any) -> str:
    if page.file.src_uri != "api.md":
        return html
    html = re.sub(r":math:<code>(.*?)</code>", lambda m: f"<code>{plain(m[1])}</code>", html)
    html = re.sub(
        r"<p>\.\. math::\s*(.*?)</p>",
        lambda m: f"<pre><code>{plain(m[1])}</code></pre>",
        html,
        flags=re.DOTALL,
    )
    html = re.sub(r":\w+:<code>", "<code>", html)
    return re.sub(r"::</p>", ":</p>", html).replace("<p>:</p>", "")
