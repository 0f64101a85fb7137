"""From --data to a source, and from its training set to what is trained on and judged by."""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from data import image_files, named, tables, text
from data.lists import IMAGES
from data.noise import with_label_noise
from data.source import Source
from data.subsets import Records, class_counts, hold_out, imbalanced, thinned

PUBLISHED = ("imagenet-lt", "places-lt", "inaturalist", "clothing1m")
ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".zst", ".xz", ".7z", ".rar"})
NAMES = (*named.NAMES, *PUBLISHED, "covid-lt-RATIO", "imdb")


def open_source(args: Namespace) -> Source:
    """What --data names: a set by name, a folder, a list file or a table.

    Raises:
        FileNotFoundError, ValueError: it is not there, or not as it must be; says how.
    """
    if args.data in named.NAMES:
        return named.open_named(args)
    if args.data in PUBLISHED or image_files.COVID.fullmatch(args.data):
        return image_files.open_published(args)
    if args.data == "imdb":
        return text.open_imdb(args)
    path = Path(args.data)
    if path.is_dir():
        return open_folder(args, path)
    if path.suffix.lower() in (".csv", ".tsv", ".parquet"):
        return tables.open_table(args, path)
    if path.suffix.lower() in IMAGES | ARCHIVES:
        raise ValueError(
            f"--data {args.data}: name the folder that holds it, or what it unpacks to"
        )
    if path.is_file():
        return image_files.open_list(args, path)
    raise FileNotFoundError(
        f"--data {args.data}: neither a folder, a list, a table (.csv, .parquet) nor one of "
        f"{', '.join(NAMES)}"
    )


def open_folder(args: Namespace, root: Path) -> Source:
    """Images in ``root/train/<class>/``, or texts where there are no images.

    Raises:
        FileNotFoundError: there is no ``train``; says what there is.
    """
    if not (root / "train").is_dir():
        inner = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        outer = [root.parent] if root.resolve().name == "train" else []
        for place in (*outer, *(root / name for name in inner)):
            if (place / "train").is_dir():
                raise FileNotFoundError(f"{root} has no train/, but {place} has: --data {place}")
        there = f"it holds the folders {', '.join(inner[:5])}" if inner else "it holds no folders"
        raise FileNotFoundError(
            f"{root} has no train/<class>/ with a class's files ({there}): move the class folders "
            f"into {root / 'train'}, and those to test on into {root / 'test'}"
        )

    def holds(suffixes: frozenset[str]) -> bool:
        return any(file.suffix.lower() in suffixes for file in root.glob("train/*/*"))

    of_texts = not holds(IMAGES) and holds(text.TEXTS)  # of images, the first one tells
    return text.open_texts(args, root) if of_texts else image_files.open_folder(args, root)


@dataclass(frozen=True)
class Splits:
    """train: what is trained on. judge: reads what is judged by, ``split`` by name."""

    train: Records
    split: str
    judge: Callable[[], Records]


def make_splits(args: Namespace, source: Source) -> Splits:
    """Imbalance and noise are the training set's. --validate holds out a part of it, afterwards, or
    before with --validate-clean; the test set is then not read.

    Raises:
        ValueError: there is one class only, or nothing to judge by.
    """
    train, held = source.train, None
    if args.validate and args.validate_clean:
        train, held = hold_out(train, args.validate, args.seed)
    try:
        train = thinned(train, args.keep, args.seed)
    except ValueError as error:
        if not args.preset or "keep" in args.given:
            raise
        raise ValueError(
            f"{error}: this --keep is of --preset {args.preset}; give your own beside it "
            "(CLASS:1 keeps all)"
        ) from None
    train = imbalanced(train, args.imbalance, args.imbalance_ratio, args.seed)
    if args.label_noise:
        noisy = with_label_noise(train.targets, len(train.classes), args.label_noise, args.seed)
        train = replace(train, targets=noisy)
    if args.validate and not args.validate_clean:
        train, held = hold_out(train, args.validate, args.seed)
    if len(train.classes) < 2:
        raise ValueError(
            f"--data {args.data} has one class only, {train.classes[0]}: a classifier takes two"
        )
    if held is not None:
        return Splits(train, "validation", lambda: held)
    if source.test is None:
        raise ValueError(
            f"--data {args.data} has nothing to test on: --validate 0.1 holds out a tenth of each "
            "class, or give it a test/ folder, or --test FILE"
        )
    return Splits(train, "test", functools.cache(source.test))


def look_at(splits: Splits) -> list[str]:
    """What is odd about the two parts but can be trained with. Reads both.

    Raises:
        ValueError: there is nothing to judge by.
    """
    said, judge = [], splits.judge()
    if len(judge) == 0:
        raise ValueError(
            f"the {splits.split} part is empty (--validate takes nothing from a class of one; a "
            "column of numbers that all differ is no class)"
        )
    names = splits.train.classes
    for part, counts in (("training", class_counts(splits.train)),
                         (splits.split, class_counts(judge))):  # fmt: skip
        empty = [str(name) for name, n in zip(names, counts, strict=True) if n == 0]
        if empty:
            more = ", …" if len(empty) > 5 else ""
            said.append(f"{len(empty)} of {len(names)} classes have no {part} samples: "
                        f"{', '.join(empty[:5])}{more}")  # fmt: skip
    return said
