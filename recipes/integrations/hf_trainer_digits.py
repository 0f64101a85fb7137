"""transformers' Trainer and, through it, accelerate.

    python recipes/integrations/hf_trainer_digits.py --accumulate 2

The criterion is a part of the model, so λ and log_s are in the Trainer's checkpoints, and
evaluation, which calls ``model.eval()``, has the plain mean. Without gradient accumulation the
Trainer is as it was.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import digits
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

import torch_absgd as ta


class AttentionalTrainer(Trainer):
    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        k = self.current_gradient_accumulation_steps  # by which the Trainer divides the loss
        with self.model.criterion.accumulate(model.parameters(), divisor=k):  # new
            loss = super().training_step(model, *args, **kwargs)
        if self.accelerator.sync_gradients:
            self.model.criterion.finalize_grads_()  # new: before the Trainer clips
        return loss


def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    images, targets = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(targets)}


class Classifier(nn.Module):
    """As the models of transformers: inputs by name, and a ModelOutput with the loss."""

    def __init__(self, lam: float) -> None:
        super().__init__()
        self.model = digits.small_model()
        self.criterion = ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=lam)  # new

    def forward(self, pixel_values: Tensor, labels: Tensor) -> ImageClassifierOutput:
        logits = self.model(pixel_values)
        return ImageClassifierOutput(loss=self.criterion(logits, labels), logits=logits)


def build(directory: str, lam: float, epochs: int, accumulate: int, **arguments: Any) -> Trainer:
    training, test = digits.datasets()
    return AttentionalTrainer(
        model=Classifier(lam),
        args=TrainingArguments(
            directory,
            num_train_epochs=epochs,
            per_device_train_batch_size=32 // accumulate,
            gradient_accumulation_steps=accumulate,
            learning_rate=1e-2,
            lr_scheduler_type="cosine",
            max_grad_norm=1.0,
            report_to="none",
            disable_tqdm=True,
            **{"save_strategy": "no", "logging_strategy": "no", **arguments},
        ),
        data_collator=collate,
        train_dataset=training,
        eval_dataset=test,
    )


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lam", type=float, default=1.0, help="inf: plain cross-entropy")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        trainer = build(directory, args.lam, args.epochs, args.accumulate)
        trainer.train()
        output = trainer.predict(trainer.eval_dataset)
    predicted = torch.as_tensor(output.predictions).argmax(1)
    return digits.report(predicted, torch.as_tensor(output.label_ids))


if __name__ == "__main__":
    main()
