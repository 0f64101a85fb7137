"""Features of a ResNet-32 after 160 epochs of SGD on CIFAR-10-LT, ρ = 100, for the studies.

    cd recipes; python -m studies.cifar_features --data … --stage-one … --out …

Of both networks that --stage-one holds, cifar10-lt-100-seed{0,1}/checkpoint.pt: the inputs of the
last layer for all images, without augmentation, and which of them the long-tailed subset holds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import models
import torch_absgd as ta
from data.named import load_cifar
from engine import checkpoint
from studies.cifar_cell import features


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
        model = models.build("resnet32", 10).to(memory_format=torch.channels_last)
        model.load_state_dict(state["model"])
        made = {
            "x": features(model, train.images).half(),
            "y": train.targets,
            "subset": torch.tensor(ta.ImbalancedSubset(train, "lt", 100, seed).indices),
            "test_x": features(model, test.images).half(),
            "test_y": test.targets,
            "weight": state["model"]["fc.weight"],
            "bias": state["model"]["fc.bias"],
        }
        logits = made["test_x"].float() @ made["weight"].T + made["bias"]
        print(f"seed {seed}: test {(logits.argmax(1) == test.targets).float().mean():.4f}")
        torch.save(made, args.out / f"cifar10_features_seed{seed}.pt")


if __name__ == "__main__":
    main()
