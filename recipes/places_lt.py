"""ABSGD and SGD on Places-LT: 62.5 thousand images of 365 classes, 4,980 to 5 a class.

    python recipes/places_lt.py --preset b-absgd --data-dir places365_standard --lists-dir lists \
        --output-dir runs/places-b

--data-dir holds train/<class>/*.jpg and val/<class>/*.jpg of Places365-Standard ("easy directory
structure", 256 × 256); Places_LT_train.txt and Places_LT_test.txt (Liu et al. 2019) are in it or in
--lists-dir. The network begins with ImageNet weights: torchvision's, or --weights FILE.

Setting A: ABSGD for 30 epochs, on all layers.
Setting B: SGD for 90 epochs on the last block and the classifier, then ABSGD for 30 on the
classifier alone, lr beginning anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from torch import nn

import engine
import image_lists
import image_recipe

NUM_CLASSES = 365

COMMON: dict[str, Any] = {"arch": "resnet152", "weights": "imagenet", "batch_size": 512,
                          "lr": 0.01, "lr_schedule": "cosine"}  # fmt: skip
A: dict[str, Any] = {**COMMON, "epochs": 30, "stage_two": 0, "lam": 1.0}
B: dict[str, Any] = {**COMMON, "epochs": 120, "stage_two": 90, "layers": ["layer4", "fc"],
                     "stage_two_layers": ["fc"], "lam": 5.0}  # fmt: skip

LAMS = {"a": (0.1, 1.0, 10.0), "b": (1.0, 5.0, 10.0)}

PRESETS: dict[str, dict[str, Any]] = {
    "a-sgd": {**A, "optimizer": "sgd"},
    "a-absgd": A,
    "b-sgd": {**B, "optimizer": "sgd"},
    "b-absgd": B,
    "smoke": {**B, **image_recipe.SMOKE},
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = image_recipe.build_parser("places_lt", __doc__, PRESETS)
    return image_recipe.parse(parser, PRESETS, argv)


def build(args: argparse.Namespace) -> tuple[nn.Module, engine.Task]:
    def read(part: str) -> image_lists.Listed:
        file = args.lists_dir / f"Places_LT_{part}.txt"
        return image_lists.read_list(file, args.data_dir, NUM_CLASSES)

    return image_recipe.build(args, read)


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    return image_recipe.train(parse(argv), build)


if __name__ == "__main__":
    image_recipe.run(main)
