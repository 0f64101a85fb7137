"""What the weights do, in Lightning's log: ``Trainer(callbacks=[LogStats()])``."""

from __future__ import annotations

from typing import Any

import lightning as L

import torch_absgd as ta


class LogStats(L.Callback):
    """Logs ``source.stats()`` as ``absgd/…`` every ``log_every_n_steps`` steps.

    Args:
        source: an `ABSGD` or an `AttentionalLoss`; the Trainer's first optimizer if None.
    """

    def __init__(self, source: ta.ABSGD | ta.AttentionalLoss | None = None) -> None:
        self.source = source
        self.logged = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        step = trainer.global_step  # the same for all micro-batches but the last
        if step != self.logged and step % trainer.log_every_n_steps == 0:
            self.logged = step
            source = self.source or trainer.optimizers[0]
            stats = {f"absgd/{name}": value for name, value in dict(source.stats()).items()}
            pl_module.log_dict(stats)
