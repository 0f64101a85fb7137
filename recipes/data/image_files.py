"""Images too many for memory: your own folder or list, and the long-tailed sets as published."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from data import decode, lists
from data.assemble_covid_lt import CLASSES as COVID_CLASSES
from data.lists import Listed, read_utf8
from data.source import Source
from data.subsets import limited

SPECIES = 8142  # of iNaturalist 2018
PREFIX = "train_val2018/"  # what the names in its JSON files and in its lists begin with
COVID = re.compile(r"covid-lt-(\d+(?:\.\d+)?)")  # and ρ
PUBLISHED = {
    "imagenet-lt": ("ImageNet_LT", 1000),
    "places-lt": ("Places_LT", 365),
    "clothing1m": ("Clothing1M", 14),
}


def source_of(args: Namespace, train: Listed, test: Callable[[], Listed] | None) -> Source:
    """Listed images as the loop wants them; every header is read on the way."""

    def looked_at(images: Listed) -> Listed:
        images = limited(images, args.limit)
        lists.check_headers(images)
        return images

    def evaluation(images: Listed, batch_size: int) -> DataLoader:
        return DataLoader(
            decode.Evaluation(images, args.image_size, args.decode),
            batch_size=batch_size,
            num_workers=args.workers,
            pin_memory=torch.device(args.device).type == "cuda",
        )

    return Source(
        looked_at(train),
        None if test is None else lambda: looked_at(test()),
        ("image", 3),
        lambda images, seed: decode.Training(
            images, args.image_size, args.decode, args.colour_jitter, seed
        ),
        evaluation,
        decode.normalised,
    )


def open_folder(args: Namespace, root: Path) -> Source:
    train_part, test_part = lists.parts_of(root)
    train = lists.read_folder(train_part)
    test = None if test_part is None else lambda: lists.read_folder(test_part, train.classes)
    return source_of(args, train, test)


def open_list(args: Namespace, file: Path) -> Source:
    """``path label`` a line, relative to --data-dir or else to the list's own folder; --test is
    such a list too."""
    root = args.data_dir or file.parent
    train = lists.read_list(file, root)
    test = None
    if args.test:
        test = lambda: lists.read_list(args.test, root, len(train.classes))  # noqa: E731
    return source_of(args, train, test)


def open_published(args: Namespace) -> Source:
    """ImageNet-LT, Places-LT, COVID-LT or iNaturalist 2018: lists in --lists-dir, or --data-dir."""
    directory = args.lists_dir or args.data_dir
    if args.data == "inaturalist":
        return source_of(args, read_species(args, "train"), lambda: read_species(args, "val"))
    covid = COVID.fullmatch(args.data)
    name, num_classes = (f"COVID_LT_{covid[1]}", 4) if covid else PUBLISHED[args.data]
    classes = COVID_CLASSES if covid else None

    def read(part: str) -> Listed:
        file = directory / f"{name}_{part}.txt"
        if not file.is_file():
            raise FileNotFoundError(
                f"no such list: {file}; --data-dir or --lists-dir must hold it, and "
                "recipes/README.md says where it is from"
            )
        return lists.read_list(file, args.data_dir, num_classes, classes=classes)

    return source_of(args, read("train"), lambda: read("test"))


# ---- iNaturalist 2018: the validation images are the test set, as everywhere in the literature


def image_root(directory: Path) -> Path:
    """The folder that stands for PREFIX: of that name, or "2018", as torchvision calls it.

    Raises:
        FileNotFoundError: neither is there.
    """
    for name in (PREFIX, "2018"):
        if (directory / name).is_dir():
            return directory / name
    raise FileNotFoundError(f"--data-dir {directory} holds neither {PREFIX} nor 2018/")


def read_competition(file: Path, root: Path) -> Listed:
    """The images of the competition's JSON: "images" with id and file_name, "annotations" with
    image_id and category_id.

    Raises:
        FileNotFoundError: it names a file that is not there.
        ValueError: it is not such a file, or a category is not in 0 … 8141.
    """
    try:
        content = json.loads(read_utf8(file))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        labelled = [(names[a["image_id"]], a["category_id"]) for a in content["annotations"]]
        paths = [name.removeprefix(PREFIX) for name, _ in labelled]
        targets = torch.tensor([int(c) for _, c in labelled], dtype=torch.int64)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise ValueError(f"{file} is not the competition's JSON: {error!r}") from error
    for (name, _), category in zip(labelled, targets.tolist(), strict=True):
        if not 0 <= category < SPECIES:
            raise ValueError(f"{file}: category {category} of {name} is not in 0 to {SPECIES - 1}")
    return lists.checked(Listed(root, paths, targets, list(map(str, range(SPECIES)))), file)


def read_species(args: Namespace, part: str) -> Listed:
    """The images of one part: from the JSON if there is one, else from the list."""
    root, directory = image_root(args.data_dir), args.lists_dir or args.data_dir
    competition = directory / f"{part}2018.json"
    published = directory / f"iNaturalist18_{part}.txt"
    if competition.is_file():
        return read_competition(competition, root)
    if published.is_file():
        return lists.read_list(published, root, SPECIES, PREFIX)
    raise FileNotFoundError(
        f"{directory} holds neither {competition.name} nor {published.name}: without them "
        "the images are not split"
    )
