"""transformers' Trainer and accelerate: the recipe, gradient accumulation, and checkpoints."""

from __future__ import annotations

from pathlib import Path

import digits
import hf_trainer_digits
import hf_trainer_stats
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import torch_absgd as ta

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


def train(directory: Path, accumulate: int, resume: str | None = None, **arguments: object):
    torch.manual_seed(0)
    trainer = hf_trainer_digits.build(str(directory), 1.0, 2, accumulate, use_cpu=True, **arguments)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def numbers(model: nn.Module) -> list[Tensor]:
    return [*(p.detach() for p in model.parameters()), model.criterion.log_s]


def test_the_recipe_learns() -> None:
    assert hf_trainer_digits.main(["--epochs", "12"])["overall"] > 0.6


def test_the_trainer_s_micro_batches_are_the_large_batch(tmp_path: Path) -> None:
    large, micro = train(tmp_path, 1, optim="sgd"), train(tmp_path, 4, optim="sgd")
    assert large.state.global_step == micro.state.global_step
    for ours, expected in zip(numbers(micro.model), numbers(large.model), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path, 2, save_strategy="epoch")
    steps = whole.state.global_step // 2
    resumed = train(tmp_path, 2, resume=str(tmp_path / f"checkpoint-{steps}"))
    assert resumed.state.global_step == 2 * steps
    assert all(map(torch.equal, numbers(resumed.model), numbers(whole.model)))


def test_evaluation_is_the_plain_mean(tmp_path: Path) -> None:
    trainer = train(tmp_path, 1)
    log_s = trainer.model.criterion.log_s.clone()
    loss = trainer.evaluate()["eval_loss"]
    images, targets = trainer.eval_dataset.tensors
    with torch.no_grad():
        expected = F.cross_entropy(trainer.model(images, targets).logits, targets)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert torch.equal(trainer.model.criterion.log_s, log_s)


def test_the_stats_are_logged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = hf_trainer_digits.build(
        str(tmp_path), 1.0, 1, 2, use_cpu=True, logging_strategy="steps", logging_steps=3
    )
    trainer.add_callback(hf_trainer_stats.LogStats(trainer, trainer.model.criterion))
    trainer.train()
    logged = [row for row in trainer.state.log_history if "absgd/lam" in row]
    steps = list(range(3, trainer.state.global_step + 1, 3))
    assert [row["step"] for row in logged] == steps
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == steps
    for row in logged:
        assert row["absgd/lam"] == 1.0 and row["absgd/batches"] == row["step"]
        assert 1 < row["absgd/effective_samples"] < 32 and row["absgd/max_weight"] > 1


def accelerated(k: int) -> list[Tensor]:
    """accelerate's own loop, whose ``backward`` divides by k, with ABSGD."""
    torch.manual_seed(0)
    model = digits.small_model()
    accelerator = Accelerator(gradient_accumulation_steps=k, cpu=True)
    model, opt, loader = accelerator.prepare(
        model,
        ta.ABSGD(model.parameters(), lr=0.05, momentum=0.9, lam=1.0),
        DataLoader(digits.datasets()[0], 32 // k, drop_last=True),
    )
    absgd = opt.optimizer
    for _, (x, y) in zip(range(8 * k), loader, strict=False):
        with accelerator.accumulate(model), absgd.accumulate(divisor=k):
            loss = absgd.weigh(F.cross_entropy(model(x), y, reduction="none"))
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                absgd.finalize_grads_()
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            opt.step()
            opt.zero_grad()
    return [*(p.detach() for p in model.parameters()), absgd.log_s]


def test_accelerate_s_micro_batches_are_the_large_batch() -> None:
    for ours, expected in zip(accelerated(4), accelerated(1), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
