"""PyTorch Lightning: the recipe, its gradient accumulation, and its checkpoints."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import digits
import lightning as L
import lightning_digits
import lightning_stats
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own


def fit(micro_batch: int, epochs: int = 2, resume: Path | None = None, **arguments: Any):
    torch.manual_seed(0)
    module = lightning_digits.Digits(lam=1.0)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, gradient_clip_val=0.5,
        enable_progress_bar=False, enable_model_summary=False,
        **{"enable_checkpointing": False, "logger": False, **arguments},
    )  # fmt: skip
    training, _ = digits.datasets()
    trainer.fit(module, DataLoader(training, micro_batch), ckpt_path=resume)
    return trainer, module


def numbers(trainer: L.Trainer, module: L.LightningModule) -> list[Tensor]:
    return [*(p.detach() for p in module.parameters()), trainer.optimizers[0].log_s]


def test_the_recipe_learns() -> None:
    assert lightning_digits.main(["--epochs", "12", "--accumulate", "2"])["overall"] > 0.6


def test_lightning_s_micro_batches_are_the_large_batch() -> None:
    large, micro = fit(32), fit(8, accumulate_grad_batches=4)
    assert large[0].global_step == micro[0].global_step
    for ours, expected in zip(numbers(*micro), numbers(*large), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert micro[0].optimizers[0].weigher.accumulation is None


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    whole = fit(16, epochs=3, accumulate_grad_batches=2)
    first, _ = fit(16, epochs=1, accumulate_grad_batches=2, enable_checkpointing=True,
                   default_root_dir=tmp_path)  # fmt: skip
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = fit(16, epochs=3, accumulate_grad_batches=2, resume=tmp_path / "last.ckpt")
    assert all(map(torch.equal, numbers(*resumed), numbers(*whole)))


def test_the_stats_are_logged(tmp_path: Path) -> None:
    trainer, _ = fit(16, epochs=1, accumulate_grad_batches=2, logger=CSVLogger(tmp_path),
                     log_every_n_steps=3, callbacks=[lightning_stats.LogStats()])  # fmt: skip
    rows = list(csv.DictReader(next(tmp_path.rglob("metrics.csv")).open()))
    assert len(rows) == trainer.global_step // 3 > 0
    for i, row in enumerate(rows, 1):
        assert float(row["absgd/lam"]) == 1.0 and float(row["absgd/batches"]) == 3 * i
        assert 1 < float(row["absgd/effective_samples"]) < 32
