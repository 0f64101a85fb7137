"""Every Python block of the README and of the documentation runs, a page's blocks one after the
other, on a tiny model and two batches of random data."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import torch_absgd as ta

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(python|diff)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


class Network(nn.Sequential):
    """With modules of the names that the pages use."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("conv", nn.Linear(6, 6))
        self.add_module("layer4", nn.Linear(6, 6))
        self.add_module("fc", nn.Linear(6, 4))


def blocks(page: Path) -> list[str]:
    """Its Python blocks, and what its diffs leave."""
    found = []
    for _, language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "diff":
            kept = [line for line in code.splitlines() if not line.startswith("-")]
            code = "\n".join(line[1:] for line in kept)
        found.append(code)
    return found


def names() -> dict[str, Any]:
    """What a reader of a page has already."""
    model = Network()
    x, y = torch.randn(8, 6), torch.arange(8) % 4
    logits = model(x)
    return {
        "math": math, "torch": torch, "dist": dist, "nn": nn, "F": F, "ta": ta,
        "model": model, "x": x, "y": y, "logits": logits, "loader": [(x, y), (x, y)],
        "losses": F.cross_entropy(logits, y, reduction="none"),
        "labels": torch.randint(2, (8, 4)).float(), "tokens": torch.randint(4, (8, 3)),
        "token_logits": torch.randn(8, 3, 4, requires_grad=True),
        "num_classes": 4, "class_counts": [40, 20, 10, 5],
        "opt": ta.ABSGD(model.parameters(), lr=0.1, momentum=0.9, lam=1.0),
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page: Path) -> None:
    namespace = names()
    for number, code in enumerate(blocks(page), 1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)


def test_blocks_are_found_and_a_wrong_one_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\na = 1\n```\n\n```diff\n-b = 1\n+b = 2\n c = 3\n```\n")
    assert blocks(page) == ["a = 1\n", "b = 2\nc = 3"]
    assert sum(len(blocks(page)) for page in PAGES) > 20
