"""PyTorch Lightning, with gradient accumulation and clipping by its Trainer.

    python recipes/integrations/lightning_digits.py --accumulate 2

λ and log_s are the optimizer's, so Lightning's checkpoints hold them. With precision="16-mixed"
Lightning refuses to clip for an optimizer that unscales by itself, as ABSGD does; "bf16-mixed"
clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import digits
import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import torch_absgd as ta


class Digits(L.LightningModule):
    def __init__(self, lam: float) -> None:
        super().__init__()
        self.lam = lam
        self.model = digits.small_model()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        opt = self.optimizers().optimizer
        with opt.accumulate(divisor=self.trainer.accumulate_grad_batches):  # changed
            return opt.weigh(F.cross_entropy(self.model(x), y, reduction="none"))  # changed

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.finalize_grads_()  # new: before Lightning clips

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return ta.ABSGD(self.parameters(), lr=0.05, momentum=0.9, lam=self.lam)  # changed

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.model(batch[0]).argmax(1)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lam", type=float, default=1.0, help="inf: plain SGD")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    args = parser.parse_args(argv)
    L.seed_everything(0)
    training, test = digits.datasets()
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=args.epochs,
        accumulate_grad_batches=args.accumulate,
        gradient_clip_val=5.0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    module = Digits(args.lam)
    batch_size = 32 // args.accumulate
    trainer.fit(module, DataLoader(training, batch_size=batch_size, shuffle=True))
    predicted = trainer.predict(module, DataLoader(test, batch_size=256))
    return digits.report(torch.cat(predicted), test.tensors[1])


if __name__ == "__main__":
    main()
