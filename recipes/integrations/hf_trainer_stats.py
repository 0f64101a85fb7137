"""What the weights do, in the HF Trainer's log::

trainer.add_callback(LogStats(trainer, trainer.model.criterion))
"""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import torch_absgd as ta


class LogStats(TrainerCallback):
    """Logs ``source.stats()`` as ``absgd/…`` whenever the Trainer logs.

    By the Trainer's own ``log``, so that TensorBoard, wandb and ``log_history`` have them: what an
    ``on_log`` adds comes after those have written.
    """

    def __init__(self, trainer: Trainer, source: ta.ABSGD | ta.AttentionalLoss) -> None:
        self.trainer, self.source = trainer, source

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_log:
            stats = dict(self.source.stats())
            self.trainer.log({f"absgd/{name}": value for name, value in stats.items()})
            control.should_log = True  # which log() has cleared: the Trainer's own numbers follow
