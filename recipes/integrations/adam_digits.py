"""A plain loop with Adam: the criterion is what changes.

python recipes/integrations/adam_digits.py --lam 1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import digits
import torch
from torch import nn
from torch.utils.data import DataLoader

import torch_absgd as ta


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lam", type=float, default=1.0, help="inf: plain cross-entropy")
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    training, test = digits.datasets()
    model = digits.small_model()
    criterion = ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=args.lam)  # changed
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(args.epochs):
        for x, y in DataLoader(training, batch_size=32, shuffle=True):
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        return digits.report(model(test.tensors[0]).argmax(1), test.tensors[1])


if __name__ == "__main__":
    main()
