"""Features of a ResNet-32 after 160 epochs of SGD on CIFAR-10-LT, ρ = 100, for the suite.

    cd recipes; python -m studies.cifar_features --data … --stage-one …/checkpoint.pt \\
        --out …/cifar10_features.pt

The subset's images (no augmentation), 300 test images of each class, and as many training images
that the subset left out, to choose settings on; class 0 has none left over.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from tqdm import tqdm

import models
import torch_absgd as ta

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@torch.no_grad()
def features(
    model: models.CifarResNet, images: ImageFolder, index: Tensor
) -> tuple[Tensor, Tensor]:
    made, targets = [], torch.tensor(images.targets)[index]
    for part in tqdm(index.split(250)):
        batch = torch.stack([images[i][0] for i in part.tolist()])
        made.append(model.features(batch.to(memory_format=torch.channels_last)).half())
    return torch.cat(made), targets


def some_of_each(targets: Tensor, left_out: Tensor, each: int = 300) -> Tensor:
    """Indices of ``each`` images of every class, none of ``left_out``."""
    rest = torch.ones(len(targets), dtype=torch.bool)
    rest[left_out] = False
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    order = order[rest[order]]
    return torch.cat([order[targets[order] == c][:each] for c in range(10)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stage-one", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    to_tensor = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    train, test = (ImageFolder(args.data / "cifar10" / p, to_tensor) for p in ("train", "test"))
    state = torch.load(args.stage_one, map_location="cpu", weights_only=True)
    model = models.build("resnet32", 10).eval().to(memory_format=torch.channels_last)
    model.load_state_dict(state["model"])
    targets = torch.tensor(train.targets)
    chosen = torch.tensor(ta.ImbalancedSubset(train, "lt", 100, args.seed).indices)
    out: dict[str, Tensor] = {
        "weight": state["model"]["fc.weight"],
        "bias": state["model"]["fc.bias"],
    }
    for name, images, index in (
        ("", train, chosen),
        ("validation_", train, some_of_each(targets, chosen)),
        ("test_", test, some_of_each(torch.tensor(test.targets), torch.tensor([]).long())),
    ):
        out[f"{name}x"], out[f"{name}y"] = features(model, images, index)
        logits = out[f"{name}x"].float() @ out["weight"].T + out["bias"]
        print(name or "train", (logits.argmax(1) == out[f"{name}y"]).float().mean())
    torch.save(out, args.out)


if __name__ == "__main__":
    main()
