"""A table, CSV or Parquet: one column is the class, the others are numbers or categories."""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.lists import IMAGES, MAX_BYTES, read_utf8
from data.memory import AsTheyAre, Images, in_order
from data.source import Source
from data.subsets import limited

MISSING = frozenset({"", "-", "?", "#n/a", "<na>", "n/a", "na", "nan", "nat", "none", "null"})
MOSTLY = 0.9  # of a column's values: then it is meant to be numbers
MAX_CATEGORIES = 100
NAMED = 10  # columns of a kind
INDEX = re.compile(r"|Unnamed: 0|__index_level_\d+__")  # what pandas calls a table's row numbers


def read_columns(file: Path) -> dict[str, list[str]]:
    """The columns of a table with a header line, as text; a missing value is "".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as a table; says in which line.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such table: {file}")
    if file.suffix.lower() == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise ValueError(f"{file}: reading Parquet takes `pip install pyarrow`") from None
        return _parquet_columns(file, parquet)
    content = io.StringIO(read_utf8(file), newline="")
    rows = csv.reader(content, delimiter=max(",;\t", key=content.readline().count))
    content.seek(0)
    try:
        header = [name.strip() for name in next(rows, [])]
        columns: list[list[str]] = [[] for _ in header]
        for row in rows:
            if row and len(row) != len(header):
                raise ValueError(
                    f"{file}, line {rows.line_num}: {len(row)} values under {len(header)} columns"
                )
            for column, value in zip(columns, row, strict=False):
                column.append(value.strip())
    except csv.Error as error:  # a quote that nobody closes, say
        raise ValueError(f"{file}, line {rows.line_num}: {error}") from None
    if len(set(header)) < len(header):
        raise ValueError(f"{file}: two columns have one name, in {', '.join(header)}")
    return dict(zip(header, columns, strict=True))


def _parquet_columns(file: Path, parquet: Any) -> dict[str, list[str]]:
    """A value that is repeated takes next to no place in the file: what is read is counted."""
    try:
        content = parquet.ParquetFile(file)
        columns: dict[str, list[str]] = {name: [] for name in content.schema_arrow.names}
        size = content.metadata.num_rows * len(columns)
        for batch in content.iter_batches(1024) if size <= MAX_BYTES else ():
            for name, values in batch.to_pydict().items():
                columns[name] += ["" if value is None else str(value) for value in values]
                size += sum(map(len, columns[name][-len(values) :]))
            if size > MAX_BYTES:
                break
    except (OSError, ValueError) as error:  # pyarrow's errors are of these
        raise ValueError(f"{file} is not Parquet that can be read: {error}") from error
    if size > MAX_BYTES:
        raise ValueError(f"{file}: its values are of more than {MAX_BYTES} characters")
    return columns


def is_missing(value: str) -> bool:
    return value.lower() in MISSING


def _numbers(values: Sequence[str]) -> list[float] | None:
    """NaN for a missing one; None if a value is no number."""
    try:
        return [math.nan if is_missing(v) else float(v) for v in values]
    except ValueError:
        return None


def _fault(values: Sequence[str], categories: Sequence[str]) -> str | None:
    """Why a column that is not all numbers is no category either."""
    texts = {c for c in categories if _numbers([c]) is None}
    given = sum(not is_missing(v) for v in values)
    if sum(v in texts for v in values) < (1 - MOSTLY) * given:
        return f"numbers but for {', '.join(map(repr, sorted(texts)[:3]))}"
    if len(categories) > MAX_CATEGORIES:
        return f"{len(categories)} different texts, at most {MAX_CATEGORIES}"
    return None


@dataclass(frozen=True)
class Encoder:
    """What the training table says about each column, applied to any table.

    columns: name to (mean, deviation) of a number, standardised with 0 for a missing one; or to its
    categories, one of which is 1 (none for one that was not seen).
    """

    columns: dict[str, tuple[float, float] | list[str]]

    @classmethod
    def of(cls, table: dict[str, list[str]], file: Path) -> Encoder:
        """Raises ValueError for a column that is neither numbers nor few categories."""
        columns: dict[str, tuple[float, float] | list[str]] = {}
        faults = {}
        for name, values in table.items():
            numbers = _numbers(values)
            if numbers is not None:
                known = np.array([x for x in numbers if math.isfinite(x)] or [0.0])
                columns[name] = (float(known.mean()), float(known.std()) or 1.0)
                continue
            columns[name] = categories = sorted({v for v in values if not is_missing(v)})
            if fault := _fault(values, categories):
                faults[name] = fault
        if faults:
            of_images = any(Path(columns[name][-1]).suffix.lower() in IMAGES for name in faults)
            raise ValueError(
                f"{file}: neither numbers nor categories: "
                + "; ".join(f"column {name!r} ({why})" for name, why in faults.items())
                + f": mend them, or --drop {shlex.join(faults)}"
                + "; images are given as a list, `path label` a line" * of_images
            )
        return cls(columns)

    def __str__(self) -> str:
        """What the inputs are, in one line."""
        kinds: dict[str, list[str]] = {"numbers": [], "categories": []}
        for name, known in self.columns.items():
            if isinstance(known, tuple):
                kinds["numbers"].append(name)
            else:
                kinds["categories"].append(f"{name}: {len(known)}")
        return "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:NAMED])}{', …' * (len(names) > NAMED)})"
            for kind, names in kinds.items()
            if names
        )

    def encode(self, table: dict[str, list[str]], file: Path) -> Tensor:
        """float32 [N, D].

        Raises:
            ValueError: a column is missing, or holds texts where training had numbers.
        """
        missing = [name for name in self.columns if name not in table]
        if missing:
            raise ValueError(f"{file} has no column {', '.join(missing)}")
        parts = []
        for name, known in self.columns.items():
            if isinstance(known, tuple):
                numbers = _numbers(table[name])
                if numbers is None:
                    odd = next(v for v in table[name] if _numbers([v]) is None)
                    raise ValueError(
                        f"{file}: column {name!r} holds {odd!r}, and numbers in the training "
                        "table: mend it, or leave it empty"
                    )
                x = (np.array(numbers) - known[0]) / known[1]
                parts.append(np.where(np.isfinite(x), x, 0.0)[:, None])
            else:
                parts.append(np.array(table[name])[:, None] == np.array(known)[None, :])
        return torch.from_numpy(np.concatenate(parts, 1).astype(np.float32))


def open_table(args: Namespace, file: Path) -> Source:
    """The rows of ``file``; --test is a table with the same columns."""
    table, labels = with_labels(args, file)
    known = [name for name in set(labels) if not is_missing(name)]
    classes = sorted(known, key=lambda name: (_numbers([name]) or [math.inf], name))
    classes += sorted(set(labels) - set(known))
    encoder = Encoder.of(table, file)
    print(f"inputs: {encoder}")

    def rows(table: dict[str, list[str]], labels: list[str], file: Path) -> Images:
        unknown = sorted(set(labels) - set(classes))
        if unknown:
            raise ValueError(f"{file}: no such class in the training table: {unknown[0]!r}")
        place = {name: c for c, name in enumerate(classes)}
        targets = torch.tensor([place[name] for name in labels])
        return limited(Images(encoder.encode(table, file), targets, classes), args.limit)

    train = rows(table, labels, file)
    return Source(
        train,
        (lambda: rows(*with_labels(args, args.test), args.test)) if args.test else None,
        ("vector", train.images.shape[1]),
        lambda rows, seed: AsTheyAre(rows),
        in_order,
    )


def with_labels(args: Namespace, file: Path) -> tuple[dict[str, list[str]], list[str]]:
    """(the columns that are inputs, the column --target).

    Raises:
        ValueError: --target is missing, in the options, the header or a row.
    """
    table = read_columns(file)
    if args.target not in table:
        said = "--target COLUMN is needed" if args.target is None else f"no column {args.target!r}"
        raise ValueError(f"{file}: {said}; its columns are {', '.join(table)}")
    if args.target in args.drop:
        raise ValueError(f"--drop {args.target}: this is the --target; leave it out of --drop")
    for name in args.drop:
        if table.pop(name, None) is None:
            raise ValueError(f"{file}: --drop: no column {name!r}")
    labels = table.pop(args.target)
    for name in [name for name in table if INDEX.fullmatch(name)]:
        # In a table sorted by class they tell the class.
        print(f"note: {file}: column {name!r} holds row numbers and is no input")
        del table[name]
    empty = [i for i, label in enumerate(labels) if is_missing(label) and label != "-"]  # and "+"
    if empty:
        raise ValueError(f"{file}: row {empty[0] + 1} has no {args.target}")
    if not labels or not table:
        raise ValueError(f"{file} has no rows, or no column beside {args.target}")
    return table, labels
