"""ABSGD and SGD on ImageNet-LT: 115.8 thousand images of 1,000 classes, 1,280 to 5 a class.

    python recipes/imagenet_lt.py --preset a-absgd --data-dir imagenet --output-dir runs/imagenet-a

--data-dir holds ImageNet's train/<wnid>/*.JPEG and val/<wnid>/*.JPEG; ImageNet_LT_train.txt and
ImageNet_LT_test.txt (Liu et al. 2019) are in it or in --lists-dir. The network is trained from
nothing.

Setting A: SGD for 60 epochs, then ABSGD for 30, on all layers.
Setting B (decoupled): SGD for 90 epochs on all layers, then ABSGD for 90 on the classifier alone,
lr beginning anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from torch import nn

import engine
import image_lists
import image_recipe

NUM_CLASSES = 1000

COMMON: dict[str, Any] = {"arch": "resnet50", "batch_size": 512, "lr": 0.2,
                          "lr_schedule": "cosine"}  # fmt: skip
A: dict[str, Any] = {**COMMON, "epochs": 90, "stage_two": 60, "lam": 1.0}
B: dict[str, Any] = {**COMMON, "epochs": 180, "stage_two": 90, "stage_two_layers": ["fc"],
                     "lam": 5.0}  # fmt: skip

LAMS = {"a": (0.1, 1.0, 10.0), "b": (1.0, 5.0, 10.0)}

PRESETS: dict[str, dict[str, Any]] = {
    "a-sgd": {**A, "optimizer": "sgd"},
    "a-absgd": A,
    "b-sgd": {**B, "optimizer": "sgd"},
    "b-absgd": B,
    "smoke": {**B, **image_recipe.SMOKE, "lr": 0.05},
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = image_recipe.build_parser("imagenet_lt", __doc__, PRESETS)
    return image_recipe.parse(parser, PRESETS, argv)


def build(args: argparse.Namespace) -> tuple[nn.Module, engine.Task]:
    def read(part: str) -> image_lists.Listed:
        file = args.lists_dir / f"ImageNet_LT_{part}.txt"
        return image_lists.read_list(file, args.data_dir, NUM_CLASSES)

    return image_recipe.build(args, read)


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    return image_recipe.train(parse(argv), build)


if __name__ == "__main__":
    image_recipe.run(main)
