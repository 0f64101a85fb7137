"""ABSGD and SGD on COVID-LT: chest X-rays of four classes, the rarest of them COVID-19.

    python recipes/assemble_covid_lt.py --data-dir xrays
    python recipes/covid_lt.py --preset absgd --data-dir xrays --output-dir runs/covid

Other findings, normal, pneumonia, COVID-19: class i has n_i = n_0·ρ^(−i/3) training images, 378 the
last, and each has 100 test images; see assemble_covid_lt.py, which writes the two lists.

ResNet-50 with ImageNet weights, the last block and the classifier trained: SGD for 60 epochs, then
ABSGD for 30; lr ÷100 at epoch 30 and ÷10,000 at epoch 60.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from torch import nn

import engine
import image_lists
import image_recipe
from assemble_covid_lt import CLASSES

PAPER: dict[str, Any] = {
    "arch": "resnet50", "weights": "imagenet", "layers": ["layer4", "fc"], "batch_size": 256,
    "epochs": 90, "stage_two": 60, "lr": 0.1, "lr_schedule": "step", "lr_milestones": [30, 60],
    "lr_factor": 0.01, "lam": 5.0,
}  # fmt: skip

LAMS = (1.0, 5.0, 10.0)

PRESETS: dict[str, dict[str, Any]] = {
    "sgd": {**PAPER, "optimizer": "sgd"},
    "absgd": PAPER,
    "smoke": {**PAPER, **image_recipe.SMOKE, "layers": None},
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = image_recipe.build_parser("covid_lt", __doc__, PRESETS)
    return image_recipe.parse(parser, PRESETS, argv)


def build(args: argparse.Namespace) -> tuple[nn.Module, engine.Task]:
    def read(part: str) -> image_lists.Listed:
        file = args.lists_dir / f"COVID_LT_{part}.txt"
        return image_lists.read_list(file, args.data_dir, len(CLASSES))

    return image_recipe.build(args, read, CLASSES)


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    return image_recipe.train(parse(argv), build)


if __name__ == "__main__":
    image_recipe.run(main)
