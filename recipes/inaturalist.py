"""ABSGD and SGD on iNaturalist 2018: 437.5 thousand images of 8,142 species.

    python recipes/inaturalist.py --preset absgd --data-dir inaturalist --output-dir runs/inat

--data-dir holds the images, as the competition's archive has them (train_val2018/…) or as
torchvision.datasets.INaturalist(version="2018") leaves them (2018/…). The split is the
competition's train2018.json and val2018.json, or the lists iNaturalist18_train.txt and
iNaturalist18_val.txt; they are in --data-dir or in --lists-dir. The validation images are the test
set, as everywhere in the literature: the competition's own test labels are not public.

SGD for 200 epochs, then ABSGD with λ = 10 for 30 epochs on the last block and the classifier.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import engine
import image_lists
import image_recipe

NUM_CLASSES = 8142

PAPER: dict[str, Any] = {
    "arch": "resnet50", "weights": "imagenet", "batch_size": 512, "lr": 0.2, "momentum": 0.9,
    "lr_schedule": "cosine", "epochs": 230, "stage_two": 200, "lam": 10.0,
    "stage_two_layers": ["layer4", "fc"],
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "sgd": {**PAPER, "optimizer": "sgd"},
    "absgd": PAPER,
    "resnet152-sgd": {**PAPER, "arch": "resnet152", "optimizer": "sgd"},
    "resnet152-absgd": {**PAPER, "arch": "resnet152"},
    "smoke": {**PAPER, **image_recipe.SMOKE, "lr": 0.05},
}


PREFIX = "train_val2018/"  # what the names in the JSON files and in the lists begin with


def image_root(directory: Path) -> Path:
    """The folder that stands for PREFIX: of that name, or "2018", as torchvision calls it.

    Raises:
        FileNotFoundError: neither is there.
    """
    for name in (PREFIX, "2018"):
        if (directory / name).is_dir():
            return directory / name
    raise FileNotFoundError(f"{directory} holds neither {PREFIX} nor 2018/")


def read_competition(file: Path, root: Path) -> image_lists.Listed:
    """The images of the competition's JSON: "images" with id and file_name, "annotations" with
    image_id and category_id.

    Raises:
        FileNotFoundError: it names a file that is not there.
        ValueError: it is not such a file, or a category is not in 0 … 8141.
    """
    try:
        content = json.loads(file.read_text())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        labelled = [(names[a["image_id"]], a["category_id"]) for a in content["annotations"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not the competition's JSON: {error!r}") from error
    for name, category in labelled:
        if not 0 <= category < NUM_CLASSES:
            raise ValueError(
                f"{file}: category {category} of {name} is not in 0 to {NUM_CLASSES - 1}"
            )
    paths = [root / name.removeprefix(PREFIX) for name, _ in labelled]
    return image_lists.checked(paths, [c for _, c in labelled], NUM_CLASSES, file)


def read(args: argparse.Namespace, part: str) -> image_lists.Listed:
    """The images of one part: from the JSON if there is one, else from the list."""
    root, part = image_root(args.data_dir), {"train": "train", "test": "val"}[part]
    competition = args.lists_dir / f"{part}2018.json"
    published = args.lists_dir / f"iNaturalist18_{part}.txt"
    if competition.is_file():
        return read_competition(competition, root)
    if published.is_file():
        return image_lists.read_list(published, root, NUM_CLASSES, PREFIX)
    raise FileNotFoundError(
        f"{args.lists_dir} holds neither {competition.name} nor {published.name}: without them "
        "the images are not split"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = image_recipe.build_parser("inaturalist", __doc__, PRESETS)
    return image_recipe.parse(parser, PRESETS, argv)


def build(args: argparse.Namespace) -> tuple[nn.Module, engine.Task]:
    return image_recipe.build(args, lambda part: read(args, part))


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    return image_recipe.train(parse(argv), build)


if __name__ == "__main__":
    image_recipe.run(main)
