"""For mkdocstrings, whose summaries are a docstring's first line: makes its first paragraph one."""

from __future__ import annotations

from typing import Any

import griffe


class WholeSummaries(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            first, separator, rest = obj.docstring.value.partition("\n\n")
            obj.docstring.value = " ".join(first.split()) + separator + rest
