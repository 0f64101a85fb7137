"""What the recipes on listed images share: options, networks, and how they meet the engine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader

import data
import engine
import image_lists
import options
import torch_absgd as ta
from image_lists import Listed

ARCHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
         "resnext50_32x4d", "resnext101_32x8d")  # fmt: skip

Build = Callable[[argparse.Namespace], tuple[nn.Module, engine.Task]]

# A network and images so small that two cores train both stages in minutes.
SMOKE: dict[str, Any] = {
    "arch": "resnet18", "weights": "none", "image_size": 32, "batch_size": 32, "limit": 20,
    "epochs": 2, "stage_two": 1, "lr_schedule": "cosine", "warmup_epochs": 0,
}  # fmt: skip


def build_parser(
    recipe: str, description: str, presets: dict[str, dict[str, Any]]
) -> argparse.ArgumentParser:
    """``recipe``: the name of its module, which checkpoints keep for evaluate.py."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("--preset", choices=presets, metavar="NAME",
                        help=f"{', '.join(presets)}: the paper's settings; options given beside "
                        "it win")
    images = parser.add_argument_group("data")
    images.add_argument("--data-dir", type=Path, default=Path("data"),
                        help="the folder that the lists' paths begin in")
    images.add_argument("--lists-dir", type=Path, help="where the list files are, if elsewhere")
    images.add_argument("--limit", type=int, metavar="N",
                        help="at most N images of each class and split, for a quick trial")
    images.add_argument("--image-size", type=int, default=224)
    images.add_argument("--decode", choices=image_lists.DECODERS,
                        default="torchvision" if image_lists.HAS_FAST_DECODER else "pil",
                        help="torchvision: its own JPEG decoder, the default where it is built in")
    net = parser.add_argument_group("network")
    net.add_argument("--arch", choices=ARCHS, default="resnet50")
    net.add_argument("--weights", default="none", metavar="none|imagenet|FILE",
                     help="begin from nothing, from torchvision's ImageNet weights (fetched at "
                     "first use), or from a file with a state_dict; the last layer begins anew")
    # fmt: on
    options.add_training_options(parser)
    parser.set_defaults(recipe=recipe, lr_schedule="cosine", warmup_epochs=0, weight_decay=5e-4)
    return parser


def parse(
    parser: argparse.ArgumentParser,
    presets: dict[str, dict[str, Any]],
    argv: Sequence[str] | None,
) -> argparse.Namespace:
    preset = parser.parse_known_args(argv)[0].preset
    if preset:
        parser.set_defaults(**presets[preset])
    args = parser.parse_args(argv)
    options.check(parser, args)
    if args.weights not in ("none", "imagenet") and not Path(args.weights).is_file():
        parser.error(f"--weights: neither none nor imagenet nor a file: {args.weights}")
    args.lists_dir = args.lists_dir or args.data_dir
    return args


def build_network(arch: str, num_classes: int, weights: str, normed: bool) -> nn.Module:
    """torchvision's ResNet with a last layer for ``num_classes``; ``features`` gives its inputs.

    Raises:
        ValueError: the file of weights does not fit the network.
    """
    if weights == "imagenet":
        network = torchvision.models.get_model(arch, weights="IMAGENET1K_V1")
    else:
        network = torchvision.models.get_model(arch, weights=None)
    width = network.fc.in_features
    network.fc = (ta.NormedLinear if normed else nn.Linear)(width, num_classes)
    if weights not in ("none", "imagenet"):
        load_weights(network, weights)
    body = nn.Sequential(*list(network.children())[:-1])
    network.features = lambda images: body(images).flatten(1)
    return network


def load_weights(network: nn.Module, file: str) -> None:
    """A state_dict, itself or under "state_dict" or "model", with or without DDP's "module."; all
    of it must fit but the last layer, which is left out."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    for name in ("state_dict", "model"):
        state = state.get(name, state)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    expected = {key: value for key, value in network.state_dict().items() if key[:3] != "fc."}
    wrong = {
        key
        for key in expected.keys() | state.keys()
        if key not in expected or key not in state or expected[key].shape != state[key].shape
    }
    if wrong:
        raise ValueError(f"--weights {file} is of another network: {', '.join(sorted(wrong)[:5])}")
    network.load_state_dict(state, strict=False)


def limited(images: Listed, limit: int | None) -> Listed:
    if not limit:
        return images
    counts = [min(limit, n) for n in images.class_counts()]
    return images.subset(data.choose(images.targets, counts, seed=0))


def build(
    args: argparse.Namespace, read: Callable[[str], Listed], classes: Sequence[str] | None = None
) -> tuple[nn.Module, engine.Task]:
    """``read``: "train" or "test" to the images of the list; "test" is asked for when its turn
    comes. classes: their names, if they have any."""
    train, validation = limited(read("train"), args.limit), None
    if args.validate:
        train, validation = data.hold_out(train, args.validate, args.seed)
    on_cuda = torch.device(args.device).type == "cuda"

    def split(name: str) -> DataLoader:
        images = validation if name == "validation" else limited(read("test"), args.limit)
        return DataLoader(
            image_lists.Evaluation(images, args.image_size, args.decode),
            batch_size=args.batch_size,
            num_workers=args.workers,
            pin_memory=on_cuda,
        )

    loader, batches = data.training_loader(
        image_lists.Training(train, args.image_size, args.decode, args.seed),
        args.batch_size,
        args.seed,
        args.workers,
        pin_memory=on_cuda,
    )
    network = build_network(args.arch, train.num_classes, args.weights, args.loss == "ldam")
    task = engine.Task(
        loader, batches, train.class_counts(), split, image_lists.normalised, classes
    )
    return network, task


def train(args: argparse.Namespace, build: Build) -> dict[str, Any] | None:
    torch.manual_seed(args.seed)
    network, task = build(args)
    counts = task.class_counts
    print(
        f"{args.recipe}: {sum(counts)} training images of {len(counts)} classes, per class "
        f"{max(counts)} to {min(counts)}; {args.arch}"
    )
    return engine.fit(args, network, task)


def run(main: Callable[[], Any]) -> None:
    """``main``, with what a user can set right told in one line."""
    try:
        main()
    except (OSError, ValueError) as error:
        # An error in a loader's process arrives with that process's traceback before its message.
        sys.exit(f"error: {str(error).strip().splitlines()[-1]}")
