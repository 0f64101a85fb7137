"""timm's ingredients: its model, its optimizer registry, its scheduler, Mixup and a loss for it.

python recipes/integrations/timm_digits.py --lam 2
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import digits
import timm
import torch
from timm.data import Mixup
from timm.optim import OptimInfo, create_optimizer_v2
from timm.optim._optim_factory import default_registry
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.utils.data import DataLoader

import torch_absgd as ta


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lam", type=float, default=2.0, help="inf: plain SGD")
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    training, test = digits.datasets()
    model = timm.create_model("test_efficientnet", in_chans=1, num_classes=digits.CLASSES)
    info = OptimInfo("absgd", ta.ABSGD, has_eps=False, has_momentum=True)
    default_registry.register(info)  # new: timm then knows --opt absgd
    optimizer = create_optimizer_v2(
        model, opt="absgd", lr=0.05, weight_decay=1e-4, momentum=0.9, lam=math.inf
    )  # changed
    scheduler = CosineLRScheduler(optimizer, args.epochs, warmup_t=2, warmup_lr_init=0.01)
    mixup = Mixup(mixup_alpha=0.1, num_classes=digits.CLASSES)
    criterion = nn.CrossEntropyLoss(reduction="none")  # changed; it takes Mixup's soft targets
    model.train()
    for epoch in range(args.epochs):
        if epoch == 2 * args.epochs // 3:
            optimizer.restart(lam=args.lam)  # new: stage two
        for x, y in DataLoader(training, batch_size=32, shuffle=True, drop_last=True):
            x, y = mixup(x, y)
            loss = optimizer.weigh(criterion(model(x), y))  # changed
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step(epoch + 1)
    model.eval()
    with torch.no_grad():
        return digits.report(model(test.tensors[0]).argmax(1), test.tensors[1])


if __name__ == "__main__":
    main()
