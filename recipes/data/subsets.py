"""Parts of a training set, drawn from a seed: limited, imbalanced, held out.

They work on anything with ``targets`` (int64 [N]), ``classes`` and ``subset(indices)``: images in
memory, listed files, rows of a table, texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

import torch_absgd as ta


class Records(Protocol):
    """targets: int64 [N]; classes: their names; fingerprint: a hash of contents and labels."""

    targets: Tensor
    classes: Sequence[str]

    def __len__(self) -> int: ...
    def subset(self, indices: Tensor) -> Any: ...
    def fingerprint(self) -> str: ...


R = TypeVar("R", bound=Records)


def class_counts(records: Records) -> list[int]:
    return torch.bincount(records.targets, minlength=len(records.classes)).tolist()


def choose(targets: Tensor, counts: Sequence[int], seed: int) -> Tensor:
    """Indices of the first ``counts[c]`` of each class c in an order drawn from ``seed``.

    So a smaller subset is contained in a larger one of the same seed.
    """
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    of_class = targets[order].argsort(stable=True).split(torch.bincount(targets).tolist())
    chosen = [order[members][:n] for members, n in zip(of_class, counts, strict=False)]
    return torch.cat(chosen).sort().values


def limited(records: R, limit: int | None) -> R:
    """At most ``limit`` of each class."""
    if not limit:
        return records
    counts = [min(limit, n) for n in class_counts(records)]
    return records.subset(choose(records.targets, counts, seed=0))


def thinned(records: R, keep: Sequence[str], seed: int) -> R:
    """``keep``: "CLASS:FRACTION" each, of the classes of which only that part stays.

    Raises:
        ValueError: another form, a class that is not there, or a fraction out of (0, 1].
    """
    counts = class_counts(records)
    for text in keep:
        name, _, fraction = text.rpartition(":")
        try:
            part = float(fraction)
        except ValueError:
            part = 0.0
        if name not in records.classes or not 0 < part <= 1:
            raise ValueError(
                f"Invalid --keep: {text!r} (CLASS:FRACTION, a class among "
                f"{', '.join(map(str, records.classes[:10]))}, a fraction in (0, 1])"
            )
        c = list(records.classes).index(name)
        counts[c] = max(1, round(part * counts[c]))
    return records.subset(choose(records.targets, counts, seed)) if keep else records


def imbalanced(records: R, kind: str, ratio: float, seed: int) -> R:
    """``records`` made long-tailed ("lt") or step-imbalanced ("step"); "none" leaves them."""
    if kind == "none":
        return records
    chosen = ta.ImbalancedSubset(records, kind, ratio, seed, targets=records.targets).indices
    return records.subset(torch.tensor(chosen))


def hold_out(records: R, fraction: float, seed: int) -> tuple[R, R]:
    """Splits a training set into one to train on and one to validate on, class by class.

    Each class gives ``fraction`` of its samples, at least one, and keeps at least one.
    """
    counts = [max(1, n - max(1, round(fraction * n))) for n in class_counts(records)]
    return split_at(records, choose(records.targets, counts, seed))


def split_at(records: R, indices: Tensor) -> tuple[R, R]:
    """(those at ``indices``, the rest)."""
    rest = torch.ones(len(records), dtype=torch.bool)
    rest[indices] = False
    return records.subset(indices), records.subset(rest.nonzero().flatten())


def take_balanced(records: R, per_class: int, seed: int) -> tuple[R, R]:
    """(the rest to train on, ``per_class`` of each class held out), drawn from ``seed``.

    Raises:
        ValueError: a class would have nothing left to train on; names it.
    """
    counts = class_counts(records)
    if per_class < 1 or min(counts) <= per_class:
        raise ValueError(
            f"Invalid per_class: {per_class} (must be in [1, {min(counts) - 1}]: the smallest "
            f"class has {min(counts)} samples)"
        )
    held, rest = split_at(records, choose(records.targets, [per_class] * len(counts), seed))
    return rest, held
