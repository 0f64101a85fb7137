"""Features of ResNet-32s after 160 epochs of SGD on CIFAR-10-LT, ρ = 100, for the studies.

    cd recipes; python -m studies.cifar_features --data … --stage-one … --out …

Of both networks that --stage-one holds, cifar10-lt-100-seed{0,1}/checkpoint.pt: the inputs of the
last layer, in float32 and without augmentation, for the long-tailed subset, for images that it left
out (cifar_cell.py), for 800 training images of each class, and for the test set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import models
import torch_absgd as ta
from data.memory import Images
from data.named import load_cifar
from data.subsets import choose
from engine import checkpoint
from studies.cifar_cell import features, left_out


def folded(model: models.CifarResNet) -> models.CifarResNet:
    """Batch norms folded into the convolutions before them."""
    for module in list(model.eval().modules()):
        for end in ("", "1", "2"):
            conv, bn = getattr(module, f"conv{end}", None), getattr(module, f"bn{end}", None)
            if conv is not None and bn is not None:
                setattr(module, f"conv{end}", fuse_conv_bn_eval(conv, bn))
                setattr(module, f"bn{end}", nn.Identity())
    return model.to(memory_format=torch.channels_last)


def parts(train: Images, test: Images, data: Path, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    subset = torch.tensor(ta.ImbalancedSubset(train, "lt", 100, seed).indices)
    some = choose(train.targets, [800] * 10, seed=0)
    return {
        "train": (train.images[subset], train.targets[subset]),
        "validation": left_out(data, seed),
        "some": (train.images[some], train.targets[some]),
        "test": (test.images, test.targets),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stage-one", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, test = (load_cifar(args.data, "cifar10", part) for part in (True, False))
    for seed in (0, 1):
        state = checkpoint.load(args.stage_one / f"cifar10-lt-100-seed{seed}" / "checkpoint.pt")
        model = models.build("resnet32", 10)
        model.load_state_dict(state["model"])
        model = folded(model)
        made = {"weight": state["model"]["fc.weight"], "bias": state["model"]["fc.bias"]}
        for name, (x, y) in parts(train, test, args.data, seed).items():
            if name == "some" and seed > 0:
                continue
            made[f"{name}_x"], made[f"{name}_y"] = features(model, x).half(), y
            logits = made[f"{name}_x"].float() @ made["weight"].T + made["bias"]
            print(f"seed {seed}, {name}: {(logits.argmax(1) == y).float().mean():.4f}", flush=True)
        torch.save(made, args.out / f"cifar10_features_seed{seed}.pt")


if __name__ == "__main__":
    main()
